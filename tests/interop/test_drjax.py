"""Secure reductions inside ``drjax.program`` against DrJAX's own: values, gradients, errors."""

import drjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_agg as fa
from fedjax_agg.interop import drjax as secure
from tests.parties import QUICKLY
from tests.sessions import any_session

N, LEVELS, CLIP = 4, 2**12, 8.0
STEP = CLIP / LEVELS
# The clip is far beyond every value here.
CODEC = fa.FixedPoint(CLIP, LEVELS, max_levels=LEVELS)
NEAREST = fa.FixedPoint(CLIP, LEVELS, max_levels=LEVELS, rounding="nearest")
COUNTS = jnp.array([1, 0, 3, 5], jnp.int32)


def placed(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "w": jnp.asarray(rng.normal(size=(N, 2, 3)), jnp.float32),
        "b": jnp.asarray(rng.normal(size=N), jnp.float32),
    }


def assert_within(found, expected, tolerance):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance), found, expected)


@drjax.program(clients=N)
def plain_reductions(x, w):
    weights = jax.tree.map(lambda _: w, x)
    return drjax.reduce_sum(x), drjax.reduce_mean(x), drjax.reduce_weighted_mean(x, weights)


def secure_reductions(codec=CODEC, **options):
    """One session for each reduction."""

    @drjax.program(clients=N)
    def program(x, w, sessions):
        how = {"codec": codec, **options}
        return (
            secure.reduce_sum(x, sessions[0], **how),
            secure.reduce_mean(x, sessions[1], **how),
            secure.reduce_weighted_mean(x, w, sessions[2], max_weight=8, **how),
        )

    return program


def make_sessions():
    return [any_session(N, number) for number in range(3)]


@pytest.mark.default_dtypes
def test_each_reduction_is_drjaxs_own_up_to_the_stated_step():
    """A mean is off by a step at most and a sum by one for each client, and by round-off."""
    found = jax.jit(secure_reductions())(placed(), COUNTS, make_sessions())
    expected = plain_reductions(placed(), COUNTS.astype(jnp.float32))
    for (value, report), reference, steps in zip(found, expected, (N, 1, 1)):
        assert bool(report.ok)
        assert_within(value, reference, steps * STEP + 1e-6)
        # The control: it is rounded, so it is the grid that the bound is about.
        assert not np.array_equal(value["w"], reference["w"])
    assert float(found[2][1].total_weight) == int(COUNTS.sum())


@pytest.mark.slow
def test_with_masks_it_is_the_same_bit_for_bit():
    @drjax.program(clients=N)
    def program(x, w, session, protocol):
        how = {"codec": CODEC, "protocol": protocol, "max_weight": 8}
        return secure.reduce_weighted_mean(x, w, session, **how)[0]

    compiled = jax.jit(program, static_argnums=3, compiler_options=QUICKLY)
    masked, plain = (
        compiled(placed(), COUNTS, any_session(N), protocol)
        for protocol in (fa.SecAgg(2), fa.Plain())
    )
    jax.tree.map(np.testing.assert_array_equal, masked, plain)


@pytest.mark.slow
def test_over_a_mesh_it_is_the_same_bit_for_bit():
    mesh = jax.make_mesh((N,), ("clients",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("clients"))
    wanted = jax.jit(secure_reductions())(placed(), COUNTS, make_sessions())
    with jax.set_mesh(mesh):
        program = jax.jit(secure_reductions(axis_name="clients"))
        found = program(*jax.device_put((placed(), COUNTS), rows), make_sessions())
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), jax.device_get(wanted))


def test_eager_is_compiled_and_nearest_rounding_halves_the_step(jit_or_not):
    program = jit_or_not(secure_reductions(NEAREST))
    (_, (value, _), _), expected = program(placed(), COUNTS, make_sessions()), placed()
    mean = jax.tree.map(lambda leaf: np.asarray(leaf).mean(0), expected)
    assert_within(value, mean, STEP / 2 + 1e-6)


@pytest.mark.slow
def test_fractions_weigh_as_drjaxs_weights_do():
    """Multiples of 1/8 are on the grid of max_weight=8."""
    fractions = COUNTS.astype(jnp.float32) / jnp.float32(8)
    _, _, (value, report) = secure_reductions()(placed(), fractions, make_sessions())
    assert_within(value, plain_reductions(placed(), fractions)[2], STEP + 1e-6)
    assert float(report.total_weight) == float(fractions.sum())


@pytest.mark.slow
def test_lost_clients_are_left_out():
    alive = jnp.array([True, False, True, True])
    program = secure_reductions(participation=alive)
    _, (value, report), _ = program(placed(), COUNTS, make_sessions())
    mean = jax.tree.map(lambda leaf: np.asarray(leaf)[np.asarray(alive)].mean(0), placed())
    assert_within(value, mean, STEP + 1e-6)
    np.testing.assert_array_equal(report.survivors, alive)


def test_no_weight_at_all_is_a_failed_round_where_drjax_has_nan():
    nothing = jnp.zeros(N, jnp.int32)
    _, _, (value, report) = secure_reductions()(placed(), nothing, make_sessions())
    assert not bool(report.ok)
    assert not any(leaf.any() for leaf in jax.tree.leaves(value))
    reference = plain_reductions(placed(), nothing.astype(jnp.float32))[2]
    assert all(jnp.isnan(leaf).all() for leaf in jax.tree.leaves(reference))


@pytest.mark.default_dtypes
@pytest.mark.parametrize("mode", [pytest.param(jax.jacfwd, marks=pytest.mark.slow), jax.jacrev])
def test_jacobians_are_those_of_drjaxs_reductions(mode):
    """With respect to the placed values: not up to a step, but up to round-off."""
    session, weights = any_session(N), COUNTS.astype(jnp.float32)

    @drjax.program(clients=N)
    def reductions(x, clip):
        codec = fa.FixedPoint(clip, LEVELS, max_levels=LEVELS, rounding="nearest")
        how = {"codec": codec, "max_weight": 8}
        mean, _ = secure.reduce_weighted_mean(x, COUNTS, session, **how)
        total, _ = secure.reduce_sum(x, session, codec=codec)
        return total, mean

    jacobian = jax.jit(mode(reductions))
    total, _, mean = mode(plain_reductions)(placed(), weights)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
        jacobian(placed(), CLIP),
        (total, mean),
    )
    # The control: values beyond the clip have another Jacobian than DrJAX's.
    clipped, _ = jacobian(placed(), 1.0)
    assert not np.allclose(clipped["w"]["w"], total["w"]["w"], rtol=1e-2)


def least_squares(params, x, y):
    return jnp.mean((x @ params - y) ** 2)


def fed_sgd(reduce):
    """Three rounds of local SGD in a program; ``reduce(changes, round)`` is the mean."""

    @drjax.program(clients=N)
    def program(rate, params, data):
        def local(params, x, y):
            after = params
            for _ in range(2):
                after = after - rate * jax.grad(least_squares)(after, x, y)
            return after - params

        for r in range(3):
            changes = drjax.map_fn(local, (drjax.broadcast(params), *data))
            params = params + reduce(changes, r)
        losses = drjax.map_fn(least_squares, (drjax.broadcast(params), *data))
        return drjax.reduce_mean(losses), params

    return program


@pytest.mark.slow
@pytest.mark.default_dtypes
def test_a_program_trains_and_learns_its_rate_as_with_drjaxs_mean():
    """Federated differentiation through three rounds: the gradient for the clients' rate."""
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(N, 8, 3)), jnp.float32)
    data = (x, x @ jnp.array([1.0, -2.0, 0.5]))
    sessions = make_sessions()

    def secured(changes, r):
        return secure.reduce_mean(changes, sessions[r], codec=NEAREST)[0]

    results = []
    for reduce in (secured, lambda changes, r: drjax.reduce_mean(changes)):
        gradient = jax.value_and_grad(fed_sgd(reduce), argnums=(0, 1), has_aux=True)
        results.append(jax.jit(gradient)(jnp.float32(0.05), jnp.zeros(3), data))
    ((loss, params), found), ((plain_loss, plain_params), expected) = results
    np.testing.assert_allclose(params, plain_params, atol=3 * STEP)
    np.testing.assert_allclose(loss, plain_loss, atol=20 * STEP)
    # A loss that is not linear in the rounded means: equal up to a multiple of the step.
    np.testing.assert_allclose(found[0], expected[0], rtol=20 * STEP)
    np.testing.assert_allclose(found[1], expected[1], atol=20 * STEP)
    assert abs(float(expected[0])) > 1.0


def test_outside_of_a_program_it_raises_as_drjax_does():
    x, session = placed(), any_session(N)
    with pytest.raises(Exception, match="only defined in the context of a DrJAX program") as own:
        drjax.reduce_mean(x)
    for reduction in (
        lambda: secure.reduce_sum(x, session, codec=CODEC),
        lambda: secure.reduce_mean(x, session, codec=CODEC),
        lambda: secure.reduce_weighted_mean(x, COUNTS, session, codec=CODEC),
    ):
        with pytest.raises(type(own.value), match="only defined in the context of a DrJAX program"):
            reduction()


def test_a_session_of_other_clients_is_refused():
    program = drjax.program(clients=N)(
        lambda x, session: secure.reduce_mean(x, session, codec=CODEC)[0]
    )
    with pytest.raises(ValueError, match=r"session of 3 clients .*\[placement-clients\]"):
        program(placed(), any_session(3))
    with pytest.raises(TypeError, match=r"\[session-type\]"):
        program(placed(), fa.fixed_seed(0))
    with pytest.raises(ValueError, match=r"\[client-axis\]"):
        program(jax.tree.map(lambda leaf: leaf[:3], placed()), any_session(N))
