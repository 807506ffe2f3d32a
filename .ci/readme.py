"""What CI takes out of the README and pyproject.toml, so that they cannot drift from the code."""

import pathlib
import re
import sys
import tomllib

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def commands() -> list[str]:
    """The lines of the README that a new user is told to run."""
    return re.findall(r"^python -m pip install -e .*&& .*$", README, re.MULTILINE)


def snippet() -> str:
    """The first Python block of the README."""
    return re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1)


def oldest_jax() -> str:
    """The floor of jax in pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (floor,) = [d for d in project["dependencies"] if d.startswith("jax>=")]
    return floor.removeprefix("jax>=")


def check() -> None:
    """The snippet must be examples/readme.py to the letter."""
    example = (ROOT / "examples" / "readme.py").read_text()
    if snippet() != example:
        sys.exit("the first Python block of README.md differs from examples/readme.py")


if __name__ == "__main__":
    actions = {
        "commands": lambda: print("\n".join(commands())),
        "oldest-jax": lambda: print(oldest_jax()),
        "check": check,
    }
    actions[sys.argv[1]]()
