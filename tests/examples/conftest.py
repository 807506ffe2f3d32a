"""The examples are scripts: their folder is where they import one another from."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
