"""A client without data, with a weight of zero, with NaN; a round without anybody."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_agg.federated import FedAdam, FedAvg, FedSGD, MimeLite, Scaffold
from tests.federated.problem import (
    FINE,
    N,
    client_data,
    examples,
    loss,
    same_bits,
    tree,
    vector,
)
from tests.sessions import any_session

START = np.array([1.0, -0.5, 0.25])


@functools.cache
def algorithm(name):
    """Cached, so that the cases of one algorithm share a program."""
    shared = {"codec": FINE}
    return {
        "fed_sgd": lambda: FedSGD(loss, optax.sgd(0.5, momentum=0.5), **shared),
        "fed_avg": lambda: FedAvg(loss, optax.sgd(0.5), epochs=2, **shared),
        "fed_adam": lambda: FedAdam(loss, optax.sgd(0.5), **shared),
        "scaffold": lambda: Scaffold(loss, 0.5, population=N, **shared),
        "mime_lite": lambda: MimeLite(loss, optax.sgd(0.5, momentum=0.5), **shared),
    }[name]()


ALL = ["fed_sgd", "fed_avg", "fed_adam", "scaffold", "mime_lite"]
SLOPES, TARGETS = examples(dyadic=False)


def two_rounds(name, data, participation):
    """A round of everybody with good data, and then this one: the states of both."""
    rule = algorithm(name)
    everybody = jnp.ones(N, bool)
    before, _, report = rule.step(
        rule.init(tree(START)), GOOD, any_session(N), participation=everybody
    )
    assert bool(report.ok)
    return before, *rule.step(before, data, any_session(N, 1), participation=participation)


GOOD = client_data(SLOPES, TARGETS)
ALIVE = jnp.ones(N, bool)


def spoilt(what):
    """Client 2 with bad data; all targets bad, or one."""
    slopes, targets = GOOD.examples
    if what == "no data":
        return GOOD._replace(counts=GOOD.counts.at[2].set(0))
    # Beyond float32 once it is squared, but a gradient of numbers.
    value = {"NaN": jnp.nan, "infinity": jnp.inf, "overflow": 1e30}[what]
    return GOOD._replace(examples=(slopes, targets.at[2, 0, 1].set(value)))


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("what", ["no data", "NaN", "infinity", "overflow"])
def test_a_client_that_has_nothing_to_say_is_as_a_dropped_one(name, what):
    _, state, metrics, report = two_rounds(name, spoilt(what), ALIVE)
    _, wanted, wanted_metrics, wanted_report = two_rounds(name, GOOD, jnp.arange(N) != 2)
    same_bits(state, wanted)
    same_bits(metrics, wanted_metrics)
    assert bool(report.ok)
    assert float(report.total_weight) == float(wanted_report.total_weight)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(state))
    # The server is not told who it was: the upload is one of many.
    assert report.survivors.all()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("what", ["all dropped", "no data anywhere", "all NaN", "only NaN left"])
def test_a_round_of_nobody_leaves_the_whole_state_as_it_was(name, what):
    data, alive = GOOD, ALIVE
    if what == "all dropped":
        alive = ~ALIVE
    elif what == "no data anywhere":
        data = GOOD._replace(counts=jnp.zeros_like(GOOD.counts))
    elif what == "all NaN":
        data = GOOD._replace(examples=jax.tree.map(lambda x: x * jnp.nan, GOOD.examples))
    else:
        data, alive = spoilt("NaN"), jnp.arange(N) == 2
    before, state, metrics, report = two_rounds(name, data, alive)
    assert not bool(report.ok)
    same_bits(state, before)
    assert [float(x) for x in metrics] == [0.0, 0.0, 0.0]
    assert (vector(before.params) != START).all()


def test_only_the_survivors_of_scaffold_change_their_variates():
    alive = jnp.array([True, False, True, True, True])
    before, state, _, _ = two_rounds("scaffold", spoilt("NaN"), alive)
    changed = (vector(state.client_controls) != vector(before.client_controls)).all(axis=1)
    assert changed.tolist() == [True, False, False, True, True]


def test_differentiated_forward_a_client_with_nan_is_not_there():
    """The change itself is in the slope, through the rate of the clients and of the server."""

    @jax.jit
    @jax.jacfwd
    def slope(rate, data, alive):
        rule = Scaffold(loss, rate, population=N, codec=FINE, server_rate=2.0 * rate)
        state, _, _ = rule.step(rule.init(tree(START)), data, any_session(N), participation=alive)
        return state.params

    rate = jnp.float32(0.25)
    found = slope(rate, spoilt("NaN"), ALIVE)
    same_bits(found, slope(rate, GOOD, jnp.arange(N) != 2))
    assert (vector(found) != 0.0).all()
