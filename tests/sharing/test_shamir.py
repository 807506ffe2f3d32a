"""Shamir's sharing: vectors, any t of n, the independence of t - 1, and who changed a share."""

import functools
import itertools
import json
import pathlib
import re
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from fedjax_agg.arithmetic import m31
from fedjax_agg.sharing import shamir
from fedjax_agg.sharing.shamir import (
    CHUNKS,
    check_shares,
    draw_coefficients,
    from_chunks,
    lagrange_at_zero,
    reconstruct,
    recover_secret,
    share,
    to_chunks,
)

VECTORS = json.loads((pathlib.Path(__file__).parents[1] / "vectors" / "shamir.json").read_text())
P = 2**31 - 1
# Most tests share these sizes, so that they share compiled programs.
SLOTS, THRESHOLD, WIDTH = 7, 3, 2

share_jit = jax.jit(share, static_argnums=2)
lagrange_jit = jax.jit(lagrange_at_zero)
reconstruct_many = jax.jit(jax.vmap(reconstruct, in_axes=(None, 0)))
recover_many = jax.jit(jax.vmap(functools.partial(recover_secret, threshold=THRESHOLD)))
draw_many = jax.jit(jax.vmap(functools.partial(draw_coefficients, threshold=4, num_chunks=18)))
to_chunks_many = jax.jit(jax.vmap(to_chunks))
from_chunks_many = jax.jit(jax.vmap(from_chunks))


def words(integers):
    return np.array(integers, np.uint32)


def words_of(secret):
    """Little-endian words of bytes, or of their hexadecimal form."""
    data = bytes.fromhex(secret) if isinstance(secret, str) else secret
    return np.frombuffer(data, "<u4").astype(np.uint32)


def elements(seed, *shape):
    return np.random.default_rng(seed).integers(0, P, shape, dtype=np.uint32)


def python_weights(points):
    """Lagrange's weights at zero, in Python's integers."""
    weights = []
    for i in points:
        numerator = denominator = 1
        for j in points:
            if j != i:
                numerator, denominator = numerator * j % P, denominator * (j - i) % P
        weights.append(numerator * pow(denominator, -1, P) % P)
    return weights


def deal(threshold=THRESHOLD, slots=SLOTS, width=WIDTH, seed=0):
    """Secrets and the shares of all holders."""
    polynomials = elements(seed, threshold, width)
    return polynomials[0], np.asarray(share_jit(polynomials[0], polynomials[1:], slots))


def masks(slots, counts):
    """All choices of so many holders, bool[:, slots]."""
    every = np.array(list(itertools.product([False, True], repeat=slots)))
    return every[np.isin(every.sum(axis=1), counts)]


# Vectors.


@pytest.mark.parametrize("vector", VECTORS["polynomials"], ids=["first points", "last points"])
def test_vectors_of_polynomials(vector, jit_or_not):
    coefficients = words(vector["coefficients"])[:, None]
    found = jit_or_not(functools.partial(share, num_holders=8))(coefficients[0], coefficients[1:])
    assert found.dtype == jnp.uint32
    assert found[:, 0].tolist() == vector["shares"]
    assert python_weights(vector["points"]) == vector["lagrange_at_zero"]


def test_vector_of_lagrange():
    vector = VECTORS["polynomials"][0]
    slots = words(vector["points"]) - 1
    present = np.isin(np.arange(8), slots)
    found = lagrange_jit(present)
    assert found.dtype == jnp.uint32
    assert np.asarray(found)[slots].tolist() == vector["lagrange_at_zero"]
    assert not np.asarray(found)[~present].any()
    shares = words(vector["shares"])[:, None]
    assert reconstruct(shares, present).tolist() == vector["coefficients"][:1]


@pytest.mark.slow
def test_vector_of_lagrange_at_the_last_points():
    vector = VECTORS["polynomials"][1]
    slots = words(vector["points"]) - 1
    found = np.asarray(lagrange_jit(np.isin(np.arange(65535), slots)))
    assert found[slots].tolist() == vector["lagrange_at_zero"]


def test_vector_from_key_and_secrets_to_shares():
    (vector,) = VECTORS["deals"]
    coefficients = draw_many(words_of(vector["key"])[None])[0]
    assert coefficients.tolist() == vector["coefficients"]
    secrets = [words_of(v["secret"]) for v in VECTORS["chunks"][:2]]
    chunks = np.concatenate([to_chunks(secret) for secret in secrets])
    found = share_jit(chunks, coefficients, len(vector["shares"]))
    assert found.tolist() == vector["shares"]


# Chunks.


@pytest.mark.parametrize("vector", VECTORS["chunks"], ids=lambda v: v["secret"][:4])
def test_vectors_of_chunks(vector, jit_or_not):
    found = jit_or_not(to_chunks)(words_of(vector["secret"]))
    assert found.dtype == jnp.uint32
    assert found.tolist() == vector["chunks"]
    secret, ok = jit_or_not(from_chunks)(found)
    assert secret.tolist() == words_of(vector["secret"]).tolist()
    assert secret.dtype == jnp.uint32
    assert ok


@pytest.mark.parametrize("vector", VECTORS["no_chunks"], ids=lambda v: v["source"])
def test_what_is_no_secret_is_refused_and_zeros(vector):
    secret, ok = from_chunks(words(vector["chunks"]))
    assert not ok
    assert not np.any(secret)


def test_every_bit_of_a_secret_has_its_place():
    integers = [
        0,
        2**256 - 1,
        *(2**i for i in range(256)),
        *(2**256 - 1 - 2**i for i in range(256)),
    ]
    secrets = np.stack([words_of(i.to_bytes(32, "little")) for i in integers])
    found = to_chunks_many(secrets)
    base = 2**30
    assert found.tolist() == [[i // base**j % base for j in range(CHUNKS)] for i in integers]
    again, ok = from_chunks_many(found)
    np.testing.assert_array_equal(again, secrets)
    assert np.all(ok)


def test_the_largest_chunks_and_elements_are_shared_and_recovered():
    largest, random = words([2**30 - 1, P - 1]), elements(1, 2, 2)
    shares = share_jit(largest, random, 5)
    for present in masks(5, [3, 5]):
        assert reconstruct_many(shares, present[None])[0].tolist() == largest.tolist()


# Sharing and recovery.


@pytest.mark.parametrize("threshold", [1, 2, 3, 4, 5])
def test_any_t_of_n_recover_and_fewer_do_not(threshold):
    """All sets of holders of up to five slots; an empty slot is as good as none."""
    secrets, shares = deal(threshold, slots=5)
    present = masks(5, range(6))
    right = np.asarray(reconstruct_many(shares, present)) == np.asarray(secrets)
    enough = present.sum(axis=1) >= threshold
    assert right[enough].all()
    assert not right[~enough].any()


def test_the_shares_of_more_holders_extend_those_of_fewer():
    _, of_five = deal(3, slots=5)
    _, of_three = deal(3, slots=3)
    np.testing.assert_array_equal(of_five[:3], of_three)


def test_shares_are_linear():
    """Shares of a sum are sums of shares, and the sum is recovered from them."""
    a, b = elements(1, THRESHOLD, WIDTH), elements(2, THRESHOLD, WIDTH)
    of_a, of_b, of_sum = (share_jit(f[0], f[1:], SLOTS) for f in (a, b, m31.add(a, b)))
    np.testing.assert_array_equal(m31.add(of_a, of_b), of_sum)
    recovered = reconstruct(m31.add(of_a, of_b), np.ones(SLOTS, bool))
    np.testing.assert_array_equal(recovered, m31.add(a[0], b[0]))


def test_the_largest_coefficients_at_the_last_points():
    """65535 holders: nothing wraps, and a point is the slot plus one."""
    coefficients = [P - 1] * 40
    column = words(coefficients)[:, None]
    found = np.asarray(share_jit(column[0], column[1:], 65535))[:, 0]
    for x in (1, 2, 255, 256, 32767, 32768, 46341, 65534, 65535):
        assert int(found[x - 1]) == sum(a * x**i for i, a in enumerate(coefficients)) % P


@pytest.mark.parametrize("slots", [1, 60])
def test_masked_weights_equal_those_of_the_gathered_points(slots):
    rng = np.random.default_rng(slots)
    chosen = rng.random((20, slots)) < rng.random((20, 1))
    chosen = np.concatenate([chosen, np.ones((1, slots), bool), np.eye(slots, dtype=bool)[-1:]])
    found = jax.jit(jax.vmap(lagrange_at_zero))(chosen)
    for present, weights in zip(chosen, np.asarray(found)):
        points = (np.flatnonzero(present) + 1).tolist()
        assert weights[present].tolist() == python_weights(points)
        assert not weights[~present].any()


# What t - 1 shares tell.


@pytest.mark.parametrize("threshold", [2, 3])
def test_fewer_shares_are_uniform_for_every_secret_by_enumeration(threshold):
    """Over the field of 7 elements, in NumPy: all coefficients, secrets and sets of holders. One
    share more is not: then each secret has shares of its own."""
    field = np.arange(7)
    degree = threshold - 1
    coefficients = np.array(list(itertools.product(field, repeat=degree)))
    powers = field[1:, None] ** np.arange(1, threshold) % 7
    random_part = coefficients @ powers.T
    for holders in itertools.combinations(range(6), degree):
        for secret in field:
            seen = (secret + random_part[:, holders]) % 7
            assert len({tuple(row) for row in seen.tolist()}) == 7**degree == len(seen)
    views = [
        {tuple(row) for row in ((secret + random_part[:, :threshold]) % 7).tolist()}
        for secret in field
    ]
    assert sum(map(len, views)) == len(set.union(*views)) == 7**threshold


def rank(matrix):
    """The rank over the field of 2^31 - 1 elements, in Python's integers."""
    rows = [[int(x) for x in row] for row in matrix]
    found = 0
    for column in range(len(rows[0])):
        pivot = next((r for r in rows[found:] if r[column]), None)
        if pivot is None:
            continue
        rows.remove(pivot)
        scale = pow(pivot[column], -1, P)
        rows = [
            [(x - row[column] * scale * y) % P for x, y in zip(row, pivot)] if row[column] else row
            for row in rows
        ]
        rows.insert(found, pivot)
        found += 1
    return found


@pytest.mark.parametrize(("threshold", "slots"), [(2, 6), (4, 6), (16, 40)])
def test_fewer_shares_are_a_bijection_of_the_coefficients(threshold, slots):
    """t - 1 shares are secret + V a, with a uniform. V has full rank, so they are uniform for
    every secret. V is read off ``share``, from unit vectors of coefficients."""
    degree = threshold - 1
    zeros = np.zeros(degree, np.uint32)
    vandermonde = np.asarray(share_jit(zeros, np.eye(degree, dtype=np.uint32), slots))
    some = np.random.default_rng(0)
    every = [*itertools.combinations(range(slots), degree)] if slots < 10 else []
    every += [some.choice(slots, degree, replace=False) for _ in range(3)]
    for holders in every:
        assert rank(vandermonde[list(holders)]) == degree
    # The control: the same holder twice tells less.
    if degree > 1:
        assert rank(vandermonde[[0, *range(degree - 1)]]) == degree - 1


# Coefficients.


def openssl(key, length):
    cipher = Cipher(algorithms.ChaCha20(np.asarray(key, "<u4").tobytes(), bytes(16)), mode=None)
    return struct.unpack(f"<{length}I", cipher.encryptor().update(bytes(4 * length)))


def test_each_owner_draws_from_a_keystream_of_its_own():
    keys = elements(3, 1, 8)
    (found,) = draw_many(keys)
    assert found.shape == (3, 18)
    assert found.dtype == jnp.uint32
    assert found.reshape(-1).tolist() == [w % 2**31 % P for w in openssl(keys[0], 54)]
    assert draw_coefficients(keys[0], 1, 5).shape == (0, 5)


def test_the_second_half_of_the_keystream_is_the_second_draw(monkeypatch):
    """Where the first fails, which no short keystream does."""
    stream = words([1, P, 2**32 - 1, 4, 5, 6, 7, P])
    monkeypatch.setattr(shamir, "short_keystream", lambda key, nonce, length: stream[:length])
    found = draw_coefficients(jnp.zeros(8, jnp.uint32), 3, 2)
    assert found.tolist() == [[1, 6], [7, 4]]


@pytest.mark.slow
def test_a_secret_is_dealt_and_recovered_one_by_one_and_in_batches(jit_or_not):
    """Of three owners, each with other holders; draws included."""
    keys, secrets = elements(6, 3, 8), elements(7, 3, 8) << np.uint32(1)
    present = masks(SLOTS, [4])[:3]

    def life(key, secret, present):
        coefficients = draw_coefficients(key, THRESHOLD, CHUNKS)
        shares = share(to_chunks(secret), coefficients, SLOTS)
        return shares, *from_chunks(reconstruct(shares, present))

    shares, recovered, ok = jit_or_not(jax.vmap(life))(keys, secrets, present)
    np.testing.assert_array_equal(recovered, secrets)
    assert np.all(ok)
    for i in range(3):
        alone = jit_or_not(life)(keys[i], secrets[i], present[i])
        np.testing.assert_array_equal(alone[0], shares[i])


# Changed shares.


def changes():
    """Differences that one holder may add to its WIDTH elements."""
    random = np.random.default_rng(5).integers(1, P, (2, WIDTH)).tolist()
    return [[1, 0], [0, P - 1], [P - 1, P - 1], [2**30, 1], *random]


def recovered(cases):
    """Secrets and checks of many pairs of shares and present, all in one program."""
    padded = [*cases, *[cases[0]] * (160 - len(cases))]
    secrets, check = recover_many(*map(np.stack, zip(*padded)))
    return (np.asarray(found)[: len(cases)] for found in (secrets, *check))


def changed(shares, *pairs):
    """The shares with something added to those of some slots."""
    shares = shares.astype(np.int64)
    for slot, change in pairs:
        shares[slot] += change
    return (shares % P).astype(np.uint32)


@pytest.mark.parametrize("count", [THRESHOLD + 1, THRESHOLD + 2, SLOTS - 1, SLOTS])
def test_one_changed_share_is_detected_and_from_two_spare_on_named(count):
    """At every present slot, of every set of so many holders."""
    _, shares = deal()
    cases, slots = [], []
    for present, slot in itertools.product(masks(SLOTS, [count]), range(SLOTS)):
        if present[slot]:
            change = changes()[len(cases) % len(changes())]
            cases.append((changed(shares, (slot, change)), present))
            slots.append(slot)
    _, consistent, culprit = recovered(cases)
    assert not consistent.any()
    expected = slots if count > THRESHOLD + 1 else [-1] * len(slots)
    assert culprit.tolist() == expected


def test_every_kind_of_change_is_named():
    _, shares = deal()
    present = np.ones(SLOTS, bool)
    cases = [
        (changed(shares, (slot, change)), present)
        for slot, change in itertools.product(range(SLOTS), changes())
    ]
    _, consistent, culprit = recovered(cases)
    assert not consistent.any()
    assert culprit.tolist() == [slot for slot in range(SLOTS) for _ in changes()]


def test_with_no_share_to_spare_a_change_passes():
    secrets, shares = deal()
    cases = [(changed(shares, (0, [1, 1])), np.arange(SLOTS) < THRESHOLD)]
    found, consistent, culprit = recovered(cases)
    assert consistent.all()
    assert culprit.tolist() == [-1]
    assert np.all(found != secrets)


def test_honest_shares_are_consistent_and_nobody_is_named():
    """Whatever number is present, whatever absent rows hold, and modulo p."""
    secrets, shares = deal()
    every = masks(SLOTS, range(SLOTS + 1))
    cases = [
        (np.where(present[:, None], shares, np.uint32(2**32 - 1)), present) for present in every
    ]
    cases += [(shares + np.uint32(P), np.ones(SLOTS, bool))]
    found, consistent, culprit = recovered(cases)
    assert consistent.all()
    assert (culprit == -1).all()
    enough = np.array([present.sum() >= THRESHOLD for _, present in cases])
    assert (found[enough] == secrets).all()


def test_two_changed_shares_are_detected():
    """All pairs of slots, the second share changed so that the first syndrome is zero."""
    _, shares = deal()
    present = np.arange(SLOTS) < THRESHOLD + 2
    weights = np.asarray(lagrange_jit(present)).tolist()
    cases = []
    for a, b in itertools.combinations(np.flatnonzero(present).tolist(), 2):
        part = weights[a] * (a + 1)
        cancels = -part * pow(weights[b] * (b + 1), -1, P) % P
        cases += [(changed(shares, (a, [1, 1]), (b, [e, e])), present) for e in (1, cancels)]
    _, consistent, _ = recovered(cases)
    assert not consistent.any()


def colluding(weights, contributions):
    """The changes with which slots contribute so much to the first syndrome."""
    return [
        (slot, [part * pow(weights[slot] * (slot + 1), -1, P) % P] * WIDTH)
        for slot, part in contributions.items()
    ]


def test_what_the_check_says_it_does_not_do():
    """Two who collude pass where one share is to spare, and frame an honest third where more
    are; three pass always."""
    secrets, shares = deal()
    one_spare, all_present = np.arange(SLOTS) < THRESHOLD + 1, np.ones(SLOTS, bool)
    few = np.asarray(lagrange_jit(one_spare)).tolist()
    weights = np.asarray(lagrange_jit(all_present)).tolist()
    # Points 2 and 4 against 3: a + b = e, 2 a + 4 b = 3 e.
    cases = [
        (changed(shares, *colluding(few, {0: 1, 3: P - 1})), one_spare),
        (changed(shares, *colluding(weights, {1: 1, 3: 1})), all_present),
        (changed(shares, *colluding(weights, {0: 1, 1: P - 2, 2: 1})), all_present),
    ]
    found, consistent, culprit = recovered(cases)
    assert consistent.tolist() == [True, False, True]
    assert culprit.tolist() == [-1, 2, -1]
    assert np.all(found != secrets)


def test_reconstruct_and_check_are_the_halves_of_recover():
    _, shares = deal()
    shares, present = changed(shares, (4, [0, 9])), np.arange(SLOTS) > 0
    secrets, check = recover_secret(shares, present, THRESHOLD)
    np.testing.assert_array_equal(secrets, reconstruct(shares, present))
    alone = check_shares(shares, present, THRESHOLD)
    for found in (check, alone):
        assert (bool(found.consistent), int(found.culprit)) == (False, 4)
        assert (found.consistent.dtype, found.culprit.dtype) == (bool, jnp.int32)


# Mistakes.


ROW, KEY, HERE = jnp.zeros(2, jnp.uint32), jnp.zeros(8, jnp.uint32), jnp.ones(3, bool)
LINE, ROWS = jnp.zeros((1, 2), jnp.uint32), jnp.zeros((3, 2), jnp.uint32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: to_chunks(ROW), r"secret of type uint32\[2\] .* \[key-shape\]"),
        (lambda: to_chunks(jnp.zeros(8)), r"secret of type .* \[key-shape\]"),
        (lambda: from_chunks(KEY), r"chunks of type uint32\[8\] .* \[chunks-shape\]"),
        (lambda: draw_coefficients(ROW, 2, 9), r"key of type uint32\[2\] .* \[key-shape\]"),
        (lambda: draw_coefficients(KEY, 0, 9), r"threshold=0 .* 1 to 65535; .* \[threshold\]"),
        (lambda: draw_coefficients(KEY, 65536, 9), r"threshold=65536 .* \[threshold\]"),
        (lambda: draw_coefficients(KEY, 2.0, 9), r"threshold=2.0 .* \[threshold\]"),
        (lambda: draw_coefficients(KEY, 2, 0), r"num_chunks=0 .* \[num-chunks\]"),
        (lambda: share(LINE, LINE, 3), r"chunks of type uint32\[1, 2\] .* \[chunks-shape\]"),
        (lambda: share(ROW, ROWS[:, :1], 4), r"coefficients of type .* \[polynomial-shape\]"),
        (lambda: share(ROW, ROW, 3), r"coefficients of type uint32\[2\] .* \[polynomial-shape\]"),
        (lambda: share(ROW, LINE, 65536), r"num_holders=65536 .* 65535; .* \[num-holders\]"),
        (lambda: share(ROW, LINE, 0), r"num_holders=0 .* \[num-holders\]"),
        (lambda: share(ROW, ROWS, 3), r"threshold=4 must be .* 1 to 3; .* \[threshold\]"),
        (lambda: lagrange_at_zero(jnp.ones(3)), r"present of type .* \[present-shape\]"),
        (lambda: lagrange_at_zero(jnp.ones(0, bool)), r"len\(present\)=0 .* \[num-holders\]"),
        (lambda: lagrange_at_zero(np.ones(65536, bool)), r"len\(present\)=65536 .*-holders\]"),
        (lambda: reconstruct(ROW, HERE), r"shares of type uint32\[2\] .* \[shares-shape\]"),
        (lambda: reconstruct(ROWS, HERE[:2]), r"present of type bool\[2\] .* \[present-shape\]"),
        (lambda: check_shares(ROWS, HERE, 0), r"threshold=0 .* \[threshold\]"),
        (lambda: check_shares(ROWS, HERE, 4), r"threshold=4 must be .* 1 to 3; .* \[threshold\]"),
        (lambda: recover_secret(ROWS, HERE, True), r"threshold=True .* \[threshold\]"),
    ],
)
def test_static_mistakes(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_traced_threshold_is_refused():
    with pytest.raises(ValueError, match=r"traced int32.* a static integer .* \[threshold\]"):
        jax.jit(check_shares)(ROWS, HERE, jnp.int32(2))


# Transformations.


def program(secret, coefficients, present):
    """All that is computed for one owner, but for the keystream."""
    shares = share(to_chunks(secret), coefficients, SLOTS)
    chunks, check = recover_secret(shares, present, THRESHOLD)
    return shares, chunks, check, *from_chunks(chunks)


def arguments_of(batch):
    secrets, coefficients = elements(6, batch, 8), elements(7, batch, THRESHOLD - 1, CHUNKS)
    return secrets, coefficients, masks(SLOTS, [4])[:batch]


@pytest.mark.slow
def test_same_bits_compiled_and_batched_with_and_without_x64():
    arguments = arguments_of(3)
    expected = jax.jit(jax.vmap(program))(*arguments)
    np.testing.assert_array_equal(expected[-2], arguments[0])
    with jax.enable_x64(True):
        found = jax.jit(program)(*(a[0] for a in arguments))
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y[0]), found, expected)
    assert {x.dtype.itemsize for x in jax.tree.leaves(found)} == {1, 4}


@pytest.mark.parametrize("x64", [False, True])
def test_no_64_bit_type_in_the_program(x64):
    """With x64 on, loop counters and positions have: int64, unlike any word."""
    with jax.enable_x64(x64):
        text = str(jax.make_jaxpr(jax.vmap(program))(*arguments_of(1)))
    assert "u32" in text
    assert set(re.findall(r"\w64\[", text)) <= ({"i64["} if x64 else set())


@pytest.mark.slow
def test_batches_store_no_table_of_holders_and_holders():
    """Of 64 owners: the weights of 128 holders, and shares of as many with threshold 100."""
    owners, k, c = 64, 128, 3
    weights = jax.jit(jax.vmap(lagrange_at_zero)).lower(jax.ShapeDtypeStruct((owners, k), bool))
    assert weights.compile().memory_analysis().temp_size_in_bytes < owners * k * 4 * 16
    shapes = (jax.ShapeDtypeStruct(s, jnp.uint32) for s in ((owners, c), (owners, 99, c)))
    dealt = jax.jit(jax.vmap(functools.partial(share, num_holders=k))).lower(*shapes)
    assert dealt.compile().memory_analysis().temp_size_in_bytes < owners * k * c * 4 * 8
