"""SHA-256, HMAC and HKDF: published vectors, OpenSSL, and how much there is to compile."""

import functools
import hashlib
import hmac
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedjax_agg.symmetric import sha256_block
from fedjax_agg.symmetric.hmac_words import (
    DIGEST_PADDING,
    fill,
    hkdf_words,
    hmac_words,
    template,
)
from fedjax_agg.symmetric.key_schedule import (
    PAIR_MASK,
    SEAL_ENC,
    SEAL_MAC,
    derive_key,
    derive_keys,
)
from fedjax_agg.symmetric.octets import bytes_from_words, words_from_bytes
from fedjax_agg.symmetric.sha256 import (
    hkdf,
    hkdf_expand,
    hkdf_extract,
    hmac_sha256,
    sha256,
)
from tests import taint

VECTORS = json.loads((pathlib.Path(__file__).parents[1] / "vectors" / "sha256.json").read_text())


def array(data):
    """uint8 of bytes, or of their hexadecimal form."""
    data = bytes.fromhex(data) if isinstance(data, str) else data
    return jnp.asarray(np.frombuffer(data, np.uint8))


def random_bytes(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def by_source(vectors):
    return pytest.mark.parametrize("vector", vectors, ids=lambda vector: vector["source"])


def compressions(function, *arguments):
    """The places that compress in a program, each with how often it runs: a list of numbers.

    A place is the loop over the 64 rounds of a block, of one message or of few.
    """

    def places(jaxpr, repeats):
        for equation in jaxpr.eqns:
            inner = equation.params.get("jaxpr", equation.params.get("call"))
            if inner is None:
                continue
            length = equation.params.get("length", 1)
            if equation.primitive.name == "scan" and length == 64:
                yield repeats
            else:
                yield from places(getattr(inner, "jaxpr", inner), repeats * length)

    return list(places(jax.make_jaxpr(function)(*arguments).jaxpr, 1))


@pytest.mark.quick_cases(2)
@by_source(VECTORS["sha256"])
def test_sha256_vectors(vector):
    assert bytes(sha256(array(vector["message"]))).hex() == vector["digest"]


@pytest.mark.quick_cases(2)
@by_source(VECTORS["hmac_sha256"])
def test_hmac_vectors(vector):
    mac = hmac_sha256(array(vector["key"]), array(vector["message"]))
    assert bytes(mac).hex() == vector["mac"]


@pytest.mark.quick_cases(1)
@by_source(VECTORS["hkdf_sha256"])
def test_hkdf_vectors(vector):
    salt, ikm, info = (array(vector[name]) for name in ("salt", "ikm", "info"))
    prk = hkdf_extract(salt, ikm)
    assert bytes(prk).hex() == vector["prk"]
    assert bytes(hkdf_expand(prk, info, vector["length"])).hex() == vector["okm"]


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("length", [0, 55, 56, 63, 64, 65, 119, 120])
def test_lengths_around_the_borders_of_blocks(length):
    message = random_bytes(length)
    assert bytes(sha256(message)) == hashlib.sha256(message.tobytes()).digest()


def test_hmac_of_random_messages():
    key, messages = random_bytes(64), random_bytes(20, 41)
    macs = jax.jit(jax.vmap(hmac_sha256, (None, 0)))(key, messages)
    assert [bytes(mac) for mac in macs] == [
        hmac.digest(key.tobytes(), message.tobytes(), "sha256") for message in messages
    ]


def test_hkdf_of_random_inputs_against_openssl():
    ikm, salt, info = (random_bytes(20, 32, seed=seed) for seed in range(3))
    ours = jax.jit(jax.vmap(functools.partial(hkdf, length=32)))(ikm, salt, info)
    assert [bytes(okm) for okm in ours] == [
        HKDF(hashes.SHA256(), 32, s.tobytes(), f.tobytes()).derive(i.tobytes())
        for i, s, f in zip(ikm, salt, info)
    ]


def test_jit_equals_eager(jit_or_not):
    key, message = random_bytes(32), random_bytes(41)
    mac = jit_or_not(hmac_sha256)(key, message)
    assert bytes(mac) == hmac.digest(key.tobytes(), message.tobytes(), "sha256")


def key_of_pair(ikm, second):
    return derive_key(ikm, PAIR_MASK, salt=ZERO_KEY, round_id=7, second=second)


def two_keys(ikm, second):
    labels = (SEAL_ENC, SEAL_MAC)
    return derive_keys(ikm, labels, salt=ZERO_KEY, round_id=7, second=second)


ZERO_KEY, BYTES = jnp.zeros(8, jnp.uint32), random_bytes(41)


@pytest.mark.parametrize(
    ("function", "arguments", "expected"),
    [
        (sha256, (BYTES,), [1]),
        (sha256, (random_bytes(56),), [2]),
        (hmac_sha256, (BYTES, BYTES), [4]),
        (hmac_sha256, (random_bytes(65), BYTES), [2, 4]),
        (key_of_pair, (ZERO_KEY, jnp.uint32(2)), [8]),
        (two_keys, (ZERO_KEY, jnp.uint32(2)), [2 * 8]),
    ],
)
@pytest.mark.parametrize("many", [False, True])
def test_a_digest_a_mac_and_a_key_are_one_loop_of_compressions_each(
    function, arguments, expected, many
):
    """Each place that compresses is half a second of compilation, also where there are many
    messages and many labels. A key of more than a block is hashed first, which is a second one."""
    if many:
        function = jax.vmap(function)
        arguments = [jnp.stack([x] * 3) for x in arguments]
    assert compressions(function, *arguments) == expected


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("length", [0, 41, 54, 55, 73, 119])
def test_one_block_of_hkdf_against_openssl(length):
    """The lengths around the borders of blocks; those of the key schedule are 31 to 80 bytes."""
    ikm, salt, info = random_bytes(3, 32, seed=1), random_bytes(3, 32, seed=2), random_bytes(length)
    big_endian = functools.partial(words_from_bytes, byteorder="big")
    message = jnp.asarray(template(info.tobytes() + b"\1"))
    keys = jax.vmap(hkdf_words, (0, 0, None))(big_endian(ikm), big_endian(salt), message)
    for key, i, s in zip(bytes_from_words(keys, "big"), ikm, salt):
        expected = HKDF(hashes.SHA256(), 32, s.tobytes(), info.tobytes()).derive(i.tobytes())
        assert bytes(key) == expected


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("length", [0, 32, 55, 56, 92, 119])
def test_hmac_of_words_against_openssl(length):
    keys, message = random_bytes(3, 64, seed=1), random_bytes(length)
    words = words_from_bytes(keys, "big")
    macs = jax.vmap(hmac_words, (0, None))(words, jnp.asarray(template(message.tobytes())))
    assert [bytes(mac) for mac in bytes_from_words(macs, "big")] == [
        hmac.digest(key.tobytes(), message.tobytes(), "sha256") for key in keys
    ]


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("count", [0, 513, 4097, 1, 512, 4096, 8192])
def test_macs_and_keys_of_few_and_of_many_in_parts(count):
    rows = random_bytes(3, count, 32, seed=count)
    key, salt, info = words_from_bytes(rows, "big")
    message = jax.vmap(lambda words: jnp.concatenate([words, DIGEST_PADDING]))(info)
    macs = jax.vmap(hmac_words)(jnp.pad(key, ((0, 0), (0, 8))), message)
    # The info and a byte of one.
    message = jax.vmap(lambda words: fill(template(bytes(32) + b"\1"), words, 0))(info)
    keys = jax.vmap(hkdf_words)(key, salt, message)
    assert macs.shape == keys.shape == (count, 8)
    macs, keys = bytes_from_words(macs, "big"), bytes_from_words(keys, "big")
    for i in sorted({0, 1, 511, 512, 4095, 4096, count - 1} & set(range(count))):
        k, s, f = (row.tobytes() for row in rows[:, i])
        assert bytes(macs[i]) == hmac.digest(k, f, "sha256")
        assert bytes(keys[i]) == HKDF(hashes.SHA256(), 32, s, f).derive(k)


@pytest.mark.parametrize("at", range(8, 13))
def test_numbers_take_the_place_of_zeros(at):
    numbers = [0x01020304, 0xFFFFFFFF]
    filled = fill(template(bytes(range(at)) + bytes(8) + b"end"), map(jnp.uint32, numbers), at)
    expected = bytes(range(at)) + b"".join(x.to_bytes(4, "big") for x in numbers) + b"end"
    np.testing.assert_array_equal(filled, template(expected))


def test_nothing_becomes_64_bits_wide_and_the_same_bits_with_them_enabled():
    """Under x64 the counters of loops are int64, and nothing that depends on a message is."""
    prk = random_bytes(32)
    secrets = [taint.SECRETS] * 2
    with jax.enable_x64(True):
        expand = functools.partial(hkdf_expand, length=70)
        assert taint.walk(expand, prk, prk, taints=secrets).wide == []
        digest = sha256(prk)
        control = taint.walk(lambda x, y: x.astype(jnp.uint64), prk, prk, taints=secrets)
    assert control.wide != []
    assert bytes(digest) == hashlib.sha256(prk.tobytes()).digest()


def test_words_and_bytes():
    data = random_bytes(3, 32)
    words = words_from_bytes(data)
    np.testing.assert_array_equal(words, data.view("<u4"))
    np.testing.assert_array_equal(words_from_bytes(data, "big"), data.view(">u4"))
    for byteorder in ("little", "big"):
        back = bytes_from_words(words_from_bytes(data, byteorder), byteorder)
        np.testing.assert_array_equal(back, data)
        assert back.dtype == np.uint8


def test_a_trained_function_may_call_it():
    def loss(x, key):
        word = words_from_bytes(sha256(bytes_from_words(key)))[0]
        return x * (word & np.uint32(255)).astype(jnp.float32)

    key = jnp.arange(8, dtype=jnp.uint32)
    slope = hashlib.sha256(np.asarray(key).tobytes()).digest()[0]
    assert jax.grad(loss)(1.0, key) == slope
    assert jax.jvp(functools.partial(loss, key=key), (1.0,), (1.0,))[1] == slope


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sha256(b"abc"), r"message of type bytes must be uint8\[n\]"),
        (lambda: sha256(jnp.zeros(3, jnp.float32)), r"message of type float32\[3\]"),
        (lambda: sha256(np.zeros((2, 3), np.uint8)), r"message of type uint8\[2, 3\].*vmap"),
        (lambda: hmac_sha256("key", np.zeros(3, np.uint8)), "key of type str"),
        (lambda: hkdf_extract(np.zeros(3, np.uint8), None), "ikm of type NoneType"),
        (lambda: hkdf_expand(np.zeros(31, np.uint8), np.zeros(0, np.uint8), 32), "prk of 31"),
        (lambda: hkdf_expand(*[np.zeros(32, np.uint8)] * 2, 0), "length=0"),
        (lambda: hkdf_expand(*[np.zeros(32, np.uint8)] * 2, 8161), "length=8161"),
        (lambda: hkdf_expand(*[np.zeros(32, np.uint8)] * 2, True), "length=True"),
        (lambda: words_from_bytes(np.zeros(3, np.uint8)), r"data of type uint8\[3\]"),
        (lambda: words_from_bytes(np.zeros(4, np.uint8), "middle"), "byteorder='middle'"),
        (lambda: bytes_from_words(np.zeros(4, np.int32)), r"words of type int32\[4\]"),
    ],
)
def test_static_mistakes(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_errors_do_not_print_keys():
    with pytest.raises(ValueError, match="key of type") as error:
        hmac_sha256(np.full(32, 201, np.int32), np.zeros(3, np.uint8))
    assert "201" not in str(error.value)


@pytest.mark.parametrize(
    ("constants", "degree"),
    [(sha256_block.INITIAL_STATE, 2), (sha256_block._ROUND_CONSTANTS, 3)],
)
def test_constants_are_those_of_the_standard(constants, degree):
    """The first 32 bits behind the point of the square or cube roots of the first primes."""
    primes = [n for n in range(2, 312) if all(n % d for d in range(2, n))]
    for prime, constant in zip(primes, constants.tolist()):
        root = constant + (int(prime ** (1 / degree)) << 32)
        assert root**degree <= prime << 32 * degree < (root + 1) ** degree


@pytest.mark.parametrize("count", [1, 2, sha256_block.FEW, sha256_block.FEW + 1])
def test_of_few_and_of_many(count):
    """The compression function has two forms, for few inputs and for many."""
    messages = np.random.default_rng(count).integers(0, 256, (count, 70), dtype=np.uint8)
    digests = jax.jit(jax.vmap(sha256))(messages)
    expected = [hashlib.sha256(message.tobytes()).digest() for message in messages]
    assert [bytes(digest) for digest in np.asarray(digests)] == expected
