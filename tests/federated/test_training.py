"""A run is its rounds: resumed, written as a loop, with cohorts and dropouts of their own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_agg as fa
from fedjax_agg.federated import FedAvg, FedAvgM, Scaffold, pad_clients, sample_clients, train
from tests import taint
from tests.federated.problem import N, client_data, examples, loss, same_bits, tree, vector

SEED = fa.fixed_seed(5)
CODEC = fa.FixedPoint(clip=4.0)
SHARED = {"codec": CODEC, "epochs": 2, "batch_size": 2}


@functools.cache
def problem(name):
    if name == "scaffold":
        algorithm = Scaffold(loss, 0.25, population=N, **SHARED)
    else:
        algorithm = FedAvgM(loss, optax.sgd(0.25), **SHARED)
    return algorithm, algorithm.init(tree(np.zeros(3))), client_data(*examples(dyadic=False))


@pytest.mark.slow
def test_two_runs_of_five_rounds_are_one_of_ten():
    algorithm, state, data = problem("scaffold")
    shared = {"cohort": 4, "dropout": 0.25}
    ten = train(algorithm, state, data, SEED, num_rounds=10, **shared)
    state, *first = train(algorithm, state, data, SEED, num_rounds=5, **shared)
    state, *then = train(algorithm, state, data, SEED, num_rounds=5, start_round=5, **shared)
    same_bits(ten[0], state)
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, then)
    same_bits(list(ten[1:]), both)
    # The control: without its number the second half would repeat the first.
    again, *_ = train(algorithm, state, data, SEED, num_rounds=5, **shared)
    assert (vector(again.params) != vector(state.params)).any()


@pytest.mark.slow
def test_a_run_is_a_loop_over_steps():
    algorithm, state, data = problem("fed_avg_m")
    scanned, metrics, reports = train(
        algorithm, state, data, SEED, num_rounds=3, cohort=4, dropout=0.25, start_round=7
    )
    for i, r in enumerate(range(7, 10)):
        clients = sample_clients(SEED, N, 4, round_id=r)
        state, here, report = algorithm.step(
            state,
            data,
            fa.simulated_session(SEED, num_clients=4, round_id=r),
            clients=clients,
            participation=fa.drop_clients(SEED, 4, 0.25, round_id=r),
        )
        same_bits(report, jax.tree.map(lambda x, i=i: x[i], reports))
        for a, b in zip(here, metrics):
            np.testing.assert_allclose(a, b[i], rtol=1e-5)
    # Floats may be fused differently in a scan; the integers between them are the same.
    np.testing.assert_allclose(vector(state.params), vector(scanned.params), atol=2e-4)
    assert reports.survivors.sum(axis=1).tolist() == [3, 3, 3]


def quadrants(rng, clients=6, count=30):
    """Points whose class is the sign of a product; most of one class at each client."""
    rows = []
    for client in range(clients):
        labels = (rng.random(count) < (0.8 if client % 2 else 0.2)).astype(np.int32)
        x = rng.uniform(0.1, 1.0, (count, 2)) * rng.choice([-1.0, 1.0], (count, 1))
        x[:, 1] *= np.where(labels == 1, 1.0, -1.0)
        rows.append((x.astype(np.float32), labels))
    return pad_clients(rows)


@pytest.mark.slow
def test_a_run_with_a_network_learns_and_its_metrics_say_so():
    """Any loss and any tree: here layers in a list, with biases in half precision."""
    rng = np.random.default_rng(0)

    def loss(params, batch):
        x, labels = batch
        for i, (weights, bias) in enumerate(params["layers"]):
            x = x @ weights + bias.astype(jnp.float32)[None]
            x = jnp.tanh(x) if i == 0 else x
        losses = optax.softmax_cross_entropy_with_integer_labels(x, labels)
        return losses, (x[:, 1] > x[:, 0]) == (labels == 1)

    shapes = [(2, 16), (16, 2)]
    layers = [
        (jnp.asarray(rng.normal(size=s), jnp.float32), jnp.zeros(s[1], jnp.float16)) for s in shapes
    ]
    algorithm = FedAvg(loss, optax.sgd(0.3), codec=CODEC, epochs=4, batch_size=10)
    state, metrics, _ = train(
        algorithm,
        algorithm.init({"layers": layers}),
        quadrants(rng),
        SEED,
        num_rounds=40,
        cohort=4,
    )
    accuracy = metrics.correct / metrics.examples
    assert float(accuracy[0]) < 0.9 < 0.95 < float(accuracy[-5:].mean())
    assert float(metrics.loss[-1]) < 0.5 * float(metrics.loss[0])
    np.testing.assert_allclose(metrics.examples, 120, rtol=1e-3)
    assert [b.dtype.name for _, b in state.params["layers"]] == ["float16", "float16"]


@pytest.mark.slow
def test_any_optimizer_of_optax_serves_both_ends():
    with jax.numpy_dtype_promotion("standard"):  # adam needs it
        algorithm = FedAvg(loss, optax.adam(0.1), optax.adamw(0.5), codec=CODEC, epochs=3)
        start = algorithm.init(tree(np.full(3, 6.0)))
        data = client_data(*examples(dyadic=False))
        _, metrics, _ = train(algorithm, start, data, SEED, num_rounds=30)
    assert float(metrics.loss[-1]) < 0.2 * float(metrics.loss[0])


@pytest.mark.slow
def test_a_run_is_traced_once_whatever_is_traced_in_it():
    algorithm, state, data = problem("fed_avg_m")
    traces = []

    @jax.jit
    def run(seed, dropout, start_round):
        traces.append(1)
        return train(
            algorithm, state, data, seed, num_rounds=2, dropout=dropout, start_round=start_round
        )

    for number, dropout in ((0, 0.0), (1, 0.5), (2, 1.0)):
        _, _, reports = run(fa.fixed_seed(number), jnp.float32(dropout), jnp.uint32(number))
        left = N - int(np.floor(dropout * N))
        assert reports.survivors.sum(axis=1).tolist() == [left, left]
        assert reports.ok.tolist() == [left > 0] * 2
    assert len(traces) == 1


def test_a_program_does_not_grow_with_its_rounds():
    algorithm, state, data = problem("fed_avg_m")

    def program(num_rounds):
        run = functools.partial(train, algorithm, state, data, num_rounds=num_rounds)
        return jax.make_jaxpr(run)(SEED)

    few, many = program(2), program(2000)
    assert sum(1 for _ in taint.equations(few)) == sum(1 for _ in taint.equations(many)) > 100
