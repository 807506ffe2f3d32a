"""The client of SecAgg, stage by stage. Every function is of one client."""

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_agg.protocols import _channels
from fedjax_agg.protocols._channels import ATTEST, FROM_PEER
from fedjax_agg.protocols.secagg import _keys as secagg_keys
from fedjax_agg.protocols.secagg._keys import RULES, Client, Keys
from fedjax_agg.session import RoundContext
from fedjax_agg.sharing import shamir
from fedjax_agg.wire import Attestations, Board, PublicKeys, RevealedShares, SealedShares

_MINUS_ONE = np.uint32(2**32 - 1)


def advertise(keys: Keys, inbox: None, ctx: RoundContext) -> tuple[Keys, PublicKeys]:
    """One client's public keys."""
    return keys, keys.public


def share(
    keys: Keys, ctx: RoundContext, *, threshold: int, graph: jax.Array, session_id: jax.Array
) -> tuple[Client, SealedShares]:
    """One client checks the board, derives its keys and deals its shares."""
    board = ctx.board
    k = board.neighbours.shape[1]
    own = _index(ctx)
    neighbours, entries = board.neighbours[own], board.entries[own]
    present = board.present[neighbours]
    invalid = _channels.all_zero(board.keys.channel) | _channels.all_zero(board.keys.mask)
    secrets = jnp.stack([keys.channel_secret, keys.recovery_secret])
    agree = jax.vmap(ctx.key_exchange.agree, (0, 1, None))
    channel, shared = agree(secrets, entries, slots(board))
    invalid = invalid[neighbours] | _channels.all_zero(channel) | _channels.all_zero(shared)
    refusals = keys.refusals.add(
        RULES,
        own_keys=_posted_wrongly(keys.public, board, own),
        invalid_key=jnp.any(invalid & present),
        graph=jnp.any(neighbours != graph[own]) | jnp.any(board.session_id != session_id),
        few_keys=_count(present) < threshold,
    )
    peers = ids(neighbours)
    channel_keys = _channels.channel_keys(channel, peers, session_id, ctx)
    pair_keys = secagg_keys.pair_keys(shared, ctx.client, peers, ctx.context_hash, session_id, ctx)
    self_key = secagg_keys.self_key(keys.self_seed, session_id, ctx)
    signs = jnp.where(peers < ctx.client, np.uint32(1), _MINUS_ONE)

    chunks = jnp.concatenate(
        [shamir.to_chunks(keys.self_seed), shamir.to_chunks(keys.recovery_secret)]
    )
    coefficients = shamir.draw_coefficients(keys.sharing_key, threshold, chunks.shape[0])
    shares = shamir.share(chunks, coefficients, k)

    client = Client(
        # Side by side from the start: put together in the loop over clients, they would be a
        # branch in the loop over keys, at a third of the speed.
        mask_keys=jnp.concatenate([pair_keys, self_key[None]]),
        signs=jnp.concatenate([signs, jnp.ones(1, jnp.uint32)]),
        channel_keys=channel_keys,
        shares=jnp.zeros((k, 2 * shamir.CHUNKS), jnp.uint32),
        present=present,
        session_id=session_id,
        attested=jnp.zeros(32, jnp.uint8),
        answered=jnp.bool_(False),
        refusals=refusals,
    )
    # Who is absent has no key, so a channel to it is open to everybody: nothing is in it.
    sent = present & ~jnp.any(refusals.broken)
    words = jnp.where(sent[:, None], shares, np.uint32(0))
    return client, SealedShares(_channels.seal_to_peers(channel_keys, words, peers, ctx), sent)


def receive(client: Client, inbox: SealedShares, ctx: RoundContext, *, threshold: int) -> Client:
    """One client opens its neighbours' shares; who did not send one takes no further part."""
    peers = ids(ctx.board.neighbours[_index(ctx)])

    shares, authentic = _channels.open_from_peers(client.channel_keys, inbox.sealed, peers, ctx)
    present = client.present & inbox.sent
    refusals = client.refusals.add(
        RULES,
        late_share=jnp.any(inbox.sent & ~client.present),
        sealed_share=jnp.any(present & ~authentic),
        few_shares=_count(present) < threshold,
    )
    return client._replace(
        shares=jnp.where(present[:, None], shares, np.uint32(0)),
        signs=client.signs.at[:-1].multiply(present.astype(jnp.uint32)),
        present=present,
        refusals=refusals,
    )


def _checked_survivors(
    client: Client, ctx: RoundContext, threshold: int, least: int
) -> tuple[Client, jax.Array]:
    """Refuses a set of survivors that the server cannot honestly name; bool[k] of the peers."""
    own = _index(ctx)
    survived = ctx.survivors[ctx.board.neighbours[own]]
    refusals = client.refusals.add(
        RULES,
        declared_lost=~ctx.survivors[own],
        unknown_survivor=jnp.any(survived & ~client.present)
        | jnp.any(ctx.survivors & ~ctx.board.present),
        few_survivors=(_count(survived) < threshold) | (_count(ctx.survivors) < least),
    )
    return client._replace(refusals=refusals), survived


def attest(
    client: Client, ctx: RoundContext, *, threshold: int, least: int
) -> tuple[Client, Attestations]:
    """One client's word to each neighbour on the set that the server named."""
    client, survived = _checked_survivors(client, ctx, threshold, least)
    digest = _channels.survivors_digest(client.session_id, ctx)
    again = jnp.any(client.attested != np.uint8(0))
    refusals = client.refusals.add(RULES, attested_already=again)
    silent = jnp.any(refusals.broken)
    tags = _channels.tags(client.channel_keys[:, ATTEST], digest)
    attested = jnp.where(silent, client.attested, digest)
    client = client._replace(attested=attested, refusals=refusals)
    return client, Attestations(jnp.where(silent, np.uint32(0), tags), survived & ~silent)


def unmask(
    client: Client,
    inbox: Attestations | None,
    ctx: RoundContext,
    *,
    threshold: int,
    least: int,
    consistency: bool,
) -> tuple[Client, RevealedShares]:
    """One client reveals one share of each neighbour, and spends its state."""
    client, survived = _checked_survivors(client, ctx, threshold, least)
    found = {"answered_already": client.answered}
    if consistency:
        digest = _channels.survivors_digest(client.session_id, ctx)
        expected = _channels.tags(client.channel_keys[:, FROM_PEER + ATTEST], digest)
        found["other_set"] = jnp.any(client.attested != digest)
        nothing = Attestations(jnp.zeros_like(expected), jnp.zeros_like(survived))
        tags, sent = nothing if inbox is None else inbox
        agrees = sent & survived & jnp.all(tags == expected, axis=1)
        found["few_attestations"] = _count(agrees) < threshold
    refusals = client.refusals.add(RULES, **found)
    silent = jnp.any(refusals.broken)
    of_self_seed, of_recovery_secret = jnp.split(client.shares, 2, axis=1)
    revealed = jnp.where(survived[:, None], of_self_seed, of_recovery_secret)
    sent = client.present & ~silent
    client = client._replace(
        shares=jnp.where(silent, client.shares, np.uint32(0)),
        answered=client.answered | ~silent,
        refusals=refusals,
    )
    return client, RevealedShares(jnp.where(sent[:, None], revealed, np.uint32(0)), sent)


def _posted_wrongly(own_keys: PublicKeys, board: Board, own: jax.Array) -> jax.Array:
    """Whether the board lacks this client's keys, or has anybody's key twice: bool[]."""
    posted, mine = jnp.stack(board.keys), jnp.stack(own_keys)
    twice = jax.vmap(_channels.some_twice, (0, None))(posted, board.present)
    return ~board.present[own] | jnp.any(posted[:, own] != mine) | jnp.any(twice)


def _index(ctx: RoundContext) -> jax.Array:
    """The row of this client in arrays over all."""
    return (ctx.client - np.uint32(1)).astype(jnp.int32)


def ids(neighbours: jax.Array) -> jax.Array:
    """The ids of clients from their rows."""
    return neighbours.astype(jnp.uint32) + np.uint32(1)


def slots(board: Board) -> jax.Array:
    """The numbers of the slots of a client: uint32[k]."""
    return jnp.arange(board.neighbours.shape[1], dtype=jnp.uint32)


def _count(flags: jax.Array) -> jax.Array:
    return jnp.sum(flags, dtype=jnp.int32)
