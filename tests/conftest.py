"""Strict modes for every test, and eight fake devices to shard over."""

import hypothesis
import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

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
