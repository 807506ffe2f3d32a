"""The sum of keystreams as one kernel for GPUs, whose accumulators never leave the registers.

XLA's form of the sum for CPUs, a variadic reduce, is no good plan for a GPU: a thread there should
take blocks and keep the sixteen sums of each, while it goes through the keys. Pallas says so. It is
under ``jax.experimental``, and this file is the only one that imports from there. Its backend here
is Triton's, which runs on every NVIDIA GPU that JAX does; JAX 0.12 warns that it will go.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from fedjax_agg.symmetric.chacha20_block import WORDS_PER_BLOCK, double_round, first_state

# Blocks that one program of the grid takes, one for each of its threads.
LANES = 128


def keystream_sum_gpu(
    keys: jax.Array,
    coefficients: jax.Array,
    nonce: jax.Array,
    first_block: jax.Array,
    length: int,
    *,
    interpret: bool = False,
) -> jax.Array:
    """``keystream_sum`` from block ``first_block`` on, for arguments that it has checked.

    Args:
        keys: uint32[m, 8], m >= 1.
        coefficients: uint32[m].
        nonce: uint32[3].
        first_block: uint32[], the number of the first block.
        length: the number of words, 1 or more; static.
        interpret: run the kernel step by step, on any device.

    Returns:
        uint32[length].

    Example:
        >>> import jax.numpy as jnp
        >>> zero = jnp.zeros((1, 8), jnp.uint32), jnp.ones(1, jnp.uint32), jnp.zeros(3, jnp.uint32)
        >>> words = keystream_sum_gpu(*zero, jnp.uint32(0), 2, interpret=True)
        >>> [hex(word) for word in words.tolist()]
        ['0xade0b876', '0x903df1a0']
    """
    tiles = pl.cdiv(length, WORDS_PER_BLOCK * LANES)
    # Inside a shard_map the sums vary over the mesh as whatever is made of all arguments does.
    varies = jax.typeof(keys[0, 0] + coefficients[0] + nonce[0] + first_block).manual_axis_type
    sums = pl.pallas_call(
        functools.partial(_sum_tile, keys.shape[0]),
        jax.ShapeDtypeStruct((WORDS_PER_BLOCK, tiles * LANES), jnp.uint32, manual_axis_type=varies),
        grid=(tiles,),
        # Words in front, so that neighbouring threads write neighbouring words.
        out_specs=pl.BlockSpec((WORDS_PER_BLOCK, LANES), lambda tile: (0, tile)),
        interpret=interpret,
        name="keystream_sum",
        compiler_params=triton.CompilerParams(num_warps=LANES // 32, num_stages=1),
    )(keys, coefficients, nonce, first_block[None])
    return sums.T.reshape(-1)[:length]


def _sum_tile(num_keys, keys, coefficients, nonce, first_block, sums):
    """LANES blocks: all keys, one after the other, into sixteen registers of each thread."""
    own = lax.broadcasted_iota(jnp.uint32, (LANES,), 0)
    block = first_block[0] + lax.convert_element_type(pl.program_id(0) * LANES, jnp.uint32) + own
    nonces = [jnp.broadcast_to(nonce[i], (LANES,)) for i in range(3)]

    def add_key(j, totals):
        key = [jnp.broadcast_to(keys[j, i], (LANES,)) for i in range(8)]
        first = first_state(key, block, nonces)
        last = lax.fori_loop(0, 10, lambda _, state: double_round(state), first)
        weight = coefficients[j]
        return [t + weight * (a + b) for t, a, b in zip(totals, last, first)]

    nothing = [jnp.zeros((LANES,), np.uint32)] * WORDS_PER_BLOCK
    for word, total in enumerate(lax.fori_loop(0, num_keys, add_key, nothing)):
        sums[word, :] = total
