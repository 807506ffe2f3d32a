"""The shape of an update: any pytree of floats as one flat float32 vector, and back."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_agg import _check


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Structure:
    """The tree, shapes and dtypes of one client's update; public, hashable, holds no array.

    Attributes:
        treedef: the structure of the tree.
        shapes: the shape of each leaf.
        dtypes: the dtype of each leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> update = {"w": jnp.ones((2, 2)), "b": jnp.float16(3)}
        >>> structure = Structure.of(update)
        >>> structure.size
        5
        >>> flat = flatten(update)
        >>> flat.tolist()
        [3.0, 1.0, 1.0, 1.0, 1.0]
        >>> structure.cast(structure.unflatten(flat))["b"]
        Array(3., dtype=float16)
    """

    treedef: Any
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[np.dtype, ...]

    @classmethod
    def of(cls, update: Any, name: str = "update") -> "Structure":
        """The structure of one update, from arrays or ``jax.ShapeDtypeStruct`` leaves.

        ``name`` is what the caller's error messages call it.

        Raises:
            TypeError: a leaf that is not of a floating-point type; the message names its path.
        """
        not_float = _check.first_leaf(
            name, update, lambda leaf: not jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
        )
        if not_float is not None:
            path, leaf = not_float
            raise _check.error(
                "update-dtype",
                f"the dtype {jnp.result_type(leaf).name} of {path}",
                "a floating-point type",
                TypeError,
            )
        leaves, treedef = jax.tree.flatten(update)
        return cls(
            treedef,
            tuple(jnp.shape(leaf) for leaf in leaves),
            tuple(np.dtype(jnp.result_type(leaf)) for leaf in leaves),
        )

    @property
    def size(self) -> int:
        """The number of coordinates."""
        return sum(math.prod(shape) for shape in self.shapes)

    def unflatten(self, vector: jax.Array) -> Any:
        """The inverse of ``flatten``: float32[size] -> the tree, its leaves still float32."""
        leaves, begin = [], 0
        for shape in self.shapes:
            end = begin + math.prod(shape)
            leaves.append(vector[begin:end].reshape(shape))
            begin = end
        return jax.tree.unflatten(self.treedef, leaves)

    def cast(self, update: Any) -> Any:
        """The tree with every leaf in the dtype it came in."""
        leaves = jax.tree.leaves(update)
        cast = [leaf.astype(dtype) for leaf, dtype in zip(leaves, self.dtypes)]
        return jax.tree.unflatten(self.treedef, cast)


def client_structure(updates: Any, num_clients: int | None = None) -> Structure:
    """The structure of one client's update, from those of all clients.

    Args:
        updates: a pytree of floats, every leaf [num_clients, ...].
        num_clients: the number of clients; None takes that of the first leaf.

    Raises:
        ValueError: a leaf whose axis 0 is not ``num_clients``; the message names its path.
        TypeError: a leaf that is not of a floating-point type.

    Example:
        >>> import jax.numpy as jnp
        >>> client_structure({"w": jnp.ones((3, 2, 2))}, 3).shapes
        ((2, 2),)
    """
    if num_clients is None:
        first = [jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(updates)[:1]]
        num_clients = (*first[0], 0)[0] if first else 0
    wrong = _check.first_leaf(
        "updates", updates, lambda leaf: jnp.shape(leaf)[:1] != (num_clients,)
    )
    if wrong is not None:
        path, leaf = wrong
        raise _check.error(
            "client-axis",
            f"the shape {jnp.shape(leaf)} of {path}",
            f"[{num_clients}, ...] for {num_clients} clients",
        )
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), updates)
    return Structure.of(one, "updates")


def flatten(update: Any) -> jax.Array:
    """The coordinates of one update in the order of ``jax.tree.leaves``: float32[size].

    Example:
        >>> import jax.numpy as jnp
        >>> flatten({"b": jnp.zeros(1), "a": jnp.ones((1, 2))}).tolist()
        [1.0, 1.0, 0.0]
    """
    leaves = [jnp.ravel(leaf).astype(jnp.float32) for leaf in jax.tree.leaves(update)]
    return jnp.concatenate(leaves) if leaves else jnp.zeros(0, jnp.float32)
