"""The secure round: float updates of n clients in, their sum or mean and a report out.

The recipe, in the only order that is safe:

    client:   1 clip, 2 flatten and rotate, 3 scale   (codec.forward)
              4 weight, 5 round, 6 add noise, 7 wrap, 8 mask
    server:   9 sum, 10 unmask, 11 centre-lift
    inverse: 12 unscale, 13 rotate back and unflatten (codec.inverse), 14 divide, 15 update
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fedjax_agg import _check, _xla, budget, rounding
from fedjax_agg.codecs import Codec
from fedjax_agg.protocols import Plain, Protocol
from fedjax_agg.session import RoundContext, Session
from fedjax_agg.structure import client_structure
from fedjax_agg.symmetric import key_schedule


class Report(NamedTuple):
    """What the server of a real round would know beside the sum.

    Attributes:
        ok: bool[], whether the round succeeded. Where False the value is zero.
        survivors: bool[n], whose uploads are in the sum.
        total_weight: float32[], the sum of their weights; their number if none were given.
        bytes_up: by stage, the bytes that one client sent, uint32[].
        bytes_down: by stage, the bytes that one client received, uint32[].

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


class _Static(NamedTuple):
    """What one compiled round is specialised to, besides shapes."""

    protocol: Protocol
    weighted: bool
    mean: bool


def secure_mean(
    updates: Any,
    session: Session,
    *,
    codec: Codec,
    protocol: Protocol = Plain(),
    weights: jax.Array | None = None,
    max_weight: int | None = None,
    participation: jax.Array | None = None,
) -> tuple[Any, Report]:
    """The weighted mean of the clients' clipped updates, through integers and masks.

    Differentiable in the updates, the codec's ranges and the weights, in both modes and to any
    order; ``jit``, ``vmap`` and ``scan`` apply. Compiled once for all sessions, participations,
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
        participation: bool[n], whose upload arrives; None means everybody's.

    Returns:
        The mean, in the structure and dtypes of one update, and the ``Report``. Zeros where
        ``report.ok`` is False: the protocol failed, or the total weight is zero.

    Raises:
        TypeError: an update leaf that is no float; an argument of another type.
        ValueError: a leaf whose axis 0 is not n; weights or participation of another shape;
            weights out of range; numbers that could make the sum wrap.

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
        in a deployment. What the server learns is the protocol's to say.

    Example:
        >>> import jax.numpy as jnp
        >>> import fedjax_agg as fa
        >>> session = fa.simulated_session(fa.fixed_seed(0), num_clients=2)
        >>> updates = {"w": jnp.array([[0.5, -0.5], [0.25, 0.0]])}
        >>> mean, report = secure_mean(
        ...     updates, session, codec=fa.FixedPoint(clip=1.0), protocol=fa.SecAgg(),
        ...     weights=jnp.array([3, 1]))
        >>> mean["w"].tolist(), float(report.total_weight)
        ([0.4375, -0.375], 4.0)
    """
    return _secure(True, updates, session, codec, protocol, weights, max_weight, participation)


def secure_sum(
    updates: Any,
    session: Session,
    *,
    codec: Codec,
    protocol: Protocol = Plain(),
    weights: jax.Array | None = None,
    max_weight: int | None = None,
    participation: jax.Array | None = None,
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
    return _secure(False, updates, session, codec, protocol, weights, max_weight, participation)


def _secure(mean, updates, session, codec, protocol, weights, max_weight, participation):
    """Checks everything that is static, then runs the compiled round."""
    _check.instance("session-type", Session, session=session)
    _check.instance("codec-type", Codec, codec=codec)
    _check.instance("protocol-type", Protocol, protocol=protocol)
    _check.shape("session-rounds", (), **{"session.round_id": session.round_id})
    n = session.num_clients
    client_structure(updates, n)
    max_weight = budget.largest_weight(n, codec, protocol, weights, max_weight)
    grid = 1
    if weights is not None:
        _check.shape("weights-shape", (n,), weights=weights)
        weights, grid = budget.weights_on_grid(weights, max_weight)
    survivors = _survivors(participation, n)
    codec = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), codec)
    static = _Static(protocol, weights is not None, mean)
    return _round(static, codec, updates, weights, jnp.float32(grid), session, survivors)


def _survivors(participation, n):
    if participation is None:
        return jnp.ones(n, jnp.bool_)
    _check.shape("participation-shape", (n,), participation=participation)
    if participation.dtype != jnp.bool_:
        raise _check.error(
            "participation-dtype", f"the dtype {participation.dtype.name} of participation", "bool"
        )
    return jnp.asarray(participation)


@functools.partial(jax.jit, static_argnums=0)
def _round(static, codec, updates, weights, grid, session, survivors):
    """Steps 1 to 14; compiled on its own, so that eager calls do not trace again."""
    n = session.num_clients
    total, ok = _core(static, codec, updates, weights, session, survivors)
    if static.weighted:
        total, total_weight = total[:-1], total[-1]
    else:
        total_weight = jnp.sum(survivors, dtype=jnp.int32).astype(jnp.float32)
    ok = ok & (total_weight > 0)
    total_weight = jnp.where(ok, total_weight, 0.0)
    ctx = _public_context(session, updates)._replace(
        survivors=survivors, total_weight=total_weight / grid
    )
    value = codec.inverse(total, ctx)
    divisor = jnp.where(ok, total_weight, 1.0) if static.mean else grid
    value = jax.tree.map(lambda leaf: jnp.where(ok, leaf / divisor, 0.0), value)
    length = ctx.structure.size + static.weighted
    report = Report(
        ok=ok,
        survivors=survivors,
        total_weight=ctx.total_weight,
        bytes_up=jax.tree.map(jnp.uint32, static.protocol.bytes_up(length, n)),
        bytes_down=jax.tree.map(jnp.uint32, static.protocol.bytes_down(length, n)),
    )
    return ctx.structure.cast(value), report


def _client_units(codec, update, weight, ctx):
    """Steps 1 to 4 for one client: float32[D], finite, |units| <= max_weight * max_levels.

    Selecting instead of clipping makes the derivative zero where a coordinate saturated or was
    not finite.
    """
    units = codec.forward(update, ctx)
    limit = jnp.float32(codec.max_levels)
    units = jnp.where(jnp.isfinite(units), units, 0.0)
    units = jnp.where(units > limit, limit, jnp.where(units < -limit, -limit, units))
    if weight is None:
        return units
    return jnp.concatenate([weight * units, weight[None]])


def _public_context(session: Session, updates: Any) -> RoundContext:
    structure = client_structure(updates, session.num_clients)
    return RoundContext(session.round_id, session.public_seed, structure=structure)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _core(static, codec, updates, weights, session, survivors):
    """Steps 1 to 11: the sum of the survivors' words, lifted to float32[D], and ``ok``.

    One client at a time and added as it goes, so that no array of clients times coordinates is
    made, and no float ever depends on two clients.
    """
    protocol, group = static.protocol, static.protocol.group
    public = _public_context(session, updates)

    def prepare(agreement, client):
        ctx = public._replace(client=client)
        return protocol.prepare(agreement, session.client_ids, ctx)

    def rounding_key(secret):
        return key_schedule.derive_key(
            secret, key_schedule.ROUNDING, salt=session.public_seed, round_id=session.round_id
        )

    private = jax.vmap(prepare)(session.agreement, session.client_ids)
    draws = codec.rounding == "stochastic"
    rounding_keys = jax.vmap(rounding_key)(session.secrets) if draws else None
    rows = (updates, weights, session.client_ids, private, rounding_keys, survivors)

    def add_client(i, total):
        row = jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, i, keepdims=False), rows)
        update, weight, client, private_i, rounding_key_i, alive = row
        ctx = public._replace(client=client)
        units = _client_units(codec, update, weight, ctx)
        words = group.wrap(rounding.round_to_grid(codec.rounding, units, rounding_key_i))
        upload = protocol.protect(words, private_i, ctx)
        return group.add(total, jnp.where(alive, upload.words, jnp.uint32(0)))

    length = public.structure.size + static.weighted
    uploads = _xla.client_loop(session.num_clients, add_client, jnp.zeros(length, jnp.uint32))
    total = protocol.recover(uploads, public._replace(survivors=survivors))
    return group.centre_lift(total.words).astype(jnp.float32), total.ok


# With y_i the grid units of client i, weights included, the core is
#     lift( sum over survivors of round(y_i) ),
# whose expectation under stochastic rounding is  ok * sum over survivors of y_i,  so that
#     d core = ok * sum over survivors of dy_i.
# Masks cancel exactly and contribute nothing. The sum is linear in dy, so JAX transposes it to a
# broadcast: the same cotangent for every survivor.
@_core.defjvp
def _core_jvp(static, primals, tangents):
    _, updates, _, session, survivors = primals
    total, ok = _core(static, *primals)
    public = _public_context(session, updates)

    def all_units(codec, updates, weights):
        def one(update, weight, client):
            return _client_units(codec, update, weight, public._replace(client=client))

        return jax.vmap(one)(updates, weights, session.client_ids)

    _, units_dot = jax.jvp(all_units, primals[:3], tangents[:3])
    counted = (survivors & ok).astype(jnp.float32)
    total_dot = jnp.sum(counted[:, None] * units_dot, axis=0)
    return (total, ok), (total_dot, np.zeros((), jax.dtypes.float0))
