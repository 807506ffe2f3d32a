"""MimeLite: clients step with the server's frozen statistics (Karimireddy et al., 2021)."""

import dataclasses
from typing import Any

import optax

from fedjax_agg import _check
from fedjax_agg.codecs import Codec, register_codec
from fedjax_agg.federated.algorithm import Sent, ServerState, static
from fedjax_agg.federated.local import LocalTraining, full_gradient
from fedjax_agg.secure_round import Report


@register_codec
@dataclasses.dataclass(frozen=True, eq=False)
class MimeLite(LocalTraining):
    """MimeLite (Karimireddy et al., NeurIPS 2021, algorithm 1).

    A base optimizer is U, its step for a gradient and statistics s, and V, what a gradient makes
    of s. Clients take local steps y <- y + U(g_i(y), s) with the server's s, which stays as it is
    during the round, and send y_i - x and the gradient over all their examples at x. The server
    moves x by the first mean and sets s <- V(second mean, s): two vectors in one secure sum.

    Attributes:
        optimizer: the base optimizer, such as ``optax.sgd(0.1, momentum=0.9)``.
        gradient_codec: of the gradients; None takes ``codec``.

    Formal Guarantees:
        Those of ``Algorithm``, where a round reveals two sums: of the changes, and of the
        gradients of the same data at the model that the server gave out.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> import fedjax_agg as fa
        >>> from fedjax_agg.federated import ClientData
        >>> algorithm = MimeLite(
        ...     lambda p, x: (p - x) ** 2, optax.sgd(0.25, momentum=0.5),
        ...     codec=fa.FixedPoint(clip=8.0))
        >>> data = ClientData(jnp.full((2, 1), 4.0), jnp.ones(2, jnp.int32))
        >>> session = fa.simulated_session(fa.fixed_seed(0), num_clients=2)
        >>> state = algorithm.init(jnp.zeros(()))
        >>> for _ in range(2):
        ...     state, _, _ = algorithm.step(state, data, session)
        >>> round(float(state.params), 3)  # 8 / 4, and then (4 + 8 / 2) / 4 more
        4.0
    """

    optimizer: optax.GradientTransformation = static()
    _: dataclasses.KW_ONLY
    gradient_codec: Codec | None = None

    def __post_init__(self):
        super().__post_init__()
        _check.instance("codec-type", (Codec, type(None)), gradient_codec=self.gradient_codec)

    def init(self, params: Any) -> ServerState:
        """The state before the first round."""
        return ServerState(params, self.optimizer.init(params))

    def codecs(self) -> tuple[Codec, ...]:
        """Of the change of the model, and of the gradient."""
        return (self.codec, self.codec if self.gradient_codec is None else self.gradient_codec)

    def client(self, state: ServerState, own: Any, examples: Any, count: Any, key: Any) -> Sent:
        """The change by local steps with the server's statistics, and the gradient before them."""

        def frozen_step(grads, statistics, params=None):
            return self.optimizer.update(grads, statistics, params)[0], statistics

        frozen = optax.GradientTransformation(lambda params: state.optimizer, frozen_step)
        trained = self.train(frozen, state.params, examples, count, key)
        grads, _, _ = full_gradient(self.loss, state.params, examples, count)
        moved = optax.tree.sub(trained.params, state.params)
        return Sent((moved, grads), trained.loss, trained.correct)

    def server(self, state: ServerState, mean: tuple[Any, ...], report: Report) -> ServerState:
        """The model by the mean change, the statistics by the mean gradient."""
        _, statistics = self.optimizer.update(mean[1], state.optimizer, state.params)
        return ServerState(optax.tree.add(state.params, mean[0]), statistics)
