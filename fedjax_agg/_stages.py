"""A round as the protocol runs it, stage by stage, and the one rule of its derivative."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fedjax_agg import _xla, rounding
from fedjax_agg.codecs.codec import saturate
from fedjax_agg.protocols import Protocol
from fedjax_agg.session import RoundContext, Session
from fedjax_agg.structure import client_structure
from fedjax_agg.symmetric import key_schedule
from fedjax_agg.wire import Mail, Upload


class Static(NamedTuple):
    """What one compiled round is specialised to, besides shapes.

    Attributes:
        protocol: the protocol.
        weighted: whether the weight is one more coordinate.
        mean: whether the sum is divided by the total weight.

    Example:
        >>> from fedjax_agg.protocols import Plain
        >>> Static(Plain(), weighted=False, mean=True).mean
        True
    """

    protocol: Protocol
    weighted: bool
    mean: bool


def _client_units(codec, update, weight, ctx):
    """Steps 1 to 4 for one client: float32[D], finite, |units| <= max_weight * max_levels.

    Selecting instead of clipping makes the derivative zero where a coordinate saturated or was
    not finite.
    """
    units = codec.forward(update, ctx)
    units = saturate(jnp.where(jnp.isfinite(units), units, 0.0), jnp.float32(codec.max_levels))
    if weight is None:
        return units
    return jnp.concatenate([weight * units, weight[None]])


def public_context(session: Session, updates: Any) -> RoundContext:
    """What all parties know at the start of a round."""
    structure = client_structure(updates, session.num_clients)
    return RoundContext(session.round_id, session.public_seed, structure=structure)


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


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def core_sum(static, codec, updates, weights, session, participation):
    """Steps 1 to 11: the sum of the survivors' words, lifted to float32[D], and its outcome."""
    total, outcome, _ = run_stages(
        static, codec, updates, weights, session, participation, keep=False
    )
    return static.protocol.group.centre_lift(total.words).astype(jnp.float32), outcome


def run_stages(static, codec, updates, weights, session, participation, *, keep):
    """The protocol, stage by stage: the ``Total``, the outcome, and what a transcript keeps.

    Updates are encoded, protected and added one client at a time, so that no array of clients
    times coordinates is made, and no float ever depends on two clients.
    """
    protocol, group = static.protocol, static.protocol.group
    n = session.num_clients
    public = public_context(session, updates)
    mail: dict[str, Mail] = {}
    active = jnp.ones(n, jnp.bool_)
    refusals = jnp.zeros((n, len(protocol.rules)), jnp.bool_)

    def each(function, *rows):
        def one(client, context, *row):
            return function(*row, public._replace(client=client, context_hash=context))

        return jax.vmap(one)(session.client_ids, session.context, *rows)

    def still_there(stage, private):
        """Who is there at a stage, and who of them does not refuse."""
        nonlocal refusals
        there = active & participation.at(stage)
        broken = jax.vmap(protocol.refusals, axis_size=n)(private)
        refusals = refusals | (broken & there[:, None])
        return there & ~jnp.any(broken, axis=1)

    def run_exchange(stage, private, inboxes):
        nonlocal active, public
        private, outboxes = each(stage.client, private, inboxes)
        active = still_there(stage.name, private)
        outboxes = jax.tree.map(
            lambda x: jnp.where(_over(active, x), x, jnp.zeros_like(x)), outboxes
        )
        if stage.publish is not None:
            board = stage.publish(outboxes, active, public)
            board = protocol.deal(board, session.agreement, private, public)
            public = public._replace(board=board)
        inboxes = stage.server(outboxes, active, public)
        mail[stage.name] = Mail(outboxes, active, inboxes)
        return private, inboxes

    keys = private = each(protocol.join, session.secrets)
    inboxes = None
    for stage in protocol.prepare(n):
        private, inboxes = run_exchange(stage, private, inboxes)
    private = each(protocol.receive, private, inboxes)
    active = still_there("upload", private)

    # Weights are traced, and so is what they multiply the units by.
    bound = rounding.MAX_UNITS if static.weighted else codec.max_levels
    draws = codec.rounding == "stochastic"
    rounding_keys = each(_rounding_key, session.secrets) if draws else None
    rows = (updates, weights, session.client_ids, session.context, private, rounding_keys, active)

    def upload(i):
        row = jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, i, keepdims=False), rows)
        update, weight, client, context, private_i, rounding_key_i, alive = row
        ctx = public._replace(client=client, context_hash=context)
        units = _client_units(codec, update, weight, ctx)
        words = group.wrap(rounding.round_to_grid(codec.rounding, units, rounding_key_i, bound))
        words = protocol.protect(words, private_i, ctx).words
        return jnp.where(alive, words, jnp.uint32(0))

    if keep:
        words = lax.map(upload, jnp.arange(n))
        mail["upload"] = Mail(Upload(words), active)
        uploads = group.sum(words)
    else:
        length = public.structure.size + static.weighted
        uploads = _xla.client_loop(
            n, lambda i, total: group.add(total, upload(i)), jnp.zeros(length, jnp.uint32)
        )

    survivors = active
    public = public._replace(survivors=survivors)
    before_upload, inboxes = private, None
    for stage in protocol.respond(n):
        private, inboxes = run_exchange(stage, private, inboxes)

    public = public._replace(context_hash=session.context)
    total = protocol.recover(uploads, mail, public)
    suspects = jnp.zeros(n, jnp.bool_) if total.suspects is None else total.suspects
    counts = jnp.sum(refusals, axis=0, dtype=jnp.int32)
    outcome = Outcome(total.ok, survivors, counts, suspects)
    kept = {
        "stages": mail,
        "public": public,
        "secrets": session.secrets,
        "keys": keys,
        "private": before_upload,
    }
    return total, outcome, kept


def _over(flags: jax.Array, x: jax.Array) -> jax.Array:
    """Flags of clients, bool[n], in the rank of an array over clients."""
    return flags.reshape(flags.shape + (1,) * (x.ndim - 1))


def _rounding_key(secret, ctx):
    return key_schedule.derive_key(
        secret, key_schedule.ROUNDING, salt=ctx.public_seed, round_id=ctx.round_id
    )


# With y_i the grid units of client i, weights included, the core is
#     lift( sum over survivors of round(y_i) ),
# whose expectation under stochastic rounding is  ok * sum over survivors of y_i,  so that
#     d core = ok * sum over survivors of dy_i.
# Masks cancel exactly and contribute nothing. The sum is linear in dy, so JAX transposes it to a
# broadcast: the same cotangent for every survivor.
@core_sum.defjvp
def _core_jvp(static, primals, tangents):
    _, updates, _, session, _ = primals
    total, outcome = core_sum(static, *primals)
    public = public_context(session, updates)

    def all_units(codec, updates, weights):
        def one(update, weight, client):
            return _client_units(codec, update, weight, public._replace(client=client))

        return jax.vmap(one)(updates, weights, session.client_ids)

    _, units_dot = jax.jvp(all_units, primals[:3], tangents[:3])
    counted = (outcome.survivors & outcome.ok).astype(jnp.float32)
    total_dot = jnp.sum(counted[:, None] * units_dot, axis=0)
    no_tangent = jax.tree.map(lambda x: np.zeros(x.shape, jax.dtypes.float0), outcome)
    return (total, outcome), (total_dot, no_tangent)
