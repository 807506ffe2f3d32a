"""Who is still there at each stage of a round."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_agg import _check
from fedjax_agg.session import MAX_CLIENTS
from fedjax_agg.sharing import graph
from fedjax_agg.sharing.parameters import whole_clients
from fedjax_agg.symmetric import key_schedule

_SLACK = np.float32(2.0**-20)
# A protocol runs through some of them, always in this order.
STAGES = ("advertise", "share", "upload", "attest", "unmask")


class Participation(NamedTuple):
    """Who is still there at each stage; who is gone stays gone.

    Attributes:
        alive: bool[5, n], a row for each of ``STAGES``: True where the client's message of that
            stage arrives.

    Example:
        >>> import jax.numpy as jnp
        >>> lost = jnp.array([True, True, False])
        >>> Participation.until("share", lost).alive.sum(axis=1).tolist()
        [3, 2, 2, 2, 2]
    """

    alive: jax.Array

    @classmethod
    def until(cls, stage: str, alive: jax.Array) -> "Participation":
        """Everybody is there before a stage, and ``alive``, bool[n], from it on."""
        _check.one_of("stage", STAGES, stage=stage)
        before = np.arange(len(STAGES)) < STAGES.index(stage)
        return cls(jnp.asarray(before)[:, None] | jnp.asarray(alive)[None])

    def at(self, stage: str) -> jax.Array:
        """Who is there at a stage and was at all before it: bool[n]."""
        return jnp.all(self.alive[: STAGES.index(stage) + 1], axis=0)


def as_participation(value: Any, num_clients: int) -> Participation:
    """What a round takes: a ``Participation``, bool[n] for who uploads, or None for everybody.

    Raises:
        ValueError: another shape or type; a static participation in which somebody returns.

    Example:
        >>> as_participation(None, 3).alive.shape
        (5, 3)
    """
    if value is None:
        return Participation(jnp.ones((len(STAGES), num_clients), jnp.bool_))
    staged = isinstance(value, Participation)
    alive = value.alive if staged else value
    wanted = (len(STAGES), num_clients) if staged else (num_clients,)
    _check.shape("participation-shape", wanted, participation=alive)
    if alive.dtype != jnp.bool_:
        raise _check.error(
            "participation-dtype", f"the dtype {alive.dtype.name} of participation", "bool"
        )
    if not staged:
        return Participation.until("upload", alive)
    known = _check.concrete(alive)
    if known is not None and (known[1:] & ~known[:-1]).any():
        stage, client = (int(i[0]) for i in np.nonzero(known[1:] & ~known[:-1]))
        raise _check.error(
            "participation-monotone",
            f"participation.alive[{stage + 1}, {client}]=True",
            f"False where alive[{stage}, {client}] is",
        )
    return Participation(jnp.asarray(alive))


def drop_clients(
    seed: jax.Array,
    num_clients: int,
    rate: jax.Array | float,
    *,
    stage: str = "upload",
    round_id: jax.Array | int = 0,
) -> Participation:
    """A random part of the cohort is lost at a stage, and with it at all later ones.

    Args:
        seed: uint32[8], from ``root_seed`` or ``fixed_seed``.
        num_clients: the size of the cohort.
        rate: the part of the clients that is lost, in [0, 1]: their number is ``rate *
            num_clients`` rounded down, as ``plan_round`` counts them. May be traced.
        stage: "advertise", "share", "upload", "attest" or "unmask": their message of this stage
            is the first that does not arrive.
        round_id: which round, from 0 to 2^32 - 1; every round loses other clients. May be traced.

    Returns:
        The ``Participation``.

    Raises:
        ValueError: a seed of another form, an unknown stage, a rate or round out of range.

    Example:
        >>> import fedjax_agg as fa
        >>> participation = drop_clients(fa.fixed_seed(0), 10, 0.3, stage="upload")
        >>> participation.alive.sum(axis=1).tolist()
        [10, 10, 7, 7, 7]
    """
    _check.words("seed", (8,), seed=seed)
    _check.one_of("stage", STAGES, stage=stage)
    num_clients = _check.integer_in("num-clients", 2, MAX_CLIENTS, num_clients=num_clients)
    _check.fraction("drop-rate", rate=rate)
    number, round_number = _check.concrete(rate), _check.round_number(round_id)
    if number is not None and number.dtype != np.float32:
        lost = jnp.int32(whole_clients(float(number), num_clients))
    else:
        # The nearest float32 to one tenth, times ten, may be a little less than one.
        lost = jnp.floor((jnp.asarray(rate, jnp.float32) + _SLACK) * num_clients).astype(jnp.int32)
    alive = _survivors(seed, lost, round_number, num_clients)
    return Participation.until(stage, alive)


@functools.partial(jax.jit, static_argnums=3)
def _survivors(seed, lost, round_id, num_clients):
    key = key_schedule.derive_key(
        seed, key_schedule.DROPOUTS, salt=jnp.zeros(8, jnp.uint32), round_id=round_id
    )
    return graph.permutation(key, num_clients) >= lost
