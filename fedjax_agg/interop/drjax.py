"""DrJAX's reductions as secure rounds, inside ``drjax.program`` (Rush et al., arXiv 2403.07128).

A placed value has the clients of the program along its leading axis, which is what a round takes.

    drjax.reduce_sum(x)               reduce_sum(x, session, codec=codec)
    drjax.reduce_mean(x)              reduce_mean(x, session, codec=codec)
    drjax.reduce_weighted_mean(x, w)  reduce_weighted_mean(x, w, session, codec=codec)

Each gives ``(value, Report)``; the value is an unplaced one. A program that reduces twice needs
two sessions. The derivative of a reduction is that of DrJAX's own on clipped values, but it is
made of ``jax.numpy`` sums and not of DrJAX's primitives: what rewrites the jaxpr of a program to
move its communication elsewhere does not see these reductions.

Values that lie over a mesh, where they are concrete or its axes Explicit, are summed where they
are, as by ``secure_mean``. Under ``jit`` over Auto axes say which, by ``axis_name=``: without it
XLA gathers the values of all clients first, and the result is right.
"""

from typing import Any

import drjax
import jax
import jax.numpy as jnp

from fedjax_agg import _check
from fedjax_agg.codecs import Codec
from fedjax_agg.participation import Participation
from fedjax_agg.protocols import Plain, Protocol
from fedjax_agg.secure_round import Report, secure_mean, secure_sum
from fedjax_agg.session import Session


def reduce_sum(
    x: Any,
    session: Session,
    *,
    codec: Codec,
    protocol: Protocol = Plain(),
    participation: Participation | jax.Array | None = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> tuple[Any, Report]:
    """``drjax.reduce_sum`` as a secure sum.

    Args:
        x: a placed pytree of floats, every leaf [n, ...].
        session: the private state of the n clients of the program, for this reduction only.
        codec: the map to grid units; values are clipped to its range.
        protocol: how words are protected.
        participation: bool[n] or a ``Participation``; None means everybody, always.
        axis_name: the axes of the device mesh that clients lie along, as for ``secure_sum``.

    Returns:
        The sum of the clipped values, every leaf [...], off by at most one step of the grid for
        each survivor; and the ``Report``. Zeros where ``report.ok`` is False.

    Raises:
        drjax's OperatorUndefinedError: outside of ``drjax.program``.
        TypeError, ValueError: as ``secure_sum``, and a session of another number of clients than
            the program's.

    Formal Guarantees:
        Those of ``secure_sum``: what the server learns is the protocol's to say. The other
        operators of a program hide nothing, ``drjax.reduce_sum`` of a loss among them.

    Example:
        >>> import drjax
        >>> import jax.numpy as jnp
        >>> import fedjax_agg as fa
        >>> @drjax.program(clients=2)
        ... def total(x, session):
        ...     return reduce_sum(x, session, codec=fa.FixedPoint(clip=1.0))[0]
        >>> session = fa.simulated_session(fa.fixed_seed(0), num_clients=2)
        >>> total(jnp.array([[0.5, -0.5], [0.25, 0.0]]), session)
        Array([ 0.75, -0.5 ], dtype=float32)
    """
    _check_placement(session)
    return secure_sum(
        x,
        session,
        codec=codec,
        protocol=protocol,
        participation=participation,
        axis_name=axis_name,
    )


def reduce_mean(
    x: Any,
    session: Session,
    *,
    codec: Codec,
    protocol: Protocol = Plain(),
    participation: Participation | jax.Array | None = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> tuple[Any, Report]:
    """``drjax.reduce_mean`` as a secure mean, over the survivors.

    Arguments, errors and guarantees are those of ``reduce_sum``; the mean is off by at most one
    step of the grid.

    Example:
        >>> import drjax
        >>> import jax.numpy as jnp
        >>> import fedjax_agg as fa
        >>> @drjax.program(clients=2)
        ... def mean(x, session):
        ...     return reduce_mean(x, session, codec=fa.FixedPoint(clip=1.0))[0]
        >>> session = fa.simulated_session(fa.fixed_seed(0), num_clients=2)
        >>> mean(jnp.array([[0.5, -0.5], [0.25, 0.0]]), session)
        Array([ 0.375, -0.25 ], dtype=float32)
    """
    _check_placement(session)
    return secure_mean(
        x,
        session,
        codec=codec,
        protocol=protocol,
        participation=participation,
        axis_name=axis_name,
    )


def reduce_weighted_mean(
    x: Any,
    w: jax.Array,
    session: Session,
    *,
    codec: Codec,
    protocol: Protocol = Plain(),
    max_weight: int | None = None,
    participation: Participation | jax.Array | None = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> tuple[Any, Report]:
    """``drjax.reduce_weighted_mean`` as a secure mean: values and weights in one masked vector.

    Arguments, errors and guarantees are those of ``reduce_sum``, and:

    Args:
        w: one weight for each client, [n]; DrJAX wants a tree of them like ``x``. Integers from 0
            to ``max_weight``, or floats in [0, 1]; individual weights are hidden, their sum is
            revealed.
        max_weight: the largest integer weight; None takes the largest that fits.

    | input | DrJAX | here |
    | --- | --- | --- |
    | weights sum to zero | NaN | zeros, ``ok`` False |
    | traced floats above 1, such as counts | as they are | 1: divide them by a public maximum |
    | a value beyond the clip | as it is | clipped |

    Example:
        >>> import drjax
        >>> import jax.numpy as jnp
        >>> import fedjax_agg as fa
        >>> @drjax.program(clients=2)
        ... def mean(x, counts, session):
        ...     return reduce_weighted_mean(
        ...         x, counts, session, codec=fa.FixedPoint(clip=1.0), max_weight=10)[0]
        >>> session = fa.simulated_session(fa.fixed_seed(0), num_clients=2)
        >>> mean(jnp.array([[0.5, -0.5], [0.25, 0.0]]), jnp.array([3, 1]), session)
        Array([ 0.4375, -0.375 ], dtype=float32)
    """
    _check_placement(session)
    return secure_mean(
        x,
        session,
        codec=codec,
        protocol=protocol,
        weights=w,
        max_weight=max_weight,
        participation=participation,
        axis_name=axis_name,
    )


def _check_placement(session: Session) -> None:
    """DrJAX's error outside of a program, ours where its clients are not those of the session."""
    _check.instance("session-type", Session, session=session)
    scalar = jax.ShapeDtypeStruct((), jnp.float32)
    (placed,) = jax.eval_shape(drjax.broadcast, scalar).shape
    if session.num_clients != placed:
        raise _check.error(
            "placement-clients",
            f"session of {session.num_clients} clients",
            f"of the {placed} of drjax.program",
        )
