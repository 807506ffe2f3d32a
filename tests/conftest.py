"""Strict modes for every test, and eight fake devices to shard over."""

import os
import shutil
import tempfile
from pathlib import Path

import hypothesis
import jax
import pytest

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


def pytest_unconfigure(config):
    """The compiled programs go with the run that made them."""
    if not IS_WORKER:
        shutil.rmtree(COMPILED, ignore_errors=True)


# The same examples in every run, so that a red test is a change and not a draw.
hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None)
hypothesis.settings.load_profile("fixed")


@pytest.fixture(params=["eager", "jit"])
def jit_or_not(request):
    """The function as it is, and compiled."""
    return jax.jit if request.param == "jit" else lambda function: function


@pytest.fixture(autouse=True)
def _default_dtypes(request):
    """A few tests compute their expectation in JAX's default types, or print them."""
    if request.node.get_closest_marker("default_dtypes") and jax.config.jax_enable_x64:
        pytest.skip("reads the default types, which JAX_ENABLE_X64 changes")
