"""Law 2: the derivative of a round is that of the plain weighted mean of clipped updates.

The reference is that mean, written in plain ``jax.numpy`` below, and closed forms for what it does
not have: the step of the grid. Random results are compared within 5 standard errors.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import fedjax_agg as fa
from fedjax_agg.arithmetic import Ring
from tests.parties import QUICKLY
from tests.sessions import any_session

N = 3
STANDARD_ERRORS = 5
# Norms 0.5, 1.5 and 3: with clip 1 the first client is left alone and the others are clipped.
# With linf, two coordinates are.
X = jnp.array([[0.3, -0.4, 0.0, 0.0], [1.05, -1.1, 0.1, 0.18], [2.0, -0.2, 2.2, 0.4]])
ALIVE = jnp.array([True, False, True])
EVERYBODY = jnp.ones(N, bool)


def make_session(number=0):
    return any_session(N, number)


def clipped(row, clip, norm):
    if norm == "linf":
        return jnp.clip(row, -clip, clip)
    length = jnp.sqrt(jnp.sum(row * row))
    return row * jnp.minimum(1.0, clip / length)


def plain_mean(x, clip=1.0, norm="l2", weights=None, alive=EVERYBODY):
    weights = jnp.ones(len(x)) if weights is None else weights
    weights = jnp.where(alive, weights, 0.0)
    rows = jax.vmap(lambda row: clipped(row, clip, norm))(x)
    return weights @ rows / jnp.sum(weights)


def nearest_mean(x, clip=1.0, levels=2.0**15, alive=EVERYBODY, session=None, norm="l2", **extra):
    """The secure mean, in the form that compiles fastest."""
    codec = fa.FixedPoint(
        clip, levels, norm=norm, rounding="nearest", max_levels=extra.pop("max_levels", 2**15)
    )
    session = make_session() if session is None else session
    return fa.secure_mean(x, session, codec=codec, participation=alive, **extra)[0]


# ---- the Jacobian -------------------------------------------------------------------------------


@pytest.mark.default_dtypes
@pytest.mark.parametrize(
    ("protocol", "norm", "rounding"),
    [
        (fa.Plain(), "l2", "nearest"),
        (fa.Plain(), "linf", "nearest"),
        pytest.param(fa.SecAgg(1), "l2", "stochastic", marks=pytest.mark.slow),
        pytest.param(fa.SecAgg(1, group=Ring(20)), "linf", "stochastic", marks=pytest.mark.slow),
        pytest.param(fa.Plain(), "l2", "stochastic", marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_jacobian_is_that_of_the_mean_of_clipped_updates(protocol, norm, rounding):
    """In forward and in reverse, for any key, survivor set and protocol."""

    @functools.partial(jax.jit, compiler_options=QUICKLY)
    def derivatives(x, v, u, alive, session):
        def mean(x):
            codec = fa.FixedPoint(1.0, 2**10, max_levels=2**10, norm=norm, rounding=rounding)
            return fa.secure_mean(x, session, codec=codec, protocol=protocol, participation=alive)[
                0
            ]

        # Each call that differentiates compiles a round of its own, so there are two.
        value, pushed = jax.jvp(mean, (x,), (v,))
        pull = jax.vjp(mean, x)[1]
        return value, pushed, pull(u)[0], jax.vmap(pull)(jnp.eye(4))[0]

    rng = np.random.default_rng(0)
    v, u = jnp.asarray(rng.normal(size=X.shape), jnp.float32), jnp.arange(4.0) - 1
    masked = isinstance(protocol, fa.SecAgg)
    # The sum over one client is that client's update, which SecAgg does not open.
    for alive in [EVERYBODY, ALIVE] if masked else [EVERYBODY, ALIVE, ~ALIVE]:
        results = [derivatives(X, v, u, alive, make_session(number)) for number in range(2)]
        for value, pushed, pulled, jacobian in results:
            reference = functools.partial(plain_mean, norm=norm, alive=alive)
            expected = jax.jacobian(reference)(X)
            np.testing.assert_allclose(value, reference(X), atol=2.0**-10)
            np.testing.assert_allclose(jacobian, expected, rtol=1e-5, atol=1e-7)
            np.testing.assert_allclose(
                pushed, jnp.einsum("jik,ik", expected, v), rtol=1e-5, atol=1e-6
            )
            np.testing.assert_allclose(
                pulled, jnp.einsum("jik,j", expected, u), rtol=1e-5, atol=1e-6
            )
        # Other keys, the same bits; the values differ where rounding draws.
        np.testing.assert_array_equal(results[0][3], results[1][3])
        if alive is EVERYBODY:
            assert (results[0][0] != results[1][0]).any() == (rounding == "stochastic")
        # The control: the Jacobian of a mean without clipping is another.
        unclipped = jax.jacobian(functools.partial(plain_mean, clip=9.0, alive=alive))(X)
        assert np.abs(expected - unclipped).max() > 0.1


@pytest.mark.slow
def test_a_failed_round_has_zero_derivatives():
    """Under SecAgg with more clients missing than it tolerates, and where nobody takes part."""

    @functools.partial(jax.jit, compiler_options=QUICKLY)
    def jacobians(alive):
        def jacobian(protocol):
            return jax.jacfwd(lambda x: nearest_mean(x, alive=alive, protocol=protocol))(X)

        return jacobian(fa.SecAgg()), jacobian(fa.Plain())

    masked, plain = jacobians(ALIVE)
    np.testing.assert_array_equal(masked, 0)
    assert np.abs(plain).max() > 0
    for jacobian in jacobians(jnp.zeros(N, bool)):
        np.testing.assert_array_equal(jacobian, 0)
    for jacobian in jacobians(EVERYBODY):
        np.testing.assert_allclose(jacobian, jax.jacobian(plain_mean)(X), rtol=1e-5, atol=1e-7)


def test_forward_reverse_and_checkpoint_agree_on_trees():
    """Leaves of several types; ``jax.checkpoint`` changes nothing."""
    x = {"w": X[:, :3].reshape(N, 3, 1), "b": X[:, 3], "h": X[:, :2].astype(jnp.bfloat16)}

    def loss(x, clip):
        mean = nearest_mean(x, clip)
        leaves = [leaf.astype(jnp.float32) for leaf in jax.tree.leaves(mean)]
        return sum(jnp.sum(jnp.cos(leaf)) for leaf in leaves)

    @jax.jit
    def gradients(x, clip):
        reverse = jax.grad(loss, (0, 1))(x, clip)
        remat = jax.grad(jax.checkpoint(loss), (0, 1))(x, clip)
        _, along = jax.jvp(loss, (x, clip), reverse)
        return reverse, remat, along

    reverse, remat, along = gradients(x, jnp.float32(1.5))
    for a, b in zip(jax.tree.leaves(reverse), jax.tree.leaves(remat)):
        np.testing.assert_allclose(np.float32(a), np.float32(b), rtol=1e-5, atol=1e-7)
    assert jax.tree.map(lambda g: (g.shape, g.dtype), reverse[0]) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), x
    )
    square = sum(float(jnp.sum(g.astype(jnp.float32) ** 2)) for g in jax.tree.leaves(reverse))
    assert square > 0.01
    # bfloat16 cotangents carry 8 bits.
    np.testing.assert_allclose(along, square, rtol=1e-2)


def test_zero_derivative_where_saturated_or_not_finite():
    """And everywhere else that of the rest."""
    x = jnp.array([[0.5, jnp.nan, 0.2], [0.05, jnp.inf, -0.9], [0.01, 0.09, -jnp.inf]])
    counted = jnp.array([[0, 0, 0], [1, 0, 0], [1, 1, 0]]) == 1

    @jax.jit
    def jacobians(levels):
        # Levels above the budget: what exceeds 100 steps, 0.1 of the clip, saturates.
        mean = functools.partial(nearest_mean, clip=1.0, levels=levels, norm="linf", max_levels=100)
        return jax.jacrev(mean)(x), jax.jacfwd(mean)(x)

    for jacobian in jacobians(jnp.float32(1000)):
        assert jnp.isfinite(jacobian).all()
        expected = np.eye(3)[:, None, :] * np.asarray(counted) / N
        np.testing.assert_allclose(jacobian, expected, rtol=1e-6)
    # The control: below the budget the large coordinates count again.
    below = np.eye(3)[:, None, :] * np.isfinite(x) / N
    for jacobian in jacobians(jnp.float32(100)):
        np.testing.assert_allclose(jacobian, below, rtol=1e-6)


TINY = 2.0**-140


@pytest.mark.quick_cases(6)
@pytest.mark.parametrize(
    "row",
    [[0.0, 0.0], [3.0, 4.0], [TINY, TINY], [1e-20, 0.0], [1e18, -1e18], [1e30, 1.0], [3e38, -3e38]],
    ids=str,
)
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_no_derivative_is_ever_nan(row, norm):
    """At zero, at a norm of exactly the clip, at the ends of float32; in every argument."""
    x = jnp.array([row, [1.0, -2.0], [0.0, 0.0]])
    for clip in (5.0, 0.25):
        for weights in ([0.5, 0.25, 1.0], [0.0, 0.0, 0.0]):
            reverse, forward = all_gradients(
                norm, x, jnp.float32(clip), jnp.float32(64), jnp.array(weights)
            )
            for leaf in jax.tree.leaves((reverse, forward)):
                assert jnp.isfinite(leaf).all(), (clip, weights, reverse, forward)
            if not any(weights):
                assert not any(leaf.any() for leaf in jax.tree.leaves((reverse, forward)))
    assert any(leaf.any() for leaf in all_gradients(norm, X[:, :2], 5.0, 64.0, jnp.ones(N))[0])


@functools.partial(jax.jit, static_argnums=0)
def all_gradients(norm, x, clip, levels, weights):
    def mean(x, clip, levels, weights):
        arguments = {"norm": norm, "weights": weights, "max_levels": 64}
        return jnp.sum(nearest_mean(x, clip, levels, **arguments) * jnp.array([1.0, 2.0]))

    arguments = (x, clip, levels, weights)
    reverse = jax.grad(mean, range(4))(*arguments)
    return reverse, jax.jvp(mean, arguments, jax.tree.map(jnp.ones_like, arguments))[1]


# ---- clip and levels ----------------------------------------------------------------------------


def grid_units(x, clip, levels, norm):
    """What the clients round, in float64."""
    x = np.asarray(x, np.float64)
    if norm == "linf":
        return np.clip(x / clip, -1, 1) * levels
    return x / clip * np.minimum(1, clip / np.linalg.norm(x, axis=1, keepdims=True)) * levels


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_gradients_of_clip_and_levels_have_their_closed_form(norm):
    """d/d clip is x/|x| (l2) or its sign (linf) of what was clipped, and the rounding residual in
    steps; d/d levels is the residual alone."""
    n, levels = N, 37.0

    @jax.jit
    def jacobians(clip, levels):
        mean = functools.partial(nearest_mean, X, norm=norm)
        reverse = jax.jacrev(mean, (0, 1))(clip, levels)
        return reverse, jax.jacfwd(mean, (0, 1))(clip, levels)

    for clip in (1.0, 0.7, 2.5):
        units = grid_units(X, clip, levels, norm)
        residual = np.rint(units) - units
        x = np.asarray(X, np.float64)
        if norm == "linf":
            direction = np.sign(x) * (np.abs(x) > clip)
        else:
            lengths = np.linalg.norm(x, axis=1, keepdims=True)
            direction = x / lengths * (lengths > clip)
        by_clip = (direction + residual / levels).sum(0) / n
        by_levels = -clip / levels**2 * residual.sum(0) / n
        assert np.abs(residual.sum(0)).max() > 0.1
        for found in jacobians(jnp.float32(clip), jnp.float32(levels)):
            np.testing.assert_allclose(found[0], by_clip, rtol=1e-3, atol=1e-5)
            np.testing.assert_allclose(found[1], by_levels, rtol=1e-3, atol=1e-6)
        # What the plain mean knows of the clip is the first part.
        plain = jax.jacobian(plain_mean, 1)(X, clip, norm)
        np.testing.assert_allclose(plain, direction.sum(0) / n, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tied", [True, False], ids=["clip = levels * step", "clip fixed"])
def test_derivative_by_the_step_is_the_lsq_term(tied):
    """Learned step size quantisation (Esser et al., ICLR 2020, equation 3): with v the update and
    s the step, round(v/s) - v/s inside the range, and plus or minus its end outside."""
    top, x = 20, jnp.array([[0.33, -0.07, 0.999, -3.0], [0.21, 1.2, -0.5, 0.0]])
    session = make_session()
    session = dataclasses.replace(
        session,
        client_ids=session.client_ids[:2],
        secrets=session.secrets[:2],
        agreement=session.agreement[:2],
    )

    @jax.jit
    def by_step(step):
        def mean(step):
            clip = top * step if tied else jnp.float32(100)
            return nearest_mean(
                x, clip, clip / step, jnp.ones(2, bool), session, "linf", max_levels=top
            )

        return jax.jacfwd(mean)(step), jax.jacrev(mean)(step)

    step = np.float64(np.float32(0.047))
    v = np.asarray(x, np.float64) / step
    assert (np.abs(v) > top).any()
    expected = np.where(np.abs(v) > top, np.sign(v) * top, np.rint(v) - v).sum(0) / 2
    for found in by_step(jnp.float32(step)):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-4)


# ---- second order, vmap, weights ----------------------------------------------------------------


def test_hessian_is_that_of_the_plain_mean_up_to_the_step():
    """Of a loss that is not linear in the mean; the gap shrinks with the step."""
    target = jnp.array([0.5, 0.1, -0.3, 0.2])

    def loss(mean):
        return jnp.sum((mean - target) ** 2) + jnp.sum(jnp.sin(3 * mean))

    @jax.jit
    def hessians(x, levels):
        through = lambda x: loss(nearest_mean(x, 1.0, levels))  # noqa: E731
        return jax.hessian(through)(x), jax.jacrev(jax.jacrev(through))(x)

    expected = jax.jit(jax.hessian(lambda x: loss(plain_mean(x))))(X)
    straight = jax.jit(jax.hessian(lambda x: loss(jnp.mean(x, 0))))(X)
    assert np.abs(expected - straight).max() > 0.1
    for levels in (2.0**5, 2.0**14):
        for hessian in hessians(X, jnp.float32(levels)):
            gap = np.abs(hessian - expected).max()
            assert gap < 20 / levels
            np.testing.assert_allclose(
                hessian, np.transpose(hessian, (2, 3, 0, 1)), rtol=1e-4, atol=1e-6
            )
        if levels == 2.0**5:
            assert gap > 1e-3  # the bound above is no accident: the gap is there


@pytest.mark.slow
def test_vmap_over_clips_levels_and_sessions_is_one_program():
    """Values bit for bit as in separate calls, with the gradient of the clip."""

    @jax.jit
    def value_and_gradient(clip, levels, session):
        def mean(clip):
            return fa.secure_mean(X, session, codec=fa.FixedPoint(clip, levels))[0]

        return jax.jvp(mean, (clip,), (jnp.ones_like(clip),))

    clips, levels = jnp.array([0.6, 2.0]), jnp.array([10.0, 99.0, 1000.0])
    sessions = [make_session(number) for number in range(2)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *sessions)
    traces = []

    @jax.jit
    def sweep(clips, levels, sessions):
        traces.append(1)
        over_sessions = jax.vmap(value_and_gradient, (None, None, 0))
        over_levels = jax.vmap(over_sessions, (None, 0, None))
        return jax.vmap(over_levels, (0, None, None))(clips, levels, sessions)

    values, gradients = sweep(clips, levels, stacked)
    assert values.shape == gradients.shape == (2, 3, 2, 4)
    assert len(traces) == 1
    for i, clip in enumerate(clips):
        for j, level in enumerate(levels):
            for k, session in enumerate(sessions):
                value, gradient = value_and_gradient(clip, level, session)
                np.testing.assert_array_equal(values[i, j, k], value)
                np.testing.assert_allclose(gradients[i, j, k], gradient, rtol=1e-5, atol=1e-6)
    assert (values[:, :, 0] != values[:, :, 1]).any()  # the control: sessions matter


def test_weight_gradient_is_that_of_the_weighted_mean_up_to_the_grid():
    """Fractional weights, traced, where the weight itself is rounded to a grid of 1/2048."""
    weights = jnp.array([0.3, 0.77, 0.1])

    @jax.jit
    def jacobians(weights, x, alive):
        def mean(weights):
            arguments = {"weights": weights, "max_weight": 2048, "max_levels": 2048}
            return nearest_mean(x, 1.0, 2048.0, alive, **arguments)

        return jax.jacrev(mean)(weights), jax.jacfwd(mean)(weights)

    for alive in (EVERYBODY, ALIVE):
        expected = jax.jacobian(lambda w: plain_mean(X, weights=w, alive=alive))(weights)  # noqa: B023
        assert np.abs(expected).max() > 0.2
        for found in jacobians(weights, X, alive):
            np.testing.assert_allclose(found, expected, atol=10 / 2048)
            # The weight of a client that did not take part changes nothing.
            np.testing.assert_array_equal(np.asarray(found)[:, ~np.asarray(alive)], 0)


# ---- training -----------------------------------------------------------------------------------


@pytest.mark.default_dtypes
def test_gradient_through_twenty_rounds_of_training():
    """Of the loss after 20 rounds with server momentum, by the server's rate and by the clip."""
    rng = np.random.default_rng(5)
    targets = jnp.asarray(rng.normal(size=(N, 4)) * 2, jnp.float32)

    def final_loss(ranges, mean):
        rate, clip = ranges

        def one_round(state, round_id):
            params, momentum = state
            momentum = 0.5 * momentum + mean(params[None] - targets, clip, round_id)
            return (params - rate * momentum, momentum), None

        start = (jnp.zeros(4), jnp.zeros(4))
        (params, _), _ = lax.scan(one_round, start, jnp.arange(20, dtype=jnp.uint32))
        return jnp.sum((params - jnp.median(targets, axis=0)) ** 2)

    def secure(levels):
        def mean(x, clip, round_id):
            session = dataclasses.replace(make_session(), round_id=round_id)
            return nearest_mean(x, clip, levels, session=session)

        return mean

    gradient = jax.jit(
        lambda ranges, levels: jax.value_and_grad(final_loss)(ranges, secure(levels))
    )
    reference = jax.jit(
        jax.value_and_grad(
            lambda ranges: final_loss(ranges, lambda x, clip, _: plain_mean(x, clip))
        )
    )
    ranges = (jnp.float32(0.05), jnp.float32(1.3))
    value, expected = reference(ranges)
    assert min(abs(float(g)) for g in expected) > 0.05
    gaps = []
    for levels in (2.0**5, 2.0**14):
        found_value, found = gradient(ranges, jnp.float32(levels))
        assert all(bool(jnp.isfinite(g)) for g in found)
        np.testing.assert_allclose(found_value, value, rtol=20 / levels)
        gaps.append(max(abs(float(a / b) - 1) for a, b in zip(found, expected)))
        assert gaps[-1] < 20 / levels
    assert gaps[1] < gaps[0]


# ---- the expected output ------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.default_dtypes
def test_jacobian_is_that_of_the_expected_output_under_stochastic_rounding():
    """Averages over 4000 sessions, on a grid so coarse that one round says little: differences
    of the output, and the gradient of the clip, whose rounding residual is zero-mean noise."""
    sessions, h, clip = 4000, 0.05, 1.0
    base = make_session()
    words = jnp.asarray(
        np.random.default_rng(0).integers(2**32, size=(sessions, N, 8), dtype=np.uint32)
    )
    v = jnp.asarray(np.random.default_rng(1).normal(size=X.shape), jnp.float32)

    def mean(x, clip, secrets):
        session = dataclasses.replace(base, secrets=secrets)
        return fa.secure_mean(x, session, codec=fa.FixedPoint(clip, 2))[0]

    @jax.jit
    def samples(words):
        def one(secrets):
            def at(t):
                value, push = jax.linearize(
                    lambda x, clip: mean(x, clip, secrets), X + t * v, jnp.float32(clip)
                )
                return value, push(v, jnp.float32(0)), push(jnp.zeros_like(v), jnp.float32(1))

            # One body for all points: a round takes seconds to compile.
            values, pushed, by_clip = jax.vmap(at)(jnp.array([h, -h, 0.0]))
            return (values[0] - values[1]) / (2 * h), pushed[2], by_clip[2]

        return jax.vmap(one)(words)

    differences, pushed, by_clip = (np.asarray(s, np.float64) for s in samples(words))
    np.testing.assert_allclose(pushed, pushed[:1].repeat(sessions, 0), rtol=1e-6)
    pushed = pushed[0]
    # What central differences add to a curved clip, from the plain mean.
    curve = (plain_mean(X + h * v) - plain_mean(X - h * v)) / (2 * h)
    curve = curve - jax.jvp(plain_mean, (X,), (v,))[1]
    assert np.abs(curve).max() < 0.01
    error = np.abs(differences.mean(0) - pushed - np.asarray(curve))
    bound = STANDARD_ERRORS * differences.std(0) / np.sqrt(sessions)
    np.testing.assert_array_less(error, bound)
    # The control: the derivative of the mean without clipping lies outside.
    assert (np.abs(differences.mean(0) - np.asarray(jnp.mean(v, 0))) > bound).any()

    expected = np.asarray(jax.jacobian(plain_mean, 1)(X, clip))
    bound = STANDARD_ERRORS * by_clip.std(0) / np.sqrt(sessions) + 1e-6
    np.testing.assert_array_less(np.abs(by_clip.mean(0) - expected), bound)
    assert (np.abs(expected) > 2 * bound).any()
    assert by_clip.std(0).max() > 0.1
