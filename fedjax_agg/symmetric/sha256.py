"""SHA-256, HMAC and HKDF in ``uint32`` arithmetic (FIPS 180-4, RFC 2104, RFC 5869).

A byte string is a ``uint8`` array of one axis, whose length is static. Every function takes one
message; ``jax.vmap`` makes it many, and what the messages share is then computed once: with one
key for all of them, HMAC costs two compressions a message of up to 55 bytes.

The digests are the same bits on every platform, with and without JAX's 64-bit types. No control
flow depends on data; whether the machine then runs in constant time is not ours to promise.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fedjax_agg import _check
from fedjax_agg.symmetric.octets import bytes_from_words, words_from_bytes

DIGEST_BYTES = 32
_BLOCK_BYTES = 64
_WORDS_PER_BLOCK = 16
_ROUNDS = 64
# With four rounds to a step, a step renews every register and moves the message schedule by
# whole quarters. One round a step spends its time moving words; eight and more are slow to
# compile, and a CPU then computes common parts once for every output.
_ROUNDS_PER_STEP = 4


def _constants(text: str) -> np.ndarray:
    return np.array([int(word, 16) for word in text.split()], np.uint32)


# FIPS 180-4, section 5.3.3.
_INITIAL_STATE = _constants(
    "6a09e667 bb67ae85 3c6ef372 a54ff53a 510e527f 9b05688c 1f83d9ab 5be0cd19"
)
# FIPS 180-4, section 4.2.2.
_ROUND_CONSTANTS = _constants(
    """
    428a2f98 71374491 b5c0fbcf e9b5dba5 3956c25b 59f111f1 923f82a4 ab1c5ed5
    d807aa98 12835b01 243185be 550c7dc3 72be5d74 80deb1fe 9bdc06a7 c19bf174
    e49b69c1 efbe4786 0fc19dc6 240ca1cc 2de92c6f 4a7484aa 5cb0a9dc 76f988da
    983e5152 a831c66d b00327c8 bf597fc7 c6e00bf3 d5a79147 06ca6351 14292967
    27b70a85 2e1b2138 4d2c6dfc 53380d13 650a7354 766a0abb 81c2c92e 92722c85
    a2bfe8a1 a81a664b c24b8b70 c76c51a3 d192e819 d6990624 f40e3585 106aa070
    19a4c116 1e376c08 2748774c 34b0bcb5 391c0cb3 4ed8aa4a 5b9cca4f 682e6ff3
    748f82ee 78a5636f 84c87814 8cc70208 90befffa a4506ceb bef9a3f7 c67178f2
    """
)
# The end of every outer HMAC message, 64 + 32 bytes = 768 bits: FIPS 180-4, section 5.1.1.
_OUTER_PADDING = _constants("80000000 0 0 0 0 0 0 300")
_INNER_PAD = np.uint32(0x36363636)
_OUTER_PAD = np.uint32(0x5C5C5C5C)


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

    Under ``vmap`` over ``info`` alone the key's part is computed once: with one 32-byte block of
    output and at most 54 bytes of info, two compressions are left for each info.

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


def _rotate_right(x: jax.Array, amount: int) -> jax.Array:
    return (x >> np.uint32(amount)) | (x << np.uint32(32 - amount))


def _small_sigma_0(x):
    return _rotate_right(x, 7) ^ _rotate_right(x, 18) ^ (x >> np.uint32(3))


def _small_sigma_1(x):
    return _rotate_right(x, 17) ^ _rotate_right(x, 19) ^ (x >> np.uint32(10))


def _round(registers, scheduled):
    """One round, given W_t + K_t: FIPS 180-4, section 6.2.2, step 3."""
    a, b, c, d, e, f, g, h = registers
    sum_1 = _rotate_right(e, 6) ^ _rotate_right(e, 11) ^ _rotate_right(e, 25)
    sum_0 = _rotate_right(a, 2) ^ _rotate_right(a, 13) ^ _rotate_right(a, 22)
    choice = g ^ (e & (f ^ g))
    majority = (a & b) | (c & (a | b))
    t1 = h + sum_1 + choice + scheduled
    return t1 + sum_0 + majority, a, b, c, d + t1, e, f, g


def _next_quarter(quarters):
    """The next four words of the schedule: FIPS 180-4, section 6.2.2, step 1.

    W_t = s1(W_{t-2}) + W_{t-7} + s0(W_{t-15}) + W_{t-16}, two words at a time, since a word
    depends on the one two places before it.
    """
    q0, q1, q2, q3 = quarters
    early = _small_sigma_1(q3[2:]) + q2[1:3] + _small_sigma_0(q0[1:3]) + q0[:2]
    seven_before = jnp.concatenate([q2[3:], q3[:1]])
    fifteen_before = jnp.concatenate([q0[3:], q1[:1]])
    late = _small_sigma_1(early) + seven_before + _small_sigma_0(fifteen_before) + q0[2:]
    return jnp.concatenate([early, late])


@jax.jit
def _compress(state: jax.Array, block: jax.Array) -> jax.Array:
    """The compression function, uint32[8] and uint32[16] to uint32[8]: section 6.2.2."""

    def four_rounds(carry, constants):
        registers, quarters = carry
        scheduled = constants + quarters[0]
        rounds = tuple(registers)
        for i in range(_ROUNDS_PER_STEP):
            rounds = _round(rounds, scheduled[i])
        return (jnp.stack(rounds), (*quarters[1:], _next_quarter(quarters))), None

    quarters = tuple(block.reshape(4, _ROUNDS_PER_STEP))
    constants = _ROUND_CONSTANTS.reshape(_ROUNDS // _ROUNDS_PER_STEP, _ROUNDS_PER_STEP)
    (registers, _), _ = lax.scan(four_rounds, (state, quarters), constants)
    return state + registers


def _padded(message: jax.Array, bytes_before: int) -> jax.Array:
    """The blocks of a message, uint8[n] to uint32[blocks, 16]: FIPS 180-4, section 5.1.1."""
    length = message.shape[0]
    padding = bytearray(1 + 8 + -(length + 1 + 8) % _BLOCK_BYTES)
    padding[0] = 0x80
    padding[-8:] = (8 * (bytes_before + length)).to_bytes(8, "big")
    padded = jnp.concatenate([message, np.frombuffer(bytes(padding), np.uint8)])
    return words_from_bytes(padded, "big").reshape(-1, _WORDS_PER_BLOCK)


@jax.jit
def _sha256(message: jax.Array) -> jax.Array:
    def absorb(state, block):
        return _compress(state, block), None

    state, _ = lax.scan(absorb, jnp.asarray(_INITIAL_STATE), _padded(message, 0))
    return bytes_from_words(state, "big")


@jax.jit
def _hmac_states(key: jax.Array) -> jax.Array:
    """The key's share of an HMAC: the states after its inner and its outer pad, uint32[2, 8]."""
    if key.shape[0] > _BLOCK_BYTES:
        key = _sha256(key)
    padding = np.zeros(_BLOCK_BYTES - key.shape[0], np.uint8)
    block = words_from_bytes(jnp.concatenate([key, padding]), "big")
    pads = jnp.stack([block ^ _INNER_PAD, block ^ _OUTER_PAD])
    return jax.vmap(_compress, (None, 0))(jnp.asarray(_INITIAL_STATE), pads)


@jax.jit
def _hmac_finish(states: jax.Array, message: jax.Array) -> jax.Array:
    """The message's share of an HMAC: uint32[2, 8] and uint8[n] to uint8[32].

    The outer hash is one more step of the loop over the inner hash's blocks, which halves what
    there is to compile.
    """
    blocks = _padded(message, _BLOCK_BYTES)
    blocks = jnp.concatenate([blocks, jnp.zeros((1, _WORDS_PER_BLOCK), jnp.uint32)])
    is_outer = np.arange(blocks.shape[0]) == blocks.shape[0] - 1

    def absorb(state, step):
        block, outer = step
        block = jnp.where(outer, jnp.concatenate([state, _OUTER_PADDING]), block)
        return _compress(jnp.where(outer, states[1], state), block), None

    state, _ = lax.scan(absorb, states[0], (blocks, is_outer))
    return bytes_from_words(state, "big")


@jax.jit
def _hmac(key: jax.Array, message: jax.Array) -> jax.Array:
    return _hmac_finish(_hmac_states(key), message)


@functools.partial(jax.jit, static_argnums=2)
def _expand(prk: jax.Array, info: jax.Array, length: int) -> jax.Array:
    """T(1) || T(2) || ..., T(i) = HMAC(prk, T(i-1) || info || i): RFC 5869, section 2.3."""
    states = _hmac_states(prk)
    first = _hmac_finish(states, jnp.concatenate([info, np.ones(1, np.uint8)]))
    if length <= DIGEST_BYTES:
        return first[:length]

    def following(previous, counter):
        digest = _hmac_finish(states, jnp.concatenate([previous, info, counter[None]]))
        return digest, digest

    counters = np.arange(2, -(-length // DIGEST_BYTES) + 1, dtype=np.uint8)
    _, rest = lax.scan(following, first, counters)
    return jnp.concatenate([first, rest.reshape(-1)])[:length]
