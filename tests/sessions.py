"""Sessions for tests that do not depend on how keys were derived."""

import jax.numpy as jnp
import numpy as np

import fedjax_agg as fa


def any_session(num_clients, number=0):
    """A session of arbitrary words, without the cost of deriving them."""
    rng = np.random.default_rng(number)

    def words(*shape):
        return jnp.asarray(rng.integers(2**32, size=shape, dtype=np.uint32))

    agreement = jnp.broadcast_to(words(2, 8), (num_clients, 2, 8))
    client_ids = jnp.arange(1, num_clients + 1, dtype=jnp.uint32)
    return fa.Session(jnp.uint32(number), words(8), client_ids, words(num_clients, 8), agreement)
