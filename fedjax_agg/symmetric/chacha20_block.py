"""The block function of ChaCha20 (RFC 8439), of one block or of many at once."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from fedjax_agg import _check
from fedjax_agg.symmetric.lanes import in_parts, over_lanes

WORDS_PER_BLOCK = 16
BLOCKS = 2**32
# "expand 32-byte k" in little-endian words: RFC 8439, section 2.3.
_CONSTANTS = np.array([0x61707865, 0x3320646E, 0x79622D32, 0x6B206574], np.uint32)
_COLUMNS = ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15))
_DIAGONALS = ((0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14))
# So many blocks at a time stay in the cache, and one shape for all numbers of blocks is one program
# to compile, however many places ask for some. Up to an eighth of them are made as they are: the
# rest of the shape would cost more than they do.
_LANES = 512
_FEW = _LANES // 8


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


@jax.jit
def double_round(state: Sequence[jax.Array]) -> list[jax.Array]:
    """A column round and a diagonal round: RFC 8439, section 2.3.

    Example:
        >>> import jax.numpy as jnp
        >>> [int(word) for word in double_round([jnp.uint32(0)] * 15 + [jnp.uint32(1)])[:2]]
        [1048577, 268501008]
    """
    state = list(state)
    for i, j, k, m in _COLUMNS + _DIAGONALS:
        state[i], state[j], state[k], state[m] = _quarter_round(
            state[i], state[j], state[k], state[m]
        )
    return state


def first_state(
    key: Sequence[jax.Array], counter: jax.Array, nonce: Sequence[jax.Array]
) -> list[jax.Array]:
    """Sixteen state words of one common shape: constants, key, counter, nonce.

    Example:
        >>> import jax.numpy as jnp
        >>> zero = jnp.uint32(0)
        >>> hex(first_state([zero] * 8, zero, [zero] * 3)[0])
        '0x61707865'
    """
    constants = [jnp.full(counter.shape, word) for word in _CONSTANTS]
    return [*constants, *key, counter, *nonce]


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
        _check.integer_in("keystream-counter", 0, BLOCKS - 1, counter=number[()])
    return _blocks(key, jnp.asarray(counter, jnp.uint32), jnp.asarray(nonce))


@over_lanes
def _blocks(keys: jax.Array, counters: jax.Array, nonces: jax.Array) -> jax.Array:
    """Blocks of many keys: uint32[m, 16]."""
    inputs = jnp.concatenate([keys, counters[:, None], nonces], axis=1)
    if keys.shape[0] <= _FEW:
        return _block_of_lanes(inputs.T).T
    return in_parts(lambda part: _block_of_lanes(part.T).T, _LANES, inputs)


def _block_of_lanes(inputs: jax.Array) -> jax.Array:
    """Blocks side by side, the state by its four rows: uint32[12, m] to uint32[16, m].

    A diagonal round is a column round of the state whose second, third and fourth rows are turned
    by one, two and three words, and turned back after it. Four rows are a quarter of the program
    that sixteen words are, and of the time to compile it.
    """
    constants = jnp.broadcast_to(_CONSTANTS[:, None], (4, inputs.shape[1]))
    first = jnp.concatenate([constants, inputs])

    def single_round(i, rows):
        a, b, c, d = _quarter_round(*rows)
        forth = i % 2 == 0
        return [a, _turn(b, forth, 1), _turn(c, forth, 2), _turn(d, forth, 3)]

    last = lax.fori_loop(0, 20, single_round, jnp.split(first, 4))
    return jnp.concatenate(last) + first


def _turn(row: jax.Array, forth: jax.Array, words: int) -> jax.Array:
    """The four words of a row turned to the left, or else to the right."""
    start = jnp.where(forth, words, 4 - words)
    return lax.dynamic_slice_in_dim(jnp.concatenate([row, row]), start, 4)


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
    length = _check.integer_in("keystream-length", 0, BLOCKS * WORDS_PER_BLOCK, length=length)
    counters = jnp.arange(-(-length // WORDS_PER_BLOCK), dtype=jnp.uint32)
    blocks = jax.vmap(chacha20_block, (None, 0, None))(key, counters, nonce)
    return blocks.reshape(-1)[:length]
