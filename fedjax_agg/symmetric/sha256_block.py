"""The compression function of SHA-256 (FIPS 180-4), of one message or of many at once."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fedjax_agg.symmetric.lanes import over_lanes

WORDS_PER_BLOCK = 16
_ROUNDS = 64
# One round a step spends its time moving words; eight and more are slow to compile, and a CPU then
# computes common parts once for every output.
_ROUNDS_PER_STEP = 4
# Up to so many inputs the registers and the schedule are one array each: a third of the time to
# compile, and no slower to run. Of more, every word is an array of its own.
FEW = 512


def constants(text: str) -> np.ndarray:
    """Words in hexadecimal: uint32[m].

    Example:
        >>> constants("ff 10").tolist()
        [255, 16]
    """
    return np.array([int(word, 16) for word in text.split()], np.uint32)


# FIPS 180-4, section 5.3.3.
INITIAL_STATE = constants("6a09e667 bb67ae85 3c6ef372 a54ff53a 510e527f 9b05688c 1f83d9ab 5be0cd19")
# FIPS 180-4, section 4.2.2.
_ROUND_CONSTANTS = constants(
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


def _rounds(state: Sequence[jax.Array], block: jax.Array) -> list[jax.Array]:
    """The compression function: 8 arrays of one shape and [16, *shape] to 8 arrays.

    A word of the schedule is made when it is used, from the sixteen words before it:

        W_t = s1(W_{t-2}) + W_{t-7} + s0(W_{t-15}) + W_{t-16},  t >= 16: section 6.2.2, step 1.
    """
    round_constants = jnp.asarray(_ROUND_CONSTANTS.reshape(-1, _ROUNDS_PER_STEP))
    words_of_step = block.reshape(-1, _ROUNDS_PER_STEP, *block.shape[1:])

    def some_rounds(i, carry):
        registers, schedule = carry
        constants = lax.dynamic_index_in_dim(round_constants, i, keepdims=False)
        # The index is clamped where the block is used up.
        given = lax.dynamic_index_in_dim(words_of_step, i, keepdims=False)
        schedule = list(schedule)
        for t in range(_ROUNDS_PER_STEP):
            made = (
                _small_sigma_1(schedule[t + 14])
                + schedule[t + 9]
                + _small_sigma_0(schedule[t + 1])
                + schedule[t]
            )
            word = jnp.where(i < WORDS_PER_BLOCK // _ROUNDS_PER_STEP, given[t], made)
            registers = _round(registers, word + constants[t])
            schedule.append(word)
        return registers, tuple(schedule[_ROUNDS_PER_STEP:])

    carry = tuple(state), (jnp.zeros_like(state[0]),) * WORDS_PER_BLOCK
    registers, _ = lax.fori_loop(0, _ROUNDS // _ROUNDS_PER_STEP, some_rounds, carry)
    return [before + after for before, after in zip(state, registers)]


def _rounds_of_few(state: jax.Array, block: jax.Array) -> jax.Array:
    """The compression function: uint32[8, m] and uint32[16, m] to uint32[8, m].

    Every step makes the word of the schedule that is used sixteen steps later.
    """
    round_constants = jnp.asarray(_ROUND_CONSTANTS)

    def one_round(i, carry):
        registers, schedule = carry
        registers = jnp.stack(_round(tuple(registers), schedule[0] + round_constants[i]))
        made = (
            _small_sigma_1(schedule[14]) + schedule[9] + _small_sigma_0(schedule[1]) + schedule[0]
        )
        return registers, jnp.concatenate([schedule[1:], made[None]])

    registers, _ = lax.fori_loop(0, _ROUNDS, one_round, (state, block))
    return state + registers


@jax.jit
def compress_rows(states: jax.Array, blocks: jax.Array) -> jax.Array:
    """``compress`` of m inputs with their words in rows: uint32[8, m], uint32[16, m] -> [8, m].

    Example:
        >>> import jax.numpy as jnp
        >>> compress_rows(jnp.zeros((8, 3), jnp.uint32), jnp.zeros((16, 3), jnp.uint32)).shape
        (8, 3)
    """
    if states.shape[1] <= FEW:
        return _rounds_of_few(states, blocks)
    return jnp.stack(_rounds(tuple(states), blocks))


@over_lanes
def _compress_all(states: jax.Array, blocks: jax.Array) -> jax.Array:
    return compress_rows(states.T, blocks.T).T


def compress(state: jax.Array, block: jax.Array) -> jax.Array:
    """The compression function: FIPS 180-4, section 6.2.2.

    Args:
        state: uint32[8].
        block: uint32[16].

    Returns:
        uint32[8], the next state.

    Example:
        >>> import jax.numpy as jnp
        >>> abc = jnp.zeros(16, jnp.uint32).at[0].set(0x61626380).at[15].set(24)
        >>> hex(compress(jnp.asarray(INITIAL_STATE), abc)[0])
        '0xba7816bf'
    """
    return _compress_all(state, block)
