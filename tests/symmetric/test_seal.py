"""Sealing: every change is refused, and the two directions of a pair share no pad."""

import functools
import hashlib
import hmac
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedjax_agg.symmetric.seal import Sealed, open_sealed, seal

RNG = np.random.default_rng(0)
AGREED = jnp.asarray(RNG.integers(0, 2**32, 8, dtype=np.uint32))
SALT = jnp.asarray(RNG.integers(0, 2**32, 8, dtype=np.uint32))
PLAINTEXT = jnp.asarray(RNG.integers(0, 2**32, 2, dtype=np.uint32))
ROUND, SENDER, RECEIVER = (np.uint32(number) for number in (7, 1, 2))


def seal_in(plaintext, round_id, sender, receiver):
    return seal(AGREED, plaintext, salt=SALT, round_id=round_id, sender=sender, receiver=receiver)


def open_in(sealed, round_id, sender, receiver):
    return open_sealed(
        AGREED, sealed, salt=SALT, round_id=round_id, sender=sender, receiver=receiver
    )


seal_many = jax.jit(jax.vmap(seal_in))
open_many = jax.jit(jax.vmap(open_in))


@functools.cache
def sealed_message():
    return Sealed(*map(np.asarray, seal_in(PLAINTEXT, ROUND, SENDER, RECEIVER)))


def reference_key(label, round_id, sender, receiver):
    info = b"fedjax_agg/v1/" + label + b"\0" + struct.pack(">QII", round_id, sender, receiver)
    agreed, salt = (np.asarray(words).astype("<u4").tobytes() for words in (AGREED, SALT))
    return HKDF(hashes.SHA256(), 32, salt, info).derive(agreed)


def reference_seal(plaintext, header):
    """The sealed message of OpenSSL and hashlib, under the right keys and any header."""
    keys = [reference_key(label, ROUND, SENDER, RECEIVER) for label in (b"seal-enc", b"seal-mac")]
    pad = Cipher(algorithms.ChaCha20(keys[0], bytes(16)), None).encryptor()
    ciphertext = pad.update(np.asarray(plaintext).astype("<u4").tobytes())
    tag = hmac.digest(keys[1], header + ciphertext, "sha256")
    return Sealed(*(np.frombuffer(data, "<u4").astype(np.uint32) for data in (ciphertext, tag)))


def single_bit_flips(words):
    """Every copy of an array of words in which one bit differs."""
    bits = np.arange(words.size * 32)
    masks = np.zeros((bits.size, words.size), np.uint32)
    masks[bits, bits // 32] = np.uint32(1) << (bits % 32).astype(np.uint32)
    return words ^ masks


HEADER = struct.pack(">IQII", 1, ROUND, SENDER, RECEIVER)


def test_the_wire_format_is_the_documented_one():
    expected = reference_seal(PLAINTEXT, HEADER)
    np.testing.assert_array_equal(sealed_message().ciphertext, expected.ciphertext)
    np.testing.assert_array_equal(sealed_message().tag, expected.tag)


def test_a_message_of_several_blocks():
    plaintext = jnp.arange(33, dtype=jnp.uint32)
    sealed = seal_in(plaintext, ROUND, SENDER, RECEIVER)
    opened, ok = open_in(sealed, ROUND, SENDER, RECEIVER)
    assert ok
    np.testing.assert_array_equal(opened, plaintext)
    np.testing.assert_array_equal(sealed.tag, reference_seal(plaintext, HEADER).tag)


def test_python_integers_are_accepted():
    sealed = seal_in(PLAINTEXT, 2**32 - 1, 1, 2)
    opened, ok = open_in(sealed, 2**32 - 1, 1, 2)
    assert ok
    np.testing.assert_array_equal(opened, PLAINTEXT)


def changed_messages():
    """Rows of ciphertext, tag, round, sender and receiver, the last as the receiver sees them."""
    sealed = sealed_message()
    row = np.concatenate([sealed.ciphertext, sealed.tag, [ROUND, SENDER, RECEIVER]])
    # Version and upper half of the round are in the header only. A forger with the right keys:
    header_bits = np.unpackbits(np.frombuffer(HEADER, np.uint8))
    headers = np.packbits(header_bits ^ np.eye(header_bits.size, dtype=np.uint8), axis=1)
    forged = [reference_seal(PLAINTEXT, header.tobytes()) for header in headers]
    return {
        "unchanged": row[None],
        "one bit": single_bit_flips(row),
        "one bit of the header": np.stack([np.concatenate([*f, row[10:]]) for f in forged]),
        "replayed": row[None] + np.eye(13, dtype=np.uint32)[10],
        "reflected": row[None, [*range(11), 12, 11]],
        "redirected": row[None] + np.eye(13, dtype=np.uint32)[12],
    }


def test_every_change_is_refused():
    messages = changed_messages()
    assert len(messages["one bit"]) == 32 * (2 + 8 + 3)
    assert len(messages["one bit of the header"]) == 8 * 20
    rows = np.concatenate(list(messages.values()))
    opened, ok = open_many(Sealed(rows[:, :2], rows[:, 2:10]), *rows[:, 10:].T)
    assert ok[0]
    np.testing.assert_array_equal(opened[0], PLAINTEXT)
    assert not np.any(ok[1:])
    assert not np.any(opened[1:])


def test_a_shorter_or_longer_message_is_refused():
    long = seal_in(jnp.arange(33, dtype=jnp.uint32), ROUND, SENDER, RECEIVER)
    short = sealed_message()
    for changed in (
        long._replace(ciphertext=long.ciphertext[:2]),
        short._replace(ciphertext=np.pad(short.ciphertext, (0, 31))),
    ):
        opened, ok = open_in(changed, ROUND, SENDER, RECEIVER)
        assert not ok
        assert not np.any(opened)


def seal_with_one_key(plaintext, sender, receiver):
    """A seal whose key does not know the direction, with a constant nonce."""
    low, high = min(sender, receiver), max(sender, receiver)
    return seal_in(plaintext, ROUND, low, high).ciphertext


def seal_directed(plaintext, sender, receiver):
    return seal_in(plaintext, ROUND, sender, receiver).ciphertext


@pytest.mark.parametrize(("encrypt", "broken"), [(seal_with_one_key, True), (seal_directed, False)])
def test_the_two_directions_of_a_pair_share_no_pad(encrypt, broken):
    """Who learns one plaintext of a shared pad reads the other from the two ciphertexts."""
    forth = jnp.asarray(RNG.integers(0, 2**32, 33, dtype=np.uint32))
    back = jnp.asarray(RNG.integers(0, 2**32, 33, dtype=np.uint32))
    sent = np.asarray(encrypt(forth, SENDER, RECEIVER))
    returned = np.asarray(encrypt(back, RECEIVER, SENDER))
    read_by_the_server = sent ^ returned ^ np.asarray(forth)
    assert np.all(read_by_the_server == back) == broken
    assert np.any(read_by_the_server == back) == broken


def test_no_pad_occurs_twice_in_a_log():
    """All directions among five clients over four rounds, and each as if it were alone."""
    rounds, senders, receivers = np.array(
        [(r, s, t) for r in range(4) for s in range(1, 6) for t in range(1, 6) if s != t],
        np.uint32,
    ).T
    plaintexts = jnp.zeros((rounds.size, 2), jnp.uint32)
    sealed = seal_many(plaintexts, rounds, senders, receivers)
    for words in sealed:
        assert len({np.asarray(row).tobytes() for row in words}) == 4 * 5 * 4
    for i in (0, 42, 79):
        one = seal_in(plaintexts[i], rounds[i], senders[i], receivers[i])
        np.testing.assert_array_equal(sealed.ciphertext[i], one.ciphertext)
        np.testing.assert_array_equal(sealed.tag[i], one.tag)


def test_another_secret_or_session_opens_nothing():
    for agreed, salt in ((AGREED ^ np.uint32(1), SALT), (AGREED, SALT ^ np.uint32(1))):
        opened, ok = open_sealed(
            agreed, sealed_message(), salt=salt, round_id=ROUND, sender=SENDER, receiver=RECEIVER
        )
        assert not ok
        assert not np.any(opened)


def test_the_tag_is_of_the_ciphertext():
    """Encrypt-then-MAC: the tag can be checked before anything is decrypted."""
    key = reference_key(b"seal-mac", ROUND, SENDER, RECEIVER)
    signed = HEADER + np.asarray(sealed_message().ciphertext).astype("<u4").tobytes()
    assert (
        sealed_message().tag.astype("<u4").tobytes()
        == hmac.new(key, signed, hashlib.sha256).digest()
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: seal_in(PLAINTEXT[:0], 7, 1, 2), r"plaintext of 0 words must be .*k >= 1"),
        (lambda: seal_in(jnp.zeros(3, jnp.float32), 7, 1, 2), r"plaintext of type float32\[3\]"),
        (lambda: seal_in(PLAINTEXT[None], 7, 1, 2), r"plaintext of type uint32\[1, 2\].*vmap"),
        (lambda: seal_in(b"secret", 7, 1, 2), "plaintext of type bytes"),
        (lambda: seal_in(PLAINTEXT, -1, 1, 2), "round_id=-1"),
        (lambda: seal_in(PLAINTEXT, 7, jnp.int32(1), 2), "first of type int32"),
        (lambda: open_in((PLAINTEXT, PLAINTEXT), 7, 1, 2), "sealed.tag of type"),
        (lambda: open_in((None, AGREED), 7, 1, 2), "sealed.ciphertext of type NoneType"),
        (
            lambda: seal(AGREED[:4], PLAINTEXT, salt=SALT, round_id=7, sender=1, receiver=2),
            "agreed of type",
        ),
    ],
)
def test_static_mistakes(call, message):
    with pytest.raises(ValueError, match=message):
        call()
