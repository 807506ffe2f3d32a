"""SCAFFOLD: client and server control variates against client drift (Karimireddy et al., 2020)."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_agg import _check
from fedjax_agg.codecs import Codec, register_codec
from fedjax_agg.federated.algorithm import Sent, static
from fedjax_agg.federated.clients import ClientData
from fedjax_agg.federated.local import LocalTraining
from fedjax_agg.secure_round import Report


class ScaffoldState(NamedTuple):
    """What SCAFFOLD carries from round to round.

    Attributes:
        params: the model, x.
        control: the server's control variate, c, like the model.
        client_controls: those of all clients, c_i, leaves [N, ...]. Each client holds its own,
            and only in a simulation are they in one place.

    Example:
        >>> import jax.numpy as jnp
        >>> ScaffoldState(jnp.zeros(2), jnp.zeros(2), jnp.zeros((5, 2))).client_controls.shape
        (5, 2)
    """

    params: Any
    control: Any
    client_controls: Any


@register_codec
@dataclasses.dataclass(frozen=True, eq=False)
class Scaffold(LocalTraining):
    """SCAFFOLD (Karimireddy et al., ICML 2020, algorithm 1, option II).

    A client takes K steps y <- y - r (g_i(y) - c_i + c) from x and sets
    c_i+ = c_i - c + (x - y) / (K r). With S the clients in the sum,
    x <- x + server_rate / |S| sum (y_i - x) and c <- c + 1 / N sum (c_i+ - c_i): two vectors in
    one secure sum. Every client with data counts once. The variates of clients that are not in
    the sum stay as they were.

    Attributes:
        client_rate: r, the learning rate of the clients.
        population: N, the number of clients of the data.
        control_codec: of the change of a variate, which is about as large as a gradient; None
            takes ``codec``.
        server_rate: the server's learning rate.

    Formal Guarantees:
        Those of ``Algorithm``. The second vector is about a gradient of each client, so a round
        reveals the mean change of the model and the mean change of the variates: more of the same
        data. A client's own variate leaves it in sums only. **Not given**: that a client which
        comes back is not linked to its earlier self, since it must keep a state; and in a
        simulation all variates lie in one place.

    Example:
        >>> import jax.numpy as jnp
        >>> import fedjax_agg as fa
        >>> from fedjax_agg.federated import ClientData
        >>> algorithm = Scaffold(
        ...     lambda p, x: (p - x) ** 2, 0.25, population=2, epochs=2,
        ...     codec=fa.FixedPoint(clip=8.0))
        >>> data = ClientData(jnp.array([[2.0], [4.0]]), jnp.ones(2, jnp.int32))
        >>> session = fa.simulated_session(fa.fixed_seed(0), num_clients=2)
        >>> state, _, _ = algorithm.step(algorithm.init(jnp.zeros(())), data, session)
        >>> round(float(state.params), 2), state.client_controls.round(2)
        (2.25, Array([-3., -6.], dtype=float32))
    """

    client_rate: Any = 0.1
    _: dataclasses.KW_ONLY
    population: int = static()
    control_codec: Codec | None = None
    server_rate: Any = 1.0
    max_weight: int | None = dataclasses.field(
        default=1, init=False, repr=False, metadata={"static": True}
    )

    def __post_init__(self):
        super().__post_init__()
        _check.integer_in("population", 2, 2**31 - 1, population=self.population)
        _check.instance("codec-type", (Codec, type(None)), control_codec=self.control_codec)

    def init(self, params: Any) -> ScaffoldState:
        """The state before the first round: all variates are zero."""
        controls = jax.tree.map(
            lambda p: jnp.zeros((self.population, *jnp.shape(p)), jnp.result_type(p)), params
        )
        return ScaffoldState(params, optax.tree.zeros_like(params), controls)

    def check(self, data: ClientData) -> None:
        """Raises ValueError also where the data is not of N clients."""
        super().check(data)
        if data.num_clients != self.population:
            raise _check.error(
                "population", f"population={self.population}", f"that of data, {data.num_clients}"
            )

    def codecs(self) -> tuple[Codec, ...]:
        """Of the change of the model, and of that of the variate."""
        return (self.codec, self.codec if self.control_codec is None else self.control_codec)

    def recall(self, state: ScaffoldState, clients: jax.Array) -> Any:
        """The variates of the cohort."""
        return jax.tree.map(lambda leaf: leaf[clients], state.client_controls)

    def client(self, state: ScaffoldState, own: Any, examples: Any, count: Any, key: Any) -> Sent:
        """The changes of the model and of the client's variate."""

        def corrected(grads, params):
            del params
            return jax.tree.map(lambda g, ci, c: g - ci + c, grads, own, state.control)

        optimizer = optax.sgd(self.client_rate)
        trained = self.train(optimizer, state.params, examples, count, key, corrected)
        moved = optax.tree.sub(trained.params, state.params)
        path = jnp.maximum(trained.steps, 1).astype(jnp.float32) * self.client_rate
        control_change = jax.tree.map(
            lambda c, d: -c - d / path.astype(d.dtype), state.control, moved
        )
        kept = optax.tree.add(own, control_change)
        return Sent((moved, control_change), trained.loss, trained.correct, kept)

    def server(self, state: ScaffoldState, mean: tuple[Any, ...], report: Report) -> ScaffoldState:
        """The model by the mean change, the variate by the part of all clients in the sum."""
        part = report.total_weight / self.population
        params = jax.tree.map(
            lambda x, d: x + (self.server_rate * d).astype(x.dtype), state.params, mean[0]
        )
        control = jax.tree.map(lambda c, d: c + part.astype(c.dtype) * d, state.control, mean[1])
        return ScaffoldState(params, control, state.client_controls)

    def keep(self, state: ScaffoldState, clients: jax.Array, own: Any, counted: jax.Array) -> Any:
        """The new variates of the clients in the sum."""

        def put(leaf, rows):
            there = counted.reshape(counted.shape + (1,) * (rows.ndim - 1))
            return leaf.at[clients].set(jnp.where(there, rows, leaf[clients]))

        return state._replace(client_controls=jax.tree.map(put, state.client_controls, own))
