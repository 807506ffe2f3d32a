"""FedSGD: one gradient of each client, and one step of the server (McMahan et al., 2017)."""

import dataclasses
from typing import Any

import optax

from fedjax_agg.codecs import register_codec
from fedjax_agg.federated.algorithm import Algorithm, Sent, ServerState, static
from fedjax_agg.federated.local import full_gradient
from fedjax_agg.secure_round import Report


@register_codec
@dataclasses.dataclass(frozen=True, eq=False)
class FedSGD(Algorithm):
    """Federated SGD (McMahan et al., AISTATS 2017): g = sum w_i g_i / sum w_i, then one step.

    Every client sends the gradient of its mean loss over all of its examples.

    Attributes:
        server_optimizer: the server's rule for the mean gradient.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> import fedjax_agg as fa
        >>> from fedjax_agg.federated import ClientData
        >>> algorithm = FedSGD(
        ...     lambda p, x: (p - x) ** 2, optax.sgd(0.5), codec=fa.FixedPoint(clip=16.0))
        >>> data = ClientData(
        ...     jnp.array([[2.0, 2.0, 2.0], [6.0, 0.0, 0.0]]), jnp.array([3, 1], jnp.int32))
        >>> session = fa.simulated_session(fa.fixed_seed(0), num_clients=2)
        >>> state, _, _ = algorithm.step(algorithm.init(jnp.zeros(())), data, session)
        >>> round(float(state.params), 2)  # the mean of all four examples
        3.0
    """

    server_optimizer: optax.GradientTransformation = static()

    def init(self, params: Any) -> ServerState:
        """The state before the first round."""
        return ServerState(params, self.server_optimizer.init(params))

    def client(self, state: ServerState, own: Any, examples: Any, count: Any, key: Any) -> Sent:
        """The gradient at the server's model."""
        grads, loss, correct = full_gradient(self.loss, state.params, examples, count)
        return Sent((grads,), loss, correct)

    def server(self, state: ServerState, mean: tuple[Any, ...], report: Report) -> ServerState:
        """One step of the server's rule."""
        updates, optimizer = self.server_optimizer.update(mean[0], state.optimizer, state.params)
        return ServerState(optax.apply_updates(state.params, updates), optimizer)
