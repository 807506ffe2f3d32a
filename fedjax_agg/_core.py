"""The core of a round, from floats to the lifted sum, and the one rule of its derivative."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fedjax_agg import _check, budget, mesh
from fedjax_agg._stages import (
    Static,
    after_uploads,
    at_uploads,
    before_uploads,
    client_units,
    row_of,
    sum_uploads,
    uploader,
)
from fedjax_agg.codecs import Codec
from fedjax_agg.participation import STAGES, as_participation
from fedjax_agg.protocols import Protocol
from fedjax_agg.protocols.protocol import needs_whole_cohort
from fedjax_agg.session import MAX_CLIENTS, RoundContext, Session
from fedjax_agg.structure import client_structure
from fedjax_agg.symmetric.homomorphic_mac import TAG_WORDS
from fedjax_agg.wire import Mail, Transcript, Upload


def public_context(
    session: Session, updates: Any, clients: mesh.ClientAxes | None = None
) -> RoundContext:
    """What all parties know at the start of a round; ``clients`` where this is one of devices."""
    if clients is not None and clients.coordinates is not None:
        updates = jax.eval_shape(jax.vmap(functools.partial(mesh.whole, axes=clients)), updates)
    return RoundContext(
        session.round_id,
        session.public_seed,
        structure=client_structure(updates),
        key_exchange=session.key_exchange,
    )


def checked(
    mean,
    updates,
    session,
    codec,
    protocol,
    weights,
    max_weight,
    participation,
    axis_name=None,
    *,
    shift=0,
):
    """Checks everything that is static: what a compiled round takes, and the largest weight."""
    _check.instance("session-type", Session, session=session)
    _check.instance("codec-type", Codec, codec=codec)
    _check.instance("protocol-type", Protocol, protocol=protocol)
    _check.shape("session-rounds", (), **{"session.round_id": session.round_id})
    # A session of fewer is a part of a larger one.
    n = _check.integer_in("num-clients", 2, MAX_CLIENTS, num_clients=session.num_clients)
    protocol.check(n)
    needs_whole_cohort(protocol, session, n)
    clients = mesh.client_axes(updates, axis_name)
    rows = mesh.rows_given(clients, n)
    client_structure(updates, rows)
    max_weight = budget.largest_weight(n, codec, protocol, weights, max_weight, shift=shift)
    grid = 1
    if weights is not None:
        _check.shape("weights-shape", (rows,), weights=weights)
        weights, grid = budget.weights_on_grid(weights, max_weight)
    participation = as_participation(participation, n)
    codec = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), codec)
    static = Static(protocol, weights is not None, mean, clients)
    arguments = (codec, updates, weights, jnp.float32(grid), session, participation)
    return static, arguments, max_weight


def lifted_sum(static, codec, updates, weights, session, participation):
    """Steps 1 to 11, wherever the clients are: the sum lifted to float32[D], and its outcome."""
    core = functools.partial(core_sum, static)
    on_mesh = mesh.on_each_device(core, static.clients, (False, True, True, False, False), 1)
    return on_mesh(codec, updates, weights, session, participation)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def core_sum(static, codec, updates, weights, session, participation):
    """Steps 1 to 11 on one device, or on every one: float32[D], and the outcome."""
    total, outcome, _ = run_stages(
        static, codec, updates, weights, session, participation, keep=False
    )
    return static.protocol.group.centre_lift(total.words).astype(jnp.float32), outcome


def run_stages(static, codec, updates, weights, session, participation, *, keep, blind=None):
    """The protocol from end to end: the ``Total``, the outcome, and what a transcript keeps."""
    protocol, n = static.protocol, session.num_clients
    public = public_context(session, updates, static.clients)
    keys, cohort = before_uploads(protocol, session, participation, public)
    cohort = at_uploads(protocol, participation, cohort)
    upload = uploader(static, codec, session, cohort, blind)
    rows = (updates, weights)
    if keep:
        words = lax.map(lambda i: upload(i, *row_of(rows, i)), jnp.arange(n))
        cohort = cohort._replace(mail=cohort.mail | {"upload": Mail(Upload(words), cohort.active)})
        uploads = protocol.group.sum(words)
    else:
        length = public.structure.size + static.weighted + (TAG_WORDS if blind else 0)
        uploads = sum_uploads(static, upload, rows, n, length)
    total, outcome, after = after_uploads(protocol, session, participation, cohort, uploads)
    kept = {
        "stages": after.mail,
        "public": after.public,
        "secrets": session.secrets,
        "keys": keys,
        "private": cohort.private,
    }
    return total, outcome, kept


def transcript_of(kept: dict[str, Any], mean: Any, report: Any, updates: Any) -> Transcript:
    """The ``Transcript`` of what a compiled round has kept."""
    # A dictionary comes out of a compiled function in the order of its keys.
    stages = {name: kept["stages"][name] for name in STAGES if name in kept["stages"]}
    return Transcript(mean=mean, updates=updates, report=report, **kept | {"stages": stages})


def inverse(static, codec, total, ctx, grid, ok):
    """Steps 12 to 14: the lifted total, float32[D], as a sum or mean; its weight; whether it is ok.

    ``ctx`` is public, with the survivors; the weight is measured in the user's own units.
    """
    if static.weighted:
        total, total_weight = total[:-1], total[-1]
    else:
        total_weight = jnp.sum(ctx.survivors, dtype=jnp.int32).astype(jnp.float32)
    ok = ok & (total_weight > 0)
    total_weight = jnp.where(ok, total_weight, 0.0)
    ctx = ctx._replace(total_weight=total_weight / grid)
    value = codec.inverse(total, ctx)
    divisor = jnp.where(ok, total_weight, 1.0) if static.mean else grid
    value = jax.tree.map(lambda leaf: jnp.where(ok, leaf / divisor, 0.0), value)
    return ctx.structure.cast(value), ctx.total_weight, ok


# With y_i the grid units of client i, weights included, the core is
#     lift( sum over survivors of round(y_i) ),
# whose expectation under stochastic rounding is  ok * sum over survivors of y_i,  so that
#     d core = ok * sum over survivors of dy_i.
# Masks cancel exactly and contribute nothing. The sum is linear in dy, so JAX transposes it to a
# broadcast: the same cotangent for every survivor. Over a mesh each device adds its own clients'.
@core_sum.defjvp
def _core_jvp(static, primals, tangents):
    _, updates, _, session, _ = primals
    clients, n = static.clients, session.num_clients
    total, outcome = core_sum(static, *primals)
    public = public_context(session, updates, clients)
    first, count = mesh.first_row(clients, n), mesh.clients_of_device(clients, n)
    counted = (outcome.survivors & outcome.ok).astype(jnp.float32)
    counted, ids = (
        lax.dynamic_slice_in_dim(rows, first, count) for rows in (counted, session.client_ids)
    )

    def all_units(codec, updates, weights):
        def one(update, weight, client):
            update, ctx = mesh.whole(update, clients), public._replace(client=client)
            return mesh.own_part(client_units(codec, update, weight, ctx), clients)[0]

        return jax.vmap(one)(updates, weights, ids)

    _, units_dot = jax.jvp(all_units, primals[:3], tangents[:3])
    part = jnp.sum(counted[:, None] * units_dot, axis=0)
    total_dot = mesh.sum_over_devices(part, clients, total.size)
    no_tangent = jax.tree.map(lambda x: np.zeros(x.shape, jax.dtypes.float0), outcome)
    return (total, outcome), (total_dot, no_tangent)
