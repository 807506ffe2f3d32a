"""The optax end: per-client gradients in, one update out."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax.contrib import DifferentiallyPrivateAggregateState

from fedjax_agg import _check
from fedjax_agg.codecs import Codec
from fedjax_agg.protocols import Plain, Protocol
from fedjax_agg.rounding import MAX_UNITS
from fedjax_agg.secure_round import Report, empty_report, secure_mean
from fedjax_agg.session import MAX_CLIENTS, Session
from fedjax_agg.structure import Structure


class SecureAggregateState(NamedTuple):
    """The state of ``secure_aggregate``: no secret and no counter, safe to log and to store.

    Attributes:
        report: the ``Report`` of the last round; ``ok`` is False before the first.

    Example:
        >>> import jax.numpy as jnp
        >>> import fedjax_agg as fa
        >>> aggregate = fa.secure_aggregate(fa.FixedPoint(clip=1.0), num_clients=2)
        >>> state = aggregate.init(jnp.zeros(3))
        >>> isinstance(state, SecureAggregateState), bool(state.report.ok)
        (True, False)
    """

    report: Report


class ApplyIfOkState(NamedTuple):
    """The state of ``apply_if_ok``.

    Attributes:
        aggregate: the state of the aggregation, with the last report.
        inner: the state of the inner transformation.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> import fedjax_agg as fa
        >>> aggregate = fa.secure_aggregate(fa.FixedPoint(clip=1.0), num_clients=2)
        >>> state = fa.apply_if_ok(aggregate, optax.sgd(0.1)).init(jnp.zeros(3))
        >>> isinstance(state, ApplyIfOkState), bool(state.aggregate.report.ok)
        (True, False)
    """

    aggregate: SecureAggregateState
    inner: optax.OptState


def secure_aggregate(
    codec: Codec,
    protocol: Protocol = Plain(),
    *,
    num_clients: int,
    max_weight: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """``secure_mean`` as an optax transformation, the first of a chain.

    ``update(grads, state, params, session=..., participation=None, weights=None,
    axis_name=None)`` takes the gradients of all clients, every leaf ``[num_clients, *p]`` over a
    parameter ``[*p]``, and gives their mean, ``[*p]``; its arguments are those of
    ``secure_mean``. A failed round gives zeros; zeros still move a parameter under momentum, Adam
    or weight decay, so wrap what follows in ``apply_if_ok``.

    Accumulation over steps (``optax.MultiSteps``) belongs after it, in the chain, or inside
    each client; per-example privacy inside each client. ``apply_if_ok`` refuses the wrong order
    of the latter; a plain ``optax.chain`` cannot see it.

    Args:
        codec: the map to grid units.
        protocol: how words are protected.
        num_clients: the size of every cohort, 2 to 2^31 - 1.
        max_weight: the largest integer weight; None takes the largest that fits.

    Returns:
        A ``GradientTransformationExtraArgs`` whose state is a ``SecureAggregateState``.

    Raises:
        TypeError, ValueError: as ``secure_mean``, and where the gradients have not one row for
            each client over the shapes of ``params``.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> import fedjax_agg as fa
        >>> params = jnp.zeros(2)
        >>> rule = optax.chain(
        ...     fa.secure_aggregate(fa.FixedPoint(clip=1.0), num_clients=2),
        ...     optax.sgd(1.0))
        >>> state = rule.init(params)
        >>> session = fa.simulated_session(fa.fixed_seed(0), num_clients=2)
        >>> grads = jnp.array([[0.5, 0.0], [0.0, 0.25]])
        >>> rule.update(grads, state, params, session=session)[0].tolist()
        [-0.25, -0.125]
    """
    _check.instance("codec-type", Codec, codec=codec)
    _check.instance("protocol-type", Protocol, protocol=protocol)
    num_clients = _check.integer_in("num-clients", 2, MAX_CLIENTS, num_clients=num_clients)
    if max_weight is not None:
        _check.integer_in("max-weight", 1, MAX_UNITS, max_weight=max_weight)

    def init_fn(params):
        # The report has the same structure before and after a round, so that states scan.
        length = Structure.of(params, "params").size
        report = empty_report(protocol, num_clients, length)
        return SecureAggregateState(report)

    def update_fn(
        updates,
        state,
        params=None,
        *,
        session=None,
        participation=None,
        weights=None,
        axis_name=None,
        **extra,
    ):
        del state, extra
        if session is None:
            raise _check.error("update-session", "session=None", "the session of this round")
        _check.instance("session-type", Session, session=session)
        # Inside somebody's own shard_map there are fewer rows; secure_mean checks them.
        if params is not None and axis_name is None:
            _check_shapes(updates, params, num_clients)
        if session.num_clients != num_clients:
            raise _check.error(
                "session-clients",
                f"session of {session.num_clients} clients",
                f"of num_clients={num_clients}",
            )
        mean, report = secure_mean(
            updates,
            session,
            codec=codec,
            protocol=protocol,
            weights=weights,
            max_weight=max_weight,
            participation=participation,
            axis_name=axis_name,
        )
        return mean, SecureAggregateState(report)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def apply_if_ok(
    aggregate: optax.GradientTransformationExtraArgs, inner: optax.GradientTransformation
) -> optax.GradientTransformationExtraArgs:
    """``inner`` after a secure aggregation, and nothing at all after a failed one.

    Where the round fails, the update is zero **and** the state of ``inner`` stays as it was:
    Adam would otherwise move every weight by its momentum.

    Args:
        aggregate: what ``secure_aggregate`` returned.
        inner: the rule that follows, such as ``optax.adam(1e-3)``.

    Returns:
        A ``GradientTransformationExtraArgs`` whose state is an ``ApplyIfOkState``; its update
        takes the arguments of both.

    Raises:
        TypeError: ``aggregate`` is no ``secure_aggregate``, or ``inner`` no transformation.
        ValueError: ``inner`` expects per-example gradients, which are gone by then.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> import fedjax_agg as fa
        >>> params = jnp.zeros(2)
        >>> rule = apply_if_ok(
        ...     fa.secure_aggregate(fa.FixedPoint(clip=1.0), num_clients=2),
        ...     optax.sgd(0.1, momentum=0.9))
        >>> state = rule.init(params)
        >>> session = fa.simulated_session(fa.fixed_seed(0), num_clients=2)
        >>> lost = jnp.array([False, False])  # nobody uploads
        >>> update, state = rule.update(
        ...     jnp.ones((2, 2)), state, params, session=session, participation=lost)
        >>> update.tolist(), bool(state.aggregate.report.ok)
        ([0.0, 0.0], False)
    """
    for transformation, name in ((aggregate, "aggregate"), (inner, "inner")):
        if not isinstance(transformation, optax.GradientTransformation):
            raise _check.error(
                f"{name}-type",
                f"{name} of type {type(transformation).__name__}",
                "an optax.GradientTransformation",
                TypeError,
            )
    inner = optax.with_extra_args_support(inner)

    def init_fn(params):
        aggregate_state, inner_state = aggregate.init(params), inner.init(params)
        if not isinstance(aggregate_state, SecureAggregateState):
            found = f"aggregate with a state of type {type(aggregate_state).__name__}"
            raise _check.error("aggregate-type", found, "made by secure_aggregate", TypeError)
        states = jax.tree.leaves(inner_state, is_leaf=_is_per_example)
        if any(map(_is_per_example, states)):
            raise _check.error(
                "optax-privacy",
                "inner with differentially_private_aggregate",
                "a rule for one update",
            )
        return ApplyIfOkState(aggregate_state, inner_state)

    def update_fn(
        updates,
        state,
        params=None,
        *,
        session=None,
        participation=None,
        weights=None,
        axis_name=None,
        **extra,
    ):
        mean, aggregate_state = aggregate.update(
            updates,
            state.aggregate,
            params,
            session=session,
            participation=participation,
            weights=weights,
            axis_name=axis_name,
        )
        update, inner_state = inner.update(mean, state.inner, params, **extra)
        ok = aggregate_state.report.ok
        update = jax.tree.map(lambda x: jnp.where(ok, x, jnp.zeros_like(x)), update)
        inner_state = jax.tree.map(
            lambda new, old: jnp.where(ok, new, old), inner_state, state.inner
        )
        return update, ApplyIfOkState(aggregate_state, inner_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _is_per_example(state: Any) -> bool:
    return isinstance(state, DifferentiallyPrivateAggregateState)


def _check_shapes(updates, params, num_clients):
    """Every gradient must be [num_clients, *p] over its parameter [*p]."""
    found, wanted_tree = str(jax.tree.structure(updates)), str(jax.tree.structure(params))
    if found != wanted_tree:
        raise _check.error(
            "update-structure", f"the tree {found} of updates", f"that of params, {wanted_tree}"
        )
    grads = jax.tree.leaves(updates)
    for grad, (path, param) in zip(grads, jax.tree_util.tree_leaves_with_path(params)):
        wanted = (num_clients, *jnp.shape(param))
        if jnp.shape(grad) == wanted:
            continue
        name = "updates" + jax.tree_util.keystr(path)
        if jnp.shape(grad) == jnp.shape(param):
            tag = "optax-order"  # MultiSteps hands over its accumulator, shaped like params.
        elif jnp.shape(grad)[:1] == (num_clients,):
            tag = "update-structure"
        else:
            tag = "client-axis"
        raise _check.error(tag, f"the shape {jnp.shape(grad)} of {name}", f"{wanted}")
