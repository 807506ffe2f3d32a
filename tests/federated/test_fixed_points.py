"""On quadratics the limits have closed forms: FedAvg's is biased, SCAFFOLD's is the optimum.

With f_i(x) = a_i / 2 (x - m_i)^2 and K local steps of rate r, the change of client i is
s_i (m_i - x) with s_i = 1 - (1 - r a_i)^K. So FedAvg stays where sum w_i s_i (m_i - x) = 0, and the
optimum is where sum w_i a_i (m_i - x) = 0.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_agg as fa
from fedjax_agg.federated import FedAvg, FedProx, FedSGD, MimeLite, Scaffold, train
from tests.federated.problem import COUNTS, FINE, N, client_data, examples, loss, tree, vector

RATE, STEPS, MU = 0.4, 3, 0.75
SLOPES, TARGETS = examples(dyadic=False)
A = np.stack([slopes[0] for slopes in SLOPES])
MEANS = np.stack([targets.mean(axis=0) for targets in TARGETS])
WEIGHTS = COUNTS[:, None].astype(float)


def centre(pulls):
    return np.sum(pulls * MEANS, axis=0) / np.sum(pulls, axis=0)


OPTIMUM = centre(WEIGHTS * A)
LOCAL = 1 - (1 - RATE * A) ** STEPS
PROXIMAL = (1 - (1 - RATE * (A + MU)) ** STEPS) * A / (A + MU)


def limit(algorithm, **arguments):
    data = client_data(SLOPES, TARGETS)
    start = tree(np.array([1.0, -1.0, 0.0]))
    state, _, report = train(
        algorithm, algorithm.init(start), data, fa.fixed_seed(0), num_rounds=300, **arguments
    )
    assert report.ok.all()
    return vector(state.params)


CLIENT = optax.sgd(RATE)
SHARED = {"codec": FINE, "epochs": STEPS}


def test_fed_avg_ends_at_the_biased_point_of_k_local_steps():
    found = limit(FedAvg(loss, CLIENT, **SHARED))
    np.testing.assert_allclose(found, centre(WEIGHTS * LOCAL), atol=1e-4)
    # The control: that is far from the optimum.
    assert np.abs(found - OPTIMUM).max() > 0.02


def test_weights_of_one_make_it_the_point_of_uniform_weights():
    found = limit(FedAvg(loss, CLIENT, max_weight=1, **SHARED))
    np.testing.assert_allclose(found, centre(LOCAL), atol=1e-4)
    assert np.abs(found - centre(WEIGHTS * LOCAL)).max() > 0.02


@pytest.mark.slow
def test_one_local_step_has_no_bias():
    found = limit(FedAvg(loss, CLIENT, codec=FINE, epochs=1))
    np.testing.assert_allclose(found, OPTIMUM, atol=1e-4)
    found = limit(FedSGD(loss, optax.sgd(RATE), codec=FINE))
    np.testing.assert_allclose(found, OPTIMUM, atol=1e-4)


def test_fed_prox_ends_at_its_own_point():
    found = limit(FedProx(loss, CLIENT, mu=MU, **SHARED))
    np.testing.assert_allclose(found, centre(WEIGHTS * PROXIMAL), atol=1e-4)
    assert np.abs(found - centre(WEIGHTS * LOCAL)).max() > 1e-3


def test_mime_lite_without_statistics_is_fed_avg():
    found = limit(MimeLite(loss, CLIENT, **SHARED))
    np.testing.assert_allclose(found, centre(WEIGHTS * LOCAL), atol=1e-4)


SOME = [{"cohort": 3}, {"dropout": 0.3}]


@pytest.mark.parametrize(
    "arguments", [{}, *(pytest.param(some, marks=pytest.mark.slow) for some in SOME)]
)
def test_scaffold_reaches_the_optimum(arguments):
    """That of the clients' mean, also where only a part of them is in each sum."""
    found = limit(Scaffold(loss, RATE, population=N, **SHARED), **arguments)
    np.testing.assert_allclose(found, centre(A), atol=1e-4)
    assert np.abs(found - centre(LOCAL)).max() > 0.02


def test_the_slope_of_the_limit_in_the_data_is_that_of_the_closed_form():
    """A run is differentiable from end to end, through rounding and all."""
    data = client_data(SLOPES, TARGETS, padding=0.0)
    algorithm = FedAvg(loss, CLIENT, **SHARED)

    def end(shift):
        slopes, targets = data.examples
        moved = data._replace(examples=(slopes, targets.at[0].add(shift)))
        start = algorithm.init(tree(np.zeros(3)))
        state, _, _ = train(algorithm, start, moved, fa.fixed_seed(0), num_rounds=40)
        return jnp.concatenate([state.params["w"], state.params["b"][None]])

    slope = jax.jit(jax.jacfwd(end))(jnp.float32(0))
    pulls = WEIGHTS * LOCAL
    np.testing.assert_allclose(slope, pulls[0] / pulls.sum(axis=0), atol=1e-3)
