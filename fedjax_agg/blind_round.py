"""The blind round: the server adds what it cannot read, and every client opens the sum.

All clients of an epoch share a group key that the server does not have. From it they make the
*same* mask g for the whole cohort, under the masks of the protocol. With n clients and
v = floor(log2 n),

    client     y_i = protect(2^v (x_i, t_i) + g)       t_i, the tag of x_i and of i
    server     Z = 2^v * (sum of x_i, t_i) + |U| g      over the survivors U, in the ring
    client     sum of x_i, t_i = (Z - |U| g) / 2^v;  if the tag fits, lift, inverse, divide, and
               its own update

Why the shift: |U| g is uniform on the multiples of the largest power of two that divides |U|
only, so without it the low bits of the sum would show. That power is at most 2^v; those low bits
are zero now, and an opened sum whose low bits are not is refused.

Why the tag: a mask that is added hides but does not bind, and the server could shift a sum within
its range. ``homomorphic_mac`` has tags that add up in the same ring, under the same masks. So the
server can add every survivor once, and nothing else. What comes after is the clients' work:

* **replicated**: one rule for all. Every client opens the same sum and keeps the same model and
  the same optimiser state, bit for bit.
* **personal**: each client has a rule and a learning rate of its own. Models drift apart, as
  they are meant to, and no law makes them equal.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_agg import _check, _group_mask, mesh
from fedjax_agg._core import (
    checked,
    inverse,
    public_context,
    run_stages,
    transcript_of,
)
from fedjax_agg._stages import Static
from fedjax_agg.arithmetic import Ring
from fedjax_agg.budget import blind_shift
from fedjax_agg.codecs import Codec
from fedjax_agg.group_key import GroupKeys
from fedjax_agg.participation import Participation
from fedjax_agg.protocols import Protocol
from fedjax_agg.secure_round import Report, report_of
from fedjax_agg.session import RoundContext, Session
from fedjax_agg.wire import Transcript


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class Blinded:
    """What the server sends to all clients after a blind round; without the group key, noise.

    Attributes:
        words: uint32[D + 64], the sum and its tag under the group mask.
        ctx: the public context of the round, with the survivors.
        ok: bool[], whether the protocol succeeded.
        grid: float32[], how many integer weights make the user's weight of one.
        static: the protocol and the modes.
        limit: the largest magnitude that one client adds to a coordinate.
        codec: the structure of the codec, which has its modes and budget.

    Example:
        >>> import jax.numpy as jnp
        >>> import fedjax_agg as fa
        >>> session = fa.simulated_session(fa.fixed_seed(0), num_clients=4)
        >>> group, _ = fa.agree_group_key(session)
        >>> blinded, _ = fa.blind_mean(
        ...     jnp.zeros((4, 2)), session, group,
        ...     codec=fa.FixedPoint(clip=1.0), protocol=fa.Plain())
        >>> isinstance(blinded, Blinded), blinded.words.shape
        (True, (66,))
    """

    words: jax.Array
    ctx: RoundContext
    ok: jax.Array
    grid: jax.Array
    static: Static = dataclasses.field(metadata={"static": True})
    limit: int = dataclasses.field(metadata={"static": True})
    codec: Any = dataclasses.field(metadata={"static": True})

    def __repr__(self) -> str:
        return f"Blinded(words={self.words.dtype.name}{[*self.words.shape]})"


def blind_mean(
    updates: Any,
    session: Session,
    group: GroupKeys,
    *,
    codec: Codec,
    protocol: Protocol,
    weights: jax.Array | None = None,
    max_weight: int | None = None,
    participation: Participation | jax.Array | None = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> tuple[Blinded, Report]:
    """``secure_mean`` up to the sum, which the server hands on without learning it.

    ``open_blind`` is the rest, at each client: both together give the mean of ``secure_mean``
    bit for bit. They work in integers, and their derivative is zero; for gradients through
    rounds use ``secure_mean``, whose value is the same.

    Args:
        updates: a pytree of floats, every leaf [n, ...] with one row for each client.
        session: the private state of the cohort in this round, n clients.
        group: what the clients hold in this epoch, from ``agree_group_key``. Who has not
            confirmed the key takes no part.
        codec: the map to grid units.
        protocol: how words are protected, ``SecAgg()`` or one with a degree. **Not** ``Plain()``
            but in experiments on what clients do: all uploads then have one mask, the server has
            every difference of two, and from one update that it knows all of them.
        weights: as in ``secure_mean``. Their sum is one more blinded coordinate.
        max_weight: as in ``secure_mean``. The budget is floor(log2 n) bits smaller.
        participation: as in ``secure_mean``.
        axis_name: as in ``secure_mean``.

    Returns:
        The ``Blinded`` sum and the ``Report`` of the server, whose ``total_weight`` is NaN where
        weights are given, because the server does not learn it.

    Raises:
        TypeError, ValueError: as ``secure_mean``, and where ``group`` is not that of n clients.

    Formal Guarantees:
        **The server alone**, over a protocol that hides single uploads, learns who survived and
        the lengths, and neither an update nor the sum, as far as ChaCha20 is a pseudorandom
        function and the group key is unknown to it. Under ``Plain()`` it learns every difference
        of updates. **With one colluding client** it learns the sum, as
        every receiver of a sum can tell it, and still no single update, up to the threshold of
        the protocol. **One sum for each mask**: two survivor sets under one group mask give
        |U'| Z - |U| Z', which is free of it; the consistency round of ``SecAgg`` excludes them
        against a server that cheats, and an aborted round must be followed by one with another
        ``round_id``. **Integrity**: a client refuses other words and other survivors than those
        of the round, but for a probability of 2^-64 an attempt, as long as the server has no
        group key (``homomorphic_mac``). Tags tell no more than the sum, from which theirs
        follows. **Not given**: integrity against a member, who can make all tags, and whose own
        words may be anything; a round that the server denies; privacy of the sum from clients.

    Example:
        >>> import jax.numpy as jnp
        >>> import fedjax_agg as fa
        >>> session = fa.simulated_session(fa.fixed_seed(0), num_clients=4)
        >>> group, _ = fa.agree_group_key(session)
        >>> codec = fa.FixedPoint(clip=1.0)
        >>> updates = jnp.array([[0.5, 0.0], [0.25, 0.0], [0.25, 0.5], [0.0, 0.0]])
        >>> blinded, report = blind_mean(updates, session, group, codec=codec, protocol=fa.Plain())
        >>> mean, ok = fa.open_blind(blinded, group.keys[0], codec=codec)
        >>> mean, bool(ok)
        (Array([0.25 , 0.125], dtype=float32), True)
    """
    blinded, report, _ = _run(
        False,
        group,
        updates,
        session,
        codec,
        protocol,
        weights,
        max_weight,
        participation,
        axis_name,
    )
    return blinded, report


def blind_transcript(
    updates: Any,
    session: Session,
    group: GroupKeys,
    *,
    codec: Codec,
    protocol: Protocol,
    weights: jax.Array | None = None,
    max_weight: int | None = None,
    participation: Participation | jax.Array | None = None,
) -> Transcript:
    """The round of ``blind_mean`` with every message kept. **Simulation only.**

    Arguments and errors are those of ``blind_mean``.

    Returns:
        The ``Transcript``, whose ``mean`` is the ``Blinded`` sum.

    Example:
        >>> import jax.numpy as jnp
        >>> import fedjax_agg as fa
        >>> session = fa.simulated_session(fa.fixed_seed(0), num_clients=4)
        >>> group, _ = fa.agree_group_key(session)
        >>> kept = blind_transcript(
        ...     jnp.zeros((4, 2)), session, group,
        ...     codec=fa.FixedPoint(clip=1.0), protocol=fa.Plain())
        >>> bool((kept.view(server=True).total.words == kept.mean.words).all())
        True
    """
    blinded, report, kept = _run(
        True, group, updates, session, codec, protocol, weights, max_weight, participation, None
    )
    return transcript_of(kept, blinded, report, updates)


def _run(
    keep, group, updates, session, codec, protocol, weights, max_weight, participation, axis_name
):
    _check.instance("group-keys-type", GroupKeys, group=group)
    _check.instance("session-type", Session, session=session)
    _check.instance("protocol-type", Protocol, protocol=protocol)
    _check.instance("blind-group-type", Ring, **{"protocol.group": protocol.group})
    n = session.num_clients
    _check.shape("group-keys-shape", (n, 8), **{"group.keys": group.keys})
    static, arguments, max_weight = checked(
        True,
        updates,
        session,
        codec,
        protocol,
        weights,
        max_weight,
        participation,
        axis_name,
        shift=blind_shift(n),
    )
    if keep:
        static = static._replace(clients=None)
    return _blind_round(static, max_weight * codec.bound(), keep, group, *arguments)


def open_blind(
    blinded: Blinded,
    group_key: jax.Array,
    *,
    codec: Codec,
    context_hash: jax.Array | None = None,
    round_id: jax.Array | int | None = None,
) -> tuple[Any, jax.Array]:
    """One client opens the sum of a blind round: the mean, which it applies by its own rule.

    Args:
        blinded: what the server sent.
        group_key: uint32[8], this client's copy, a row of ``GroupKeys.keys``; ``jax.vmap`` over
            them opens for all.
        codec: that of the round. With another clip or other levels nothing is accepted.
        context_hash: uint8[32], the digest of the model that this client was given, where the
            session was bound to one.
        round_id: the round that this client is in, an integer scalar. None takes the word of the
            broadcast, so that all of an earlier one opens again, as what it was.

    Returns:
        The mean, in the structure and dtypes of one update, and whether it was accepted, bool[].
        Zeros where it was not: the round had failed, the total weight is zero, or the opened
        sum is not that of these survivors' words in this round, under this key: out of range,
        with low bits set, or with another tag. All of it is checked in integers, before
        anything is made of them.

    Raises:
        TypeError, ValueError: an argument of another type, shape or range; a codec of another
            class, mode or budget than that of the round.

    Formal Guarantees:
        Integrity as in ``blind_mean``, of the words, the survivors, the round and the model. What
        else ``blinded`` has is the configuration, which a client in a deployment has itself.

    Example:
        With another key there is nothing to open:

        >>> import jax.numpy as jnp
        >>> import fedjax_agg as fa
        >>> session = fa.simulated_session(fa.fixed_seed(0), num_clients=4)
        >>> group, _ = fa.agree_group_key(session)
        >>> codec = fa.FixedPoint(clip=1.0)
        >>> blinded, _ = fa.blind_mean(
        ...     jnp.ones((4, 2)), session, group, codec=codec, protocol=fa.Plain())
        >>> mean, ok = open_blind(blinded, group.keys[0] ^ 1, codec=codec)
        >>> float(mean.sum()), bool(ok)
        (0.0, False)
    """
    _check.instance("blinded-type", Blinded, blinded=blinded)
    _check.instance("codec-type", Codec, codec=codec)
    _check.words("group-key", (8,), group_key=group_key)
    if context_hash is not None:
        _check.array("context-hash", np.uint8, (32,), context_hash=context_hash)
    codec = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), codec)
    found = jax.tree.structure(codec)
    if found != blinded.codec:
        raise _check.error("blind-codec", f"codec of {found}", f"of {blinded.codec}")
    ctx = blinded.ctx._replace(context_hash=context_hash)
    if round_id is not None:
        ctx = ctx._replace(round_id=_check.round_number(round_id))
    return _open(dataclasses.replace(blinded, ctx=ctx), group_key, codec)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _blind_round(static, limit, keep, group, codec, updates, weights, grid, session, participation):
    blind = functools.partial(
        _group_mask.blind, ring=static.protocol.group, num_clients=session.num_clients
    )

    def run(codec, updates, weights, session, participation, group_keys):
        derive = functools.partial(_group_mask.round_keys, codec=codec)
        arguments = (codec, updates, weights, session, participation)
        total, outcome, kept = run_stages(
            static, *arguments, keep=keep, blind=(blind, derive, group_keys)
        )
        return total, outcome, kept if keep else None

    confirmed = Participation(participation.alive & group.confirmed[None])
    by_client = (False, True, True, False, False, False)
    total, outcome, kept = mesh.on_each_device(run, static.clients, by_client, 1)(
        codec, updates, weights, session, confirmed, group.keys
    )
    # What all clients may see: not what the server gave to each of them.
    ctx = public_context(session, updates)._replace(survivors=outcome.survivors)
    number = jnp.sum(outcome.survivors, dtype=jnp.int32).astype(jnp.float32)
    total_weight = jnp.float32(jnp.nan) if static.weighted else number
    report = report_of(static.protocol, total.words.shape[0], outcome, total_weight)
    blinded = Blinded(total.words, ctx, outcome.ok, grid, static, limit, jax.tree.structure(codec))
    return blinded, report, (kept | {"total": total} if keep else None)


# One after the other under vmap: XLA divides by a scalar, but multiplies by the reciprocal of one
# that is batched, and the last bit would differ from that of an open round.
@jax.jit
@jax.custom_batching.sequential_vmap
def _open(blinded, group_key, codec):
    static, ctx = blinded.static, blinded.ctx
    total, authentic = _group_mask.open_words(
        blinded.words, group_key, ctx, codec, ring=static.protocol.group, limit=blinded.limit
    )
    ok = blinded.ok & authentic
    value, _, ok = inverse(static, codec, total.astype(jnp.float32), ctx, blinded.grid, ok)
    return value, ok
