"""Channels between clients, through a server that must neither read nor change what passes.

A pair of clients agrees on one secret; every direction of a channel has three keys of its own: two
to seal with, and one to attest with to the other what the server has said.
"""

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_agg.session import RoundContext
from fedjax_agg.symmetric import key_schedule
from fedjax_agg.symmetric.hmac_words import DIGEST_PADDING, tag_words
from fedjax_agg.symmetric.octets import bytes_from_words, words_from_bytes
from fedjax_agg.symmetric.seal import Sealed, open_with, seal_with
from fedjax_agg.symmetric.sha256 import sha256

# The keys of a channel: two to seal with and one to attest with, to the peer and then from it.
ATTEST, FROM_PEER = 2, 3

# The reasons for which a client of either family refuses to go on; the first two are about keys.
RULES = (
    "own-keys",
    "invalid-key",
    "few-keys",
    "late-share",
    "sealed-share",
    "few-shares",
    "declared-lost",
    "unknown-survivor",
    "few-survivors",
    "attested-already",
    "other-set",
    "few-attestations",
    "answered-already",
)


def channel_keys(
    channel: jax.Array, peers: jax.Array, session_id: jax.Array, ctx: RoundContext
) -> jax.Array:
    """The six keys of each channel, uint32[k, 6, 8], from its secret."""
    purposes = (key_schedule.SEAL_ENC, key_schedule.SEAL_MAC, key_schedule.ATTEST)

    def keys(agreed, peer):
        own, peer = (jnp.broadcast_to(x, len(purposes)) for x in (ctx.client, peer))
        return key_schedule.derive_keys(
            agreed,
            2 * purposes,
            salt=session_id,
            round_id=ctx.round_id,
            first=jnp.concatenate([own, peer]),
            second=jnp.concatenate([peer, own]),
        )

    return jax.vmap(keys)(channel, peers)


def seal_to_peers(
    channel_keys: jax.Array, words: jax.Array, peers: jax.Array, ctx: RoundContext
) -> Sealed:
    """One message to each peer: ``Sealed`` of uint32[k, m], from words uint32[k, m]."""

    def to_peer(keys, message, peer):
        return seal_with(
            keys[:ATTEST], message, round_id=ctx.round_id, sender=ctx.client, receiver=peer
        )

    return jax.vmap(to_peer)(channel_keys, words, peers)


def open_from_peers(
    channel_keys: jax.Array, sealed: Sealed, peers: jax.Array, ctx: RoundContext
) -> tuple[jax.Array, jax.Array]:
    """What each peer has sealed for this client: uint32[k, m], and what is authentic, bool[k]."""

    def from_peer(keys, message, peer):
        keys = keys[FROM_PEER : FROM_PEER + ATTEST]
        return open_with(keys, message, round_id=ctx.round_id, sender=peer, receiver=ctx.client)

    return jax.vmap(from_peer)(channel_keys, sealed, peers)


def survivors_digest(session_id: jax.Array, ctx: RoundContext) -> jax.Array:
    """Of the set of survivors that the server has named in this session: uint8[32]."""
    return sha256(jnp.concatenate([bytes_from_words(session_id), jnp.packbits(ctx.survivors)]))


def tags(keys: jax.Array, digest: jax.Array) -> jax.Array:
    """The word on a set under each of k keys: uint32[k, 8]."""

    message = jnp.concatenate([words_from_bytes(digest, "big"), DIGEST_PADDING])
    return jax.vmap(tag_words, (0, None))(keys, message)


def all_zero(keys: jax.Array) -> jax.Array:
    """Which of some public keys, uint32[n, 8], are no keys: bool[n]."""
    return jnp.all(keys == 0, axis=1)


def some_twice(keys: jax.Array, present: jax.Array) -> jax.Array:
    """Whether two of the present have one key, of uint32[n, 8]: bool[]."""
    # Equal rows are neighbours once they are sorted; all pairs would be n^2.
    columns = lax.sort((~present, *keys.T), num_keys=1 + keys.shape[1])
    here, rows = ~columns[0], jnp.stack(columns[1:])
    return jnp.any(here[1:] & here[:-1] & jnp.all(rows[:, 1:] == rows[:, :-1], axis=0))
