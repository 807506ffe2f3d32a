"""Ciphers and hashes of many inputs at once, however deep the ``vmap`` that asks for them."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax


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


def in_parts(many: Callable[..., jax.Array], rows: int, *inputs: jax.Array) -> jax.Array:
    """``many(*inputs)``, on a CPU some rows at a time: what it works on stays in the cache.

    Args:
        many: as in ``over_lanes``.
        rows: how many at a time, static; the last part is filled with zeros.
        inputs: arrays of leading axis m.

    Returns:
        What ``many`` returns, of leading axis m.

    Example:
        >>> import jax.numpy as jnp
        >>> in_parts(lambda rows: 2 * rows, 2, jnp.ones((3, 4))).shape
        (3, 4)
    """
    if jax.default_backend() == "gpu":
        # It has no such cache, and only all rows at once fill it.
        return many(*inputs)
    m = inputs[0].shape[0]
    parts = -(-m // rows)

    def cut(x):
        padded = jnp.pad(x, ((0, parts * rows - m), *[(0, 0)] * (x.ndim - 1)))
        return padded.reshape(parts, rows, *x.shape[1:])

    outputs = lax.map(lambda part: many(*part), [cut(x) for x in inputs])
    return outputs.reshape(parts * rows, *outputs.shape[2:])[:m]


def _broadcast(size, batched, inputs):
    return [
        x if here else jnp.broadcast_to(x, (size, *x.shape)) for here, x in zip(batched, inputs)
    ]
