"""What a client of SecAgg holds, and how each of its keys is derived."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_agg.protocols import _channels
from fedjax_agg.protocols.protocol import Refusals
from fedjax_agg.session import RoundContext
from fedjax_agg.symmetric import key_schedule
from fedjax_agg.wire import PublicKeys

# The key exchanges, in the order of ``Board.entries``.
CHANNEL, MASK = 0, 1
# The update is the first segment of a round's flat vector.
_UPDATE_SEGMENT = 0

# The reasons for which a client refuses to go on.
RULES = (*_channels.RULES[:2], "graph", *_channels.RULES[2:])


class Keys(NamedTuple):
    """What one client holds at the start; only that client may.

    Attributes:
        channel_secret: uint32[8], of the key exchange that seals shares.
        recovery_secret: uint32[8], of the key exchange of masks; shared, and rebuilt if lost.
        self_seed: uint32[8], of the self mask; shared, and rebuilt unless lost.
        sharing_key: uint32[8], of the coefficients of the shares.
        public: the public keys of both key exchanges.
        refusals: which rules the client has found broken.

    Example:
        >>> import jax.numpy as jnp
        >>> key = jnp.zeros(8, jnp.uint32)
        >>> Keys(key, key, key, key, None, Refusals.none(1)).self_seed.shape
        (8,)
    """

    channel_secret: jax.Array
    recovery_secret: jax.Array
    self_seed: jax.Array
    sharing_key: jax.Array
    public: PublicKeys
    refusals: Refusals

    def __repr__(self) -> str:
        return "Keys(<redacted>)"


class Client(NamedTuple):
    """What one client holds once it knows its neighbours; only that client may.

    Attributes:
        mask_keys: uint32[k + 1, 8], of the masks that it has in common with its neighbours, and
            at the end of its self mask.
        signs: uint32[k + 1], 1 where the client adds the mask, 2^32 - 1 where it subtracts it, 0
            where the neighbour takes no part.
        channel_keys: uint32[k, 6, 8], of the channels: encryption, authentication and attestation
            to each neighbour, then from it.
        shares: uint32[k, 18], its neighbours' shares: of the self seed, then of the recovery
            secret. Zeros once it has answered.
        present: bool[k], the neighbours that take part, as far as it knows.
        session_id: uint32[8], the digest of the list of keys that it was shown, and of the
            configuration.
        attested: uint8[32], the digest of the set that it has attested; zeros before.
        answered: bool[], whether it has revealed shares.
        refusals: which rules the client has found broken.

    Example:
        >>> Client._fields[:3]
        ('mask_keys', 'signs', 'channel_keys')
    """

    mask_keys: jax.Array
    signs: jax.Array
    channel_keys: jax.Array
    shares: jax.Array
    present: jax.Array
    session_id: jax.Array
    attested: jax.Array
    answered: jax.Array
    refusals: Refusals

    def __repr__(self) -> str:
        return "Client(<redacted>)"


def self_key(seed: jax.Array, session_id: jax.Array, ctx: RoundContext) -> jax.Array:
    """The key of a self mask, uint32[8], from the seed that is shared."""
    return key_schedule.derive_key(
        seed,
        key_schedule.SELF_MASK,
        salt=session_id,
        round_id=ctx.round_id,
        first=ctx.client,
    )


def pair_keys(
    shared, own, peers, context_hashes, session_id: jax.Array, ctx: RoundContext
) -> jax.Array:
    """The mask keys of edges: from their shared secrets and from the model at one end."""

    def pair_key(secret, own, peer, context_hash):
        return key_schedule.derive_key(
            secret,
            key_schedule.PAIR_MASK,
            salt=session_id,
            round_id=ctx.round_id,
            first=jnp.minimum(own, peer),
            second=jnp.maximum(own, peer),
            context_hash=context_hash,
        )

    contexts_differ = context_hashes is not None and context_hashes.ndim == 2
    axes = (0, 0 if own.ndim else None, 0, 0 if contexts_differ else None)
    return jax.vmap(pair_key, axes)(shared, own, peers, context_hashes)


def mask_nonce() -> jax.Array:
    """The nonce of all masks of an update: every key masks one vector, once."""
    return jnp.asarray(key_schedule.segment_nonce(_UPDATE_SEGMENT))


def join(secret: jax.Array, ctx: RoundContext) -> Keys:
    """Four secrets of one client, independent of each other and of other rounds."""
    labels = (
        key_schedule.CHANNEL_SECRET,
        key_schedule.RECOVERY_SECRET,
        key_schedule.SELF_SEED,
        key_schedule.SHARING,
    )
    channel, recovery, self_seed, sharing = key_schedule.derive_keys(
        secret, labels, salt=ctx.public_seed, round_id=ctx.round_id, first=ctx.client
    )
    advertised = jax.vmap(ctx.key_exchange.public_key)(jnp.stack([channel, recovery]))
    public = PublicKeys(advertised[CHANNEL], advertised[MASK])
    return Keys(channel, recovery, self_seed, sharing, public, Refusals.none(len(RULES)))
