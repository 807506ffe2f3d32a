"""The optax end: one update out of the gradients of all clients, and nothing after a failure."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import lax

import fedjax_agg as fa
from fedjax_agg.secure_aggregate import ApplyIfOkState
from tests.sessions import any_session

N = 3
CODEC = fa.FixedPoint(4.0, 2**12, max_levels=2**12, rounding="nearest")
PARAMS = {"w": jnp.array([[0.5, -1.0]]), "b": jnp.array(0.25)}
LOST = jnp.array([True, False, True])


def make_session(number=0):
    return any_session(N, number)


def gradients(seed=0):
    """Multiples of 1/64, which lie on the grid."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda p: jnp.asarray(rng.integers(-64, 65, size=(N, *p.shape)) / 64, jnp.float32), PARAMS
    )


def aggregate(protocol=fa.Plain(), **options):
    return fa.secure_aggregate(CODEC, protocol, num_clients=N, **options)


def adam(rate=0.1):
    return optax.adam(rate)


def updated(rule, grads, state, params=PARAMS, **extra):
    """``rule.update``: the arithmetic of optax's Adam relies on implicit promotion."""
    with jax.numpy_dtype_promotion("standard"):
        return rule.update(grads, state, params, session=make_session(), **extra)


def assert_trees_equal(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), found, expected)


@pytest.mark.parametrize("weights", [None, [1, 0, 5]])
def test_in_a_chain_it_is_the_weighted_mean_of_the_clients(weights):
    rule = optax.chain(aggregate(), optax.sgd(0.5))
    grads, w = gradients(), np.ones(N) if weights is None else np.array(weights)
    extra = {} if weights is None else {"weights": jnp.array(weights)}
    change, state = rule.update(grads, rule.init(PARAMS), PARAMS, session=make_session(), **extra)
    expected = jax.tree.map(lambda g: -0.5 * np.tensordot(w, np.asarray(g), 1) / w.sum(), grads)
    assert jax.tree.map(jnp.shape, change) == jax.tree.map(jnp.shape, PARAMS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-4), change, expected)
    assert isinstance(state[0], fa.SecureAggregateState)
    assert float(state[0].report.total_weight) == w.sum()


def test_it_is_secure_mean_with_every_argument_passed_on():
    arguments = {"weights": jnp.array([3, 1, 2]), "participation": LOST}
    rule = aggregate(max_weight=7)
    change, state = rule.update(gradients(), rule.init(PARAMS), session=make_session(), **arguments)
    mean, report = fa.secure_mean(
        gradients(), make_session(), codec=CODEC, max_weight=7, **arguments
    )
    assert_trees_equal(change, mean)
    assert_trees_equal(state.report, report)
    with pytest.raises(ValueError, match=r"\[weights-range\]"):
        rule.update(gradients(), state, session=make_session(), weights=jnp.array([8, 1, 1]))


@pytest.mark.slow
def test_a_failed_round_moves_nothing():
    """Neither the parameters nor Adam's moments and count; the next round goes on from there."""
    rule = fa.apply_if_ok(aggregate(fa.SecAgg()), adam())
    state = rule.init(PARAMS)
    assert isinstance(state, ApplyIfOkState)
    everybody = jnp.ones(N, bool)
    update = jax.jit(lambda *a: updated(rule, *a[:2], participation=a[2]))
    change, state = update(gradients(), state, everybody)
    assert bool(state.aggregate.report.ok)
    assert all(leaf.any() for leaf in jax.tree.leaves(change))
    nothing, after = update(gradients(1), state, LOST)
    assert not bool(after.aggregate.report.ok)
    assert_trees_equal(nothing, jax.tree.map(jnp.zeros_like, PARAMS))
    assert_trees_equal(after.inner, state.inner)
    assert int(after.inner[0].count) == 1
    np.testing.assert_array_equal(after.aggregate.report.survivors, LOST)
    # The failed round has left no trace: the one after it is as if it had not been.
    straight, _ = update(gradients(2), state, everybody)
    detour, final = update(gradients(2), after, everybody)
    assert_trees_equal(detour, straight)
    assert int(final.inner[0].count) == 2


def test_without_apply_if_ok_a_failed_round_moves_adam():
    """The control: after two steps of rate 0.1, zeros move every weight by -0.077."""
    rule = optax.chain(aggregate(fa.Plain()), adam())
    params, grads = jnp.zeros(2), jnp.ones((N, 2))
    state = rule.init(params)
    for _ in range(2):
        _, state = updated(rule, grads, state, params)
    change, state = updated(rule, grads, state, params, participation=jnp.zeros(N, bool))
    assert not bool(state[0].report.ok)
    # Moments of two ones and a zero, corrected for their start.
    first, second = (b * (1 - b**2) / (1 - b**3) for b in (0.9, 0.999))
    np.testing.assert_allclose(change, -0.1 * first / np.sqrt(second), rtol=1e-3)
    np.testing.assert_allclose(change, -0.077, atol=5e-4)
    guarded = fa.apply_if_ok(aggregate(fa.Plain()), adam())
    _, state = updated(guarded, grads, guarded.init(params), params)
    change, _ = updated(guarded, grads, state, params, participation=jnp.zeros(N, bool))
    np.testing.assert_array_equal(change, 0)


@pytest.mark.default_dtypes
def test_its_state_scans_and_training_equals_plain_training():
    """Twelve rounds in one ``lax.scan``, every third of them failed, against a plain loop."""
    rule = fa.apply_if_ok(aggregate(), adam())
    targets = jax.tree.map(lambda g: g / 2, gradients(3))

    def client_grads(params):
        return jax.tree.map(lambda p, t: p[None] - t, params, targets)

    @jax.jit
    def train(params):
        def one_round(carry, r):
            params, state = carry
            alive = jnp.broadcast_to(r % 3 != 2, (N,))
            change, state = updated(rule, client_grads(params), state, params, participation=alive)
            return (optax.apply_updates(params, change), state), state.aggregate.report.ok

        return lax.scan(one_round, (params, rule.init(params)), jnp.arange(12))

    (params, state), oks = train(PARAMS)
    assert oks.tolist() == [True, True, False] * 4
    assert jax.tree.structure(state) == jax.tree.structure(rule.init(PARAMS))
    expected, inner = PARAMS, adam().init(PARAMS)
    with jax.numpy_dtype_promotion("standard"):
        for _ in range(8):
            mean = jax.tree.map(lambda g: g.mean(0), client_grads(expected))
            change, inner = adam().update(mean, inner, expected)
            expected = optax.apply_updates(expected, change)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=0.02), params, expected)
    assert float(jnp.abs(expected["w"] - PARAMS["w"]).max()) > 0.3  # the control: it trained


@pytest.mark.slow
def test_state_before_and_after_has_one_structure_and_no_secret():
    rule = aggregate(fa.SecAgg())
    state = rule.init(PARAMS)
    after = jax.eval_shape(
        lambda: rule.update(gradients(), rule.init(PARAMS), PARAMS, session=make_session())[1]
    )
    describe = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)  # noqa: E731
    assert describe(state) == describe(after)
    # A report has no room for a key of 8 words or for an update.
    assert {leaf.shape for leaf in jax.tree.leaves(after)} == {(), (N,)}


@pytest.mark.default_dtypes
def test_multi_steps_accumulates_after_the_aggregation():
    """Two rounds make one step of SGD with the mean of their means."""
    rule = optax.chain(aggregate(), optax.MultiSteps(optax.sgd(1.0), 2).gradient_transformation())
    state = rule.init(PARAMS)
    first, state = updated(rule, gradients(0), state)
    second, state = updated(rule, gradients(1), state)
    assert_trees_equal(first, jax.tree.map(jnp.zeros_like, PARAMS))
    expected = jax.tree.map(lambda a, b: -(a.mean(0) + b.mean(0)) / 2, gradients(0), gradients(1))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-4), second, expected)


def test_multi_steps_around_the_aggregation_is_refused():
    rule = optax.MultiSteps(optax.chain(aggregate(), optax.sgd(1.0)), 2)
    # MultiSteps wants gradients in the shape of the parameters, and hands them on like that.
    state = rule.init(PARAMS)
    with pytest.raises(ValueError, match=r"\[optax-order\]"):
        rule.update(PARAMS, state, PARAMS, session=make_session())


def private_sgd():
    return optax.contrib.differentially_private_aggregate(1.0, 0.1, key=0)


def test_per_example_privacy_after_the_aggregation_is_refused():
    for inner in (private_sgd(), optax.chain(optax.scale(1.0), private_sgd(), optax.sgd(0.1))):
        with pytest.raises(ValueError, match=r"\[optax-privacy\]"):
            fa.apply_if_ok(aggregate(), inner).init(PARAMS)
    fa.apply_if_ok(aggregate(), optax.chain(optax.scale(1.0), optax.sgd(0.1))).init(PARAMS)


def test_a_missing_session_and_wrong_shapes_are_refused():
    rule = aggregate()
    state, grads = rule.init(PARAMS), gradients()
    with pytest.raises(ValueError, match=r"\[update-session\]"):
        rule.update(grads, state, PARAMS)
    with pytest.raises(ValueError, match=r"\[update-structure\]"):
        rule.update({"w": grads["w"]}, state, PARAMS, session=make_session())
    with pytest.raises(ValueError, match=r"\['w'\].*\[client-axis\]"):
        rule.update({**grads, "w": grads["w"][:2]}, state, PARAMS, session=make_session())
    with pytest.raises(TypeError, match=r"\[aggregate-type\]"):
        fa.apply_if_ok(optax.sgd(0.1), optax.sgd(0.1)).init(PARAMS)
    with pytest.raises(TypeError, match=r"\[inner-type\]"):
        fa.apply_if_ok(rule, 0.1)


def test_nnx_states_are_parameters_like_any_other():
    """Gradients of a module by vmap over clients; the update applies to its state."""
    model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    graph, params = nnx.split(model)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(N, 4, 2)), jnp.float32)

    def loss(params, x):
        return jnp.mean((nnx.merge(graph, params)(x) - 1.0) ** 2)

    codec = fa.FixedPoint(64.0, rounding="nearest")  # far from any norm here
    rule = fa.apply_if_ok(fa.secure_aggregate(codec, num_clients=N), optax.sgd(0.1))
    state = rule.init(params)
    grads = jax.vmap(jax.grad(loss), (None, 0))(params, x)
    change, _ = updated(rule, grads, state, params)
    after = optax.apply_updates(params, change)
    assert jax.tree.structure(after) == jax.tree.structure(params)
    expected = jax.tree.map(lambda g: -0.1 * g.mean(0), grads)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), change, expected)
    losses = [float(jnp.mean(jax.vmap(loss, (None, 0))(p, x))) for p in (params, after)]
    assert losses[1] < losses[0]
