"""Sealed messages between two clients: ChaCha20, then HMAC-SHA256.

Clients send each other secrets, such as shares, through a server that must neither read nor
change them. A pair agrees on one secret; every *direction* of the pair and every round then has
an encryption key and an authentication key of its own, derived over the ordered ids (sender,
receiver). With one key for both directions their two messages would share one pad.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_agg import _check
from fedjax_agg.symmetric.chacha20_block import short_keystream
from fedjax_agg.symmetric.hmac_words import fill, tag_words, template
from fedjax_agg.symmetric.key_schedule import SEAL_ENC, SEAL_MAC, WIRE_VERSION, derive_keys
from fedjax_agg.symmetric.octets import swap_bytes


class Sealed(NamedTuple):
    """A sealed message, as the server relays it: it may be public.

    Attributes:
        ciphertext: uint32[k].
        tag: uint32[8], HMAC-SHA256 over header and ciphertext, as little-endian words.

    Example:
        >>> import jax.numpy as jnp
        >>> Sealed(jnp.zeros(3, jnp.uint32), jnp.zeros(8, jnp.uint32)).ciphertext.shape
        (3,)
    """

    ciphertext: jax.Array
    tag: jax.Array


def seal(
    agreed: jax.Array,
    plaintext: jax.Array,
    *,
    salt: jax.Array,
    round_id: jax.Array | int,
    sender: jax.Array | int,
    receiver: jax.Array | int,
) -> Sealed:
    """Encrypts and authenticates the one message of a sender to a receiver in a round.

    The ciphertext is the plaintext XOR the ChaCha20 keystream of the ``seal-enc`` key, from block
    0 with a nonce of zeros. The tag is HMAC-SHA256 under the ``seal-mac`` key of
    ``BE32(version) || BE64(round) || BE32(sender) || BE32(receiver) || ciphertext``, the
    ciphertext as little-endian words.

    Args:
        agreed: uint32[8], the secret of the pair, the same at both ends.
        plaintext: uint32[k], k >= 1.
        salt: uint32[8], public, names the session.
        round_id: uint32[] or an integer.
        sender: uint32[] or an integer, the id of this client.
        receiver: uint32[] or an integer, the id of the peer.

    Returns:
        The sealed message.

    Raises:
        ValueError: an argument of another shape, type or range.

    Formal Guarantees:
        To a server that relays messages and colludes with any clients but these two, the
        plaintext is hidden and a changed, swapped, reflected or replayed message is refused, as
        far as ChaCha20 and HMAC-SHA256 are pseudorandom functions and ``agreed`` is uniform and
        unknown to them (encrypt-then-MAC, Bellare and Namprempre 2000). So is a truncated one;
        each forgery passes with probability about 2^-256.

        **Seal once** for each (agreed, salt, round, sender, receiver): a second message under the
        same five has the same pad, and the XOR of both plaintexts is public. Not hidden: length,
        round, sender and receiver. Not given: any protection of earlier messages once ``agreed``
        is revealed, nor against one of the two clients, who can forge the other's messages.

    Example:
        >>> import jax.numpy as jnp
        >>> agreed, salt = jnp.arange(8, dtype=jnp.uint32), jnp.zeros(8, jnp.uint32)
        >>> sealed = seal(agreed, jnp.array([5, 6], jnp.uint32),
        ...               salt=salt, round_id=7, sender=1, receiver=2)
        >>> plaintext, ok = open_sealed(
        ...     agreed, sealed, salt=salt, round_id=7, sender=1, receiver=2)
        >>> plaintext, bool(ok)
        (Array([5, 6], dtype=uint32), True)
    """
    keys = _keys(agreed, salt, round_id, sender, receiver)
    return seal_with(keys, plaintext, round_id=round_id, sender=sender, receiver=receiver)


def seal_with(
    keys: jax.Array,
    plaintext: jax.Array,
    *,
    round_id: jax.Array | int,
    sender: jax.Array | int,
    receiver: jax.Array | int,
) -> Sealed:
    """``seal`` with the keys of one direction and round, derived before.

    Args:
        keys: uint32[2, 8], the ``seal-enc`` and the ``seal-mac`` key.
        plaintext: uint32[k], k >= 1.
        round_id: uint32[] or an integer.
        sender: uint32[] or an integer.
        receiver: uint32[] or an integer.

    Returns:
        The sealed message.

    Raises:
        ValueError: an argument of another shape, type or range.

    Formal Guarantees:
        Those of ``seal``.

    Example:
        >>> import jax.numpy as jnp
        >>> keys = jnp.zeros((2, 8), jnp.uint32)
        >>> sealed = seal_with(keys, jnp.array([5], jnp.uint32), round_id=7, sender=1, receiver=2)
        >>> open_with(keys, sealed, round_id=7, sender=1, receiver=2)[0]
        Array([5], dtype=uint32)
    """
    _check.words("seal-keys", (2, 8), keys=keys)
    _require_message(plaintext=plaintext)
    ciphertext = _crypt(keys[0], plaintext)
    return Sealed(ciphertext, _tag(keys[1], ciphertext, round_id, sender, receiver))


def open_sealed(
    agreed: jax.Array,
    sealed: Sealed,
    *,
    salt: jax.Array,
    round_id: jax.Array | int,
    sender: jax.Array | int,
    receiver: jax.Array | int,
) -> tuple[jax.Array, jax.Array]:
    """Opens a sealed message, or refuses it.

    The receiver passes what it knows itself: the round it is in, who the message claims to be
    from, and its own id. All 256 bits of the tag are compared, without an early exit.

    Args:
        agreed: uint32[8], the secret of the pair.
        sealed: what arrived.
        salt: uint32[8], as in ``seal``.
        round_id: uint32[] or an integer.
        sender: uint32[] or an integer, the id of the peer.
        receiver: uint32[] or an integer, the id of this client.

    Returns:
        The plaintext, uint32[k], and whether the message was accepted, bool[]. The plaintext of
        a refused message is zeros.

    Raises:
        ValueError: an argument of another shape, type or range.

    Formal Guarantees:
        Those of ``seal``.

    Example:
        >>> import jax.numpy as jnp
        >>> agreed, salt = jnp.arange(8, dtype=jnp.uint32), jnp.zeros(8, jnp.uint32)
        >>> sealed = seal(agreed, jnp.array([5, 6], jnp.uint32),
        ...               salt=salt, round_id=7, sender=1, receiver=2)
        >>> replayed, ok = open_sealed(
        ...     agreed, sealed, salt=salt, round_id=8, sender=1, receiver=2)
        >>> replayed, bool(ok)
        (Array([0, 0], dtype=uint32), False)
    """
    keys = _keys(agreed, salt, round_id, sender, receiver)
    return open_with(keys, sealed, round_id=round_id, sender=sender, receiver=receiver)


def open_with(
    keys: jax.Array,
    sealed: Sealed,
    *,
    round_id: jax.Array | int,
    sender: jax.Array | int,
    receiver: jax.Array | int,
) -> tuple[jax.Array, jax.Array]:
    """``open_sealed`` with the keys of one direction and round, derived before.

    Args:
        keys: uint32[2, 8], the ``seal-enc`` and the ``seal-mac`` key.
        sealed: what arrived.
        round_id: uint32[] or an integer.
        sender: uint32[] or an integer.
        receiver: uint32[] or an integer.

    Returns:
        The plaintext, uint32[k], zeros where refused, and whether it was accepted, bool[].

    Raises:
        ValueError: an argument of another shape, type or range.

    Formal Guarantees:
        Those of ``seal``.

    Example:
        >>> import jax.numpy as jnp
        >>> keys = jnp.zeros((2, 8), jnp.uint32)
        >>> sealed = seal_with(keys, jnp.array([5], jnp.uint32), round_id=7, sender=1, receiver=2)
        >>> reflected = open_with(keys, sealed, round_id=7, sender=2, receiver=1)
        >>> bool(reflected[1])
        False
    """
    _check.words("seal-keys", (2, 8), keys=keys)
    ciphertext, tag = sealed
    _require_message(**{"sealed.ciphertext": ciphertext})
    _check.words("tag-shape", (8,), **{"sealed.tag": tag})
    expected = _tag(keys[1], ciphertext, round_id, sender, receiver)
    ok = jnp.all(tag == expected)
    return jnp.where(ok, _crypt(keys[0], ciphertext), jnp.uint32(0)), ok


def _keys(agreed, salt, round_id, sender, receiver) -> jax.Array:
    """The encryption and the authentication key of one direction and round: uint32[2, 8]."""
    _check.words("key-shape", (8,), agreed=agreed)
    return derive_keys(
        agreed,
        (SEAL_ENC, SEAL_MAC),
        salt=salt,
        round_id=round_id,
        first=sender,
        second=receiver,
    )


@jax.jit
def _crypt(key: jax.Array, words: jax.Array) -> jax.Array:
    # The nonce can be constant because the key is used for one message only.
    return words ^ short_keystream(key, np.zeros(3, np.uint32), words.shape[0])


def _tag(key: jax.Array, ciphertext: jax.Array, *numbers: jax.Array | int) -> jax.Array:
    return _authenticate(key, ciphertext, [jnp.asarray(x, jnp.uint32) for x in numbers])


@jax.jit
def _authenticate(key: jax.Array, ciphertext: jax.Array, numbers: list[jax.Array]) -> jax.Array:
    # Of fixed length, so that no header and ciphertext run together like another pair of them.
    header = WIRE_VERSION.to_bytes(4, "big") + bytes(16)
    message = template(header + bytes(4 * ciphertext.shape[0]))
    after = message.shape[0] - len(header) // 4 - ciphertext.shape[0]
    message = message | jnp.pad(swap_bytes(ciphertext), (len(header) // 4, after))
    # Round, sender and receiver; the upper half of the round's number is zero.
    return tag_words(key, fill(message, numbers, at=8))


def _require_message(**argument: jax.Array) -> None:
    _check.words("message-shape", (None,), **argument)
    ((name, value),) = argument.items()
    if not value.shape[0]:
        raise _check.error("message-shape", f"{name} of 0 words", "uint32[k] with k >= 1")
