"""What the compiler is told, read off the program that it makes."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import fedjax_agg as fa
from fedjax_agg import _xla


def compiled_loop(loop):
    def summed(rows):
        return loop(0, 8, lambda i, total: total + jnp.round(rows[i]), jnp.zeros(rows.shape[1]))

    return jax.jit(summed).lower(jnp.ones((8, 1000))).compile().as_text()


def test_the_guard_survives_the_compiler():
    """A loop on all threads needs a product in its body; a plain loop has none."""
    guarded = compiled_loop(lambda _, *loop: _xla.client_loop(*loop))
    assert (" dot(" in guarded) == _xla.GUARDED
    assert " dot(" not in compiled_loop(lax.fori_loop)


def test_client_loop_is_fori_loop():
    def body(i, total):
        return 3 * total + i

    start = jnp.arange(5, dtype=jnp.int32)
    assert (_xla.client_loop(7, body, start) == lax.fori_loop(0, 7, body, start)).all()


@pytest.mark.slow
def test_compiler_options_change_no_bit():
    session = fa.simulated_session(fa.fixed_seed(0), num_clients=4)
    updates = jnp.linspace(-1.0, 1.0, 400).reshape(4, 100)

    def mean(updates):
        return fa.secure_mean(
            updates, session, codec=fa.FixedPoint(clip=1.0), protocol=fa.SecAgg()
        )[0]

    fast = jax.jit(mean, compiler_options=fa.compiler_options())
    assert (fast(updates) == jax.jit(mean)(updates)).all()
