"""The client of LightSecAgg, stage by stage. Every function is of one client."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_agg.arithmetic import m31
from fedjax_agg.protocols import _channels
from fedjax_agg.protocols._channels import ATTEST, FROM_PEER, RULES
from fedjax_agg.protocols.protocol import Refusals
from fedjax_agg.session import RoundContext
from fedjax_agg.sharing import lagrange
from fedjax_agg.symmetric import key_schedule
from fedjax_agg.symmetric.chacha20 import keystream
from fedjax_agg.wire import Attestations, CodedShares, CodedSum


class CodedKeys(NamedTuple):
    """The secrets of one client's round, fresh in every round; only that client may hold them.

    Attributes:
        channel_secret: uint32[8], of the key exchange of channels.
        mask_key: uint32[8], of its mask.
        noise_key: uint32[8], of the random blocks of its coding.
        public: uint32[8], the public key of the channels.
        refusals: which rules the client has found broken.

    Example:
        >>> CodedKeys._fields[:2]
        ('channel_secret', 'mask_key')
    """

    channel_secret: jax.Array
    mask_key: jax.Array
    noise_key: jax.Array
    public: jax.Array
    refusals: Refusals

    def __repr__(self) -> str:
        return "CodedKeys(<redacted>)"


class CodedClient(NamedTuple):
    """What one client holds once it knows its peers; only that client may.

    Attributes:
        mask_key: uint32[8].
        channel_keys: uint32[n, 6, 8], as of SecAgg; the client's own row is never used.
        coded: uint32[n, L], its coded vectors of all masks, its own among them. Zeros once it has
            answered.
        present: bool[n], whose coded vectors it has, as far as it knows.
        session_id: uint32[8], the digest of the list of keys that it was shown, and of the
            configuration.
        attested: uint8[32], the digest of the set that it has attested; zeros before.
        answered: bool[], whether it has given a sum of coded vectors.
        refusals: which rules the client has found broken.

    Example:
        >>> CodedClient._fields[:3]
        ('mask_key', 'channel_keys', 'coded')
    """

    mask_key: jax.Array
    channel_keys: jax.Array
    coded: jax.Array
    present: jax.Array
    session_id: jax.Array
    attested: jax.Array
    answered: jax.Array
    refusals: Refusals

    def __repr__(self) -> str:
        return "CodedClient(<redacted>)"


def join(secret: jax.Array, ctx: RoundContext) -> CodedKeys:
    """Three secrets of one client, independent of each other and of other rounds."""
    labels = (key_schedule.CHANNEL_SECRET, key_schedule.CODED_MASK, key_schedule.CODED_NOISE)
    channel, mask, noise = key_schedule.derive_keys(
        secret, labels, salt=ctx.public_seed, round_id=ctx.round_id, first=ctx.client
    )
    public = ctx.key_exchange.public_key(channel)
    return CodedKeys(channel, mask, noise, public, Refusals.none(len(RULES)))


def elements(key: jax.Array, length: int, start: jax.Array | int = 0) -> jax.Array:
    """Uniform field elements of a key that is used for nothing else: uint32[length].

    Two words of keystream to an element, from two segments, as ``m31.from_keystream`` wants them.
    """
    first, second = (
        keystream(key, key_schedule.segment_nonce(segment), length, start) for segment in (0, 1)
    )
    return m31.from_keystream(first, second)


def advertise(keys: CodedKeys, inbox: None, ctx: RoundContext) -> tuple[CodedKeys, jax.Array]:
    """One client's public key."""
    return keys, keys.public


def share(
    keys: CodedKeys, ctx: RoundContext, *, blocks: tuple[int, int, int], session_id: jax.Array
) -> tuple[CodedClient, CodedShares]:
    """One client checks the board, derives its keys, and codes its mask for every peer.

    ``blocks`` are the numbers of blocks of the mask and of noise, and their length.
    """
    board, own = ctx.board, index(ctx)
    n = board.present.shape[0]
    of_mask, of_noise, size = blocks
    peers = jnp.arange(1, n + 1, dtype=jnp.uint32)
    agreed = ctx.key_exchange.agree(keys.channel_secret, board.entries[own], peers - np.uint32(1))
    refusals = keys.refusals.add(
        RULES,
        own_keys=~board.present[own]
        | jnp.any(board.keys[own] != keys.public)
        | _channels.some_twice(board.keys, board.present)
        | jnp.any(board.session_id != session_id),
        invalid_key=jnp.any(
            (_channels.all_zero(board.keys) | _channels.all_zero(agreed)) & board.present
        ),
        few_keys=_count(board.present) < of_mask + of_noise,
    )
    channel_keys = _channels.channel_keys(agreed, peers, session_id, ctx)

    mask = elements(keys.mask_key, of_mask * size).reshape(of_mask, size)
    noise = elements(keys.noise_key, of_noise * size).reshape(of_noise, size)
    coded = lagrange.encode(mask, noise, n)

    to_peers = board.present & (peers != ctx.client)
    client = CodedClient(
        mask_key=keys.mask_key,
        channel_keys=channel_keys,
        coded=jnp.zeros_like(coded).at[own].set(coded[own]),
        present=board.present,
        session_id=session_id,
        attested=jnp.zeros(32, jnp.uint8),
        answered=jnp.bool_(False),
        refusals=refusals,
    )
    # Who is absent has no key, so a channel to it is open to everybody: nothing is in it.
    sent = to_peers & ~jnp.any(refusals.broken)
    words = jnp.where(sent[:, None], coded, np.uint32(0))
    return client, CodedShares(_channels.seal_to_peers(channel_keys, words, peers, ctx), sent)


def receive(
    client: CodedClient, inbox: CodedShares, ctx: RoundContext, *, least: int
) -> CodedClient:
    """One client opens its peers' coded vectors; who did not send one takes no further part."""
    n, own = client.present.shape[0], index(ctx)
    peers = jnp.arange(1, n + 1, dtype=jnp.uint32)

    opened, authentic = _channels.open_from_peers(client.channel_keys, inbox.sealed, peers, ctx)
    others = peers != ctx.client
    arrived = client.present & inbox.sent & others
    present = arrived | (client.present & ~others)
    refusals = client.refusals.add(
        RULES,
        late_share=jnp.any(inbox.sent & others & ~client.present),
        sealed_share=jnp.any(arrived & ~authentic),
        few_shares=_count(present) < least,
    )
    coded = jnp.where(arrived[:, None], opened, np.uint32(0)).at[own].set(client.coded[own])
    return client._replace(coded=coded, present=present, refusals=refusals)


def _checked_survivors(client: CodedClient, ctx: RoundContext, least: int) -> CodedClient:
    """Refuses a set of survivors that the server cannot honestly name."""
    refusals = client.refusals.add(
        RULES,
        declared_lost=~ctx.survivors[index(ctx)],
        unknown_survivor=jnp.any(ctx.survivors & ~client.present),
        few_survivors=_count(ctx.survivors) < least,
    )
    return client._replace(refusals=refusals)


def attest(
    client: CodedClient, ctx: RoundContext, *, least: int
) -> tuple[CodedClient, Attestations]:
    """One client's word to each survivor on the set that the server named."""
    client = _checked_survivors(client, ctx, least)
    digest = _channels.survivors_digest(client.session_id, ctx)
    again = jnp.any(client.attested != np.uint8(0))
    refusals = client.refusals.add(RULES, attested_already=again)
    silent = jnp.any(refusals.broken)
    tags = _channels.tags(client.channel_keys[:, ATTEST], digest)
    attested = jnp.where(silent, client.attested, digest)
    client = client._replace(attested=attested, refusals=refusals)
    return client, Attestations(jnp.where(silent, np.uint32(0), tags), ctx.survivors & ~silent)


def unmask(
    client: CodedClient,
    inbox: Attestations | None,
    ctx: RoundContext,
    *,
    least: int,
    consistency: bool,
) -> tuple[CodedClient, CodedSum]:
    """One client gives the sum of the survivors' coded vectors, and spends its state."""
    client = _checked_survivors(client, ctx, least)
    found = {"answered_already": client.answered}
    if consistency:
        digest = _channels.survivors_digest(client.session_id, ctx)
        expected = _channels.tags(client.channel_keys[:, FROM_PEER + ATTEST], digest)
        found["other_set"] = jnp.any(client.attested != digest)
        nothing = Attestations(jnp.zeros_like(expected), jnp.zeros_like(client.present))
        tags, sent = nothing if inbox is None else inbox
        agrees = sent & ctx.survivors & jnp.all(tags == expected, axis=1)
        others = jnp.arange(agrees.shape[0], dtype=jnp.int32) != index(ctx)
        # Its own word counts.
        found["few_attestations"] = _count(agrees & others) + np.int32(1) < least
    refusals = client.refusals.add(RULES, **found)
    silent = jnp.any(refusals.broken)
    total = m31.sum(jnp.where(ctx.survivors[:, None], client.coded, np.uint32(0)))
    client = client._replace(
        coded=jnp.where(silent, client.coded, np.uint32(0)),
        answered=client.answered | ~silent,
        refusals=refusals,
    )
    return client, CodedSum(jnp.where(silent, np.uint32(0), total), ~silent)


def index(ctx: RoundContext) -> jax.Array:
    """The row of this client in arrays over all."""
    return (ctx.client - np.uint32(1)).astype(jnp.int32)


def _count(flags: jax.Array) -> jax.Array:
    return jnp.sum(flags, dtype=jnp.int32)
