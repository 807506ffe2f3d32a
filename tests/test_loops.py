"""The loops people have: compositions with optax, runs that Orbax saves and resumes, Flax models.

What ``secure_aggregate`` does on its own is in ``test_secure_aggregate.py``.
"""

import functools
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import fedjax_agg as fa
from fedjax_agg import federated
from tests.compiler import QUICK_COMPILER
from tests.federated import problem
from tests.sessions import any_session

ROOT = Path(__file__).parent.parent
N, EXAMPLES, D = 4, 6, 3
ROUNDS = 5
LEVELS = 2**14
PARAMS = {"w": jnp.zeros(D), "b": jnp.zeros(())}


def make_codec(rounding):
    return fa.FixedPoint(8.0, LEVELS, max_levels=LEVELS, rounding=rounding)


STEP = 8.0 / LEVELS
NEAREST = make_codec("nearest")


def data(seed=0):
    """Inputs and targets of every client, [N, EXAMPLES, D] and [N, EXAMPLES]."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(N, EXAMPLES, D)).astype(np.float32)
    y = x @ np.array([1.0, -2.0, 0.5], np.float32) + 0.25
    return jnp.asarray(x), jnp.asarray(y)


def loss(params, x, y):
    """Of one example."""
    return 0.5 * (x @ params["w"] + params["b"] - y) ** 2


def gradients_of_examples(params, x, y):
    return jax.vmap(jax.grad(loss), (None, 0, 0))(params, x, y)


def assert_close(found, expected, tolerance):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance), found, expected)


def assert_identical(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), found, expected)


# ---- optax --------------------------------------------------------------------------------------


def aggregate(codec=NEAREST, protocol=fa.Plain()):
    return fa.secure_aggregate(codec, protocol, num_clients=N)


@pytest.mark.default_dtypes
def test_multi_steps_inside_each_client_accumulates_what_it_sends():
    """Three batches of two examples make one upload, that of all six."""
    batches = 3
    local = optax.MultiSteps(optax.identity(), batches)

    def client(x, y):
        state = local.init(PARAMS)
        for batch in range(batches):
            rows = slice(2 * batch, 2 * batch + 2)
            grads = gradients_of_examples(PARAMS, x[rows], y[rows])
            update, state = local.update(jax.tree.map(lambda g: g.mean(0), grads), state, PARAMS)
        return update

    rule = optax.chain(aggregate(), optax.sgd(1.0))
    with jax.numpy_dtype_promotion("standard"):
        updates = jax.jit(jax.vmap(client))(*data())
    change, _ = rule.update(updates, rule.init(PARAMS), PARAMS, session=any_session(N))
    x, y = data()
    together = gradients_of_examples(PARAMS, x.reshape(-1, D), y.reshape(-1))
    assert_close(change, jax.tree.map(lambda g: -g.mean(0), together), STEP)


@pytest.mark.slow
@pytest.mark.default_dtypes
def test_a_failed_round_does_not_count_among_the_steps_of_multi_steps():
    """Inside ``apply_if_ok``, the accumulator and its count stay as they were."""
    every_two = optax.MultiSteps(optax.sgd(1.0), 2).gradient_transformation()
    rule = fa.apply_if_ok(aggregate(), every_two)
    grads = jax.vmap(
        lambda x, y: jax.tree.map(lambda g: g.mean(0), gradients_of_examples(PARAMS, x, y))
    )(*data())
    state, changes = rule.init(PARAMS), []
    with jax.numpy_dtype_promotion("standard"):
        for r, alive in enumerate([True, False, True]):
            change, state = rule.update(
                grads,
                state,
                PARAMS,
                session=any_session(N, r),
                participation=jnp.full(N, alive),
            )
            changes.append(change)
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    assert_identical(changes[0], zeros)
    assert_identical(changes[1], zeros)
    assert_close(changes[2], jax.tree.map(lambda g: -g.mean(0), grads), STEP)


def private(noise, key):
    return optax.contrib.differentially_private_aggregate(0.5, noise, key=key)


def private_updates(noise, keys):
    """What the clients send: clipped and noised by example, each with a key of its own."""

    def client(key, x, y):
        rule = private(noise, key)
        grads = gradients_of_examples(PARAMS, x, y)
        return rule.update(grads, rule.init(PARAMS))[0]

    with jax.numpy_dtype_promotion("standard"):
        return jax.vmap(client)(keys, *data())


@pytest.mark.slow
@pytest.mark.default_dtypes
def test_per_example_privacy_inside_each_client():
    """Gradients of examples are clipped before anything is added; every client adds noise."""
    keys = jax.random.split(jax.random.key(0), N)
    rule = optax.chain(aggregate(), optax.sgd(1.0))

    def change(noise):
        updates = private_updates(noise, keys)
        return rule.update(updates, rule.init(PARAMS), PARAMS, session=any_session(N))[0]

    x, y = (np.asarray(leaf, np.float64).reshape(N * EXAMPLES, -1) for leaf in data())
    rows = np.concatenate([-y * x, -y], axis=1)  # of 1/2 (w x + b - y)^2 at zero
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    clipped = (rows * np.minimum(1, 0.5 / norms)).mean(0)
    assert_close(change(0.0), {"w": -clipped[:D], "b": -clipped[D]}, STEP)
    # The control: the clip does something.
    assert np.abs(clipped - rows.mean(0)).max() > 0.1


@pytest.mark.slow
@pytest.mark.default_dtypes
def test_the_noise_of_the_clients_adds_up():
    """Its deviation in the mean is 0.5 sigma / (sqrt(N) EXAMPLES); 800 draws, 5 standard errors."""
    sigma, repeats = 2.0, 200

    @jax.jit
    def noise(keys):
        noisy, silent = private_updates(sigma, keys), private_updates(0.0, keys)
        return jax.tree.map(jnp.subtract, noisy, silent)

    keys = jax.random.split(jax.random.key(1), (repeats, N))
    drawn = jax.vmap(noise)(keys)
    codec = fa.FixedPoint(64.0, LEVELS, max_levels=LEVELS)
    sessions = jax.vmap(
        lambda r: fa.simulated_session(fa.fixed_seed(0), num_clients=N, round_id=r)
    )(jnp.arange(repeats, dtype=jnp.uint32))
    means, _ = jax.vmap(lambda d, s: fa.secure_mean(d, s, codec=codec))(drawn, sessions)
    values = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(means)])
    expected = 0.5 * sigma / (N**0.5 * EXAMPLES)
    error = 1 / np.sqrt(2 * values.size)
    assert abs(values.std() / expected - 1) < 5 * error
    # No two clients of a round have drawn the same.
    assert len(np.unique(np.asarray(drawn["b"]))) == repeats * N


def test_per_example_privacy_is_refused_wherever_it_hides_behind_the_aggregation():
    dp = private(0.1, jax.random.key(0))
    hidden = optax.MultiSteps(optax.chain(dp, optax.sgd(0.1)), 2).gradient_transformation()
    with pytest.raises(ValueError, match=r"inside the client.*\[optax-privacy\]"):
        fa.apply_if_ok(aggregate(), hidden).init(PARAMS)


def test_per_example_privacy_before_the_aggregation_is_refused():
    """It takes clients for examples and hands over one update, which is no update of clients."""
    rule = optax.chain(private(0.1, jax.random.key(0)), aggregate())
    grads = jax.tree.map(lambda p: jnp.ones((N, *p.shape)), PARAMS)
    with (
        jax.numpy_dtype_promotion("standard"),
        pytest.raises(ValueError, match=r"one row each.*\[optax-order\]"),
    ):
        rule.update(grads, rule.init(PARAMS), PARAMS, session=any_session(N))


# ---- Orbax --------------------------------------------------------------------------------------


class InterruptedRunError(Exception):
    """What ends a run."""


@functools.cache
def make_round(rounding="stochastic", protocol=fa.Plain()):
    """The initial state, and a compiled round in which a client is lost now and then."""
    rule = fa.apply_if_ok(aggregate(make_codec(rounding), protocol), optax.adam(0.1))

    @jax.jit
    def one_round(params, state, seed, r):
        session = fa.simulated_session(seed, num_clients=N, round_id=r)
        grads = jax.vmap(gradients_of_examples, (None, 0, 0))(params, *data())
        grads = jax.tree.map(lambda g: g.mean(1), grads)
        lost = r % jnp.uint32(N + 1)
        alive = jnp.arange(N, dtype=jnp.uint32) != lost
        with jax.numpy_dtype_promotion("standard"):
            change, state = rule.update(grads, state, params, session=session, participation=alive)
        return optax.apply_updates(params, change), state

    return rule.init(PARAMS), one_round


def train(directory, seed, *configuration, stop=None, end=lambda: None):
    """From the last saved round on, one checkpoint a round; ``end()`` is called in round ``stop``.

    What is saved is the parameters and the optimizer's state; the step of the checkpoint is the
    number of the round.
    """
    state, one_round = make_round(*configuration)
    params = PARAMS
    with ocp.CheckpointManager(directory) as manager:
        first, last = 0, manager.latest_step()
        if last is not None:
            like = {"params": params, "state": state}
            saved = manager.restore(last, args=ocp.args.StandardRestore(like))
            params, state, first = saved["params"], saved["state"], last + 1
        for r in range(first, ROUNDS):
            params, state = one_round(params, state, seed, jnp.uint32(r))
            if r == stop:
                end()
            saved = {"params": params, "state": state}
            manager.save(r, args=ocp.args.StandardSave(saved))
    return params, state


def interrupted():
    raise InterruptedRunError


def resumed(directory, seed, later_seed, stop, *configuration):
    """A run that ends in round ``stop``, before it saves that round, and another to its end."""
    with pytest.raises(InterruptedRunError):
        train(directory, seed, *configuration, stop=stop, end=interrupted)
    return train(directory, later_seed, *configuration)


@pytest.mark.default_dtypes
@pytest.mark.parametrize(
    "stop", [1, *(pytest.param(i, marks=pytest.mark.slow) for i in range(ROUNDS) if i != 1)]
)
def test_a_run_interrupted_at_any_round_resumes_bit_for_bit(stop, tmp_path):
    """Stochastic rounding draws from the session: the same seed makes those of later rounds."""
    seed = fa.fixed_seed(3)
    straight = train(tmp_path / "straight", seed)
    assert_identical(resumed(tmp_path / "resumed", seed, seed, stop), straight)
    # The control: with another seed stochastic rounding falls otherwise.
    if stop == 1:
        other, _ = resumed(tmp_path / "other", seed, fa.fixed_seed(4), stop)
        assert not np.array_equal(other["w"], straight[0]["w"])
        assert_close(other, straight[0], 0.01)


@pytest.mark.slow
@pytest.mark.default_dtypes
@pytest.mark.parametrize(
    "protocol", [fa.Plain(), pytest.param(fa.SecAgg(2), marks=pytest.mark.slow)], ids=str
)
def test_with_nearest_rounding_even_a_new_seed_resumes_bit_for_bit(protocol, tmp_path):
    """No seed need be stored: masks of other keys cancel as those of the old ones would have."""
    configuration = ("nearest", protocol)
    straight = train(tmp_path / "straight", fa.fixed_seed(3), *configuration)
    assert bool(straight[1].aggregate.report.ok)
    for stop in range(1, ROUNDS, 2):
        path = tmp_path / str(stop)
        again = resumed(path, fa.fixed_seed(3), fa.root_seed(), stop, *configuration)
        assert_identical(again, straight)


@pytest.mark.slow
@pytest.mark.parametrize("stop", [1, 3])
def test_a_process_that_is_killed_resumes_bit_for_bit(stop, tmp_path):
    """SIGKILL in the middle of a round, while the checkpoint of the one before may be half done."""
    program = f"""
import os, signal, jax
import fedjax_agg as fa
from tests.test_loops import train
kill = lambda: os.kill(os.getpid(), signal.SIGKILL)
train({str(tmp_path / "killed")!r}, fa.fixed_seed(3), stop={stop}, end=kill)
"""
    flags = os.environ.get("XLA_FLAGS", QUICK_COMPILER)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": flags}
    killed = subprocess.run([sys.executable, "-c", program], env=environment, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    straight = train(tmp_path / "straight", fa.fixed_seed(3))
    assert_identical(train(tmp_path / "killed", fa.fixed_seed(3)), straight)


@pytest.mark.slow
def test_a_federated_run_resumes_bit_for_bit(tmp_path):
    """``federated.train`` in pieces, each by a program that knows only what Orbax has kept."""
    algorithm = federated.Scaffold(
        problem.loss, 0.25, population=problem.N, codec=make_codec("stochastic")
    )
    clients = problem.client_data(*problem.examples(dyadic=True))
    start = straight = algorithm.init(problem.tree(np.zeros(problem.D)))

    def run(state, first):
        return federated.train(
            algorithm,
            state,
            clients,
            fa.fixed_seed(5),
            num_rounds=2,
            cohort=3,
            dropout=0.3,
            start_round=first,
        )[0]

    for first in (0, 2, 4):
        straight = run(straight, first)
        with ocp.CheckpointManager(tmp_path) as manager:
            last = manager.latest_step()
            like = ocp.args.StandardRestore(start)
            state = start if last is None else manager.restore(last, args=like)
            manager.save(first + 2, args=ocp.args.StandardSave(run(state, last or 0)))
    with ocp.CheckpointManager(tmp_path) as manager:
        assert_identical(manager.restore(6, args=like), straight)
    assert np.abs(straight.client_controls["w"]).max() > 0.1


# ---- Flax ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.default_dtypes
@pytest.mark.parametrize("name", ["flax_nnx", "flax_linen"])
def test_the_example_learns_and_prints_a_short_table(name, capsys):
    main = runpy.run_path(str(ROOT / "examples" / f"{name}.py"))["main"]
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        main()
    *rows, last = capsys.readouterr().out.splitlines()
    assert len(rows) < 10
    assert last.startswith("test accuracy ")
    assert float(last.split()[-1]) > 0.9
