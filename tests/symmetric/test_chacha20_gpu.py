"""The kernel for GPUs without a GPU: interpreted, lowered, and chosen where there is one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, NamedSharding, PartitionSpec

from fedjax_agg.symmetric import chacha20
from fedjax_agg.symmetric.chacha20 import keystream_sum
from fedjax_agg.symmetric.chacha20_gpu import LANES, keystream_sum_gpu

TILE = 16 * LANES
H100 = AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=132, platform="cuda")
interpreted = jax.jit(
    lambda *arguments, length: keystream_sum_gpu(*arguments, length, interpret=True),
    static_argnames="length",
)


def arguments(m, seed=0):
    draw = np.random.default_rng([seed, m]).integers
    shapes = ((m, 8), (m,), (3,))
    return [jnp.asarray(draw(2**32, size=shape, dtype=np.uint32)) for shape in shapes]


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("m", [1, 5, 17])
@pytest.mark.parametrize("length", [TILE + 17, 1, 16, TILE - 1, TILE, 3 * TILE])
def test_the_kernel_has_the_bits_of_the_sum_in_lanes(m, length):
    """Which are those of OpenSSL: its own test says so. Within a tile, at its end, beyond it."""
    keys, coefficients, nonce = arguments(m)
    found = interpreted(keys, coefficients, nonce, jnp.uint32(3), length=length)
    expected = keystream_sum(keys, coefficients, nonce, length, start=3 * 16)
    np.testing.assert_array_equal(found, expected)


def test_the_last_block_of_a_stream():
    keys, coefficients, nonce = arguments(2)
    found = interpreted(keys, coefficients, nonce, jnp.uint32(2**32 - 2), length=32)
    expected = keystream_sum(keys, coefficients, nonce, 32, start=16 * (2**32 - 2))
    np.testing.assert_array_equal(found, expected)


def cuda_program(function, *shapes, devices=1, spread=()):
    """What a function lowers to for an H100 that is not there."""
    mesh = AbstractMesh((devices,), ("x",), abstract_device=H100)
    with jax.sharding.use_abstract_mesh(mesh):
        structs = [
            jax.ShapeDtypeStruct(
                shape,
                jnp.uint32,
                sharding=NamedSharding(mesh, PartitionSpec("x" if i in spread else None)),
            )
            if shape
            else jax.ShapeDtypeStruct(shape, jnp.uint32)
            for i, shape in enumerate(shapes)
        ]
        program = jax.jit(function).trace(*structs).lower(lowering_platforms=("cuda",))
    return program.as_text()


SHAPES = ((5, 8), (5,), (3,), ())


def test_where_there_is_a_gpu_the_kernel_is_in_its_program(monkeypatch):
    """And not in one for a CPU, which has the same bits."""
    length = 1003  # The choice is made when a length is first asked for.

    def total(*arguments):
        keys, coefficients, nonce, start = arguments
        return keystream_sum(keys, coefficients, nonce, length, start)

    assert "triton" not in cuda_program(total, *SHAPES)
    expected = keystream_sum(*arguments(5), length)
    jax.clear_caches()
    monkeypatch.setattr(chacha20, "_has_gpu", lambda: True)
    assert "triton" in cuda_program(total, *SHAPES)
    on_cpu = jax.jit(total)
    structs = [jax.ShapeDtypeStruct(shape, jnp.uint32) for shape in SHAPES]
    assert "triton" not in on_cpu.lower(*structs).as_text()
    np.testing.assert_array_equal(on_cpu(*arguments(5), jnp.uint32(0)), expected)
    jax.clear_caches()


@pytest.mark.parametrize("how", ["vmap", "shard_map"])
def test_it_lowers_under_vmap_and_shard_map(how, monkeypatch):
    """Of many keys, one after the other; and on each device of a mesh its own keys."""
    monkeypatch.setattr(chacha20, "_has_gpu", lambda: True)

    def rows(keys, coefficients, nonce):
        return jax.vmap(lambda k, c: keystream_sum(k, c, nonce, 1005))(keys, coefficients)

    shapes = ((4, 5, 8), (4, 5), (3,))
    if how == "vmap":
        program = cuda_program(rows, *shapes)
    else:
        by_row = PartitionSpec("x")
        on_each = jax.shard_map(rows, in_specs=(by_row, by_row, PartitionSpec()), out_specs=by_row)
        program = cuda_program(on_each, *shapes, devices=2, spread=(0, 1))
    assert "triton" in program
    jax.clear_caches()
