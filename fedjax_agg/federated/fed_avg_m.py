"""FedAvgM: FedAvg with momentum at the server (Hsu, Qi and Brown, 2019)."""

import dataclasses
from typing import Any

import optax

from fedjax_agg.codecs import register_codec
from fedjax_agg.federated.fed_opt import FedOpt


@register_codec
@dataclasses.dataclass(frozen=True, eq=False)
class FedAvgM(FedOpt):
    """FedAvg with server momentum (Hsu, Qi and Brown, 2019): v = momentum v + D, x = x + rate v.

    D is the weighted mean change of the clients.

    Attributes:
        server_rate: the server's learning rate.
        momentum: how much of the last step is in the next.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> import fedjax_agg as fa
        >>> from fedjax_agg.federated import ClientData
        >>> algorithm = FedAvgM(
        ...     lambda p, x: (p - x) ** 2, optax.sgd(0.25), momentum=0.5,
        ...     codec=fa.FixedPoint(clip=4.0))
        >>> data = ClientData(jnp.full((2, 1), 4.0), jnp.ones(2, jnp.int32))
        >>> session = fa.simulated_session(fa.fixed_seed(0), num_clients=2)
        >>> state = algorithm.init(jnp.zeros(()))
        >>> for _ in range(2):
        ...     state, _, _ = algorithm.step(state, data, session)
        >>> round(float(state.params), 3)  # 2, and then 1 + 2 / 2 more
        4.0
    """

    _: dataclasses.KW_ONLY
    server_rate: Any = 1.0
    momentum: Any = 0.9

    def server_rule(self) -> optax.GradientTransformation:
        """SGD with momentum."""
        return optax.sgd(self.server_rate, momentum=self.momentum)
