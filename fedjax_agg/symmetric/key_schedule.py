"""From secrets to keys: one HKDF for every key of the library, and ChaCha20's nonces.

Each key is HKDF-SHA256 (RFC 5869) of a secret. The salt names the session; the info names what
the key is for, the round, and the parties::

    info = "fedjax_agg/v1/" || label || 00 || BE64(round) || BE32(first) || BE32(second)
           [|| context_hash, 32 bytes]

A label ends at its zero byte and everything after it has a fixed length, so no two purposes
share an info. The labels below are all that the library uses.
"""

import functools
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fedjax_agg import _check
from fedjax_agg.symmetric.hmac_words import fill, hkdf_words, template
from fedjax_agg.symmetric.octets import swap_bytes, words_from_bytes
from fedjax_agg.symmetric.sha256 import DIGEST_BYTES

# What is derived here is part of the wire format: a change needs another version.
WIRE_VERSION = 1

# first and second are the smaller and the larger id of a pair, whose two ends need one key.
PAIR_MASK = "pair-mask"
# first and second are sender and receiver: each direction has keys of its own.
SEAL_ENC = "seal-enc"
SEAL_MAC = "seal-mac"
ATTEST = "attested"
# Of the root of one client's randomness in a round. Of one length, so that one program derives
# them side by side.
CHANNEL_SECRET = "exchange"
RECOVERY_SECRET = "recovery"
SELF_SEED = "own-seed"
SHARING = "sharings"
ROUNDING = "rounding"
BATCHES = "batches"
# Of a client's root under LightSecAgg: its mask, and the random blocks that code it.
CODED_MASK = "one-mask"
CODED_NOISE = "one-code"
# Of a secret of one client.
SELF_MASK = "self-mask"
# Of the leader's root: the key of an epoch. Of each client's: its secret to wrap that key with.
GROUP = "group-key"
GROUP_EXCHANGE = "group-exchange"
# Of a pair's secret: first and second are the leader and the member.
GROUP_ENC = "group-enc"
GROUP_MAC = "group-mac"
# Of the key of an epoch: the tag that confirms it, and the key of the next one. Of one length,
# so that one program derives them: the mask of a round, and the tag of its sum.
GROUP_TAG = "group-tag"
GROUP_RATCHET = "group-ratchet"
GROUP_MASK = "group-mask"
GROUP_HASH = "group-hash"
# Of the seed of a simulated session; first is the client's id, or 0 for what is common to all.
CLIENT = "client"
AGREEMENT = "agreement"
PUBLIC = "public"
# Of any seed: who is lost in a simulated round, and who takes part in it.
DROPOUTS = "dropouts"
COHORT = "cohort"


def derive_key(
    ikm: jax.Array,
    label: str,
    *,
    salt: jax.Array,
    round_id: jax.Array | int,
    first: jax.Array | int | None = None,
    second: jax.Array | int | None = None,
    context_hash: jax.Array | None = None,
) -> jax.Array:
    """The key of one purpose, round and pair of parties.

    A key costs eight compressions of SHA-256.

    Args:
        ikm: uint32[8], the secret, as little-endian words.
        label: the purpose: one of this module's constants, or lower-case letters, digits and
            hyphens.
        salt: uint32[8], public, names the session; as little-endian words.
        round_id: uint32[], or an integer from 0 to 2^32 - 1.
        first: uint32[] or an integer, the first party's id; None is 0.
        second: uint32[] or an integer, the second party's id; None is 0.
        context_hash: uint8[32] or None, the digest of what all parties must have received, such
            as the model: parties with different ones derive different keys.

    Returns:
        uint32[8], 256 bits as little-endian words: a ChaCha20 key.

    Raises:
        ValueError: an argument of another shape, type or range.

    Formal Guarantees:
        Where the secret is uniform and unknown to somebody, keys of different info are to them
        independent and uniform, as far as HMAC-SHA256 is a pseudorandom function (RFC 5869,
        section 3). A round number protects no earlier round: who learns the secret derives the
        keys of every round, so what unmasking may reveal must be fresh in each.

    Example:
        >>> import jax.numpy as jnp
        >>> secret, session = jnp.zeros(8, jnp.uint32), jnp.zeros(8, jnp.uint32)
        >>> key = derive_key(secret, PAIR_MASK, salt=session, round_id=7, first=1, second=2)
        >>> key.shape, hex(key[0])
        ((8,), '0xf6d3fefc')
    """
    return derive_keys(
        ikm,
        (label,),
        salt=salt,
        round_id=round_id,
        first=first,
        second=second,
        context_hash=context_hash,
    )[0]


def derive_keys(
    ikm: jax.Array,
    labels: Sequence[str],
    *,
    salt: jax.Array,
    round_id: jax.Array | int,
    first: jax.Array | int | None = None,
    second: jax.Array | int | None = None,
    context_hash: jax.Array | None = None,
) -> jax.Array:
    """``derive_key`` for several purposes, one after the other in one program.

    Args:
        ikm: uint32[8], the secret of all, or uint32[m, 8], one for each purpose.
        labels: m >= 1 purposes, labels of one length.
        salt: uint32[8].
        round_id: uint32[] or an integer.
        first: uint32[], an integer or None, for all; or uint32[m], one for each.
        second: uint32[], an integer or None, for all; or uint32[m].
        context_hash: uint8[32] or None.

    Returns:
        uint32[m, 8].

    Raises:
        ValueError: an argument of another shape, type or range, or labels of several lengths.

    Formal Guarantees:
        Those of ``derive_key``.

    Example:
        >>> import jax.numpy as jnp
        >>> secret, session = jnp.zeros(8, jnp.uint32), jnp.zeros(8, jnp.uint32)
        >>> keys = derive_keys(secret, (SEAL_ENC, SEAL_MAC), salt=session, round_id=7)
        >>> bool((keys[1] == derive_key(secret, SEAL_MAC, salt=session, round_id=7)).all())
        True
    """
    for label in labels:
        if not isinstance(label, str) or not re.fullmatch("[a-z0-9-]+", label):
            raise _check.error(
                "label", f"label={label!r}", "lower-case letters, digits and hyphens"
            )
    if len({len(label) for label in labels}) != 1:
        raise _check.error("label", f"labels={labels!r}", "labels of one length, at least one")
    each = (len(labels),) if getattr(ikm, "ndim", 1) == 2 else ()
    _check.words("key-shape", (*each, 8), ikm=ikm)
    _check.words("key-shape", (8,), salt=salt)
    if context_hash is not None:
        _check.array("context-hash", np.uint8, (DIGEST_BYTES,), context_hash=context_hash)
    numbers = (
        _number("round_id", round_id),
        _numbers("first", first, len(labels)),
        _numbers("second", second, len(labels)),
    )
    return _derive(tuple(labels), ikm, salt, numbers, context_hash)


@functools.partial(jax.jit, static_argnums=0)
def _derive(
    labels: tuple[str, ...],
    ikm: jax.Array,
    salt: jax.Array,
    numbers: tuple[jax.Array, ...],
    context_hash: jax.Array | None,
) -> jax.Array:
    count = len(labels)
    shapes = ((), (count,), (count,))
    round_id, first, second = (jnp.broadcast_to(x, shape) for x, shape in zip(numbers, shapes))
    context = [] if context_hash is None else list(words_from_bytes(context_hash, "big"))
    salt = swap_bytes(salt)
    keys = jnp.broadcast_to(swap_bytes(ikm), (count, 8))
    purposes = [f"fedjax_agg/v{WIRE_VERSION}/{label}\0".encode() for label in labels]
    # The numbers follow the label; the upper half of the round's is zero.
    room = bytes(8 + 4 + 4 + 4 * len(context))
    messages = np.stack([template(purpose + room + b"\1") for purpose in purposes])
    at = len(purposes[0]) + 4

    def derive(key, message, *parties):
        return hkdf_words(key, salt, fill(message, [round_id, *parties, *context], at))

    if count == 1:
        return swap_bytes(derive(keys[0], messages[0], first[0], second[0]))[None]
    # One after the other, so that many labels are no more to compile than one.
    rows = keys, jnp.asarray(messages), first, second
    return swap_bytes(lax.map(lambda row: derive(*row), rows))


def segment_nonce(segment: int) -> np.ndarray:
    """The ChaCha20 nonce of one segment of a keystream: BE32(segment), then eight zero bytes.

    Segments are streams of one key that never overlap.

    Args:
        segment: an integer from 0 to 2^32 - 1; static.

    Returns:
        uint32[3], 96 bits as little-endian words (RFC 8439, section 2.3).

    Raises:
        ValueError: the segment is no integer in range.

    Example:
        >>> [hex(word) for word in segment_nonce(1).tolist()]
        ['0x1000000', '0x0', '0x0']
    """
    number = _check.integer_in("identifier", 0, 2**32 - 1, segment=segment)
    return np.array([int.from_bytes(number.to_bytes(4, "big"), "little"), 0, 0], np.uint32)


def _number(name: str, value: Any) -> Any:
    """A uint32 scalar; integers are checked and converted, arrays must be one already."""
    if not hasattr(value, "dtype") or isinstance(value, np.integer):
        return np.uint32(_check.integer_in("identifier", 0, 2**32 - 1, **{name: value}))
    _check.array("identifier", np.uint32, (), **{name: value})
    return value


def _numbers(name: str, value: Any, count: int) -> Any:
    """One number for all purposes, or an array with one for each."""
    if getattr(value, "ndim", 0) == 1:
        _check.array("identifier", np.uint32, (count,), **{name: value})
        return value
    return _number(name, 0 if value is None else value)
