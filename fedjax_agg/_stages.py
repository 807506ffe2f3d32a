"""A round as the protocol runs it, stage by stage: before the uploads, the uploads, and after."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_agg import _xla, mesh, rounding
from fedjax_agg.codecs import Codec
from fedjax_agg.codecs.codec import saturate
from fedjax_agg.participation import Participation
from fedjax_agg.protocols import Exchange, Protocol
from fedjax_agg.session import RoundContext, Session
from fedjax_agg.symmetric import key_schedule
from fedjax_agg.wire import Mail, Total


class Static(NamedTuple):
    """What one compiled round is specialised to, besides shapes.

    Attributes:
        protocol: the protocol.
        weighted: whether the weight is one more coordinate.
        mean: whether the sum is divided by the total weight.
        clients: where the clients lie on a mesh of devices; None on one device.

    Example:
        >>> from fedjax_agg.protocols import Plain
        >>> Static(Plain(), weighted=False, mean=True).mean
        True
    """

    protocol: Protocol
    weighted: bool
    mean: bool
    clients: mesh.ClientAxes | None = None


class Cohort(NamedTuple):
    """All parties between two stages: what every client holds, and what the server has seen.

    Attributes:
        public: what all parties know.
        private: each client's state.
        active: bool[n], who still takes part.
        refusals: bool[n, rules], who has found which rule broken.
        mail: by stage, what was sent.

    Example:
        >>> Cohort._fields[:3]
        ('public', 'private', 'active')
    """

    public: RoundContext
    private: Any
    active: jax.Array
    refusals: jax.Array
    mail: dict[str, Mail]


class Outcome(NamedTuple):
    """What a round says besides the sum.

    Attributes:
        ok: bool[], whether the protocol succeeded.
        survivors: bool[n], whose uploads are in the sum.
        refusals: int32[rules], how many clients found each rule broken.
        suspects: bool[n], whose help did not fit.

    Example:
        >>> Outcome._fields
        ('ok', 'survivors', 'refusals', 'suspects')
    """

    ok: jax.Array
    survivors: jax.Array
    refusals: jax.Array
    suspects: jax.Array


def before_uploads(
    protocol: Protocol, session: Session, participation: Participation, public: RoundContext
) -> tuple[Any, Cohort]:
    """The clients' keys, and the cohort before anybody has an update to protect."""
    n = session.num_clients
    keys = _each(session, public, protocol.join, session.secrets)
    nobody = jnp.zeros((n, len(protocol.rules)), jnp.bool_)
    cohort = Cohort(public, keys, jnp.ones(n, jnp.bool_), nobody, {})
    inboxes = None
    for exchange in protocol.prepare(n):
        cohort, inboxes = _exchange(protocol, session, participation, cohort, exchange, inboxes)
    private = _each(session, cohort.public, protocol.receive, cohort.private, inboxes)
    return keys, cohort._replace(private=private)


def at_uploads(protocol: Protocol, participation: Participation, cohort: Cohort) -> Cohort:
    """The cohort of those whose upload arrives."""
    return _still_there(protocol, participation, cohort, "upload")


def uploader(
    static: Static, codec: Codec, session: Session, cohort: Cohort, blind=None
) -> Callable[[jax.Array, Any, Any], jax.Array]:
    """``(row, update, weight) -> words``: what the client in a row of the cohort uploads, or
    the part of it that this device does.

    ``blind`` is one more function of a client's words and of keys that it has in common with
    all clients, with a function that derives these from a group key, and the group keys,
    uint32[n, 8]. It adds the words of a tag.
    """
    protocol, group = static.protocol, static.protocol.group
    # Weights are traced, and so is what they multiply the units by.
    bound = rounding.MAX_UNITS if static.weighted else codec.max_levels
    draws = codec.rounding == "stochastic"
    rounding_keys = _each(session, cohort.public, _rounding_key, session.secrets) if draws else None
    blind_words, common_keys = None, None
    if blind is not None:
        blind_words, derive_common, group_keys = blind
        common_keys = _each(session, cohort.public, derive_common, group_keys)
    clients = (
        cohort.active,
        session.client_ids,
        session.context,
        cohort.private,
        rounding_keys,
        common_keys,
    )

    def upload(row, update, weight):
        alive, client, context, private, rounding_key, common = row_of(clients, row)
        ctx = cohort.public._replace(client=client, context_hash=context)
        units, start = client_units(codec, mesh.whole(update, static.clients), weight, ctx), None
        # A tag is of all words, so in a blind round all devices compute all of them.
        in_parts = protocol.by_coordinate and blind_words is None
        if in_parts:
            units, start = mesh.own_part(units, static.clients)
        first = 0 if start is None else start
        integers = rounding.round_to_grid(codec.rounding, units, rounding_key, bound, first)
        words = group.wrap(integers)
        if blind_words is not None:
            words = blind_words(words, common, ctx)
        words = protocol.protect(words, private, ctx._replace(start=start)).words
        if not in_parts:
            words, _ = mesh.own_part(words, static.clients)
        return jnp.where(alive, words, jnp.uint32(0))

    return upload


def after_uploads(
    protocol: Protocol,
    session: Session | None,
    participation: Participation,
    cohort: Cohort,
    uploads: jax.Array,
) -> tuple[Total, Outcome, Cohort]:
    """The sum of the survivors' uploads, uint32[D], as the sum of their words.

    ``session`` may be None where the protocol has no exchanges.
    """
    n, survivors = cohort.active.shape[0], cohort.active
    cohort = cohort._replace(public=cohort.public._replace(survivors=survivors))
    inboxes = None
    for exchange in protocol.respond(n):
        cohort, inboxes = _exchange(protocol, session, participation, cohort, exchange, inboxes)
    contexts = None if session is None else session.context
    public = cohort.public._replace(context_hash=contexts)
    total = protocol.recover(uploads, cohort.mail, public)
    suspects = jnp.zeros(n, jnp.bool_) if total.suspects is None else total.suspects
    counts = jnp.sum(cohort.refusals, axis=0, dtype=jnp.int32)
    outcome = Outcome(total.ok, survivors, counts, suspects)
    return total, outcome, cohort._replace(public=public)


def client_units(codec: Codec, update: Any, weight: jax.Array | None, ctx: RoundContext):
    """Steps 1 to 4 for one client: float32[D], finite, |units| <= max_weight * max_levels.

    Selecting instead of clipping makes the derivative zero where a coordinate saturated or was
    not finite.
    """
    units = codec.forward(update, ctx)
    units = saturate(jnp.where(jnp.isfinite(units), units, 0.0), jnp.float32(codec.max_levels))
    if weight is None:
        return units
    return jnp.concatenate([weight * units, weight[None]])


def sum_uploads(static: Static, upload, rows: Any, num_clients: int, length: int) -> jax.Array:
    """The uploads of all clients added, uint32[length]; ``rows`` are updates and weights.

    One client at a time, so that no array of clients times coordinates is made, and no float
    ever depends on two clients. Each device adds those of its own clients, and its part of them.
    """
    clients, group = static.clients, static.protocol.group
    first = mesh.first_row(clients, num_clients)

    def add(i, total):
        return group.add(total, upload(first + i, *row_of(rows, i)))

    nothing = mesh.varying(jnp.zeros(mesh.length_of_part(length, clients), jnp.uint32), clients)
    part = _xla.client_loop(mesh.clients_of_device(clients, num_clients), add, nothing)
    # Devices add words; the elements of a field are no words that may be added so.
    limbs = tuple(mesh.sum_over_devices(limb, clients, length) for limb in group.limbs(part))
    return group.from_limbs(limbs)


def row_of(tree: Any, i: jax.Array) -> Any:
    """One client's row of arrays over clients."""
    return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, i, keepdims=False), tree)


def _each(session, public, function, *rows):
    """A client's function for every client: each with the public context as it has it."""

    def one(client, context, *row):
        return function(*row, public._replace(client=client, context_hash=context))

    return jax.vmap(one)(session.client_ids, session.context, *rows)


def _still_there(protocol, participation, cohort, stage):
    """The cohort without those who are gone at a stage, or refuse to go on."""
    n = cohort.active.shape[0]
    there = cohort.active & participation.at(stage)
    broken = jax.vmap(protocol.refusals, axis_size=n)(cohort.private)
    return cohort._replace(
        active=there & ~jnp.any(broken, axis=1),
        refusals=cohort.refusals | (broken & there[:, None]),
    )


def _exchange(protocol, session, participation, cohort, exchange: Exchange, inboxes):
    """One stage of messages: the cohort after it, and what it brought to each client."""
    private, outboxes = _each(session, cohort.public, exchange.client, cohort.private, inboxes)
    cohort = cohort._replace(private=private)
    cohort = _still_there(protocol, participation, cohort, exchange.name)
    active, public = cohort.active, cohort.public
    silent = functools.partial(_where_active, active)
    outboxes = jax.tree.map(silent, outboxes)
    if exchange.publish is not None:
        board = exchange.publish(outboxes, active, public)
        board = protocol.deal(board, session.agreement, private, public)
        public = public._replace(board=board)
    inboxes = exchange.server(outboxes, active, public)
    mail = cohort.mail | {exchange.name: Mail(outboxes, active, inboxes)}
    return cohort._replace(public=public, mail=mail), inboxes


def _where_active(active: jax.Array, x: jax.Array) -> jax.Array:
    """The rows of active clients, and zeros."""
    flags = active.reshape(active.shape + (1,) * (x.ndim - 1))
    return jnp.where(flags, x, jnp.zeros_like(x))


def _rounding_key(secret, ctx):
    return key_schedule.derive_key(
        secret, key_schedule.ROUNDING, salt=ctx.public_seed, round_id=ctx.round_id
    )
