"""ChaCha20 and the sum of keystreams: published vectors, OpenSSL, and every transformation."""

import functools
import json
import pathlib
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from jax import lax

from fedjax_agg.symmetric import chacha20_block as blocks
from fedjax_agg.symmetric.chacha20 import keystream, keystream_sum
from fedjax_agg.symmetric.chacha20_block import chacha20_block, short_keystream

VECTORS = json.loads((pathlib.Path(__file__).parents[1] / "vectors" / "chacha20.json").read_text())
LAST_BLOCK = 2**32 - 1
# Most tests share these sizes, so that they share compiled programs.
LENGTH = 48
WHOLE = 4 * LENGTH - 8


def slow(*arguments):
    """One case of many that takes a compilation of its own."""
    return pytest.param(*arguments, marks=pytest.mark.slow)


block_jit = jax.jit(chacha20_block)
keystream_jit = jax.jit(keystream, static_argnums=2)
sum_jit = jax.jit(keystream_sum, static_argnums=3)
short_jit = jax.jit(short_keystream, static_argnums=2)


def words(data):
    """Little-endian words of bytes, or of their hexadecimal form."""
    data = bytes.fromhex(data) if isinstance(data, str) else data
    return np.frombuffer(data, "<u4").astype(np.uint32)


def openssl(key, nonce, length, first_block=0):
    """The keystream of the ``cryptography`` package as uint32[length]."""
    nonce16 = struct.pack("<I", first_block) + np.asarray(nonce, "<u4").tobytes()
    cipher = Cipher(algorithms.ChaCha20(np.asarray(key, "<u4").tobytes(), nonce16), mode=None)
    return words(cipher.encryptor().update(bytes(4 * length)))


def openssl_sum(keys, coefficients, nonce, length, first_block=0):
    """The sum of keystreams modulo 2^32, in NumPy."""
    total = np.zeros(length, np.uint32)
    for key, coefficient in zip(np.asarray(keys), np.asarray(coefficients)):
        total += coefficient * openssl(key, nonce, length, first_block)
    return total


def random_words(seed, *shape):
    return np.random.default_rng(seed).integers(0, 2**32, shape, dtype=np.uint32)


@functools.cache
def example(m=5, length=WHOLE):
    """Keys, coefficients, nonce and the sum that OpenSSL gives for them."""
    keys, coefficients, nonce = random_words(m, m, 8), random_words(m + 1, m), random_words(2, 3)
    return keys, coefficients, nonce, openssl_sum(keys, coefficients, nonce, length)


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("count", [0, 65, 513, 1, 64, 512, 1024])
def test_few_blocks_and_many(count):
    key, nonce = random_words(count, 8), random_words(2, 3)
    found = short_jit(key, nonce, 16 * count)
    np.testing.assert_array_equal(found, openssl(key, nonce, 16 * count))


# Published vectors and named mistakes.


@pytest.mark.parametrize("vector", VECTORS["quarter_round"], ids=lambda v: v["source"])
def test_quarter_round_vector(vector):
    state = [jnp.uint32(int(word, 16)) for word in vector["input"]]
    found = [f"{int(word):08x}" for word in blocks._quarter_round(*state)]
    assert found == vector["output"]


@pytest.mark.parametrize(
    "vector",
    VECTORS["blocks"] + VECTORS["mistakes"]["wrong_inputs"],
    ids=lambda v: v.get("source", v.get("mistake")),
)
def test_block_vectors_as_block_and_as_keystream(vector):
    """Also of the inputs that somebody else's mistake would make: each gives its own block."""
    key, nonce = words(vector["key"]), words(vector["nonce"])
    expected = words(vector["block"])
    np.testing.assert_array_equal(block_jit(key, np.uint32(vector["counter"]), nonce), expected)
    start = np.uint32(16 * vector["counter"])
    stream = keystream_jit(key, nonce, LENGTH, start)
    np.testing.assert_array_equal(stream[:16], expected)


@pytest.mark.parametrize(
    "wrong",
    VECTORS["mistakes"]["wrong_inputs"] + VECTORS["mistakes"]["wrong_functions"],
    ids=lambda v: v["mistake"],
)
def test_no_named_mistake_is_made(wrong):
    right = VECTORS["blocks"][0]
    found = block_jit(words(right["key"]), np.uint32(right["counter"]), words(right["nonce"]))
    assert not np.array_equal(found, words(wrong["block"]))
    np.testing.assert_array_equal(found, words(right["block"]))


@pytest.mark.parametrize("vector", VECTORS["keystreams"], ids=lambda v: v["source"])
def test_encryption_vector(vector):
    """A stream that starts at block 1 and ends inside a block encrypts the plaintext of the RFC."""
    plaintext = vector["plaintext"].encode()
    stream = keystream_jit(
        words(vector["key"]), words(vector["nonce"]), LENGTH, np.uint32(16 * vector["counter"])
    )
    stream = np.asarray(stream).astype("<u4").tobytes()[: len(plaintext)]
    assert stream.hex() == vector["keystream"]
    assert bytes(a ^ b for a, b in zip(plaintext, stream)).hex() == vector["ciphertext"]


@pytest.mark.parametrize("survivors", [(1, 2, 3), (1, 2)])
def test_masked_sum_vector(survivors):
    """Uploads with self and pair masks, and the server's sum with and without a dropout."""
    vector = VECTORS["masked_sum"]
    nonce = np.zeros(3, np.uint32)

    def mask(seeds, signs):
        """The sum of four keystreams at most: what is missing has the coefficient zero."""
        keys, coefficients = np.zeros((4, 8), np.uint32), np.zeros(4, np.uint32)
        keys[: len(seeds)] = [words(seed * 32) for seed in seeds]
        coefficients[: len(signs)] = np.array(signs, np.int64).astype(np.uint32)
        return np.asarray(sum_jit(keys, coefficients, nonce, 4))

    def pair(i, j):
        return vector["pair_seeds"][f"{min(i, j)}-{max(i, j)}"]

    def sign(i, j):
        return 1 if j < i else -1

    for seed, expected in vector["keystreams"].items():
        np.testing.assert_array_equal(mask([seed], [1]), np.uint32(expected))
    uploads = np.array(vector["uploads"], np.uint32)
    for i in (1, 2, 3):
        peers = [j for j in (1, 2, 3) if j != i]
        seeds = [vector["self_seeds"][str(i)], *(pair(i, j) for j in peers)]
        upload = np.uint32(vector["words"][i - 1]) + mask(seeds, [1, *(sign(i, j) for j in peers)])
        np.testing.assert_array_equal(upload, uploads[i - 1])
    dropped = [j for j in (1, 2, 3) if j not in survivors]
    seeds = [vector["self_seeds"][str(i)] for i in survivors]
    signs = [-1] * len(survivors)
    for i in survivors:
        seeds += [pair(i, j) for j in dropped]
        signs += [-sign(i, j) for j in dropped]
    total = np.sum(uploads[[i - 1 for i in survivors]], axis=0, dtype=np.uint32)
    expected = vector["sum_without_client_3"] if dropped else vector["sum"]
    np.testing.assert_array_equal(total + mask(seeds, signs), np.uint32(expected))


# Bit-equality with OpenSSL.


@pytest.mark.parametrize("length", [1, slow(15), slow(16), slow(17), 10**6 + 3])
def test_keystream_equals_openssl(length):
    """Random keys, nonces and starts, up to the last start that a traced word index can name."""
    starts = (0, 16, 16 * 77777, 2**32 - 16) if length < 100 else (16 * 12345,)
    for seed, start in enumerate(starts):
        key, nonce = random_words([length, seed], 8), random_words([seed, length], 3)
        found = keystream_jit(key, nonce, length, np.uint32(start))
        assert found.shape == (length,)
        assert found.dtype == jnp.uint32
        np.testing.assert_array_equal(found, openssl(key, nonce, length, start // 16))


@pytest.mark.parametrize("length", [0, 1, 18, slow(15), slow(16), slow(17), 1000])
def test_short_keystream_equals_openssl(length):
    key, nonce = random_words(8, 8), random_words(9, 3)
    stream = short_jit(key, nonce, length)
    assert (stream.shape, stream.dtype) == ((length,), np.uint32)
    np.testing.assert_array_equal(stream, openssl(key, nonce, length))


@pytest.mark.parametrize("vector", VECTORS["keystreams"], ids=lambda v: v["source"])
def test_short_keystream_of_the_encryption_vector(vector):
    """It has no start, so the stream from block 0 on is cut to size."""
    first, length = 16 * vector["counter"], 4 * LENGTH
    stream = np.asarray(short_jit(words(vector["key"]), words(vector["nonce"]), length))[first:]
    found = stream.astype("<u4").tobytes().hex()
    assert found.startswith(vector["keystream"])


def test_short_keystream_of_many_keys_and_nonces():
    """Under nested ``vmap``, as shares are sealed: for every client, to every neighbour."""
    keys, nonces = random_words(8, 3, 5, 8), random_words(9, 3, 3)
    many = jax.vmap(jax.vmap(lambda key, nonce: short_keystream(key, nonce, 18), (0, None)))
    found = np.asarray(jax.jit(many)(keys, nonces))
    for i, j in np.ndindex(3, 5):
        np.testing.assert_array_equal(found[i, j], openssl(keys[i, j], nonces[i], 18))


def test_short_keystream_is_keystream_from_word_0():
    key, nonce = random_words(8, 8), random_words(9, 3)
    long = keystream_jit(key, nonce, LENGTH, np.uint32(0))
    np.testing.assert_array_equal(short_jit(key, nonce, LENGTH), long)


@pytest.mark.parametrize(
    ("arguments", "tag"),
    [
        ((jnp.zeros(4, jnp.uint32), jnp.zeros(3, jnp.uint32), 16), "key-shape"),
        ((jnp.zeros(8, jnp.uint32), jnp.zeros(4, jnp.uint32), 16), "nonce-shape"),
        ((jnp.zeros(8, jnp.uint32), jnp.zeros(3, jnp.uint32), -1), "keystream-length"),
        ((jnp.zeros(8, jnp.uint32), jnp.zeros(3, jnp.uint32), 2**36 + 1), "keystream-length"),
        ((jnp.zeros(8, jnp.uint32), jnp.zeros(3, jnp.uint32), 1.0), "keystream-length"),
    ],
)
def test_malformed_arguments_of_short_keystream_are_refused(arguments, tag):
    with pytest.raises(ValueError, match=rf"\[{tag}\]$"):
        short_keystream(*arguments)


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("m", [0, 1, 5, 9, 17, *map(slow, (2, 3, 4, 8, 16, 24, 33))])
def test_keystream_sum_equals_openssl(m):
    """Every padding rule, with random coefficients: none of the padded keys is heard."""
    keys, coefficients, nonce = random_words(m, m, 8), random_words(m + 1, m), random_words(m, 3)
    found = sum_jit(keys, coefficients, nonce, LENGTH, np.uint32(16 * (m + 3)))
    expected = openssl_sum(keys, coefficients, nonce, LENGTH, m + 3)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
def test_many_words_of_many_keys_equal_openssl():
    """More blocks than any tile or cache line: no block is skipped, doubled or moved."""
    keys, coefficients, nonce = random_words(1, 3, 8), random_words(2, 3), random_words(3, 3)
    length = 10**5 + 7
    found = sum_jit(keys, coefficients, nonce, length, np.uint32(32))
    np.testing.assert_array_equal(found, openssl_sum(keys, coefficients, nonce, length, 2))


def test_coefficients_zero_one_and_minus_one():
    keys, nonce = random_words(1, 3, 8), random_words(2, 3)
    streams = np.stack([openssl(key, nonce, LENGTH) for key in keys])

    def found(*coefficients):
        return sum_jit(keys, np.array(coefficients, np.uint32), nonce, LENGTH, np.uint32(0))

    np.testing.assert_array_equal(found(0, 1, 0), streams[1])
    np.testing.assert_array_equal(found(0, 1, 2**32 - 1), streams[1] - streams[2])
    assert not np.asarray(found(0, 0, 0)).any()


def test_no_words_of_many_keys_and_no_keys():
    keys, coefficients, nonce, _ = example()
    assert keystream_sum(jnp.asarray(keys), jnp.asarray(coefficients), nonce, 0).shape == (0,)
    assert keystream(jnp.asarray(keys[0]), jnp.asarray(nonce), 0).shape == (0,)


# ``start`` and the counter.


@pytest.mark.parametrize("m", [slow(1), 5])
def test_static_and_traced_start_agree(m):
    keys, coefficients, nonce, _ = example(m)
    static = jax.jit(lambda *a: keystream_sum(*a, LENGTH, 16 * 1000))(keys, coefficients, nonce)
    traced = sum_jit(keys, coefficients, nonce, LENGTH, np.uint32(16 * 1000))
    expected = openssl_sum(keys, coefficients, nonce, LENGTH, 1000)
    np.testing.assert_array_equal(static, expected)
    np.testing.assert_array_equal(traced, expected)


@pytest.mark.slow
def test_start_may_be_a_traced_int32():
    keys, coefficients, nonce, whole = example()
    found = sum_jit(keys, coefficients, nonce, LENGTH, np.int32(32))
    np.testing.assert_array_equal(found, whole[32 : 32 + LENGTH])


def test_slices_by_start_make_the_whole():
    """Shards of one length and a shorter last one, each from its own traced start."""
    keys, coefficients, nonce, whole = example()
    starts = np.arange(4, dtype=np.uint32) * LENGTH
    pieces = [sum_jit(keys, coefficients, nonce, LENGTH, start) for start in starts[:3]]
    pieces.append(sum_jit(keys, coefficients, nonce, WHOLE - 3 * LENGTH, starts[3]))
    np.testing.assert_array_equal(np.concatenate(pieces), whole)


def test_traced_start_is_rounded_down_to_a_block():
    keys, coefficients, nonce, whole = example()
    found = sum_jit(keys, coefficients, nonce, LENGTH, np.uint32(47))
    np.testing.assert_array_equal(found, whole[32 : 32 + LENGTH])


@pytest.mark.parametrize("m", [1, slow(3)])
def test_last_block_of_a_stream(m):
    """Blocks 2^32 - 2 and 2^32 - 1 are right, alone and as the end of a stream."""
    keys, coefficients, nonce, _ = example(m)
    expected = openssl_sum(keys, coefficients, nonce, 16, LAST_BLOCK - 1)
    last = openssl_sum(keys, coefficients, nonce, 16, LAST_BLOCK)
    found = jax.jit(lambda *a: keystream_sum(*a, 32, 16 * (LAST_BLOCK - 1)))(
        keys, coefficients, nonce
    )
    np.testing.assert_array_equal(found, np.concatenate([expected, last]))
    if m == 1:
        block = block_jit(keys[0], np.uint32(LAST_BLOCK), nonce)
        np.testing.assert_array_equal(np.asarray(block) * coefficients[0], last)


@pytest.mark.parametrize(
    ("start", "length"), [(16 * LAST_BLOCK, 17), (16 * (LAST_BLOCK + 1), 1), (16, 2**36 - 1)]
)
def test_counter_refuses_to_wrap(start, length):
    keys, coefficients, nonce, _ = example()
    with pytest.raises(ValueError, match=r"\[keystream-(counter|length)\]"):
        keystream_sum(jnp.asarray(keys), jnp.asarray(coefficients), nonce, length, start)


@pytest.mark.parametrize("start", [1, 15, 17, -16, -1])
def test_static_start_off_a_block_is_refused(start):
    keys, coefficients, nonce, _ = example()
    with pytest.raises(ValueError, match=r"\[keystream-start\]"):
        keystream_sum(jnp.asarray(keys), jnp.asarray(coefficients), nonce, 16, start)


@pytest.mark.parametrize(
    ("change", "tag"),
    [
        (dict(keys=jnp.zeros((2, 7), jnp.uint32)), "key-shape"),
        (dict(keys=jnp.zeros((2, 8), jnp.int32)), "key-shape"),
        (dict(keys=jnp.zeros(8, jnp.uint32)), "key-shape"),
        (dict(coefficients=jnp.zeros(3, jnp.uint32)), "coefficients-shape"),
        (dict(coefficients=jnp.zeros(2, jnp.float32)), "coefficients-shape"),
        (dict(nonce=jnp.zeros(2, jnp.uint32)), "nonce-shape"),
        (dict(length=-1), "keystream-length"),
        (dict(length=2**36 + 1), "keystream-length"),
        (dict(length=3.0), "keystream-length"),
    ],
)
def test_malformed_arguments_are_refused(change, tag):
    arguments = dict(
        keys=jnp.zeros((2, 8), jnp.uint32),
        coefficients=jnp.zeros(2, jnp.uint32),
        nonce=jnp.zeros(3, jnp.uint32),
        length=4,
    )
    with pytest.raises(ValueError, match=rf"\[{tag}\]"):
        keystream_sum(**{**arguments, **change})


# Transformations: the same bits.


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("m", [slow(1), 5])
def test_same_bits_inside_scan_and_cond(m):
    keys, coefficients, nonce, whole = example(m)

    @jax.jit
    def pieces(keys, coefficients, nonce, wanted):
        def piece(start, want):
            words = lax.cond(
                want,
                lambda: keystream_sum(keys, coefficients, nonce, LENGTH, start),
                lambda: jnp.zeros(LENGTH, jnp.uint32),
            )
            return start + np.uint32(LENGTH), words

        return lax.scan(piece, jnp.uint32(0), wanted)[1]

    found = pieces(keys, coefficients, nonce, np.array([True, False, True]))
    expected = whole[: 3 * LENGTH].reshape(3, LENGTH) * np.uint32([[1], [0], [1]])
    np.testing.assert_array_equal(found, expected)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    ("m", "axes"),
    [
        slow(5, (0, None, None, None)),
        slow(5, (None, 0, None, None)),
        slow(5, (None, None, 0, None)),
        slow(5, (None, None, None, 0)),
        (5, (1, 0, 1, 0)),
        slow(1, (1, 0, 1, 0)),
    ],
    ids=["keys", "coefficients", "nonces", "starts", "all, other axes", "all, one key"],
)
def test_same_bits_under_vmap(m, axes):
    batch = 3
    shapes = [(m, 8), (m,), (3,), ()]
    arguments = [
        random_words([m, i], *(shape if axis is None else (*shape[:axis], batch, *shape[axis:])))
        for i, (shape, axis) in enumerate(zip(shapes, axes))
    ]
    arguments[3] &= np.uint32(2**32 - 16)

    def one(keys, coefficients, nonce, start):
        return keystream_sum(keys, coefficients, nonce, 35, start)

    found = jax.jit(jax.vmap(one, in_axes=axes))(*arguments)
    for i in range(batch):
        keys, coefficients, nonce, start = (
            a if axis is None else np.take(a, i, axis) for a, axis in zip(arguments, axes)
        )
        expected = openssl_sum(keys, coefficients, nonce, 35, int(start) // 16)
        np.testing.assert_array_equal(found[i], expected)


@pytest.mark.slow
def test_same_bits_under_nested_vmap():
    """Cohorts x clients, with the inner axis batched over another argument than the outer."""
    keys, coefficients = random_words(1, 2, 3, 5, 8), random_words(2, 3, 5)
    nonces = random_words(3, 2, 3)

    def one(keys, coefficients, nonce):
        return keystream_sum(keys, coefficients, nonce, 20)

    inner = jax.vmap(one, in_axes=(0, 0, None))
    found = jax.jit(jax.vmap(inner, in_axes=(0, None, 0)))(keys, coefficients, nonces)
    for i, j in np.ndindex(2, 3):
        expected = openssl_sum(keys[i, j], coefficients[j], nonces[i], 20)
        np.testing.assert_array_equal(found[i, j], expected)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(("m", "axis_type"), [slow(1, "Auto"), (5, "Explicit")])
def test_same_bits_inside_shard_map(m, axis_type):
    """Eight devices: each makes, by ``start``, its own slice of one stream."""
    keys, coefficients, nonce, _ = example(m)
    mesh = jax.make_mesh((8,), ("x",), axis_types=(getattr(jax.sharding.AxisType, axis_type),))
    spec = jax.sharding.PartitionSpec

    def local(keys, coefficients, nonce):
        start = lax.axis_index("x").astype(jnp.uint32) * np.uint32(LENGTH)
        return keystream_sum(keys, coefficients, nonce, LENGTH, start)

    sharded = jax.shard_map(local, mesh=mesh, in_specs=(spec(),) * 3, out_specs=spec("x"))
    with jax.set_mesh(mesh):
        found = jax.jit(sharded)(keys, coefficients, nonce)
    expected = openssl_sum(keys, coefficients, nonce, 8 * LENGTH)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
def test_vmap_over_clients_inside_shard_map():
    """Clients split over eight devices; each device runs its own, one after the other."""
    mesh = jax.make_mesh((8,), ("clients",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec
    keys, coefficients = random_words(1, 16, 3, 8), random_words(2, 16, 3)
    nonce = random_words(3, 3)

    def local(keys, coefficients, nonce):
        rows = jax.vmap(lambda k, c: keystream_sum(k, c, nonce, 40))(keys, coefficients)
        return lax.psum(jnp.sum(rows, axis=0, dtype=jnp.uint32), "clients")

    sharded = jax.shard_map(
        local, mesh=mesh, in_specs=(spec("clients"), spec("clients"), spec()), out_specs=spec()
    )
    found = jax.jit(sharded)(keys, coefficients, nonce)
    expected = openssl_sum(keys.reshape(48, 8), coefficients.reshape(48), nonce, 40)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("m", [slow(1), 5])
def test_same_bits_and_type_with_x64_enabled(m):
    keys, coefficients, nonce, whole = example(m)
    with jax.enable_x64(True):
        assert jnp.zeros(1, float).dtype == jnp.float64
        rows = jax.jit(jax.vmap(lambda n: keystream_sum(keys, coefficients, n, WHOLE)))(nonce[None])
        block = jax.jit(chacha20_block)(keys[0], jnp.uint32(7), nonce)
    assert rows.dtype == block.dtype == jnp.uint32
    np.testing.assert_array_equal(rows[0], whole)
    np.testing.assert_array_equal(block, openssl(keys[0], nonce, 16, 7))


# What is compiled.


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("m", [1, 17])
def test_lowers_for_cuda_without_a_device(m):
    """Also under vmap; and nothing but 32-bit integers is in the program."""
    arguments = (
        jax.ShapeDtypeStruct((2, m, 8), jnp.uint32),
        jax.ShapeDtypeStruct((2, m), jnp.uint32),
        jax.ShapeDtypeStruct((3,), jnp.uint32),
        jax.ShapeDtypeStruct((), jnp.uint32),
    )

    def rows(keys, coefficients, nonce, start):
        return jax.vmap(lambda k, c: keystream_sum(k, c, nonce, 100, start))(keys, coefficients)

    text = jax.jit(rows).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
    assert "ui32" in text
    assert "ui64" not in text


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    ("m", "key_axis"), [(17, 0), (17, None), slow(1, 0)], ids=["clients", "survivors", "one key"]
)
def test_vmap_stores_no_keystream(m, key_axis):
    """Temporaries stay below twice the output; stored keystreams would be m times the output.

    Over clients, and over coefficients alone (one cohort, several sets of survivors), where the
    keystreams do not change from one sum to the next and could be moved out of the loop.
    """
    rows, length = 64, 10**5
    key_shape = (m, 8) if key_axis is None else (rows, m, 8)
    arguments = [jax.ShapeDtypeStruct(s, jnp.uint32) for s in (key_shape, (rows, m), (3,))]

    def one(keys, coefficients, nonce):
        return keystream_sum(keys, coefficients, nonce, length)

    every = jax.vmap(one, in_axes=(key_axis, 0, None))
    memory = jax.jit(every).lower(*arguments).compile().memory_analysis()
    output = 4 * rows * length
    assert memory.output_size_in_bytes >= output
    assert memory.temp_size_in_bytes < 2 * output
    # The keystreams of one sum of 17 keys would take 17 rows.
    assert memory.temp_size_in_bytes < 16 * 4 * length


@pytest.mark.slow
def test_one_program_for_all_starts_keys_and_nonces():
    """A second call with other values traces nothing."""
    traces = []

    @jax.jit
    def stream(keys, coefficients, nonce, start):
        traces.append(1)
        return keystream_sum(keys, coefficients, nonce, 32, start)

    for seed in range(3):
        keys, coefficients = random_words(seed, 2, 8), random_words(seed, 2)
        stream(keys, coefficients, random_words(seed, 3), np.uint32(16 * seed))
    assert len(traces) == 1
