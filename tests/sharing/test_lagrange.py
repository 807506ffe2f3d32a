"""Lagrange coding: the published vector, any U values, and T values that say nothing."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_agg.arithmetic import m31
from fedjax_agg.sharing import lagrange

P = m31.PRIME
MASKS = [[10, 20, 30, 40], [1, 2, 3, 4], [100, 200, 300, 400], [7, 7, 7, 7]]
NOISE = [[11, 12], [21, 22], [31, 32], [41, 42]]
INPUTS = [[5, -6, 7, -8], [1, 1, 1, 1], [2, -2, 2, -2], [1000, 0, 0, -1000]]


def matrix(num_clients, blocks, prime=P):
    """The weights of every client on every block, in Python's integers."""
    alphas = [num_clients + k for k in range(1, blocks + 1)]

    def weight(beta, k):
        top, bottom = 1, 1
        for alpha in alphas:
            if alpha != alphas[k]:
                top = top * (beta - alpha) % prime
                bottom = bottom * (alphas[k] - alpha) % prime
        return top * pow(bottom, -1, prime) % prime

    return [[weight(beta, k) for k in range(blocks)] for beta in range(1, num_clients + 1)]


def encoding(num_clients, blocks):
    nodes = jnp.asarray(lagrange.data_points(num_clients, blocks))
    at = jnp.asarray(lagrange.client_points(num_clients))
    return lagrange.weights(at, nodes, jnp.ones(blocks, bool)).tolist()


def words(rows):
    return jnp.asarray(np.array(rows), jnp.uint32)


def test_weights_of_the_published_vector():
    published = [
        [15, 2147483623, 10],
        [10, 2147483632, 6],
        [6, 2147483639, 3],
        [3, 2147483644, 1],
    ]
    assert encoding(4, 3) == matrix(4, 3) == published


def test_sum_of_the_published_vector():
    """Client 3 is lost before its upload; clients 1, 2 and 4 answer."""
    coded = [lagrange.encode(words(z).reshape(2, 2), words([n]), 4) for z, n in zip(MASKS, NOISE)]
    assert coded[0].tolist() == [
        [2147483187, 2147483107],
        [2147483363, 2147483319],
        [2147483500, 2147483483],
        [2147483598, 2147483599],
    ]
    survivors = jnp.array([True, True, False, True])
    answers = m31.sum(jnp.stack([coded[i] for i in (0, 1, 3)]))
    mask = lagrange.decode(answers, survivors, 2).reshape(-1)
    assert mask.tolist() == [18, 29, 40, 51]
    uploads = [(np.array(x) + z) % P for x, z in zip(INPUTS, MASKS)]
    total = (sum(uploads[i] for i in (0, 1, 3)) - np.asarray(mask).astype(np.int64)) % P
    assert np.where(total > P // 2, total - P, total).tolist() == [1006, -5, 8, -1007]


@pytest.mark.parametrize(("n", "t", "u"), [(5, 2, 4), (6, 1, 3), (7, 3, 7)])
def test_any_u_values_and_any_more_give_the_same_blocks(n, t, u):
    rng = np.random.default_rng(n)
    data, noise = (words(rng.integers(0, P, (rows, 3))) for rows in (u - t, t))
    values = lagrange.encode(data, noise, n)
    for count in range(u, n + 1):
        for present in itertools.combinations(range(n), count):
            here = np.isin(np.arange(n), present)
            # What is absent is never read.
            given = jnp.where(here[:, None], values, np.uint32(2**32 - 1))
            assert lagrange.decode(given, jnp.asarray(here), u - t).tolist() == data.tolist()
    # The control: of one value less follows something else.
    here = jnp.asarray(np.arange(n) < u - 1)
    assert lagrange.decode(values, here, u - t).tolist() != data.tolist()


def rank(rows, prime):
    """Of a square matrix, by elimination over the field."""
    rows, found = [list(row) for row in rows], 0
    for column in range(len(rows)):
        pivot = next((r for r in range(found, len(rows)) if rows[r][column] % prime), None)
        if pivot is None:
            continue
        rows[found], rows[pivot] = rows[pivot], rows[found]
        inverse = pow(rows[found][column], -1, prime)
        for r in range(found + 1, len(rows)):
            factor = rows[r][column] * inverse % prime
            rows[r] = [(a - factor * b) % prime for a, b in zip(rows[r], rows[found])]
        found += 1
    return found


@pytest.mark.parametrize(("n", "t", "u"), [(5, 2, 4), (6, 3, 5), (7, 4, 6)])
def test_the_noise_of_any_t_clients_has_full_rank(n, t, u):
    """So their values are uniform, whatever the data: the library's own weights, all T-subsets."""
    of_noise = [row[u - t :] for row in encoding(n, u)]
    for clients in itertools.combinations(range(n), t):
        assert rank([of_noise[j] for j in clients], P) == t
    # The control: with one value more than there is noise, the data shows.
    assert rank([[*row, 0] for row in of_noise[: t + 1]], P) == t


def test_t_values_have_one_law_for_all_data():
    """Counted over GF(7): two of three clients, one block of data, all values of two of noise."""
    prime, n, t, u = 7, 3, 2, 3
    weights = matrix(n, u, prime)
    for clients in itertools.combinations(range(n), t):
        laws = set()
        for data in range(prime):
            seen = sorted(
                tuple(
                    sum(w * b for w, b in zip(weights[j], (data, *noise))) % prime for j in clients
                )
                for noise in itertools.product(range(prime), repeat=t)
            )
            laws.add(tuple(seen))
        assert laws == {tuple(itertools.product(range(prime), repeat=t))}
