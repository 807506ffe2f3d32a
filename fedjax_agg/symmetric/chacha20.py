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

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from fedjax_agg import _check, _xla
from fedjax_agg.symmetric.chacha20_block import (
    BLOCKS,
    WORDS_PER_BLOCK,
    double_round,
    first_state,
)


def _block_words(first: list[jax.Array]) -> list[jax.Array]:
    """The sixteen words of a block. Unrolled: for use inside a variadic reduce only."""
    state = first
    for _ in range(10):
        state = double_round(state)
    return [a + b for a, b in zip(state, first)]


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
    words = BLOCKS * WORDS_PER_BLOCK
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
        first_block = jnp.uint32(number // WORDS_PER_BLOCK % BLOCKS)
    else:
        first_block = lax.convert_element_type(start, jnp.uint32) // np.uint32(WORDS_PER_BLOCK)
    if length == 0 or keys.shape[0] == 0:
        return jnp.zeros(length, jnp.uint32)
    return _keystream_sum(length)(keys, coefficients, nonce, first_block)


@functools.cache
def _keystream_sum(length: int):
    """The sum for one length, with the batching rule that keeps its speed under ``vmap``."""

    def in_lanes(keys, coefficients, nonce, first_block):
        if keys.shape[0] == 1:
            return coefficients[0] * _single(keys[0], nonce, first_block, length)
        return _sum_over_lanes(keys, coefficients, nonce, first_block, length)

    @jax.custom_batching.custom_vmap
    def summed(*arguments):
        if not _has_gpu():
            return in_lanes(*arguments)
        # Pallas takes a fifth of a second to import, which nobody else should wait for.
        from fedjax_agg.symmetric.chacha20_gpu import keystream_sum_gpu

        on_gpu = functools.partial(keystream_sum_gpu, length=length)
        return lax.platform_dependent(*arguments, cuda=on_gpu, default=in_lanes)

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

        sums = _xla.varying_with(jnp.zeros((axis_size, length), jnp.uint32), *arguments)
        return _xla.client_loop(axis_size, body, sums), True

    return summed


def _has_gpu() -> bool:
    """Where there is none, no program is made for one: tracing it would cost time for nothing."""
    return jax.default_backend() == "gpu"


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
        first_state(
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
        first_state(
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
