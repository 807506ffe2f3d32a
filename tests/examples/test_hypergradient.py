"""The example of hypergradients: its reference, its check, and that the check can fail."""

import csv
import json

import hypergradient
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_agg as fa
from tests.parties import QUICKLY


def hyperparameters(clients):
    return {
        "server rate": np.float32(0.5),
        "weights": np.linspace(0.25, 0.75, clients, dtype=np.float32),
        "clip": np.float32(0.5),
    }


def test_the_last_clients_are_spoilt():
    clean, spoilt = (
        hypergradient.deal_digits(4, spoilt, np.random.default_rng(0)) for spoilt in (0, 2)
    )
    np.testing.assert_array_equal(clean[0][0], spoilt[0][0])
    moved = (spoilt[0][1] - clean[0][1]) % 10
    np.testing.assert_array_equal(moved, np.repeat([[0], [0], [1], [1]], 250, axis=1))
    for part in (1, 2):
        np.testing.assert_array_equal(clean[part][1], spoilt[part][1])


def test_the_expected_map():
    """Without rounds it is log 10; with one client's weight it is that client's own training."""
    data = hypergradient.deal_digits(3, 0, np.random.default_rng(1))
    hyper = hyperparameters(3)
    assert hypergradient.expected_loss(hyper, 0, data) == pytest.approx(np.log(10))
    twice = hyper | {"weights": 2 * hyper["weights"]}
    trained = hypergradient.expected_loss(hyper, 2, data)
    assert hypergradient.expected_loss(twice, 2, data) == pytest.approx(trained, rel=1e-12)
    assert trained < 2.2
    only = hyper | {"weights": np.float32([0, 1, 0])}
    alone = ((data[0][0][1:2], data[0][1][1:2]), *data[1:])
    assert hypergradient.expected_loss(only, 2, data) == pytest.approx(
        hypergradient.expected_loss(hyperparameters(1), 2, alone), rel=1e-12
    )


def test_central_differences_know_euler():
    """The mean is homogeneous of degree 0 in the weights: their derivative along them is zero."""
    data = hypergradient.deal_digits(3, 1, np.random.default_rng(1))
    hyper = hyperparameters(3)
    found = hypergradient.central_differences(hyper, 1, data)[1:-1]
    assert abs(found @ hyper["weights"]) < 1e-8 < 1e-3 < np.abs(found).max()


def test_the_check_can_fail():
    """A gradient that is one percent off in one weight is found to be."""
    _, options = hypergradient.parse_arguments(["--clients", "3", "--rounds", "1"])
    data = hypergradient.deal_digits(3, 1, np.random.default_rng(1))
    plan = fa.plan_round(650, num_clients=3, clip=1.0, bits=8, max_weight=256)
    hyper = hyperparameters(3)
    expected = hypergradient.central_differences(hyper, 1, data)

    def gradient(off):
        found = expected + off * np.abs(expected).max() * np.eye(5)[2]
        parts = {"server rate": found[0], "weights": found[1:-1], "clip": found[-1]}
        return lambda hyper, run: (None, parts)

    errors = [
        hypergradient.check_gradient(gradient(off), hyper, options, plan, data, 0)["error"].max()
        for off in (0.0, 0.01)
    ]
    assert errors[0] < 1e-6
    assert errors[1] > 5e-3


@pytest.mark.slow
def test_the_example(capsys, tmp_path):
    """The gradient is that of the expected map to 10^-3, and finds who is spoilt."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        hypergradient.main(["--quick", "--json", "--out", str(tmp_path)])
    result = json.loads(capsys.readouterr().out)
    assert result["gradient_max_relative_error"] < 1e-3
    assert result["highest_weight_spoilt"] < 0.1 < 0.5 < result["lowest_weight_clean"]
    assert result["validation_loss"][1] < 0.7 * result["validation_loss"][0]
    with (tmp_path / "hypergradient.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(16))
    last = [float(rows[-1][f"weight_{client}"]) for client in range(1, 7)]
    np.testing.assert_allclose(last, result["weights"])
    assert float(rows[-1]["clip"]) == pytest.approx(result["clip"][1])
    assert (tmp_path / "hypergradient.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_masks_change_no_gradient(monkeypatch):
    """Law 2 through two rounds: what ``--protocol plain`` shows is what SecAgg gives."""
    monkeypatch.setattr(fa, "compiler_options", lambda: QUICKLY)
    _, options = hypergradient.parse_arguments(["--clients", "3", "--rounds", "2"])
    data = hypergradient.deal_digits(3, 1, np.random.default_rng(0))
    plan = fa.plan_round(650, num_clients=3, clip=0.5, bits=8, max_weight=256)
    hyper = jax.tree.map(jnp.asarray, hyperparameters(3))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        plain, masked = (
            hypergradient.make_map(options, plan, protocol(group=plan.group), data)(hyper, 7)
            for protocol in (fa.Plain, fa.SecAgg)
        )
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(masked)):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_a_descent_cut_in_two_is_the_descent(tmp_path, capsys):
    def rows(folder, steps, *more):
        arguments = ["--clients", "3", "--spoilt", "1", "--rounds", "1", "--json", *more]
        arguments += ["--steps", str(steps), "--out", str(tmp_path / folder)]
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            hypergradient.main(arguments)
        json.loads(capsys.readouterr().out)
        with (tmp_path / folder / "hypergradient.csv").open() as file:
            return list(csv.DictReader(file))

    whole = rows("a", 4)
    assert [row["step"] for row in whole] == ["0", "1", "2", "3", "4"]
    cut = rows("b", 1)
    assert cut == whole[:2]
    assert rows("b", 4, "--resume") == whole
