"""Plaintext measurements of what a round does to each update: **simulation only**."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_agg import _check
from fedjax_agg.codecs import Codec
from fedjax_agg.session import RoundContext
from fedjax_agg.structure import client_structure


class Diagnostics(NamedTuple):
    """Plaintext measurements, which no real server has: **simulation only**.

    Attributes:
        non_finite: int32[n], coordinates that were NaN or infinite, and count as zero.
        clipped: bool[n], whether the codec shortened the update.
        saturated: int32[n], coordinates beyond ``max_levels``.

    Example:
        >>> import jax.numpy as jnp
        >>> import fedjax_agg as fa
        >>> updates = jnp.array([[3.0, 4.0], [jnp.nan, 0.5]])
        >>> measured = diagnose(updates, codec=fa.FixedPoint(clip=1.0))
        >>> isinstance(measured, Diagnostics), measured.clipped.tolist()
        (True, [True, False])
    """

    non_finite: jax.Array
    clipped: jax.Array
    saturated: jax.Array


def diagnose(updates: Any, *, codec: Codec) -> Diagnostics:
    """Measures in the clear what a round does to each update: **simulation only**.

    Args:
        updates: a pytree of floats, every leaf [n, ...].
        codec: the codec of the round.

    Returns:
        The ``Diagnostics``, one row for each client.

    Raises:
        TypeError: an update leaf that is no float.
        ValueError: leaves of unequal axis 0.

    Example:
        >>> import jax.numpy as jnp
        >>> import fedjax_agg as fa
        >>> updates = jnp.array([[3.0, 4.0], [jnp.nan, 0.5]])
        >>> diagnose(updates, codec=fa.FixedPoint(clip=1.0)).non_finite.tolist()
        [0, 1]
    """
    _check.instance("codec-type", Codec, codec=codec)
    structure = client_structure(updates)

    def one(update):
        units = codec.forward(update, RoundContext(structure=structure))
        bad = [jnp.sum(~jnp.isfinite(leaf), dtype=jnp.int32) for leaf in jax.tree.leaves(update)]
        return Diagnostics(
            non_finite=sum(bad, start=jnp.int32(0)),
            clipped=codec.clipped(update),
            saturated=jnp.sum(jnp.abs(units) > codec.max_levels, dtype=jnp.int32),
        )

    return jax.vmap(one)(updates)
