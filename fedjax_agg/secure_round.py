"""The secure round: float updates of n clients in, their sum or mean and a report out.

The recipe, in the only order that is safe:

    before:   the protocol's exchanges of keys and shares
    client:   1 clip, 2 flatten and rotate, 3 scale   (codec.forward)
              4 weight, 5 round, 6 add noise, 7 wrap, 8 mask
    after:    the protocol's exchanges about the survivors
    server:   9 sum, 10 unmask, 11 centre-lift
    inverse: 12 unscale, 13 rotate back and unflatten (codec.inverse), 14 divide, 15 update
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_agg._core import (
    checked,
    inverse,
    lifted_sum,
    public_context,
    run_stages,
    transcript_of,
)
from fedjax_agg._stages import Outcome
from fedjax_agg.codecs import Codec
from fedjax_agg.participation import Participation
from fedjax_agg.protocols import Plain, Protocol
from fedjax_agg.session import Session
from fedjax_agg.wire import Transcript


class Report(NamedTuple):
    """What the server of a real round would know beside the sum.

    Attributes:
        ok: bool[], whether the round succeeded. Where False the value is zero.
        survivors: bool[n], whose uploads are in the sum.
        total_weight: float32[], the sum of their weights; their number if none were given.
        bytes_up: by stage, the bytes that one client sent, uint32[].
        bytes_down: by stage, the bytes that one client received, uint32[].
        refusals: by rule, how many clients refused to go on because of it, int32[].
        suspects: bool[n], whose revealed shares do not fit those of the others.

    Example:
        >>> import jax.numpy as jnp
        >>> import fedjax_agg as fa
        >>> session = fa.simulated_session(fa.fixed_seed(0), num_clients=2)
        >>> _, report = fa.secure_sum(jnp.ones((2, 3)), session, codec=fa.FixedPoint(clip=2.0))
        >>> isinstance(report, Report), bool(report.ok), float(report.total_weight)
        (True, True, 2.0)
        >>> int(report.bytes_up["upload"])
        12
    """

    ok: jax.Array
    survivors: jax.Array
    total_weight: jax.Array
    bytes_up: dict[str, jax.Array]
    bytes_down: dict[str, jax.Array]
    refusals: dict[str, jax.Array]
    suspects: jax.Array


def secure_mean(
    updates: Any,
    session: Session,
    *,
    codec: Codec,
    protocol: Protocol = Plain(),
    weights: jax.Array | None = None,
    max_weight: int | None = None,
    participation: Participation | jax.Array | None = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> tuple[Any, Report]:
    """The weighted mean of the clients' clipped updates, through integers and masks.

    One session, one call: two rounds under one session have the same masks. Differentiable in the
    updates, the codec's ranges and the weights, in both modes and to any order; ``jit``, ``vmap``
    and ``scan`` apply. Compiled once for all sessions, participations,
    weights, clips and levels.

    Args:
        updates: a pytree of floats, every leaf [n, ...] with one row for each client.
        session: the private state of the cohort, n clients.
        codec: the map to grid units, such as ``FixedPoint(clip=1.0)``.
        protocol: how words are protected; ``Plain()`` hides nothing.
        weights: one for each client, [n]. Integers from 0 to ``max_weight``, or floats in
            [0, 1], which are first rounded to multiples of ``1 / max_weight``. The weight
            travels as one more coordinate of the masked vector: individual weights are hidden,
            their sum is revealed. None counts every client once.
        max_weight: the largest integer weight; None takes the largest that fits.
        participation: bool[n], whose upload arrives, or a ``Participation``, who is there at
            each stage; None means everybody, always.
        axis_name: the axes of the device mesh that clients lie along. Read off the arrays where
            they are concrete, or where those axes are Explicit; to be given inside a ``jit``
            over Auto axes, and inside somebody's own ``shard_map``. There, updates and weights
            are the rows of this device, and the session and participation those of the cohort.
            Where the arrays show that coordinates lie over further axes too, each device rounds
            and masks its part of them.

    Returns:
        The mean, in the structure and dtypes of one update, and the ``Report``. Zeros where
        ``report.ok`` is False: the protocol failed, or the total weight is zero.

    Raises:
        TypeError: an update leaf that is no float; an argument of another type.
        ValueError: a leaf whose axis 0 is not n; weights or participation of another shape;
            weights out of range; numbers that could make the sum wrap; clients that do not
            divide evenly over the mesh.

    | input | static | traced |
    | --- | --- | --- |
    | weights out of range | ``ValueError`` | moved to the nearer end |
    | weights NaN | ``ValueError`` | zero |
    | coordinate NaN or infinite | - | zero, and so is its derivative |
    | coordinate beyond ``max_levels`` | - | saturates, derivative zero |
    | nobody took part, total weight 0 | - | zeros, ``ok`` False |

    Formal Guarantees:
        Law 1: in the protocol's group the total equals the plain sum of the survivors' words
        bit for bit, so the mean is off by at most one step of the grid (half a step with
        nearest rounding) and float32 round-off. Law 2: the Jacobian with respect to the updates
        is that of the plain weighted mean of clipped updates, times ``ok``. Tangent sums are
        not masked: they are a facility of the simulation, and each would be one more secure sum
        in a deployment. What the server learns is the protocol's to say. The value is the same,
        bit for bit, on every mesh.

    Example:
        >>> import jax.numpy as jnp
        >>> import fedjax_agg as fa
        >>> session = fa.simulated_session(fa.fixed_seed(0), num_clients=2)
        >>> updates = {"w": jnp.array([[0.5, -0.5], [0.25, 0.0]])}
        >>> mean, report = secure_mean(
        ...     updates, session, codec=fa.FixedPoint(clip=1.0), weights=jnp.array([3, 1]))
        >>> mean["w"].tolist(), float(report.total_weight)
        ([0.4375, -0.375], 4.0)
    """
    return _secure(
        True, updates, session, codec, protocol, weights, max_weight, participation, axis_name
    )


def secure_sum(
    updates: Any,
    session: Session,
    *,
    codec: Codec,
    protocol: Protocol = Plain(),
    weights: jax.Array | None = None,
    max_weight: int | None = None,
    participation: Participation | jax.Array | None = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> tuple[Any, Report]:
    """The weighted sum of the clients' clipped updates: ``secure_mean`` without the division.

    Arguments, results, errors and guarantees are those of ``secure_mean``; the sum is off by at
    most one step of the grid for each survivor.

    Example:
        >>> import jax.numpy as jnp
        >>> import fedjax_agg as fa
        >>> session = fa.simulated_session(fa.fixed_seed(0), num_clients=2)
        >>> total, report = secure_sum(
        ...     jnp.array([[0.5], [0.25]]), session, codec=fa.FixedPoint(clip=1.0),
        ...     participation=jnp.array([True, False]))
        >>> total, report.survivors.tolist()
        (Array([0.5], dtype=float32), [True, False])
    """
    return _secure(
        False, updates, session, codec, protocol, weights, max_weight, participation, axis_name
    )


def transcript(
    updates: Any,
    session: Session,
    *,
    codec: Codec,
    protocol: Protocol = Plain(),
    weights: jax.Array | None = None,
    max_weight: int | None = None,
    participation: Participation | jax.Array | None = None,
) -> Transcript:
    """The round of ``secure_mean`` with every message kept. **Simulation only.**

    Arguments and errors are those of ``secure_mean``, which is this round with the transcript
    thrown away; memory is that of all uploads, n times D words.

    Returns:
        The ``Transcript``; its ``view(server=True, clients=(1, 4))`` is all that this coalition
        holds.

    Example:
        Under ``Plain`` the server has every word; under ``SecAgg`` the same view is uniform:

        >>> import jax.numpy as jnp
        >>> import fedjax_agg as fa
        >>> session = fa.simulated_session(fa.fixed_seed(0), num_clients=2)
        >>> kept = transcript(jnp.eye(2), session, codec=fa.FixedPoint(clip=1.0, levels=100))
        >>> kept.view(server=True).server["upload"].outboxes.words
        Array([[100,   0],
               [  0, 100]], dtype=uint32)
        >>> kept.total.words
        Array([100, 100], dtype=uint32)
    """
    static, arguments, _ = checked(
        True, updates, session, codec, protocol, weights, max_weight, participation
    )
    kept, mean, report = _kept(static, *arguments)
    return transcript_of(kept, mean, report, updates)


@functools.partial(jax.jit, static_argnums=0)
def _kept(static, codec, updates, weights, grid, session, participation):
    """A round of which everything is kept."""
    total, outcome, kept = run_stages(
        static, codec, updates, weights, session, participation, keep=True
    )
    lifted = static.protocol.group.centre_lift(total.words).astype(jnp.float32)
    mean, report = _opened(static, codec, updates, grid, session, lifted, outcome)
    return kept | {"total": total}, mean, report


def _secure(*arguments):
    static, arguments, _ = checked(*arguments)
    return _round(static, *arguments)


@functools.partial(jax.jit, static_argnums=0)
def _round(static, codec, updates, weights, grid, session, participation):
    """Steps 1 to 14; compiled on its own, so that eager calls do not trace again."""
    total, outcome = lifted_sum(static, codec, updates, weights, session, participation)
    return _opened(static, codec, updates, grid, session, total, outcome)


def _opened(static, codec, updates, grid, session, total, outcome):
    """Steps 12 to 14: the lifted total, float32[D], as the sum or mean, and the report."""
    ctx = public_context(session, updates)._replace(survivors=outcome.survivors)
    value, total_weight, ok = inverse(static, codec, total, ctx, grid, outcome.ok)
    length = ctx.structure.size + static.weighted
    return value, report_of(static.protocol, length, outcome._replace(ok=ok), total_weight)


def report_of(protocol: Protocol, length: int, outcome: Outcome, total_weight: jax.Array) -> Report:
    """The report of a round: its outcome and its costs.

    Args:
        protocol: the protocol.
        length: coordinates of the masked vector.
        outcome: what came out beside the sum.
        total_weight: float32[].

    Example:
        >>> import jax.numpy as jnp
        >>> there = jnp.ones(2, bool)
        >>> outcome = Outcome(jnp.bool_(True), there, jnp.zeros(0, jnp.int32), ~there)
        >>> int(report_of(Plain(), 3, outcome, jnp.float32(2)).bytes_up["upload"])
        12
    """
    return empty_report(protocol, outcome.survivors.shape[0], length)._replace(
        ok=outcome.ok,
        survivors=outcome.survivors,
        total_weight=total_weight,
        refusals=dict(zip(protocol.rules, outcome.refusals)),
        suspects=outcome.suspects,
    )


def empty_report(protocol: Protocol, num_clients: int, length: int) -> Report:
    """The report of no round yet, which has the structure of every other.

    Args:
        protocol: the protocol.
        num_clients: the size of the cohort.
        length: coordinates of the masked vector.

    Example:
        >>> bool(empty_report(Plain(), num_clients=2, length=3).ok)
        False
    """
    cost = protocol.cost(length, num_clients)
    return Report(
        ok=jnp.bool_(False),
        survivors=jnp.zeros(num_clients, jnp.bool_),
        total_weight=jnp.float32(0),
        bytes_up={stage: jnp.uint32(count) for stage, count in cost.bytes_up.items()},
        bytes_down={stage: jnp.uint32(count) for stage, count in cost.bytes_down.items()},
        refusals={rule: jnp.int32(0) for rule in protocol.rules},
        suspects=jnp.zeros(num_clients, jnp.bool_),
    )
