"""The tag of a sum: what it is, that it adds up, and that what is added to a sum shows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_agg.symmetric.chacha20 import keystream
from fedjax_agg.symmetric.homomorphic_mac import TAG_WORDS, tag

KEY = jnp.asarray(np.random.default_rng(0).integers(2**32, size=8, dtype=np.uint32))


def random_words(*shape, seed=0):
    rng = np.random.default_rng([seed, *shape])
    return rng.integers(2**32, size=shape, dtype=np.uint32)


def key_bits(key, count):
    """The string of the key, as Python integers."""
    words = keystream(key, np.zeros(3, np.uint32), -(-count // 32))
    return [int(word) >> i & 1 for word in np.asarray(words) for i in range(32)]


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("length", [0, 1, 32, 33, 10_000])
def test_the_tag_is_that_of_python_integers(length):
    words = random_words(length)
    bits = key_bits(KEY, length + TAG_WORDS)
    expected = [
        sum(bits[j + c] * int(word) for j, word in enumerate(words)) % 2**32
        for c in range(TAG_WORDS)
    ]
    assert np.asarray(tag(KEY, jnp.asarray(words))).tolist() == expected


@pytest.mark.slow
def test_tags_add_up_in_every_ring():
    """Reduced words have the reduced tag, and sums of words the sum of the tags."""
    words = random_words(5, 40)
    tags = np.asarray(jax.vmap(tag, (None, 0))(KEY, jnp.asarray(words)))
    total = np.sum(words, axis=0, dtype=np.uint32)
    for bits in (1, 13, 32):
        reduced = jnp.asarray(total & np.uint32(2**bits - 1))
        difference = np.asarray(tag(KEY, reduced)) - np.sum(tags, axis=0, dtype=np.uint32)
        assert not (difference & np.uint32(2**bits - 1)).any()


def test_each_word_of_a_tag_sees_the_worst_change_for_half_of_the_keys():
    """That is 2^(m-1), and each word sees it or not on its own: 64 fair coins.

    A product with a key in the ring would miss it as a whole for half of them. Bounds at five
    standard errors.
    """
    count, bits = 4096, 13
    change = np.zeros(40, np.uint32)
    change[[3, 17, 39]] = np.uint32(2 ** (bits - 1)) * np.array([1, 2, 1], np.uint32)
    keys = jnp.asarray(random_words(count, 8, seed=1))
    tags = np.asarray(jax.jit(jax.vmap(tag, (0, None)))(keys, jnp.asarray(change)))
    unseen = (tags & np.uint32(2**bits - 1)) == 0
    assert abs(unseen.mean(axis=0) - 0.5).max() < 5 * 0.5 / np.sqrt(count)
    number = unseen.sum(axis=1)
    assert abs(number.var() - TAG_WORDS / 4) < 5 * (TAG_WORDS / 4) * np.sqrt(2 / count)


@pytest.mark.parametrize("length", [1, 2, 50])
def test_the_parities_of_any_change_are_independent(length):
    """Over the bits of the key they are a matrix of full rank: no guess is better than 2^-64."""
    rng = np.random.default_rng(length)
    for _ in range(20):
        odd = rng.random(length) < rng.random()
        odd[rng.integers(length)] = True
        matrix = np.zeros((TAG_WORDS, length + TAG_WORDS), bool)
        for c in range(TAG_WORDS):
            matrix[c, c : c + length] = odd
        assert rank_of_bits(matrix) == TAG_WORDS


def rank_of_bits(matrix):
    """The rank modulo two, by elimination."""
    rows, rank = [int("".join(map(str, row.astype(int))), 2) for row in matrix], 0
    while rows:
        pivot = rows.pop()
        if pivot:
            rank += 1
            low = pivot & -pivot
            rows = [row ^ pivot if row & low else row for row in rows]
    return rank
