"""The type of a federated algorithm: a pure ``init`` and a pure ``step``, one secure sum a round.

A round gives every client of the cohort the state, computes at each of them what it sends, and
adds all of it in one masked vector: the parts of an update with their own codecs, three metrics,
and the weight. The server's rule sees their weighted means and nothing else.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_agg import _check, budget
from fedjax_agg.codecs import Beside, Codec, FixedPoint
from fedjax_agg.federated.clients import ClientData
from fedjax_agg.participation import Participation, as_participation
from fedjax_agg.protocols import Plain, Protocol
from fedjax_agg.secure_round import Report, secure_mean
from fedjax_agg.session import Session
from fedjax_agg.structure import Structure
from fedjax_agg.symmetric import key_schedule

Loss = Callable[[Any, Any], Any]


def static(**arguments: Any) -> Any:
    """A field of an algorithm that is fixed when a round is compiled; others are pytree leaves.

    Example:
        >>> import dataclasses
        >>> @dataclasses.dataclass(frozen=True)
        ... class Local:
        ...     epochs: int = static(default=1)
        >>> dataclasses.fields(Local)[0].metadata["static"]
        True
    """
    return dataclasses.field(metadata={"static": True}, **arguments)


class Metrics(NamedTuple):
    """What a round says of the local training, from the same masked vector as the update.

    Losses are those of the batches as they come, each before the step that it makes. All zero
    where the round fails.

    Attributes:
        loss: float32[], the mean over the examples of the clients in the sum.
        correct: float32[], how many of their examples were classified correctly; 0 where the
            loss does not say.
        examples: float32[], how many they are.

    Example:
        >>> import jax.numpy as jnp
        >>> metrics = Metrics(jnp.float32(0.5), jnp.float32(30), jnp.float32(40))
        >>> float(metrics.correct / metrics.examples)
        0.75
    """

    loss: jax.Array
    correct: jax.Array
    examples: jax.Array


class ServerState(NamedTuple):
    """What the server carries from round to round.

    Attributes:
        params: the model.
        optimizer: the state of the server's rule.

    Example:
        >>> import jax.numpy as jnp
        >>> ServerState(jnp.zeros(2), ()).params
        Array([0., 0.], dtype=float32)
    """

    params: Any
    optimizer: Any


class Sent(NamedTuple):
    """What one client computes in a round.

    Attributes:
        update: a tuple of trees, to be averaged; one for each codec of the algorithm.
        loss: float32[], the mean loss over its examples.
        correct: float32[], the part of them that was classified correctly.
        own: what the client keeps for its next round.

    Example:
        >>> import jax.numpy as jnp
        >>> sent = Sent((jnp.ones(3),), jnp.float32(1), jnp.float32(0))
        >>> sent.own is None
        True
    """

    update: tuple[Any, ...]
    loss: jax.Array
    correct: jax.Array
    own: Any = None


@dataclasses.dataclass(frozen=True, eq=False)
class Algorithm(abc.ABC):
    """A federated algorithm as pure functions of its state.

    A frozen dataclass under ``register_codec``, so a pytree: the ranges of its codec and its
    numbers (rates, moments) are leaves that may be traced, swept by ``vmap`` and learned by
    ``grad``; losses, optimizers and sizes are static. A new algorithm says what one client sends
    (``client``) and what the server makes of the mean (``server``).

    Attributes:
        loss: ``loss(params, batch)`` -> float[B], one for each example of a batch, whose leaves
            are [B, ...]; or a pair of that and bool or float[B], which of them are correct.
        codec: of the update.
        protocol: how the sum is protected.
        max_weight: a client's weight is its number of examples, up to this; 1 counts every client
            with data once, None takes the largest that fits the sum.
        max_loss: beyond it losses saturate, in the metrics only.

    | input | result |
    | --- | --- |
    | client without data | weight zero |
    | NaN or infinity in a client's update or loss | that client contributes zero, weight zero |
    | the same, differentiated forward | as if it were not there |
    | the same, differentiated in reverse | NaN, as of any NaN that is multiplied by zero |
    | nobody left, total weight zero, protocol failed | the state unchanged, metrics zero |

    Formal Guarantees:
        Those of ``protocol``, for one vector of a round: the weighted mean of the updates, the
        metrics and the total weight are revealed to the server, and who took part. Whether one
        client had data, or sent NaN, is not: its upload is one of many. Every round is another
        release of the same data, and nothing here is differentially private.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> import fedjax_agg as fa
        >>> from fedjax_agg.federated import ClientData, FedSGD
        >>> def loss(params, batch):
        ...     return (params - batch) ** 2
        >>> algorithm = FedSGD(loss, optax.sgd(0.5), codec=fa.FixedPoint(clip=8.0))
        >>> isinstance(algorithm, Algorithm)
        True
        >>> data = ClientData(jnp.array([[2.0], [4.0]]), jnp.ones(2, jnp.int32))
        >>> session = fa.simulated_session(fa.fixed_seed(0), num_clients=2)
        >>> state, metrics, report = algorithm.step(algorithm.init(jnp.zeros(())), data, session)
        >>> round(float(state.params), 3), round(float(metrics.loss), 2), bool(report.ok)
        (3.0, 10.0, True)
    """

    loss: Loss = static()
    _: dataclasses.KW_ONLY
    codec: Codec
    protocol: Protocol = static(default=Plain())
    max_weight: int | None = static(default=None)
    max_loss: Any = 16.0

    def __post_init__(self):
        _check.instance("codec-type", Codec, codec=self.codec)
        _check.instance("protocol-type", Protocol, protocol=self.protocol)
        _check.positive("max-loss", max_loss=self.max_loss)
        if not callable(self.loss):
            kind = type(self.loss).__name__
            raise _check.error("loss-type", f"loss of type {kind}", "a function", TypeError)
        for field in dataclasses.fields(self):
            if field.name.endswith("optimizer"):
                rule = {field.name: getattr(self, field.name)}
                _check.instance("optimizer-type", optax.GradientTransformation, **rule)

    @abc.abstractmethod
    def init(self, params: Any) -> Any:
        """The state before the first round: a NamedTuple with a field ``params``."""

    @abc.abstractmethod
    def client(self, state: Any, own: Any, examples: Any, count: Any, key: Any) -> Sent:
        """What one client computes.

        Args:
            state: what the server gave it.
            own: what it kept itself, from ``recall``.
            examples: a pytree of arrays [m, ...].
            count: int32[], how many of them are real.
            key: a ``jax.random`` key for the order of its batches; it protects nothing.
        """

    @abc.abstractmethod
    def server(self, state: Any, mean: tuple[Any, ...], report: Report) -> Any:
        """The state after a round that succeeded, from the weighted mean of the updates."""

    def check(self, data: ClientData) -> None:
        """Raises TypeError or ValueError where the data of all clients is not as it must be."""
        _check.instance("client-data-type", ClientData, data=data)
        data.check()

    def codecs(self) -> tuple[Codec, ...]:
        """The codec of each tree of an update."""
        return (self.codec,)

    def recall(self, state: Any, clients: jax.Array) -> Any:
        """What the clients of a cohort, int32[n], kept themselves: leaves [n, ...], or None."""
        del state, clients

    def keep(self, state: Any, clients: jax.Array, own: Any, counted: jax.Array) -> Any:
        """The state in which those in the sum, ``counted``: bool[n], have kept what is ``own``."""
        del clients, own, counted
        return state

    def step(
        self,
        state: Any,
        data: ClientData,
        session: Session,
        *,
        clients: jax.Array | None = None,
        participation: Participation | jax.Array | None = None,
        axis_name: str | tuple[str, ...] | None = None,
    ) -> tuple[Any, Metrics, Report]:
        """One round. Compiled on its own; ``jit``, ``vmap``, ``scan`` and ``grad`` apply.

        Args:
            state: from ``init`` or an earlier round.
            data: of all N clients.
            session: of the n clients of the cohort.
            clients: int32[n], who they are, each once and counted from 0; None takes all of the
                data, N = n.
            participation: bool[n] or a ``Participation``, as ``secure_mean`` takes it.
            axis_name: the Auto axes of the device mesh, under ``jax.set_mesh``, that the cohort is
                spread over: each device trains its own clients, and what goes between devices is
                one vector of words. None leaves it to XLA, which gathers all updates first.

        Returns:
            The state, which is the old one in every part where ``report.ok`` is False; the
            ``Metrics``; and the ``Report``.

        Raises:
            TypeError: arguments of another type; parameters that are no floats.
            ValueError: arguments of another shape; numbers that could make the sum wrap; static
                clients that are no clients of the data, or the same twice.
        """
        _check.instance("session-type", Session, session=session)
        self.check(data)
        n = session.num_clients
        _check_clients(clients, n, data.num_clients)
        if "params" not in getattr(state, "_fields", ()):
            found = f"state of type {type(state).__name__}"
            raise _check.error("state-type", found, "a state of the algorithm", TypeError)
        Structure.of(state.params, "state.params")
        participation = as_participation(participation, n)
        return _step(axis_name, self, state, data, session, clients, participation)


def _check_clients(clients: jax.Array | None, n: int, population: int) -> None:
    """Raises unless these are n different clients of the population, or all of it is meant."""
    if clients is None:
        if population != n:
            found = f"session of {n} clients"
            raise _check.error("cohort-size", found, f"of the {population} of the data")
        return
    _check.array("clients", np.int32, (n,), clients=clients)
    known = _check.concrete(clients)
    if known is None:
        return
    wrong = (known < 0) | (known >= population)
    wrong |= ~np.isin(np.arange(n), np.unique(known, return_index=True)[1])
    if wrong.any():
        row = np.argmax(wrong)
        raise _check.error(
            "clients",
            f"clients[{row}]={known[row]}",
            f"different from the others, 0 to {population - 1}",
        )


@functools.partial(jax.jit, static_argnums=0)
def _step(axis_name, algorithm, state, data, session, clients, participation):
    n, m = session.num_clients, data.max_examples
    # Where all take part nobody is moved: on a mesh each device has its own.
    cohort = data if clients is None else data.take(clients)
    clients = jnp.arange(n, dtype=jnp.int32) if clients is None else clients
    metric_codec = FixedPoint(
        clip=1.0,
        levels=algorithm.codec.max_levels,
        max_levels=algorithm.codec.max_levels,
        norm="linf",
        rounding=algorithm.codec.rounding,
    )
    codec = Beside((*algorithm.codecs(), metric_codec))
    largest = budget.largest_weight(
        n, codec, algorithm.protocol, cohort.counts, algorithm.max_weight
    )
    largest = min(largest, m)

    def one(secret, own, examples, count):
        key = _batch_key(secret, session.public_seed, session.round_id)
        return algorithm.client(state, own, examples, count, key)

    own = algorithm.recall(state, clients)
    sent = jax.vmap(one)(session.secrets, own, cohort.examples, cohort.counts)
    weights = jnp.where(_all_finite(sent), jnp.minimum(cohort.counts, largest), 0)
    # A unit of weight stands for 1 to m / largest examples: in [0, 1] as a part of the most.
    most = np.float32(m / largest)
    part = cohort.counts.astype(jnp.float32) / (most * jnp.maximum(weights, 1).astype(jnp.float32))
    metrics = part[:, None] * jnp.stack(
        [sent.loss / algorithm.max_loss, sent.correct, jnp.ones(n, jnp.float32)], axis=1
    )
    (*mean, metrics), report = secure_mean(
        (*sent.update, metrics),
        session,
        codec=codec,
        protocol=algorithm.protocol,
        weights=weights,
        max_weight=largest,
        participation=participation,
        axis_name=axis_name,
    )
    ok = report.ok
    moved = algorithm.server(state, tuple(mean), report)
    counted = ok & report.survivors & (weights > 0)
    moved = algorithm.keep(moved, clients, sent.own, counted)
    state = jax.tree.map(lambda new, old: jnp.where(ok, new, old), moved, state)
    unit = report.total_weight * most
    found = Metrics(
        loss=metrics[0] / jnp.where(ok, metrics[2], 1.0) * algorithm.max_loss,
        correct=metrics[1] * unit,
        examples=metrics[2] * unit,
    )
    return state, found, report


def _all_finite(sent: Sent) -> jax.Array:
    """Which clients send nothing but numbers: bool[n]."""
    leaves = jax.tree.leaves((sent.update, sent.loss, sent.correct))
    finite = [jnp.all(jnp.isfinite(x), axis=range(1, x.ndim)) for x in leaves]
    return jnp.all(jnp.stack(finite), axis=0)


def _batch_key(secret: jax.Array, public_seed: jax.Array, round_id: jax.Array) -> jax.Array:
    """A client's key for the order of its batches in this round; it protects nothing."""
    words = key_schedule.derive_key(
        secret, key_schedule.BATCHES, salt=public_seed, round_id=round_id
    )
    return jax.random.wrap_key_data(words[:2], impl="threefry2x32")
