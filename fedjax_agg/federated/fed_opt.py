"""FedOpt: local training and any rule of the server; Adagrad, Adam and Yogi (Reddi et al., 2021).

Moments are the server's, of the average change, never sums of squares of single changes.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_agg.codecs import register_codec
from fedjax_agg.federated.algorithm import Sent, ServerState, static
from fedjax_agg.federated.local import LocalTraining
from fedjax_agg.secure_round import Report


@dataclasses.dataclass(frozen=True, eq=False)
class FedOpt(LocalTraining):
    """Reddi et al., ICLR 2021, algorithm 1: clients train, the server takes their mean change.

    Every client trains on its examples from x to y_i and sends y_i - x. The server's rule takes
    the negative of the weighted mean change as its gradient, so ``optax.sgd(1.0)`` adds it.

    Attributes:
        client_optimizer: the clients' rule, which starts anew in every round.

    Example:
        >>> from fedjax_agg.federated import FedAvg, FedYogi
        >>> issubclass(FedAvg, FedOpt), issubclass(FedYogi, FedOpt)
        (True, True)
    """

    client_optimizer: optax.GradientTransformation = static()

    @abc.abstractmethod
    def server_rule(self) -> optax.GradientTransformation:
        """The server's rule."""

    def direction(self, start: Any) -> Callable[[Any, Any], Any] | None:
        """What replaces the gradients of a client that starts here; None replaces nothing."""
        del start
        return None

    def init(self, params: Any) -> ServerState:
        """The state before the first round."""
        return ServerState(params, self.server_rule().init(params))

    def client(self, state: ServerState, own: Any, examples: Any, count: Any, key: Any) -> Sent:
        """The change of the model by local training."""
        start = state.params
        trained = self.train(
            self.client_optimizer, start, examples, count, key, self.direction(start)
        )
        return Sent((optax.tree.sub(trained.params, start),), trained.loss, trained.correct)

    def server(self, state: ServerState, mean: tuple[Any, ...], report: Report) -> ServerState:
        """One step of the server's rule."""
        grads = jax.tree.map(jnp.negative, mean[0])
        updates, optimizer = self.server_rule().update(grads, state.optimizer, state.params)
        return ServerState(optax.apply_updates(state.params, updates), optimizer)


@register_codec
@dataclasses.dataclass(frozen=True, eq=False)
class FedAdagrad(FedOpt):
    """FedAdagrad (Reddi et al., algorithm 2): v = v + D^2, x = x + rate m / (sqrt(v) + tau).

    D is the mean change, m = b1 m + (1 - b1) D from 0, and v begins at tau^2; no bias correction.

    Attributes:
        server_rate: the server's learning rate.
        b1: of the first moment; the paper's experiments have 0.
        tau: how adaptive the rule is, in the units of a change.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> import fedjax_agg as fa
        >>> from fedjax_agg.federated import ClientData
        >>> algorithm = FedAdagrad(
        ...     lambda p, x: (p - x) ** 2, optax.sgd(0.5), server_rate=1.0, tau=1.0,
        ...     codec=fa.FixedPoint(clip=4.0))
        >>> data = ClientData(jnp.full((2, 1), 2.0), jnp.ones(2, jnp.int32))
        >>> session = fa.simulated_session(fa.fixed_seed(0), num_clients=2)
        >>> state, _, _ = algorithm.step(algorithm.init(jnp.zeros(())), data, session)
        >>> round(float(state.params), 4)  # 2 / (sqrt(5) + 1)
        0.618
    """

    _: dataclasses.KW_ONLY
    server_rate: Any = 0.1
    b1: Any = 0.0
    tau: Any = 1e-3

    def server_rule(self) -> optax.GradientTransformation:
        """Adagrad."""
        return adaptive(lambda square, v: v + square, self.server_rate, self.b1, self.tau)


@register_codec
@dataclasses.dataclass(frozen=True, eq=False)
class FedAdam(FedOpt):
    """FedAdam (Reddi et al., algorithm 2): as FedAdagrad with v = b2 v + (1 - b2) D^2.

    Attributes:
        server_rate: the server's learning rate.
        b1: of the first moment.
        b2: of the second moment.
        tau: how adaptive the rule is, in the units of a change.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> import fedjax_agg as fa
        >>> from fedjax_agg.federated import ClientData
        >>> algorithm = FedAdam(
        ...     lambda p, x: (p - x) ** 2, optax.sgd(0.5), server_rate=1.0, b1=0.0, b2=0.75,
        ...     tau=1.0, codec=fa.FixedPoint(clip=4.0))
        >>> data = ClientData(jnp.full((2, 1), 2.0), jnp.ones(2, jnp.int32))
        >>> session = fa.simulated_session(fa.fixed_seed(0), num_clients=2)
        >>> state, _, _ = algorithm.step(algorithm.init(jnp.zeros(())), data, session)
        >>> round(float(state.params), 4)  # 2 / (sqrt(0.75 + 1) + 1)
        0.861
    """

    _: dataclasses.KW_ONLY
    server_rate: Any = 0.1
    b1: Any = 0.9
    b2: Any = 0.99
    tau: Any = 1e-3

    def server_rule(self) -> optax.GradientTransformation:
        """Adam."""

        def second(square, v):
            return self.b2 * v + (1 - self.b2) * square

        return adaptive(second, self.server_rate, self.b1, self.tau)


@register_codec
@dataclasses.dataclass(frozen=True, eq=False)
class FedYogi(FedAdam):
    """FedYogi (Reddi et al., algorithm 2): FedAdam with v = v - (1 - b2) D^2 sign(v - D^2).

    Example:
        >>> import jax.numpy as jnp, optax
        >>> import fedjax_agg as fa
        >>> from fedjax_agg.federated import ClientData
        >>> algorithm = FedYogi(
        ...     lambda p, x: (p - x) ** 2, optax.sgd(0.5), server_rate=1.0, b1=0.0, b2=0.75,
        ...     tau=1.0, codec=fa.FixedPoint(clip=4.0))
        >>> data = ClientData(jnp.full((2, 1), 2.0), jnp.ones(2, jnp.int32))
        >>> session = fa.simulated_session(fa.fixed_seed(0), num_clients=2)
        >>> state, _, _ = algorithm.step(algorithm.init(jnp.zeros(())), data, session)
        >>> round(float(state.params), 4)  # 2 / (sqrt(1 + 1) + 1)
        0.8284
    """

    def server_rule(self) -> optax.GradientTransformation:
        """Yogi."""

        def second(square, v):
            return v - (1 - self.b2) * square * jnp.sign(v - square)

        return adaptive(second, self.server_rate, self.b1, self.tau)


class AdaptiveState(NamedTuple):
    """The moments of ``adaptive``.

    Attributes:
        mu: the first moment, like the parameters.
        nu: the second moment, like the parameters.

    Example:
        >>> import jax.numpy as jnp
        >>> AdaptiveState(mu=jnp.zeros(2), nu=jnp.ones(2)).nu
        Array([1., 1.], dtype=float32)
    """

    mu: Any
    nu: Any


def adaptive(
    second: Callable[[jax.Array, jax.Array], jax.Array], rate: Any, b1: Any, tau: Any
) -> optax.GradientTransformation:
    """Reddi et al., algorithm 2: no bias correction, v from tau^2, and tau outside the root.

    ``optax.adam`` and its kin correct the bias and begin at zero, so they differ.

    Args:
        second: ``(g^2, v) -> v``, the second moment.
        rate: the learning rate.
        b1: of the first moment.
        tau: what is added to the root.

    Returns:
        The transformation of a gradient: it gives -rate m / (sqrt(v) + tau).

    Example:
        >>> import jax.numpy as jnp
        >>> rule = adaptive(lambda square, v: v + square, rate=1.0, b1=0.0, tau=1.0)
        >>> update, state = rule.update(jnp.array([0.0, 3.0 ** 0.5]), rule.init(jnp.zeros(2)))
        >>> state.nu.round(3)
        Array([1., 4.], dtype=float32)
    """

    def init_fn(params):
        nu = jax.tree.map(lambda p: jnp.full_like(p, tau * tau), params)
        return AdaptiveState(optax.tree.zeros_like(params), nu)

    def update_fn(grads, state, params=None):
        del params
        mu = optax.tree.update_moment(grads, state.mu, b1, 1)
        nu = jax.tree.map(lambda g, v: second(g * g, v), grads, state.nu)
        updates = jax.tree.map(lambda m, v: -rate * m / (jnp.sqrt(v) + tau), mu, nu)
        return updates, AdaptiveState(mu, nu)

    return optax.GradientTransformation(init_fn, update_fn)
