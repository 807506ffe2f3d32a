"""The data of clients, and cohorts: different clients, uniform, another one in each round."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_agg as fa
from fedjax_agg.federated import ClientData, pad_clients, sample_clients

STANDARD_ERRORS = 5


def test_padding_keeps_every_example_and_its_dtype():
    rng = np.random.default_rng(0)
    rows = [
        {"x": rng.normal(size=(k, 2)).astype(np.float32), "y": rng.integers(9, size=k, dtype="i4")}
        for k in (3, 0, 1)
    ]
    data = pad_clients(rows)
    assert data.counts.tolist() == [3, 0, 1]
    assert (data.num_clients, data.max_examples) == (3, 3)
    for i, row in enumerate(rows):
        for name, values in row.items():
            leaf = data.examples[name][i]
            assert leaf.dtype == values.dtype
            np.testing.assert_array_equal(leaf[: len(values)], values)
            assert not np.any(leaf[len(values) :])


def test_a_cohort_is_taken_in_its_order():
    data = ClientData({"x": jnp.arange(8).reshape(4, 2)}, jnp.array([2, 1, 0, 2], jnp.int32))
    taken = data.take(jnp.array([3, 1], jnp.int32))
    assert taken.examples["x"].tolist() == [[6, 7], [2, 3]]
    assert taken.counts.tolist() == [2, 1]


def test_a_cohort_has_no_client_twice_and_every_client_equally_often():
    population, cohort, rounds = 12, 5, 2000
    draw = jax.jit(
        jax.vmap(lambda r: sample_clients(fa.fixed_seed(0), population, cohort, round_id=r))
    )
    found = np.asarray(draw(jnp.arange(rounds, dtype=jnp.uint32)))
    assert found.min() >= 0
    assert found.max() < population
    assert all(len(set(row)) == cohort for row in found.tolist())
    part = cohort / population
    spread = np.sqrt(rounds * part * (1 - part))
    counts = np.bincount(found.ravel(), minlength=population)
    assert np.abs(counts - rounds * part).max() < STANDARD_ERRORS * spread
    # In each place of its order, and rounds do not repeat.
    first = np.bincount(found[:, 0], minlength=population)
    spread = np.sqrt(rounds / population * (1 - 1 / population))
    assert np.abs(first - rounds / population).max() < STANDARD_ERRORS * spread
    assert len({tuple(row) for row in found.tolist()}) > 0.95 * rounds


@pytest.mark.slow
def test_a_cohort_follows_from_the_seed_and_the_round_alone():
    one = sample_clients(fa.fixed_seed(3), 50, 50, round_id=2**32 - 1)
    assert sorted(one.tolist()) == list(range(50))
    again = jax.jit(lambda r: sample_clients(fa.fixed_seed(3), 50, 50, round_id=r))(
        jnp.uint32(2**32 - 1)
    )
    np.testing.assert_array_equal(one, again)
    few = sample_clients(fa.fixed_seed(3), 50, 7, round_id=2**32 - 1)
    np.testing.assert_array_equal(few, one[:7])
    assert few.tolist() != sample_clients(fa.fixed_seed(4), 50, 7, round_id=2**32 - 1).tolist()
