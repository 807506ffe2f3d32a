"""What an aggregator and the cohort that one process plays hold between two blocks."""

import dataclasses
import functools
from typing import Any, final

import jax
import jax.numpy as jnp

from fedjax_agg import _check, budget
from fedjax_agg._stages import Cohort, at_uploads, before_uploads
from fedjax_agg.arithmetic import Ring
from fedjax_agg.codecs import Codec
from fedjax_agg.participation import Participation, as_participation
from fedjax_agg.protocols import Plain, Protocol
from fedjax_agg.protocols.protocol import needs_whole_cohort
from fedjax_agg.session import MAX_CLIENTS, RoundContext, Session
from fedjax_agg.structure import Structure

WEIGHTS = ("integer", "fraction")


@final
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class Sum:
    """All that an aggregator holds between two blocks.

    Attributes:
        words: uint32[D], the sum of the uploads so far, masked by the protocol.
        arrived: bool[n], whose blocks are in it.
        refused: int32[], how many blocks and sums were ignored, because a client of theirs had
            arrived already, is not of the cohort, or came too late.
        group: the integers of the words.

    Example:
        >>> import jax.numpy as jnp
        >>> from fedjax_agg.arithmetic import Ring
        >>> Sum(jnp.zeros(3, jnp.uint32), jnp.zeros(5, bool), jnp.int32(0), Ring(32))
        Sum(num_clients=5, words=<redacted>)
    """

    words: jax.Array
    arrived: jax.Array
    refused: jax.Array
    group: Ring = dataclasses.field(metadata={"static": True})

    def __repr__(self) -> str:
        return f"Sum(num_clients={self.arrived.shape[-1]}, words=<redacted>)"


@final
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class Stream:
    """A round between two blocks: the aggregator's ``sum``, and the cohort that the process plays.

    A pytree of arrays, with its configuration in the tree's definition: it passes through ``jit``
    and ``scan``, and to save it is to save its leaves, ``jax.tree.leaves(stream)``, which are as
    secret as the session. ``init`` of the same arguments makes the definition again.

    Attributes:
        sum: all that the aggregator itself holds.
        closed: bool[], whether later blocks are refused.
        codec: the map to grid units; its ranges are those of the whole round.
        public: what all parties know at the start.
        session: the session of the cohort; None where the protocol has no exchanges.
        participation: who is there at each stage, if its block comes.
        cohort: what the clients hold before the uploads, and what the server has seen; None
            where the protocol has no exchanges.
        uploads: bool[n], whose upload counts, if its block comes.
        protocol: the protocol.
        weights: "integer", "fraction" or None.
        max_weight: the largest integer weight.

    Example:
        >>> import jax.numpy as jnp
        >>> import fedjax_agg as fa
        >>> from fedjax_agg import streaming
        >>> session = fa.simulated_session(fa.fixed_seed(0), num_clients=5)
        >>> stream = streaming.init(jnp.zeros(3), session, codec=fa.FixedPoint(clip=1.0))
        >>> isinstance(stream, streaming.Stream)
        True
        >>> stream
        Stream(num_clients=5, protocol=Plain(group=Ring(bits=32)), cohort=<redacted>)
    """

    sum: Sum
    closed: jax.Array
    codec: Codec
    public: RoundContext
    session: Session | None
    participation: Participation
    cohort: Cohort | None
    uploads: jax.Array
    protocol: Protocol = dataclasses.field(metadata={"static": True})
    weights: str | None = dataclasses.field(metadata={"static": True})
    max_weight: int = dataclasses.field(metadata={"static": True})

    @property
    def num_clients(self) -> int:
        """The number of clients in the cohort."""
        return self.uploads.shape[-1]

    def __repr__(self) -> str:
        return (
            f"Stream(num_clients={self.num_clients}, protocol={self.protocol!r}, cohort=<redacted>)"
        )


def init(
    like: Any,
    session: Session,
    *,
    codec: Codec,
    protocol: Protocol = Plain(),
    num_clients: int | None = None,
    weights: str | None = None,
    max_weight: int | None = None,
    participation: Participation | jax.Array | None = None,
) -> Stream:
    """A round in which nobody's update has come yet: its keys and shares are exchanged.

    Args:
        like: one client's update, or its shapes and dtypes as ``jax.ShapeDtypeStruct``.
        session: the session of the cohort. Under a protocol without exchanges, such as
            ``Plain``, any rows of it, since only its public part is kept.
        codec: the map to grid units, such as ``FixedPoint(clip=1.0)``.
        protocol: how words are protected.
        num_clients: the size of the cohort, n; None takes that of the session.
        weights: None counts every client once; "integer" weights are from 0 to ``max_weight``,
            "fraction" ones floats in [0, 1].
        max_weight: the largest integer weight; None takes the largest that fits.
        participation: bool[n] or a ``Participation``, as for ``secure_mean``, of clients whose
            blocks come; who is in no block is lost at upload besides.

    Returns:
        The ``Stream``.

    Raises:
        TypeError: an argument of another type; a leaf of ``like`` that is no float.
        ValueError: the session of a part of the cohort under a protocol with exchanges; numbers
            that could make the sum wrap; a cohort that the protocol does not hold.

    Formal Guarantees:
        Those of the protocol, of which this is the same round: what is kept between blocks is
        masked as uploads are. A stream holds besides what all clients hold, since one process
        plays them: saved, it opens every update of the round. Finish it once: two sums of one
        cohort, over different survivors, open the difference.

    Example:
        >>> import jax.numpy as jnp
        >>> import fedjax_agg as fa
        >>> from fedjax_agg import streaming
        >>> session = fa.simulated_session(fa.fixed_seed(0), num_clients=4)
        >>> stream = streaming.init(jnp.zeros(2), session, codec=fa.FixedPoint(clip=2.0))
        >>> stream = streaming.add_block(stream, jnp.ones((2, 2)), session.rows(0, 2))
        >>> stream = streaming.add_block(stream, jnp.zeros((1, 2)), session.rows(3, 1))
        >>> total, report = streaming.finish_sum(streaming.close(stream))
        >>> total.tolist(), report.survivors.tolist()
        ([2.0, 2.0], [True, True, False, True])
    """
    _check.instance("session-type", Session, session=session)
    _check.instance("codec-type", Codec, codec=codec)
    _check.instance("protocol-type", Protocol, protocol=protocol)
    _check.shape("session-rounds", (), **{"session.round_id": session.round_id})
    structure = Structure.of(like, "like")
    n = session.num_clients if num_clients is None else num_clients
    n = _check.integer_in("num-clients", 2, MAX_CLIENTS, num_clients=n)
    protocol.check(n)
    if weights is not None:
        _check.one_of("stream-weights", WEIGHTS, weights=weights)
    max_weight = budget.largest_weight(n, codec, protocol, weights, max_weight)
    whole: Session | None = None
    if needs_whole_cohort(protocol, session, n):
        whole = session
    public = RoundContext(
        session.round_id,
        session.public_seed,
        structure=structure,
        key_exchange=session.key_exchange,
    )
    codec = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), codec)
    there = as_participation(participation, n)
    return _start(protocol, weights, max_weight, codec, whole, there, public)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _start(protocol, weights, max_weight, codec, session, participation, public):
    n = participation.alive.shape[1]
    cohort = None
    if session is not None:
        _, cohort = before_uploads(protocol, session, participation, public)
    known = cohort_without_exchanges(protocol, public, n) if cohort is None else cohort
    length = public.structure.size + (weights is not None)
    return Stream(
        sum=_nothing(length, n, protocol.group),
        closed=jnp.bool_(False),
        codec=codec,
        public=public,
        session=session,
        participation=participation,
        cohort=cohort,
        uploads=at_uploads(protocol, participation, known).active,
        protocol=protocol,
        weights=weights,
        max_weight=max_weight,
    )


def cohort_without_exchanges(protocol: Protocol, public: RoundContext, num_clients: int) -> Cohort:
    """All parties where nothing goes before the uploads.

    Example:
        >>> cohort_without_exchanges(Plain(), RoundContext(), 3).active.tolist()
        [True, True, True]
    """
    refusals = jnp.zeros((num_clients, len(protocol.rules)), jnp.bool_)
    return Cohort(public, None, jnp.ones(num_clients, jnp.bool_), refusals, {})


def _nothing(length: int, num_clients: int, group: Ring) -> Sum:
    words, arrived = jnp.zeros(length, jnp.uint32), jnp.zeros(num_clients, jnp.bool_)
    return Sum(words, arrived, jnp.int32(0), group)


def edge(stream: Stream) -> Stream:
    """The stream of one more aggregator of the same cohort, to which nobody has come yet.

    What the aggregator holds is its ``sum``; ``merge`` adds it to another's.

    Example:
        >>> import jax.numpy as jnp
        >>> import fedjax_agg as fa
        >>> from fedjax_agg import streaming
        >>> session = fa.simulated_session(fa.fixed_seed(0), num_clients=5)
        >>> root = streaming.init(jnp.zeros(3), session, codec=fa.FixedPoint(clip=2.0))
        >>> one = streaming.add_block(streaming.edge(root), jnp.ones((2, 3)), session.rows(0, 2))
        >>> streaming.merge(root, one.sum).sum.arrived.tolist()
        [True, True, False, False, False]
    """
    _check.instance("stream-type", Stream, stream=stream)
    words = stream.sum.words
    nothing = _nothing(words.shape[0], stream.num_clients, stream.sum.group)
    return dataclasses.replace(stream, sum=nothing, closed=jnp.bool_(False))
