"""Bytes and the uint32 words that they make, in either order."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_agg import _check

_SHIFTS = {"little": (0, 8, 16, 24), "big": (24, 16, 8, 0)}


def words_from_bytes(data: jax.Array, byteorder: str = "little") -> jax.Array:
    """Four bytes to a word; little-endian, the order of ChaCha20 keys, unless told otherwise.

    Args:
        data: uint8[..., 4 k].
        byteorder: ``"little"`` (RFC 8439, section 2.3) or ``"big"`` (FIPS 180-4, section 3.1).

    Returns:
        uint32[..., k].

    Raises:
        ValueError: another type, a length that is no multiple of 4, or another byte order.

    Example:
        >>> import jax.numpy as jnp
        >>> hex(words_from_bytes(jnp.array([1, 2, 3, 4], jnp.uint8))[0])
        '0x4030201'
    """
    _check.one_of("byte-order", _SHIFTS, byteorder=byteorder)
    shape = getattr(data, "shape", ())
    if getattr(data, "dtype", None) != np.uint8 or not shape or shape[-1] % 4:
        raise _check.error("words", f"data of type {_check.shown_type(data)}", "uint8[..., 4 k]")
    parts = jnp.asarray(data).astype(jnp.uint32).reshape(*shape[:-1], shape[-1] // 4, 4)
    return functools.reduce(
        jnp.bitwise_or,
        [parts[..., i] << np.uint32(shift) for i, shift in enumerate(_SHIFTS[byteorder])],
    )


def bytes_from_words(words: jax.Array, byteorder: str = "little") -> jax.Array:
    """The inverse of ``words_from_bytes``.

    Args:
        words: uint32[..., k].
        byteorder: ``"little"`` or ``"big"``.

    Returns:
        uint8[..., 4 k].

    Raises:
        ValueError: another type, or another byte order.

    Example:
        >>> import jax.numpy as jnp
        >>> bytes_from_words(jnp.array([0x04030201], jnp.uint32))
        Array([1, 2, 3, 4], dtype=uint8)
    """
    _check.one_of("byte-order", _SHIFTS, byteorder=byteorder)
    shape = getattr(words, "shape", ())
    if getattr(words, "dtype", None) != np.uint32 or not shape:
        raise _check.error("words", f"words of type {_check.shown_type(words)}", "uint32[..., k]")
    words = jnp.asarray(words)
    parts = jnp.stack([words >> np.uint32(shift) for shift in _SHIFTS[byteorder]], axis=-1)
    return parts.astype(jnp.uint8).reshape(*shape[:-1], 4 * shape[-1])


def swap_bytes(words: jax.Array) -> jax.Array:
    """Little-endian words as big-endian ones, and back: uint32[...] -> uint32[...].

    Example:
        >>> import jax.numpy as jnp
        >>> hex(swap_bytes(jnp.uint32(0x01020304)))
        '0x4030201'
    """
    outer = (words << np.uint32(24)) | (words >> np.uint32(24))
    inner = (words & np.uint32(0xFF00)) << np.uint32(8) | (words >> np.uint32(8)) & np.uint32(
        0xFF00
    )
    return outer | inner
