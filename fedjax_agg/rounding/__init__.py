"""float -> integer: the one non-smooth step of a round, after all codecs.

Each rule takes float32[D] in grid units, |y| < 2^23, and gives int32[D].
"""

from typing import Any

import jax

from fedjax_agg.rounding.nearest import nearest as nearest
from fedjax_agg.rounding.stochastic import stochastic as stochastic

MODES = ("stochastic", "nearest")
# Above 2^23 a float32 has no fraction left to round.
MAX_UNITS = 2**23 - 1


def round_to_grid(
    mode: str, units: jax.Array, key: Any, bound: int = MAX_UNITS, start: jax.Array | int = 0
) -> jax.Array:
    """Rounds float32[D] to int32[D] by the rule that a codec names.

    Args:
        mode: "stochastic" or "nearest".
        units: float32[D] with |units| < 2^23.
        key: uint32[8], the client's rounding key of this round; None for "nearest".
        bound: what no magnitude exceeds, static; only speed depends on it.
        start: the first of these coordinates in the client's whole vector.

    Returns:
        int32[D].

    Example:
        >>> import jax.numpy as jnp
        >>> round_to_grid("nearest", jnp.array([0.6, -0.6]), None)
        Array([ 1, -1], dtype=int32)
    """
    return stochastic(units, key, start) if mode == "stochastic" else nearest(units, bound)
