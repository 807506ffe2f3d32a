"""The words of a blind round: under the group mask and with a tag, and out again at a client."""

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_agg.arithmetic import Ring
from fedjax_agg.budget import blind_shift
from fedjax_agg.codecs import Codec
from fedjax_agg.session import RoundContext, context_hash
from fedjax_agg.symmetric import key_schedule
from fedjax_agg.symmetric.chacha20 import keystream
from fedjax_agg.symmetric.homomorphic_mac import TAG_WORDS, tag
from fedjax_agg.symmetric.octets import bytes_from_words, words_from_bytes
from fedjax_agg.symmetric.sha256 import sha256


def round_keys(group_key: jax.Array, ctx: RoundContext, codec: Codec) -> jax.Array:
    """What all clients have in common: the key of g, and that of tags: uint32[2, 8].

    They depend on the ranges of the codec, so that who has others opens nothing: the words alone
    would be as good a sum in another unit.
    """
    ranges = context_hash(codec)
    salt = sha256(jnp.concatenate([bytes_from_words(ctx.public_seed), ranges]))
    return key_schedule.derive_keys(
        group_key,
        (key_schedule.GROUP_MASK, key_schedule.GROUP_HASH),
        salt=words_from_bytes(salt),
        round_id=ctx.round_id,
        context_hash=ctx.context_hash,
    )


def group_mask(key: jax.Array, ring: Ring, length: int) -> jax.Array:
    """g: uint32[length]."""
    return ring.from_keystream(keystream(key, key_schedule.segment_nonce(0), length))


def blind(words, keys, ctx: RoundContext, *, ring: Ring, num_clients: int) -> jax.Array:
    """One client's words, uint32[D], as it hands them to the protocol: uint32[D + 64]."""
    mask_key, tag_key = keys
    # One for this client and zero for all others: these add up to the survivors.
    sender = (jnp.arange(1, num_clients + 1, dtype=jnp.uint32) == ctx.client).astype(jnp.uint32)
    tagged = jnp.concatenate([words, tag(tag_key, jnp.concatenate([words, sender]))])
    shifted = ring.scale(tagged, jnp.uint32(2 ** blind_shift(num_clients)))
    return ring.add(shifted, group_mask(mask_key, ring, tagged.shape[0]))


def open_words(words, group_key, ctx: RoundContext, codec: Codec, *, ring: Ring, limit: int):
    """The sum in the words of the server, int32[D], and whether it is that of the survivors."""
    mask_key, tag_key = round_keys(group_key, ctx, codec)
    mask = group_mask(mask_key, ring, words.size)
    total, possible = unmasked(words[:-TAG_WORDS], mask[:-TAG_WORDS], ctx.survivors, ring, limit)
    wanted = tag_words(tag_key, mask[-TAG_WORDS:], total, ctx.survivors, ring)
    return total, possible & jnp.all(words[-TAG_WORDS:] == wanted)


def unmasked(words, mask, survivors, ring, limit):
    """The sum without its mask, int32[...], and whether so many clients can have such a sum."""
    shift, number = np.int32(blind_shift(survivors.size)), jnp.sum(survivors, dtype=jnp.uint32)
    shifted = ring.centre_lift(ring.add(words, ring.negate(ring.scale(mask, number))))
    total = shifted >> shift
    # At most 2^31 / 2^v by the no-wrap proof of the round.
    largest = number.astype(jnp.int32) * np.int32(limit)
    return total, jnp.all((total << shift == shifted) & (jnp.abs(total) <= largest))


def tag_words(key, mask, total, survivors, ring):
    """What the server must have for the tag of this sum, under its mask: uint32[64]."""
    number = jnp.sum(survivors, dtype=jnp.uint32)
    words = tag(key, jnp.concatenate([ring.wrap(total), survivors.astype(jnp.uint32)]))
    shifted = ring.scale(words, jnp.uint32(2 ** blind_shift(survivors.size)))
    return ring.add(shifted, ring.scale(mask, number))
