"""What `digits.py --quick` claims, in a process of its own: figures, not only files."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "digits.py"


@pytest.mark.slow
def test_secure_is_as_good_as_plain_and_a_broken_key_destroys_it(tmp_path):
    done = subprocess.run(
        [sys.executable, SCRIPT, "--quick", "--json", "--out", tmp_path],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["accuracy_secure"] > 0.93
    assert abs(found["accuracy_secure"] - found["accuracy_plain"]) <= 0.01
    assert found["accuracy_broken_key"] <= 0.2
    assert 0 < found["max_abs_difference"] <= found["step"]
    assert found["parameters"] >= 10**5
    assert (tmp_path / "digits.png").stat().st_size > 10_000
