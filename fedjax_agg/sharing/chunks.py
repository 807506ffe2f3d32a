"""Secrets of 256 bits as elements of the field of 2^31 - 1, 30 bits to an element."""

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_agg import _check

# 31 bits would not do: 2^31 - 1 is no element.
CHUNK_BITS = 30
CHUNKS = 9
_LAST_CHUNK_BITS = 256 - (CHUNKS - 1) * CHUNK_BITS
_CHUNK_BITS = np.array([CHUNK_BITS] * (CHUNKS - 1) + [_LAST_CHUNK_BITS], np.uint32)


def to_chunks(secret: jax.Array) -> jax.Array:
    """The 256 bits of a secret, 30 by 30 from the lowest; the last chunk has 16.

    Args:
        secret: uint32[8], little-endian words, as of a key.

    Returns:
        uint32[9], field elements.

    Raises:
        ValueError: a secret of another shape or type.

    Example:
        >>> import jax.numpy as jnp
        >>> to_chunks(jnp.array([2**31, 0, 0, 0, 0, 0, 0, 2**16], jnp.uint32)).tolist()
        [0, 2, 0, 0, 0, 0, 0, 0, 1]
    """
    _check.words("key-shape", (8,), secret=secret)
    # Bit 30 j is 2 j bits before word j: chunk j ends there and begins in the word before.
    nothing = jnp.zeros(1, jnp.uint32)
    here, before = jnp.concatenate([secret, nothing]), jnp.concatenate([nothing, secret])
    shift = np.arange(CHUNKS, dtype=np.uint32) * np.uint32(2)
    # In two steps, because a shift by all 32 bits is undefined.
    before = before >> np.uint32(1) >> (np.uint32(31) - shift)
    return (here << shift | before) & np.uint32(2**CHUNK_BITS - 1)


def from_chunks(chunks: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The inverse of ``to_chunks``.

    Args:
        chunks: uint32[9].

    Returns:
        The secret, uint32[8], and whether these are the chunks of one, bool[]: no chunk has more
        bits than ``to_chunks`` puts into it. The secret of others is zeros.

    Raises:
        ValueError: chunks of another shape or type.

    Example:
        >>> import jax.numpy as jnp
        >>> secret, ok = from_chunks(jnp.array([0, 2, 0, 0, 0, 0, 0, 0, 1], jnp.uint32))
        >>> secret.tolist() == [2**31, 0, 0, 0, 0, 0, 0, 2**16], bool(ok)
        (True, True)
    """
    _check.words("chunks-shape", (CHUNKS,), chunks=chunks)
    ok = jnp.all(chunks >> _CHUNK_BITS == np.uint32(0))
    # Bit 32 w is 2 w bits after the beginning of chunk w.
    shift = np.arange(8, dtype=np.uint32) * np.uint32(2)
    secret = chunks[:-1] >> shift | chunks[1:] << (np.uint32(CHUNK_BITS) - shift)
    return jnp.where(ok, secret, np.uint32(0)), ok
