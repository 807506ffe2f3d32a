"""Stochastic rounding: up with the probability of the fraction, by comparing integers.

The draws need uniformity and independence, not secrecy: a rounded word leaves its client only
under a mask. They come from Threefry-2x32 with 13 rounds, the smallest number that passes every
test of BigCrush (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11, table 2),
because it fuses with the encoder on every platform and, unlike ``jax.random``, its bits do not
depend on the version of JAX.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)
_PARITY = 0x1BD11BDA
_ROUNDS = 13


def threefry2x32(
    key: tuple[jax.Array, jax.Array], counter: tuple[jax.Array, jax.Array], rounds: int = _ROUNDS
) -> tuple[jax.Array, jax.Array]:
    """The Threefry-2x32 bijection of a counter (Salmon et al., SC'11, section 4.2).

    Args:
        key: two uint32 arrays.
        counter: two uint32 arrays of one common shape that broadcasts with the key.
        rounds: 13 here, 20 in the published default.

    Returns:
        Two uint32 arrays of that shape.

    Example:
        >>> import jax.numpy as jnp
        >>> zero = jnp.zeros((), jnp.uint32)
        >>> [hex(int(word)) for word in threefry2x32((zero, zero), (zero, zero))]
        ['0x9d1c5ec6', '0x8bd50731']
    """
    schedule = (*key, key[0] ^ key[1] ^ np.uint32(_PARITY))
    x, y = counter[0] + schedule[0], counter[1] + schedule[1]
    for r in range(rounds):
        turn = _ROTATIONS[r % 8]
        x = x + y
        y = ((y << np.uint32(turn)) | (y >> np.uint32(32 - turn))) ^ x
        if r % 4 == 3:
            injection = r // 4 + 1
            x = x + schedule[injection % 3]
            y = y + schedule[(injection + 1) % 3] + np.uint32(injection)
    return x, y


def stochastic(units: jax.Array, key: jax.Array, start: jax.Array | int = 0) -> jax.Array:
    """The integer below or above, with expectation ``units``.

    Args:
        units: float32[D] with |units| < 2^23.
        key: uint32[8], the client's rounding key of this round.
        start: the first of these coordinates in the client's whole vector, of which each has a
            draw of its own.

    Returns:
        int32[D], less than 1 away; the bias is at most 2^-31 for every value of ``units``.

    Example:
        >>> import jax.numpy as jnp
        >>> from fedjax_agg import fixed_seed
        >>> draws = stochastic(jnp.full(100_000, -0.25), fixed_seed(0))
        >>> sorted(set(draws.tolist())), round(float(draws.mean()), 2)
        ([-1, 0], -0.25)
    """
    position = lax.iota(jnp.uint32, units.shape[0]) + jnp.asarray(start).astype(jnp.uint32)
    draw, _ = threefry2x32((key[0], key[1]), (position, jnp.broadcast_to(key[2], position.shape)))
    # Of a magnitude the fraction is exact in float32, and so is its product with 2^31; of a
    # tiny negative number it would not be.
    magnitude = jnp.abs(units)
    below = jnp.floor(magnitude)
    fraction = ((magnitude - below) * 2.0**31).astype(jnp.int32)
    up = lax.bitcast_convert_type(draw >> np.uint32(1), jnp.int32) < fraction
    rounded = below.astype(jnp.int32) + up.astype(jnp.int32)
    return jnp.where(units < 0, -rounded, rounded)
