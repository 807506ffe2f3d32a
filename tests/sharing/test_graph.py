"""The graph of neighbours: regular, symmetric, uniform, and fixed by all keys."""

import hashlib
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from fedjax_agg.sharing.graph import (
    neighbours,
    offsets,
    permutation,
    permutation_seed,
    reverse_slots,
)

# Every degree of every small cohort, and some degrees of real ones.
DEGREES = [(n, k) for n in range(2, 13) for k in range(1, n) if n % 2 == 0 or k % 2 == 0]
DEGREES += [(1000, 96), (1001, 30), (1000, 51)]
# A few of each kind, since every one of them is compiled.
GRAPHS = [(2, 1), (3, 2), (8, 2), (8, 3), (9, 4), (8, 6), (8, 7), (9, 8), (1000, 51), (1001, 30)]


def seed(number):
    return jnp.asarray(np.random.default_rng(number).integers(2**32, size=8, dtype=np.uint32))


def random_words(*shape):
    return np.random.default_rng(0).integers(2**32, size=shape, dtype=np.uint32)


def graph(n, k):
    """The neighbours on a ring in random order, and that order."""
    order = np.random.default_rng(n).permutation(n).astype(np.int32)
    return np.asarray(neighbours(jnp.asarray(order), k)), order


@pytest.mark.parametrize(("n", "k"), DEGREES)
def test_slots_are_the_distances_of_a_harary_graph(n, k):
    found = offsets(n, k)
    assert found.dtype == np.int32
    assert found.shape == (k,)
    half = k // 2
    near = {d for d in range(1, n) if min(d, n - d) <= half}
    assert set(found.tolist()) == near | ({n // 2} if k % 2 else set())
    assert (np.diff(found) > 0).all()


@pytest.mark.parametrize(("n", "k"), GRAPHS)
def test_the_graph_is_regular_symmetric_and_has_no_loops(n, k):
    slots, order = graph(n, k)
    assert slots.shape == (n, k)
    assert slots.dtype == np.int32
    adjacency = np.zeros((n, n), bool)
    adjacency[np.arange(n)[:, None], slots] = True
    assert (adjacency.sum(1) == k).all()
    assert (adjacency == adjacency.T).all()
    assert not adjacency.diagonal().any()
    # Neighbours are near on the ring of the order, or opposite.
    position = np.argsort(order)
    distance = np.abs(position[:, None] - position)
    distance = np.minimum(distance, n - distance)
    near = (distance <= k // 2) & (distance > 0)
    assert (adjacency == near | ((distance == n // 2) if k % 2 else False)).all()


@pytest.mark.parametrize(("n", "k"), GRAPHS)
def test_the_reverse_slot_leads_back(n, k):
    slots, _ = graph(n, k)
    reverse = reverse_slots(n, k)
    assert reverse.dtype == np.int32
    for slot in range(k):
        back = slots[slots[:, slot], reverse[slot]]
        assert (back == np.arange(n)).all()
    assert (reverse[reverse] == np.arange(k)).all()


@pytest.mark.parametrize("n", [2, 3, 8, 9])
def test_the_complete_graph_joins_everybody_in_any_order(n):
    in_order = neighbours(jnp.arange(n, dtype=jnp.int32), n - 1)
    others = [[j for j in range(n) if j != i] for i in range(n)]
    assert np.sort(in_order, axis=1).tolist() == others
    assert np.sort(graph(n, n - 1)[0], axis=1).tolist() == others


def test_the_neighbours_of_a_ring_can_be_read_off():
    order = jnp.array([2, 0, 3, 1, 4], jnp.int32)
    assert neighbours(order, 2).tolist() == [[3, 2], [4, 3], [0, 4], [1, 0], [2, 1]]


def test_everything_compiles_and_vectorises():
    n, k = 100, 16
    orders = jnp.stack([permutation(seed(i), n) for i in range(3)])
    graphs = jax.jit(jax.vmap(lambda order: neighbours(order, k)))(orders)
    assert graphs.dtype == jnp.int32
    for row, order in zip(graphs, orders):
        np.testing.assert_array_equal(row, neighbours(order, k))


def test_a_permutation_sorts_pairs_of_chacha20_words():
    """Against OpenSSL's keystream."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

    n, key = 100, seed(1)
    cipher = Cipher(algorithms.ChaCha20(np.asarray(key).tobytes(), bytes(16)), mode=None)
    words = np.frombuffer(cipher.encryptor().update(bytes(8 * n)), "<u4").reshape(n, 2)
    pairs = words.astype(np.uint64) @ np.array([2**32, 1], np.uint64)
    assert permutation(key, n).tolist() == np.argsort(pairs, kind="stable").tolist()


def test_permutations_are_uniform():
    """Chi-square over the 24 orders of four clients; a false alarm has probability 1e-6."""
    draws = 24_000
    seeds = jnp.asarray(np.random.default_rng(7).integers(2**32, size=(draws, 8), dtype=np.uint32))
    orders = np.asarray(jax.jit(jax.vmap(lambda s: permutation(s, 4)))(seeds))
    codes = orders @ np.array([64, 16, 4, 1])
    every = [np.dot(p, [64, 16, 4, 1]) for p in itertools.permutations(range(4))]
    counts = np.array([(codes == code).sum() for code in every])
    assert counts.sum() == draws
    limit = scipy.stats.chi2.isf(1e-6, 23)
    statistic = np.sum((counts - draws / 24) ** 2) / (draws / 24)
    assert statistic < limit
    # The control: the naive shuffle, which swaps each position with any, is found out.
    rng = np.random.default_rng(0)
    naive = np.tile(np.arange(4), (draws, 1))
    rows = np.arange(draws)
    for i in range(4):
        j = rng.integers(4, size=draws)
        naive[rows, i], naive[rows, j] = naive[rows, j], naive[rows, i].copy()
    counts = np.array([(naive @ np.array([64, 16, 4, 1]) == code).sum() for code in every])
    assert np.sum((counts - draws / 24) ** 2) / (draws / 24) > limit


def test_the_seed_is_the_hash_that_its_docstring_says():
    n, beacon, keys = 6, random_words(8), random_words(6, 2, 8)
    digests = [hashlib.sha256(row.astype("<u4").tobytes()).digest() for row in keys]
    head = b"fedjax_agg/v1/neighbours\0" + n.to_bytes(4, "big") + (64).to_bytes(4, "big")
    digest = hashlib.sha256(head + beacon.astype("<u4").tobytes() + b"".join(digests)).digest()
    found = permutation_seed(jnp.asarray(beacon), jnp.asarray(keys))
    assert found.dtype == jnp.uint32
    np.testing.assert_array_equal(found, np.frombuffer(digest, "<u4"))


def test_the_seed_depends_on_the_beacon_on_every_key_and_on_their_order():
    n = 6
    beacon, keys = random_words(8), random_words(n, 2, 8)
    other_beacon, swapped = beacon.copy(), keys.copy()
    other_beacon[7] ^= 1 << 31
    swapped[[0, 1]] = swapped[[1, 0]]
    inputs = [(beacon, keys), (other_beacon, keys), (beacon, swapped)]
    for i in range(n):
        changed = keys.copy()
        changed[i, i % 2, 7 - i] ^= 1
        inputs.append((beacon, changed))
    seeds = {tuple(permutation_seed(*map(jnp.asarray, pair)).tolist()) for pair in inputs}
    assert len(seeds) == len(inputs)


def test_a_server_that_chooses_the_order_surrounds_a_victim_and_the_beacon_prevents_it():
    """A fifth is corrupt. The victim's neighbours are all corrupt where the server orders, and
    more than ten of sixteen in none of 200 graphs from seeds: the bound is 200 * 9e-6."""
    n, k, corrupt, victim = 100, 16, np.arange(20), 57
    order = np.setdiff1d(np.arange(n), [*corrupt[:k], victim])
    chosen = np.concatenate([corrupt[: k // 2], [victim], corrupt[k // 2 : k], order])
    surrounded = neighbours(jnp.asarray(chosen, jnp.int32), k)[victim]
    assert np.isin(surrounded, corrupt).all()

    drawn = [neighbours(permutation(seed(i), n), k)[victim] for i in range(200)]
    assert np.isin(np.stack(drawn), corrupt).sum(1).max() <= 10
