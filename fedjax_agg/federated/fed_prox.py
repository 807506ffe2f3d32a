"""FedProx: FedAvg whose clients are drawn back to the server's model (Li et al., 2020)."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from fedjax_agg.codecs import register_codec
from fedjax_agg.federated.fed_avg import FedAvg


@register_codec
@dataclasses.dataclass(frozen=True, eq=False)
class FedProx(FedAvg):
    """FedProx (Li et al., MLSys 2020): clients minimise F_i(y) + (mu / 2) |y - x|^2.

    Sums and server are those of FedAvg; metrics leave the proximal term out.

    Attributes:
        mu: the weight of the proximal term; 0 is FedAvg.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> import fedjax_agg as fa
        >>> from fedjax_agg.federated import ClientData
        >>> algorithm = FedProx(
        ...     lambda p, x: (p - x) ** 2, optax.sgd(0.25), mu=2.0, epochs=2,
        ...     codec=fa.FixedPoint(clip=4.0))
        >>> data = ClientData(jnp.full((2, 1), 4.0), jnp.ones(2, jnp.int32))
        >>> session = fa.simulated_session(fa.fixed_seed(0), num_clients=2)
        >>> state, _, _ = algorithm.step(algorithm.init(jnp.zeros(())), data, session)
        >>> round(float(state.params), 3)  # 2 is a fixed point, where FedAvg goes on to 3
        2.0
    """

    _: dataclasses.KW_ONLY
    mu: Any = 0.01

    def direction(self, start: Any) -> Callable[[Any, Any], Any]:
        """The gradient with that of the proximal term."""

        def add_proximal(grads, params):
            return jax.tree.map(lambda g, y, x: g + self.mu * (y - x), grads, params, start)

        return add_proximal
