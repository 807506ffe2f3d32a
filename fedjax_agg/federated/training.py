"""A training run: rounds of an algorithm as one compiled ``lax.scan``."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_agg import _check
from fedjax_agg.federated.algorithm import Algorithm, Metrics
from fedjax_agg.federated.clients import ClientData, sample_clients
from fedjax_agg.participation import drop_clients
from fedjax_agg.secure_round import Report
from fedjax_agg.session import simulated_session


def train(
    algorithm: Algorithm,
    state: Any,
    data: ClientData,
    seed: jax.Array,
    *,
    num_rounds: int,
    cohort: int | None = None,
    dropout: jax.Array | float = 0.0,
    start_round: jax.Array | int = 0,
    axis_name: str | tuple[str, ...] | None = None,
) -> tuple[Any, Metrics, Report]:
    """Rounds of an algorithm, each with a session, a cohort and dropouts of its own.

    One compiled ``lax.scan``. Everything random in round r follows from the seed and from r, so a
    run may be cut anywhere: rounds 0 to 4 and then 5 to 9 are rounds 0 to 9, bit for bit. For
    other sessions or participations, scan ``algorithm.step``.

    Args:
        algorithm: such as ``FedAvg``.
        state: from ``algorithm.init``, or where an earlier run has ended.
        data: of all N clients.
        seed: uint32[8], from ``root_seed`` or ``fixed_seed``.
        num_rounds: how many rounds, 1 or more; static.
        cohort: how many clients take part in a round, 2 to N; None takes all, in their order.
        dropout: the part of each cohort that is lost before its upload, in [0, 1].
        start_round: the number of the first round, 0 to 2^32 - 1; may be traced.
        axis_name: the axes of the device mesh that cohorts are spread over, as ``algorithm.step``
            takes it.

    Returns:
        The state; the ``Metrics`` and the ``Report`` of every round, leaves [num_rounds, ...].

    Raises:
        TypeError: arguments of another type.
        ValueError: numbers out of range, and what ``algorithm.step`` raises.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> import fedjax_agg as fa
        >>> from fedjax_agg.federated import FedAvg
        >>> algorithm = FedAvg(
        ...     lambda p, x: (p - x) ** 2, optax.sgd(0.1), codec=fa.FixedPoint(clip=4.0))
        >>> data = ClientData(jnp.linspace(2.0, 4.0, 10).reshape(10, 1), jnp.ones(10, jnp.int32))
        >>> state, metrics, report = train(
        ...     algorithm, algorithm.init(jnp.zeros(())), data, fa.fixed_seed(0),
        ...     num_rounds=30, cohort=5, dropout=0.2)
        >>> abs(float(state.params) - 3) < 0.3, report.survivors.sum(axis=1)[:4]
        (True, Array([4, 4, 4, 4], dtype=int32))
    """
    _check.instance("algorithm-type", Algorithm, algorithm=algorithm)
    algorithm.check(data)
    _check.words("seed", (8,), seed=seed)
    num_rounds = _check.integer_in("num-rounds", 1, 2**31 - 1, num_rounds=num_rounds)
    if cohort is not None:
        cohort = _check.integer_in("cohort", 2, data.num_clients, cohort=cohort)
    first = _check.number("round-id", 0, 2**32 - num_rounds, start_round=start_round)
    _check.fraction("drop-rate", dropout=dropout)
    # Where nobody is lost nothing need be drawn.
    nobody = isinstance(dropout, float) and dropout == 0.0
    rate = None if nobody else dropout
    return _run(num_rounds, cohort, axis_name, algorithm, state, data, seed, rate, first)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _run(num_rounds, cohort, axis_name, algorithm, state, data, seed, dropout, first):
    n = data.num_clients if cohort is None else cohort

    def one(state, r):
        clients = participation = None
        if cohort is not None:
            clients = sample_clients(seed, data.num_clients, cohort, round_id=r)
        if dropout is not None:
            participation = drop_clients(seed, n, dropout, round_id=r)
        session = simulated_session(seed, num_clients=n, round_id=r)
        state, metrics, report = algorithm.step(
            state,
            data,
            session,
            clients=clients,
            participation=participation,
            axis_name=axis_name,
        )
        return state, (metrics, report)

    rounds = first + jnp.arange(num_rounds, dtype=jnp.uint32)
    state = jax.tree.map(jnp.asarray, state)
    state, (metrics, reports) = lax.scan(one, state, rounds)
    return state, metrics, reports
