"""ChaCha20 (RFC 8439) as the generator of masks: one primitive, ``keystream_sum``.

A client's mask, the removal of self masks, the repair of dropouts: each is a sum of keystreams
with integer coefficients modulo 2^32, and no keystream is ever stored.

XLA fuses such a sum into one vector loop on a CPU only in one form: a *variadic* ``lax.reduce``
over the *leading* key axis whose sixteen operands are the sixteen words of the block. As sixteen
outputs of elementwise work it would compute every block sixteen times. The loop over keys is the
vector loop, so few keys are padded with zero coefficients to fill the lanes; a single key has
eight blocks as its lanes instead.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from fedjax_agg import _check, _xla

WORDS_PER_BLOCK = 16
_BLOCKS = 2**32
# "expand 32-byte k" in little-endian words: RFC 8439, section 2.3.
_CONSTANTS = np.array([0x61707865, 0x3320646E, 0x79622D32, 0x6B206574], np.uint32)
_COLUMNS = ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15))
_DIAGONALS = ((0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14))


def _rotate_left(x: jax.Array, amount: int) -> jax.Array:
    return (x << np.uint32(amount)) | (x >> np.uint32(32 - amount))


def _quarter_round(a, b, c, d):
    """RFC 8439, section 2.1."""
    a = a + b
    d = _rotate_left(d ^ a, 16)
    c = c + d
    b = _rotate_left(b ^ c, 12)
    a = a + b
    d = _rotate_left(d ^ a, 8)
    c = c + d
    b = _rotate_left(b ^ c, 7)
    return a, b, c, d


def _double_round(state: Sequence[jax.Array]) -> list[jax.Array]:
    """A column round and a diagonal round: RFC 8439, section 2.3."""
    state = list(state)
    for i, j, k, m in _COLUMNS + _DIAGONALS:
        state[i], state[j], state[k], state[m] = _quarter_round(
            state[i], state[j], state[k], state[m]
        )
    return state


def _first_state(
    key: Sequence[jax.Array], counter: jax.Array, nonce: Sequence[jax.Array]
) -> list[jax.Array]:
    """Sixteen state words of one common shape: constants, key, counter, nonce."""
    constants = [jnp.full(counter.shape, word) for word in _CONSTANTS]
    return [*constants, *key, counter, *nonce]


def _block_words(first: list[jax.Array]) -> list[jax.Array]:
    """The sixteen words of a block. Unrolled: for use inside a variadic reduce only."""
    state = first
    for _ in range(10):
        state = _double_round(state)
    return [a + b for a, b in zip(state, first)]


def chacha20_block(key: jax.Array, counter: ArrayLike, nonce: ArrayLike) -> jax.Array:
    """The ChaCha20 block function: RFC 8439, section 2.3.

    Args:
        key: uint32[8], 256 bits in little-endian words.
        counter: uint32[], the number of the block.
        nonce: uint32[3], 96 bits in little-endian words.

    Returns:
        uint32[16], the block in little-endian words.

    Raises:
        ValueError: a key or nonce of another shape or type.

    Example:
        The vector of RFC 8439, section 2.3.2:

        >>> import jax, jax.numpy as jnp
        >>> key = jax.lax.bitcast_convert_type(
        ...     jnp.arange(32, dtype=jnp.uint8).reshape(8, 4), jnp.uint32)
        >>> nonce = jnp.array([0x09000000, 0x4A000000, 0], jnp.uint32)
        >>> [hex(word) for word in chacha20_block(key, jnp.uint32(1), nonce)[:3].tolist()]
        ['0xe4e7f110', '0x15593bd1', '0x1fdd0f50']
    """
    _check.words("key-shape", (8,), key=key)
    _check.words("nonce-shape", (3,), nonce=nonce)
    number = _check.concrete(counter)
    if number is not None:
        _check.integer_in("keystream-counter", 0, _BLOCKS - 1, counter=number[()])
    first = _first_state(list(key), jnp.asarray(counter, jnp.uint32), list(jnp.asarray(nonce)))
    # A loop, because sixteen outputs of unrolled elementwise work take seconds to compile.
    last = lax.fori_loop(0, 10, lambda _, state: _double_round(state), first)
    return jnp.stack(last) + jnp.stack(first)


def keystream(
    key: jax.Array, nonce: ArrayLike, length: int, start: jax.Array | int = 0
) -> jax.Array:
    """``length`` words of the ChaCha20 keystream, from word ``start`` on.

    Word e of a stream is word e mod 16 of block e // 16: RFC 8439, section 2.4, counted from 0.

    Args:
        key: uint32[8].
        nonce: uint32[3].
        length: the number of words, static.
        start: a multiple of 16, the first word; may be traced (uint32, rounded down to one).

    Returns:
        uint32[length].

    Raises:
        ValueError: wrong shapes; a static ``start`` that is no multiple of 16, or a stream that
            would run past block 2^32.

    Example:
        >>> import jax.numpy as jnp
        >>> zero_key, zero_nonce = jnp.zeros(8, jnp.uint32), jnp.zeros(3, jnp.uint32)
        >>> [hex(word) for word in keystream(zero_key, zero_nonce, 2).tolist()]
        ['0xade0b876', '0x903df1a0']
    """
    _check.words("key-shape", (8,), key=key)
    return keystream_sum(key[None], jnp.ones(1, jnp.uint32), nonce, length, start)


def short_keystream(key: jax.Array, nonce: ArrayLike, length: int) -> jax.Array:
    """``keystream`` from word 0 on, for some hundred words: block by block.

    It compiles in a third of the time, and ``vmap`` over many keys fills the vector lanes; for
    long streams ``keystream`` is faster.

    Args:
        key: uint32[8].
        nonce: uint32[3].
        length: the number of words, static.

    Returns:
        uint32[length].

    Raises:
        ValueError: wrong shapes, or a length out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> zero_key, zero_nonce = jnp.zeros(8, jnp.uint32), jnp.zeros(3, jnp.uint32)
        >>> [hex(word) for word in short_keystream(zero_key, zero_nonce, 2).tolist()]
        ['0xade0b876', '0x903df1a0']
    """
    _check.words("key-shape", (8,), key=key)
    _check.words("nonce-shape", (3,), nonce=nonce)
    length = _check.integer_in("keystream-length", 0, _BLOCKS * WORDS_PER_BLOCK, length=length)
    counters = jnp.arange(-(-length // WORDS_PER_BLOCK), dtype=jnp.uint32)
    blocks = jax.vmap(chacha20_block, (None, 0, None))(key, counters, nonce)
    return blocks.reshape(-1)[:length]


def keystream_sum(
    keys: jax.Array,
    coefficients: jax.Array,
    nonce: ArrayLike,
    length: int,
    start: jax.Array | int = 0,
) -> jax.Array:
    """The sum over j of ``coefficients[j]`` times the keystream of ``keys[j]``, modulo 2^32.

    Under ``vmap`` over keys, coefficients, nonces or starts the sums are computed one after the
    other, each at full speed and without temporaries.

    Args:
        keys: uint32[m, 8].
        coefficients: uint32[m]; 2^32 - 1 is minus one, 0 leaves a key out.
        nonce: uint32[3], common to all keys.
        length: the number of words, static.
        start: a multiple of 16, the first word of each stream; may be traced (uint32, rounded
            down to one).

    Returns:
        uint32[length]. Zeros where m is 0.

    Raises:
        ValueError: wrong shapes; a static ``start`` that is no multiple of 16, or streams that
            would run past block 2^32.

    Example:
        A mask added by one client and subtracted by the other is gone:

        >>> import jax.numpy as jnp
        >>> keys = jnp.zeros((2, 8), jnp.uint32)
        >>> signs = jnp.array([1, 2**32 - 1], jnp.uint32)
        >>> keystream_sum(keys, signs, jnp.zeros(3, jnp.uint32), 3)
        Array([0, 0, 0], dtype=uint32)
    """
    _check.words("key-shape", (None, 8), keys=keys)
    _check.words("coefficients-shape", (keys.shape[0],), coefficients=coefficients)
    _check.words("nonce-shape", (3,), nonce=nonce)
    words = _BLOCKS * WORDS_PER_BLOCK
    _check.integer_in("keystream-length", 0, words, length=length)
    first = _check.concrete(start)
    if first is not None:
        number = _check.integer_in("keystream-start", 0, words, start=first[()])
        if number % WORDS_PER_BLOCK:
            raise _check.error("keystream-start", f"start={number}", "a multiple of 16")
        if number + length > words:
            raise _check.error(
                "keystream-counter", f"start + length = {number + length}", "at most 2**36"
            )
        # The end of the last stream is no block: nothing can be asked for there.
        first_block = jnp.uint32(number // WORDS_PER_BLOCK % _BLOCKS)
    else:
        first_block = lax.convert_element_type(start, jnp.uint32) // np.uint32(WORDS_PER_BLOCK)
    if length == 0 or keys.shape[0] == 0:
        return jnp.zeros(length, jnp.uint32)
    return _keystream_sum(length)(keys, coefficients, nonce, first_block)


@functools.cache
def _keystream_sum(length: int):
    """The sum for one length, with the batching rule that keeps its speed under ``vmap``."""

    @jax.custom_batching.custom_vmap
    def summed(keys, coefficients, nonce, first_block):
        if keys.shape[0] == 1:
            return coefficients[0] * _single(keys[0], nonce, first_block, length)
        return _sum_over_lanes(keys, coefficients, nonce, first_block, length)

    @summed.def_vmap
    def one_after_the_other(axis_size, in_batched, *arguments):
        def body(i, sums):
            row = [
                lax.dynamic_index_in_dim(argument, i, keepdims=False) if batched else argument
                for argument, batched in zip(arguments, in_batched)
            ]
            # Without the barrier XLA takes what all sums share, such as the keystreams of
            # common keys, out of the loop and stores it.
            _, row = lax.optimization_barrier((i, row))
            return lax.dynamic_update_index_in_dim(sums, summed(*row), i, 0)

        # Inside a shard_map the first carry must vary over the mesh as the sums do.
        nothing = sum(jnp.ravel(argument)[0] for argument in arguments) * np.uint32(0)
        sums = jnp.broadcast_to(nothing, (axis_size, length))
        return _xla.client_loop(axis_size, body, sums), True

    return summed


def _padding(m: int) -> int:
    """How many keys of coefficient zero fill the vector lanes, for m > 1 (measured)."""
    if m <= 8:
        return 8 - m
    return 0 if m % 16 in (0, 1, 8) else -m % 16


def _sum_over_lanes(keys, coefficients, nonce, first_block, length):
    """Many keys: one variadic reduce over the key axis, sixteen words at once."""
    # Padded side by side, so that XLA stores the padded table: fused into the loop over keys,
    # the padding would be a branch in it and cost a factor of ten.
    table = jnp.concatenate([keys, coefficients[:, None]], axis=1)
    table = jnp.pad(table, ((0, _padding(keys.shape[0])), (0, 0)))
    shape = (table.shape[0], -(-length // WORDS_PER_BLOCK))

    def along_keys(values):
        return lax.broadcast_in_dim(values, shape, (0,))

    counter = first_block + lax.broadcasted_iota(jnp.uint32, shape, 1)
    words = _block_words(
        _first_state(
            [along_keys(table[:, i]) for i in range(8)],
            counter,
            [jnp.broadcast_to(nonce[i], shape) for i in range(3)],
        )
    )
    weights = along_keys(table[:, 8])
    # The reducer captures NumPy scalars only: a jnp constant would be a captured array.
    sums = lax.reduce(
        [weights * word for word in words],
        [np.uint32(0)] * WORDS_PER_BLOCK,
        lambda a, b: [x + y for x, y in zip(a, b)],
        (0,),
    )
    return jnp.stack(sums, axis=1).reshape(-1)[:length]


_LANES = 8


def _odd_lines(columns: int) -> int:
    """``columns`` rounded up to an odd number of 64-byte cache lines, where that is cheap.

    The reduce writes 128 arrays of this length side by side. At a power of two all of them fall
    into one set of the cache and the rate is halved.
    """
    return columns if columns < 512 else ((columns + 15) // 16 | 1) * 16


def _single(key, nonce, first_block, length):
    """One key: eight neighbouring blocks are the vector lanes, and the reduce transposes.

    Word w of lane l is kept by a reduction over lanes in which all other lanes are zero, so
    each block is computed once for its sixteen outputs.
    """
    shape = (_LANES, _odd_lines(-(-length // (WORDS_PER_BLOCK * _LANES))))
    lane = lax.broadcasted_iota(jnp.uint32, shape, 0)
    block = lax.broadcasted_iota(jnp.uint32, shape, 1) * np.uint32(_LANES) + lane
    words = _block_words(
        _first_state(
            [jnp.broadcast_to(key[i], shape) for i in range(8)],
            first_block + block,
            [jnp.broadcast_to(nonce[i], shape) for i in range(3)],
        )
    )
    kept = lax.reduce(
        [
            jnp.where(lane == np.uint32(kept_lane), word, np.uint32(0))
            for kept_lane in range(_LANES)
            for word in words
        ],
        [np.uint32(0)] * (_LANES * WORDS_PER_BLOCK),
        lambda a, b: [x | y for x, y in zip(a, b)],
        (0,),
    )
    return jnp.stack(kept, axis=1).reshape(-1)[:length]
