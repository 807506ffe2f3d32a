"""FedAvg in delta form: the mean of the clients' changes (McMahan et al., 2017)."""

import dataclasses

import optax

from fedjax_agg.codecs import register_codec
from fedjax_agg.federated.algorithm import static
from fedjax_agg.federated.fed_opt import FedOpt


@register_codec
@dataclasses.dataclass(frozen=True, eq=False)
class FedAvg(FedOpt):
    """Federated averaging (McMahan et al., AISTATS 2017): x + sum w_i (y_i - x) / sum w_i.

    Where all clients begin at x this is the weighted mean of their models y_i; what is clipped
    and sent is the change. ``average_parameters`` is the same for models trained elsewhere.

    Attributes:
        server_optimizer: the server's rule for the negative mean change; ``optax.sgd(1.0)`` adds
            the change as it is.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> import fedjax_agg as fa
        >>> from fedjax_agg.federated import ClientData
        >>> def loss(params, batch):
        ...     return jnp.sum((params[None] - batch) ** 2, axis=-1)
        >>> algorithm = FedAvg(
        ...     loss, optax.sgd(0.25), epochs=2, codec=fa.FixedPoint(clip=8.0))
        >>> data = ClientData(jnp.array([[[4.0, 0.0]], [[0.0, 8.0]]]), jnp.ones(2, jnp.int32))
        >>> session = fa.simulated_session(fa.fixed_seed(0), num_clients=2)
        >>> state, metrics, report = algorithm.step(algorithm.init(jnp.zeros(2)), data, session)
        >>> state.params.round(2), float(metrics.examples)
        (Array([1.5, 3. ], dtype=float32), 2.0)
    """

    server_optimizer: optax.GradientTransformation = static(default=optax.sgd(1.0))

    def server_rule(self) -> optax.GradientTransformation:
        """The given rule."""
        return self.server_optimizer
