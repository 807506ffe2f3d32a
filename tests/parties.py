"""A round of any words of the group, played party by party, with every message kept.

What ``secure_mean`` does between rounding and lifting, written once more from the docstrings of
``Protocol`` and ``Exchange``, so that tests can choose the words.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import fedjax_agg as fa
from fedjax_agg.participation import STAGES
from fedjax_agg.wire import Mail


class Played(NamedTuple):
    keys: Any  # the clients' states when they joined
    private: Any  # before the upload
    public: fa.RoundContext  # at the end
    mail: dict[str, Mail]
    total: Any


# Compiler options for the outermost jit: half the time to compile, and the same integers.
QUICKLY = {"xla_backend_optimization_level": 0}


def play(protocol, words, session, alive):
    """The round of ``words``, uint32[n, D], where ``alive``, bool[5, n], says who is there."""
    n = session.num_clients
    everybody = jnp.ones(n, bool)
    mail, alive = {}, jnp.cumprod(alive.astype(jnp.int32), axis=0) == 1

    def each(function, public, *rows):
        def one(client, context, *row):
            return function(*row, public._replace(client=client, context_hash=context))

        return jax.vmap(one)(session.client_ids, session.context, *rows)

    def still_there(stage, private, before):
        silent = jax.vmap(lambda p: jnp.any(protocol.refusals(p)), axis_size=n)(private)
        return before & alive[STAGES.index(stage)] & ~silent

    def exchanges(stages, private, there, public):
        inboxes = None
        for stage in stages:
            private, outboxes = each(stage.client, public, private, inboxes)
            there = still_there(stage.name, private, there)
            outboxes = jax.tree.map(lambda x: _where(there, x), outboxes)  # noqa: B023
            if stage.publish is not None:
                board = stage.publish(outboxes, there, public)
                board = protocol.deal(board, session.agreement, private, public)
                public = public._replace(board=board)
            inboxes = stage.server(outboxes, there, public)
            mail[stage.name] = Mail(outboxes, there, inboxes)
        return private, inboxes, there, public

    public = fa.RoundContext(session.round_id, session.public_seed)
    keys = each(protocol.join, public, session.secrets)
    private, inboxes, there, public = exchanges(protocol.prepare(n), keys, everybody, public)
    private = each(protocol.receive, public, private, inboxes)
    there = still_there("upload", private, there)
    uploads = each(protocol.protect, public, words, private)
    uploads = jax.tree.map(lambda x: _where(there, x), uploads)
    mail["upload"] = Mail(uploads, there)
    public = public._replace(survivors=there)
    _, _, _, public = exchanges(protocol.respond(n), private, there, public)
    public = public._replace(context_hash=session.context)
    total = protocol.recover(protocol.group.sum(uploads.words), mail, public)
    return Played(keys, private, public, mail, total)


def _where(flags, x):
    return jnp.where(flags.reshape(flags.shape + (1,) * (x.ndim - 1)), x, jnp.zeros_like(x))


def everybody(num_clients):
    """Nobody is lost."""
    return jnp.ones((len(STAGES), num_clients), bool)
