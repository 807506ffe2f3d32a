"""Every algorithm against its paper: exactly on grid values, closely elsewhere; order, absence."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_agg as fa
from fedjax_agg.federated import (
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedProx,
    FedSGD,
    FedYogi,
    MimeLite,
    Scaffold,
)
from tests.federated.problem import (
    COARSE,
    COUNTS,
    FINE,
    N,
    Reference,
    client_data,
    examples,
    loss,
    run,
    same_bits,
    tree,
    vector,
)
from tests.sessions import any_session

START = np.array([1.0, -0.5, 0.25])
CLIENT = optax.sgd(0.5)
MOMENTS = {"server_rate": 0.25, "tau": 0.125, "b1": 0.9}
LINEAR = {
    "fed_sgd": lambda **k: FedSGD(loss, optax.sgd(0.5), **k),
    "fed_avg": lambda **k: FedAvg(loss, CLIENT, epochs=2, **k),
    "fed_avg_m": lambda **k: FedAvgM(loss, CLIENT, epochs=2, server_rate=0.5, momentum=0.5, **k),
    "fed_prox": lambda **k: FedProx(loss, CLIENT, epochs=2, mu=0.5, **k),
    "mime_lite": lambda **k: MimeLite(loss, optax.sgd(0.5, momentum=0.5), epochs=2, **k),
}
ADAPTIVE = {
    "adagrad": lambda **k: FedAdagrad(loss, CLIENT, epochs=2, **MOMENTS, **k),
    "adam": lambda **k: FedAdam(loss, CLIENT, epochs=2, **MOMENTS, b2=0.95, **k),
    "yogi": lambda **k: FedYogi(loss, CLIENT, epochs=2, **MOMENTS, b2=0.95, **k),
}


ALL = (
    LINEAR
    | ADAPTIVE
    | {
        "scaffold": lambda **k: Scaffold(loss, 0.5, population=N, epochs=2, **k),
    }
)


# Weights of 8 examples, then of 4: divisions by them are exact.
DYADIC = [np.array([0, 1, 2, 3]), np.array([1, 3, 2])]
ANY = [np.array([4, 0, 2]), np.array([1, 3, 4]), np.array([0, 1, 4]), np.array([2, 3, 1])] * 2


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("name", LINEAR)
def test_on_grid_values_the_secure_round_is_the_plain_one_exactly(name):
    slopes, targets = examples(dyadic=True)
    plain = getattr(Reference(slopes, targets), name)(START, DYADIC)
    data = client_data(slopes, targets)
    state, found = run(LINEAR[name](codec=FINE), tree(START), data, DYADIC, any_session)
    np.testing.assert_array_equal(vector(state.params), plain)
    assert [float(report.total_weight) for _, report in found] == [8.0, 4.0]


@pytest.mark.slow
def test_on_grid_values_scaffold_is_the_plain_one_exactly():
    """With four clients, so that the part of all clients in a sum is dyadic too."""
    cohorts = [np.array([0, 1, 2, 3]), np.array([3, 0])]
    slopes, targets = (rows[:4] for rows in examples(dyadic=True))
    x, c, own = Reference(slopes, targets).scaffold(START, cohorts)
    algorithm = Scaffold(loss, 0.5, population=4, epochs=2, codec=FINE)
    data = client_data(slopes, targets)
    state, _ = run(algorithm, tree(START), data, cohorts, any_session)
    np.testing.assert_array_equal(vector(state.params), x)
    np.testing.assert_array_equal(vector(state.control), c)
    np.testing.assert_array_equal(vector(state.client_controls), own)


@pytest.mark.quick_cases(4)
@pytest.mark.parametrize("name", [*LINEAR, *ADAPTIVE])
def test_eight_rounds_follow_the_formulas(name):
    slopes, targets = examples(dyadic=False)
    reference = Reference(slopes, targets)
    if name in LINEAR:
        algorithm, plain = LINEAR[name], getattr(reference, name)(START, ANY)
    else:
        # The paper's experiments with Adagrad have b1 = 0; the formula is tested with any.
        algorithm, plain = ADAPTIVE[name], reference.adaptive(START, ANY, name)
    data = client_data(slopes, targets)
    state, _ = run(algorithm(codec=FINE), tree(START), data, ANY, any_session)
    np.testing.assert_allclose(vector(state.params), plain, atol=2e-4)
    # The control: seven rounds are something else.
    assert np.abs(vector(state.params) - START).max() > 0.1


def test_eight_rounds_of_scaffold_follow_the_formulas():
    slopes, targets = examples(dyadic=False)
    x, c, own = Reference(slopes, targets).scaffold(START, ANY)
    data = client_data(slopes, targets)
    state, _ = run(ALL["scaffold"](codec=FINE), tree(START), data, ANY, any_session)
    np.testing.assert_allclose(vector(state.params), x, atol=2e-4)
    np.testing.assert_allclose(vector(state.control), c, atol=2e-4)
    np.testing.assert_allclose(vector(state.client_controls), own, atol=2e-4)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("name", ALL)
def test_the_order_of_the_cohort_changes_nothing(name):
    """Bit for bit, also off the grid: the sum is one of integers. Full batches draw nothing."""
    slopes, targets = examples(dyadic=False)
    data = client_data(slopes, targets)
    algorithm = ALL[name](codec=COARSE)
    cohorts = [np.array([4, 0, 2]), np.array([1, 3, 4])]
    one, one_found = run(algorithm, tree(START), data, cohorts, any_session)
    other, other_found = run(algorithm, tree(START), data, [c[::-1] for c in cohorts], any_session)
    same_bits(one, other)
    same_bits([m for m, _ in one_found], [m for m, _ in other_found])


def without_row(session, row):
    """The session of a cohort in which one client never was."""

    def drop(x):
        return jnp.delete(x, row, axis=0)

    return dataclasses.replace(
        session,
        client_ids=drop(session.client_ids),
        secrets=drop(session.secrets),
        agreement=drop(session.agreement),
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_a_dropped_client_is_as_one_that_was_never_there(name):
    """With stochastic rounding and shuffled batches, which are each client's own."""
    slopes, targets = examples(dyadic=False)
    data = client_data(slopes, targets)
    shared = {"codec": dataclasses.replace(COARSE, rounding="stochastic")}
    if name != "fed_sgd":  # Which has one step, over everything.
        shared["batch_size"] = 2
    if name != "scaffold":  # Which counts every client once; a largest weight depends on how many.
        shared["max_weight"] = 4
    algorithm = ALL[name](**shared)
    cohort, dropped = jnp.array([4, 0, 2, 1], jnp.int32), 1
    session, state = any_session(4), algorithm.init(tree(START))
    alive = jnp.arange(4) != dropped
    one = algorithm.step(state, data, session, clients=cohort, participation=alive)
    left = jnp.delete(cohort, dropped)
    other = algorithm.step(state, data, without_row(session, dropped), clients=left)
    same_bits(one[:2], other[:2])
    # The control: with the client it is another state.
    everybody = algorithm.step(state, data, session, clients=cohort)
    assert (vector(everybody[0].params) != vector(one[0].params)).any()
    if name == "scaffold":
        assert (vector(one[0].client_controls)[[0, 3]] == 0).all()


@pytest.mark.slow
def test_metrics_are_those_of_the_examples_in_the_sum():
    slopes, targets = examples(dyadic=True)
    data = client_data(slopes, targets)
    x = START
    losses = [np.sum(0.5 * s * (x - t) ** 2, axis=1) for s, t in zip(slopes, targets)]
    correct = [t[:, 0] > 0 for t in targets]
    for max_weight in (None, 2, 1):
        algorithm = FedSGD(
            loss, optax.sgd(0.5), codec=FINE, max_weight=max_weight, max_loss=jnp.float32(32)
        )
        alive = jnp.arange(N) != 1
        _, metrics, report = algorithm.step(
            algorithm.init(tree(x)), data, any_session(N), participation=alive
        )
        there = [0, 2, 3, 4]
        weights = np.minimum(COUNTS[there], max_weight or 4)
        assert float(report.total_weight) == weights.sum()
        assert float(metrics.examples) == pytest.approx(8, rel=1e-5)
        wanted = np.concatenate([losses[i] for i in there]).mean()
        assert float(metrics.loss) == pytest.approx(wanted, abs=1e-3)
        wanted = np.concatenate([correct[i] for i in there]).sum()
        assert float(metrics.correct) == pytest.approx(wanted, abs=1e-3)


@functools.cache
def hyper(kind):
    """The loss after two rounds as a function of a number of the algorithm."""
    slopes, targets = examples(dyadic=False)
    data = client_data(slopes, targets)

    def after(value):
        if kind == "clip":
            codec = fa.FixedPoint(clip=value, rounding="nearest")
            algorithm = FedAvg(loss, CLIENT, codec=codec)
        elif kind == "server_rate":
            algorithm = FedAvgM(loss, CLIENT, codec=FINE, server_rate=value, momentum=0.5)
        else:
            algorithm = FedProx(loss, CLIENT, codec=FINE, mu=value, epochs=3)
        state, _ = run(algorithm, tree(START), data, [np.arange(N)] * 2, any_session)
        return jnp.mean(loss(state.params, (data.examples[0][0], data.examples[1][0]))[0])

    return jax.jit(after), jax.jit(jax.vmap(jax.value_and_grad(after)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["clip", "server_rate", "mu"])
def test_numbers_of_an_algorithm_are_swept_by_vmap_and_differentiated(kind):
    value, both = hyper(kind)
    points = jnp.array([0.25, 0.5], jnp.float32)
    values, slopes = both(points)
    for x, found, slope in zip(points, values, slopes):
        assert float(found) == pytest.approx(float(value(x)), rel=1e-5)
        sides = (value(x + np.float32(0.05)) - value(x - np.float32(0.05))) / 0.1
        assert float(slope) == pytest.approx(float(sides), rel=0.1, abs=5e-3)
        assert abs(float(slope)) > 1e-3


def test_equal_algorithms_share_one_program():
    """Static fields compare, numbers are traced: a new object or rate compiles nothing."""
    traces = []

    def counted(params, batch):
        traces.append(1)
        return loss(params, batch)

    slopes, targets = examples(dyadic=True)
    data = client_data(slopes, targets)
    for rate in (0.5, 0.25):
        algorithm = FedAvgM(counted, CLIENT, codec=COARSE, server_rate=rate)
        run(algorithm, tree(START), data, [np.arange(N)], any_session)
        first = len(traces)
    run(algorithm, tree(START), data, [np.arange(N)] * 2, any_session)
    assert len(traces) == first == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fed_sgd", "fed_avg", "adam", "mime_lite", "scaffold"])
def test_under_sec_agg_it_is_what_it_is_in_the_clear_bit_for_bit(name):
    """One vector or two, a client lost in the first round, stochastic rounding: state, metrics."""
    slopes, targets = examples(dyadic=False)
    data = client_data(slopes, targets)
    batches = {} if name == "fed_sgd" else {"batch_size": 2}
    cohorts, dropped = [np.array([4, 0, 2, 1]), np.array([0, 3, 1, 2])], [0, None]
    found = []
    for protocol in (fa.Plain(), fa.SecAgg(threshold=2)):
        algorithm = ALL[name](codec=fa.FixedPoint(clip=2.0), protocol=protocol, **batches)
        found.append(run(algorithm, tree(START), data, cohorts, any_session, dropped=dropped))
        assert all(bool(report.ok) for _, report in found[-1][1])
    (plain, plain_rounds), (masked, masked_rounds) = found
    same_bits(plain, masked)
    same_bits([m for m, _ in plain_rounds], [m for m, _ in masked_rounds])
