"""Rounding to the nearest grid point: at most half a step off, and biased."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# Plus a number of magnitude below 2^22 this lies in [2^23, 2^24), where float32 has steps of one.
_SHIFT = np.float32(1.5 * 2**23)


def nearest(units: jax.Array, bound: int = 2**23 - 1) -> jax.Array:
    """The nearest integers, halves to even.

    Args:
        units: float32[D] with |units| < 2^23.
        bound: what no magnitude exceeds; below 2^22 one addition does the rounding, and XLA need
            not guard a conversion against numbers that no integer holds. The result is the same.

    Returns:
        int32[D], at most 1/2 away. The error of a coordinate is the same for every client that
        holds the same value, so it does not average out.

    Example:
        >>> import jax.numpy as jnp
        >>> nearest(jnp.array([0.4, 0.5, 1.5, -2.6]))
        Array([ 0,  0,  2, -3], dtype=int32)
    """
    if bound < 2**22:
        return lax.bitcast_convert_type(units + _SHIFT, jnp.int32) - _SHIFT.view(np.int32)
    return jnp.round(units).astype(jnp.int32)
