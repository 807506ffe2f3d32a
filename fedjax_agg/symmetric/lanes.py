"""Ciphers and hashes of many inputs at once, however deep the ``vmap`` that asks for them."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def over_lanes(many: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """The function of one input from the function of many, in one vector loop under any ``vmap``.

    All axes that ``vmap`` adds become one, over which every word is a vector. Left as they are,
    the words of one input would lie side by side and be moved about at every step, at a fifth of
    the speed.

    Args:
        many: arrays of leading axis m to one array of leading axis m, row by row.

    Returns:
        The function of one row.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> double = over_lanes(lambda rows: 2 * rows)
        >>> jax.vmap(jax.vmap(double))(jnp.ones((3, 4, 5))).shape
        (3, 4, 5)
    """

    # Traced once for each number of rows, and not at each of the many places that hash and seal:
    # half of the time to trace a round.
    many = jax.jit(many)

    @jax.custom_batching.custom_vmap
    def one(*inputs):
        return many(*(x[None] for x in inputs))[0]

    @one.def_vmap
    def _(size, batched, *inputs):
        return all_rows(*_broadcast(size, batched, inputs)), True

    @jax.custom_batching.custom_vmap
    def all_rows(*inputs):
        return many(*inputs)

    @all_rows.def_vmap
    def _(size, batched, *inputs):
        inputs = _broadcast(size, batched, inputs)
        outputs = all_rows(*(x.reshape(-1, *x.shape[2:]) for x in inputs))
        return outputs.reshape(inputs[0].shape[:2] + outputs.shape[1:]), True

    return one


def _broadcast(size, batched, inputs):
    return [
        x if here else jnp.broadcast_to(x, (size, *x.shape)) for here, x in zip(batched, inputs)
    ]
