"""SHA-256, HMAC and HKDF in ``uint32`` arithmetic (FIPS 180-4, RFC 2104, RFC 5869).

A byte string is a ``uint8`` array of one axis, whose length is static. Every function takes one
message; ``jax.vmap`` makes it many.

The digests are the same bits on every platform, with and without JAX's 64-bit types. No control
flow depends on data; whether the machine then runs in constant time is not ours to promise.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fedjax_agg import _check, _xla
from fedjax_agg.symmetric.hmac_words import BLOCK_BYTES, hmac_words, padding
from fedjax_agg.symmetric.octets import bytes_from_words, words_from_bytes
from fedjax_agg.symmetric.sha256_block import INITIAL_STATE, WORDS_PER_BLOCK, compress

DIGEST_BYTES = 32


def sha256(message: jax.Array) -> jax.Array:
    """The SHA-256 digest of a message: FIPS 180-4, section 6.2.

    Args:
        message: uint8[n], n >= 0.

    Returns:
        uint8[32].

    Raises:
        ValueError: the message is no uint8 array of one axis.

    Example:
        >>> import numpy as np
        >>> bytes(sha256(np.frombuffer(b"abc", np.uint8))).hex()[:16]
        'ba7816bf8f01cfea'
    """
    _check.array("bytes", np.uint8, (None,), message=message)
    return _sha256(message)


def hmac_sha256(key: jax.Array, message: jax.Array) -> jax.Array:
    """HMAC-SHA256: RFC 2104, section 2.

    Args:
        key: uint8[k], k >= 0; more than 64 bytes are hashed first, as the RFC says.
        message: uint8[n], n >= 0.

    Returns:
        uint8[32].

    Raises:
        ValueError: an argument is no uint8 array of one axis.

    Example:
        >>> import numpy as np
        >>> key = np.frombuffer(b"Jefe", np.uint8)
        >>> message = np.frombuffer(b"what do ya want for nothing?", np.uint8)
        >>> bytes(hmac_sha256(key, message)).hex()[:16]  # RFC 4231, section 4.3
        '5bdcc146bf60754e'
    """
    _check.array("bytes", np.uint8, (None,), key=key)
    _check.array("bytes", np.uint8, (None,), message=message)
    return _hmac(key, message)


def hkdf_extract(salt: jax.Array, ikm: jax.Array) -> jax.Array:
    """The pseudorandom key of some input keying material: RFC 5869, section 2.2.

    Args:
        salt: uint8[s]; uint8[0] stands for none, which is 32 zero bytes.
        ikm: uint8[n], the input keying material.

    Returns:
        uint8[32], the pseudorandom key.

    Raises:
        ValueError: an argument is no uint8 array of one axis.

    Example:
        >>> import numpy as np
        >>> salt, ikm = np.arange(13, dtype=np.uint8), np.full(22, 11, np.uint8)
        >>> bytes(hkdf_extract(salt, ikm)).hex()[:16]  # RFC 5869, appendix A.1
        '077709362c2e32df'
    """
    _check.array("bytes", np.uint8, (None,), salt=salt)
    _check.array("bytes", np.uint8, (None,), ikm=ikm)
    return _hmac(salt, ikm)


def hkdf_expand(prk: jax.Array, info: jax.Array, length: int) -> jax.Array:
    """Output keying material of a pseudorandom key: RFC 5869, section 2.3.

    Args:
        prk: uint8[p], p >= 32, from ``hkdf_extract``.
        info: uint8[n], what the output is for.
        length: the number of bytes, 1 to 8160; static.

    Returns:
        uint8[length].

    Raises:
        ValueError: an argument is no uint8 array of one axis, the pseudorandom key is shorter
            than a digest, or the length is out of range.

    Example:
        >>> import numpy as np
        >>> prk = hkdf_extract(np.arange(13, dtype=np.uint8), np.full(22, 11, np.uint8))
        >>> info = np.arange(0xF0, 0xFA, dtype=np.uint8)
        >>> bytes(hkdf_expand(prk, info, 42)).hex()[:16]  # RFC 5869, appendix A.1
        '3cb25f25faacd57a'
    """
    _check.array("bytes", np.uint8, (None,), prk=prk)
    _check.array("bytes", np.uint8, (None,), info=info)
    if prk.shape[0] < DIGEST_BYTES:
        raise _check.error("hkdf-prk", f"prk of {prk.shape[0]} bytes", "32 bytes at least")
    _check.integer_in("hkdf-length", 1, 255 * DIGEST_BYTES, length=length)
    return _expand(prk, info, length)


def hkdf(ikm: jax.Array, salt: jax.Array, info: jax.Array, length: int) -> jax.Array:
    """Extract, then expand: RFC 5869, section 2.

    Args:
        ikm: uint8[n], the input keying material.
        salt: uint8[s]; uint8[0] stands for none.
        info: uint8[m], what the output is for.
        length: the number of bytes, 1 to 8160; static.

    Returns:
        uint8[length].

    Raises:
        ValueError: an argument is no uint8 array of one axis, or the length is out of range.

    Example:
        >>> import numpy as np
        >>> nothing = np.zeros(0, np.uint8)
        >>> bytes(hkdf(np.full(22, 11, np.uint8), nothing, nothing, 42)).hex()[:16]  # A.3
        '8da4e775a563c18f'
    """
    return hkdf_expand(hkdf_extract(salt, ikm), info, length)


def _padded(message: jax.Array, bytes_before: int) -> jax.Array:
    """The blocks of a message, uint8[n] to uint32[blocks, 16]: FIPS 180-4, section 5.1.1."""
    end = np.frombuffer(padding(message.shape[0], bytes_before), np.uint8)
    padded = jnp.concatenate([message, end])
    return words_from_bytes(padded, "big").reshape(-1, WORDS_PER_BLOCK)


@jax.jit
def _sha256(message: jax.Array) -> jax.Array:
    def absorb(state, block):
        return compress(state, block), None

    blocks = _padded(message, 0)
    state, _ = lax.scan(absorb, _xla.varying_with(jnp.asarray(INITIAL_STATE), blocks), blocks)
    return bytes_from_words(state, "big")


@jax.jit
def _hmac(key: jax.Array, message: jax.Array) -> jax.Array:
    if key.shape[0] > BLOCK_BYTES:
        key = _sha256(key)
    key = jnp.concatenate([key, np.zeros(BLOCK_BYTES - key.shape[0], np.uint8)])
    blocks = _padded(message, BLOCK_BYTES)
    return bytes_from_words(hmac_words(words_from_bytes(key, "big"), blocks.ravel()), "big")


@functools.partial(jax.jit, static_argnums=2)
def _expand(prk: jax.Array, info: jax.Array, length: int) -> jax.Array:
    """T(1) || T(2) || ..., T(i) = HMAC(prk, T(i-1) || info || i): RFC 5869, section 2.3."""
    first = _hmac(prk, jnp.concatenate([info, np.ones(1, np.uint8)]))
    if length <= DIGEST_BYTES:
        return first[:length]

    def following(previous, counter):
        digest = _hmac(prk, jnp.concatenate([previous, info, counter[None]]))
        return digest, digest

    counters = np.arange(2, -(-length // DIGEST_BYTES) + 1, dtype=np.uint8)
    _, rest = lax.scan(following, first, counters)
    return jnp.concatenate([first, rest.reshape(-1)])[:length]
