"""Strict modes for every test, and eight fake devices to shard over."""

import collections
import gc
import os
import shutil
import tempfile
from pathlib import Path

import hypothesis
import jax
import pytest

from tests.compiler import QUICK_COMPILER

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Many tests run the same round, on several workers: they compile it once.
IS_WORKER = "PYTEST_XDIST_WORKER" in os.environ
RUN = os.getppid() if IS_WORKER else os.getpid()
COMPILED = Path(tempfile.gettempdir()) / f"fedjax_agg-{RUN}"
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    jax.config.update("jax_compilation_cache_dir", str(COMPILED))

# The tests compile thousands of small programs and run each a few times: without optimisation
# that takes half as long, and results are bit-identical by the first law. Whoever sets XLA_FLAGS,
# if only to nothing, tests what the compiler makes of them.
if "XLA_FLAGS" not in os.environ:
    os.environ["XLA_FLAGS"] = QUICK_COMPILER
    # The flags are read now. Processes that a test starts, such as examples, compile as always.
    jax.jit(lambda x: x + 1)(0)
    del os.environ["XLA_FLAGS"]


def pytest_unconfigure(config):
    """The compiled programs go with the run that made them."""
    if not IS_WORKER:
        shutil.rmtree(COMPILED, ignore_errors=True)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Of a test with the mark ``quick_cases(k)`` the first k cases are quick, the others slow."""
    seen = collections.Counter()
    for item in items:
        mark = item.get_closest_marker("quick_cases")
        if mark is not None:
            seen[item.function] += 1
            if seen[item.function] > mark.args[0]:
                item.add_marker(pytest.mark.slow)


# The same examples in every run, so that a red test is a change and not a draw.
hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None)
hypothesis.settings.load_profile("fixed")


@pytest.fixture(params=["eager", "jit"])
def jit_or_not(request):
    """The function as it is, and compiled."""
    return jax.jit if request.param == "jit" else lambda function: function


# Linux lets a process map 65,530 regions of memory; every compiled program takes some.
MAPS, MANY_MAPS = Path("/proc/self/maps"), 30_000


@pytest.fixture(scope="module", autouse=True)
def _forget_programs():
    """What earlier files have compiled goes before there is too much of it."""
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > MANY_MAPS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(autouse=True)
def _default_dtypes(request):
    """A few tests compute their expectation in JAX's default types, or print them."""
    if request.node.get_closest_marker("default_dtypes") and jax.config.jax_enable_x64:
        pytest.skip("reads the default types, which JAX_ENABLE_X64 changes")
