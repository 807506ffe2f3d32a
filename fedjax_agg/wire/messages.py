"""The messages of a round; the docstring of each says who may hold it."""

from typing import NamedTuple

import jax


class Upload(NamedTuple):
    """One client's protected words, from that client to the server.

    Under a masking protocol, anyone may see it: it is uniform. Under ``Plain`` it is the
    client's update.

    Attributes:
        words: uint32[D], elements of the protocol's group.

    Example:
        >>> import jax.numpy as jnp
        >>> Upload(jnp.arange(3, dtype=jnp.uint32)).words.shape
        (3,)
    """

    words: jax.Array


class Total(NamedTuple):
    """The sum of the survivors' words, held by the server.

    Attributes:
        words: uint32[D], elements of the protocol's group; zeros where ``ok`` is False.
        ok: bool[], whether the protocol succeeded.

    Example:
        >>> import jax.numpy as jnp
        >>> Total(jnp.zeros(3, jnp.uint32), jnp.bool_(False)).ok.item()
        False
    """

    words: jax.Array
    ok: jax.Array
