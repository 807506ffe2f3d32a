"""The law of arrows: which room may import which, and what of the world outside."""

import ast
import statistics
import sys
from pathlib import Path

import pytest

import fedjax_agg

PACKAGE = Path(fedjax_agg.__file__).parent
# From the bottom up. A room imports only itself and rooms of strictly lower levels.
LEVELS = (
    ("_remedies",),
    ("_check", "_xla"),
    ("arithmetic",),
    ("symmetric",),
    ("sharing",),
    ("structure",),
    ("session", "wire"),
    ("participation", "group_key"),
    ("codecs", "rounding", "protocols"),
    ("budget", "diagnostics", "mesh"),
    ("_stages", "_group_mask", "_plan_text"),
    ("_core",),
    ("secure_round",),
    ("secure_aggregate", "blind_round", "plan", "streaming"),
    ("costs", "__main__", "federated", "interop", "host"),
    ("__init__",),
    ("testing",),
)
# Arrows within one level: a codec names its rounding, so it knows the names of the modes.
SAME_LEVEL = {("codecs", "rounding")}
OUTSIDE = {"jax", "optax", "numpy"}
# What only one room may import: the library that it speaks to, from an extra.
OUTSIDE_OF_ROOM = {"interop": {"drjax"}, "host": {"cryptography"}}
NOT_PUBLIC = ("jax.core", "jax.interpreters", "jax.extend", "jax.experimental")

# Kernels for GPUs are written in Pallas, which has no public name yet; in one file of their own.
EXPERIMENTAL = {"symmetric/chacha20_gpu.py": "jax.experimental.pallas"}

LEVEL_OF = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
FILES = sorted(PACKAGE.rglob("*.py"))
IDS = [str(path.relative_to(PACKAGE)) for path in FILES]


def room_of(path):
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imported(source):
    """Every dotted name that an import statement of the source names, at any depth."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield from (f"{base}.{alias.name}" for alias in node.names)


def arrow_violations(source, room):
    """What breaks the law of arrows in a file of ``room``."""
    if room not in LEVEL_OF:
        return [f"the room {room} has no row in LEVELS"]
    found = []
    for name in imported(source):
        if name.startswith("."):
            found.append(f"relative import {name}")
            continue
        package, *rest = name.split(".")
        if package != "fedjax_agg":
            continue
        target = rest[0] if rest else "__init__"
        if target == room or (room, target) in SAME_LEVEL:
            continue
        if target not in LEVEL_OF:
            found.append(f"{name} is in no room of LEVELS")
        elif LEVEL_OF[target] >= LEVEL_OF[room]:
            found.append(f"arrow up: {room} imports {target}")
    return found


def kit_violations(source):
    """Imports of the conformance kit, which is for users."""
    names = [name.split(".") for name in imported(source)]
    return [".".join(name) for name in names if name[0] == "fedjax_agg" and "testing" in name[1:2]]


def outside_violations(source, room="session"):
    """Imports that are neither the package, nor its dependencies, nor the standard library."""
    found = []
    allowed = OUTSIDE | OUTSIDE_OF_ROOM.get(room, set()) | {"fedjax_agg"}
    for name in imported(source):
        root = name.split(".")[0]
        if root and root not in allowed | sys.stdlib_module_names:
            found.append(name)
    calls = [node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    dynamic = [ast.unparse(call) for call in calls]
    return found + [
        name for name in dynamic if name.split(".")[-1] in ("import_module", "__import__")
    ]


def private_violations(source):
    """Names of jax, optax or numpy that are not public, imported or reached as an attribute."""
    tree = ast.parse(source)
    names = set(imported(source))
    aliases = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                root = alias.name.split(".")[0]
                aliases[alias.asname or root] = alias.name if alias.asname else root
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                aliases[alias.asname or alias.name] = f"{node.module}.{alias.name}"

    def dotted(node):
        if isinstance(node, ast.Name):
            return aliases.get(node.id)
        if isinstance(node, ast.Attribute):
            base = dotted(node.value)
            return base and f"{base}.{node.attr}"
        return None

    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            names.add(dotted(node) or "")
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr":
            names.add(f"{dotted(node.args[0])}.{getattr(node.args[1], 'value', '')}")
    return sorted(name for name in names if not public(name))


def public(name):
    root, *rest = name.split(".")
    if root not in OUTSIDE:
        return True
    inside_private = any(part.startswith("_") and not part.startswith("__") for part in rest)
    return not inside_private and not any(
        name == closed or name.startswith(f"{closed}.") for closed in NOT_PUBLIC
    )


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_arrows_point_down(path):
    assert arrow_violations(path.read_text(), room_of(path)) == []


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_nothing_imports_the_conformance_kit(path):
    if room_of(path) != "testing":
        assert kit_violations(path.read_text()) == []


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_run_time_imports_are_the_declared_dependencies(path):
    assert outside_violations(path.read_text(), room_of(path)) == []


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_only_public_names_of_the_dependencies(path):
    allowed = EXPERIMENTAL.get(str(path.relative_to(PACKAGE)), "nothing")
    found = private_violations(path.read_text())
    assert [name for name in found if not name.startswith(allowed)] == []


def test_every_room_has_a_row_and_every_row_a_room():
    assert {room_of(path) for path in FILES} == set(LEVEL_OF)


def test_files_are_short():
    lengths = {name: len(path.read_text().splitlines()) for name, path in zip(IDS, FILES)}
    assert {name: length for name, length in lengths.items() if length > 350} == {}
    assert 20 <= statistics.median(lengths.values()) <= 300


@pytest.mark.parametrize(
    ("room", "source", "violation"),
    [
        ("codecs", "from fedjax_agg import secure_round", "arrow up"),
        ("codecs", "from fedjax_agg.protocols.plain import Plain", "arrow up"),
        ("rounding", "import fedjax_agg.codecs", "arrow up"),
        ("wire", "def f():\n    from fedjax_agg.session import Session", "arrow up"),
        ("sharing", "from fedjax_agg.session import MAX_CLIENTS", "arrow up"),
        ("participation", "from fedjax_agg.protocols import Plain", "arrow up"),
        ("session", "import fedjax_agg", "arrow up"),
        ("session", "from fedjax_agg import fixed_seed", "in no room"),
        ("session", "from fedjax_agg.attic import dust", "in no room"),
        ("session", "from . import structure", "relative"),
        ("session", "from .structure import Structure", "relative"),
        ("attic", "import jax", "no row"),
    ],
)
def test_control_of_the_arrows(room, source, violation):
    (found,) = arrow_violations(source, room)
    assert violation in found


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("codecs", "from fedjax_agg import _check, rounding"),
        ("codecs", "from fedjax_agg.codecs.codec import Codec"),
        ("secure_round", "import fedjax_agg.protocols.plain\nimport jax"),
        ("__init__", "from fedjax_agg.plan import plan_round"),
    ],
)
def test_control_that_downward_arrows_pass(room, source):
    assert arrow_violations(source, room) == []


@pytest.mark.parametrize(
    "source",
    [
        "import fedjax_agg.testing",
        "from fedjax_agg import testing",
        "from fedjax_agg.testing import check_codec",
    ],
)
def test_control_of_the_conformance_kit(source):
    assert len(kit_violations(source)) == 1
    assert kit_violations(source.replace("testing", "plan")) == []


@pytest.mark.parametrize(
    "source",
    [
        "import chex",
        "from flax import nnx",
        "def f():\n    import scipy.stats",
        "import importlib\nimportlib.import_module('chex')",
        "__import__('chex')",
    ],
)
def test_control_of_the_dependencies(source):
    assert len(outside_violations(source)) == 1
    assert len(outside_violations(source, "interop")) == 1
    clean = "import jax.numpy as jnp\nfrom optax import contrib\nimport math, numpy\njnp.sum(1)"
    assert outside_violations(clean) == []


def test_control_of_what_one_room_may_import():
    source = "import drjax"
    assert outside_violations(source, "interop") == []
    assert len(outside_violations(source, "federated")) == 1


@pytest.mark.parametrize(
    "source",
    [
        "import jax._src.core",
        "import jax.core",
        "import jax.experimental.pallas as pl",
        "from jax import core",
        "from jax import experimental as e",
        "from jax._src import api",
        "from jax.extend import core",
        "from jax.interpreters import ad",
        "from jax.experimental.shard_map import shard_map",
        "import jax\njax.experimental.io_callback(f, x)",
        "import jax\njax.core.Tracer",
        "import jax as j\nj.interpreters.ad",
        "import jax.numpy as jnp\njnp._where",
        "from jax import numpy as jnp\nx = jnp._where",
        "import jax\ngetattr(jax, '_src')",
        "import jax\ngetattr(jax, 'extend')",
        "from optax._src import base",
        "import numpy as np\nnp._core",
    ],
)
def test_control_of_private_names(source):
    assert private_violations(source) != []


def test_control_that_public_names_pass():
    clean = """
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from optax.contrib import DifferentiallyPrivateAggregateState
jax.lax.fori_loop(0, 1, f, x)
jax.errors.TracerArrayConversionError
jax.tree_util.register_static
jax.custom_batching.custom_vmap
jnp.linalg.norm(x).experimental
x.core._private
jax.__version__
"""
    assert private_violations(clean) == []
