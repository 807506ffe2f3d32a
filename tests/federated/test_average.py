"""FedAvg on parameters: delta form and direct form, weights in the sum, stale starts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_agg as fa
from fedjax_agg.federated import average_parameters
from fedjax_agg.session import context_hash
from tests.federated.problem import same_bits
from tests.sessions import any_session

N = 4
CODEC = fa.FixedPoint(clip=4.0, levels=2**15, norm="linf", rounding="nearest")
RNG = np.random.default_rng(0)
START = {"w": jnp.asarray(RNG.integers(-8, 9, (2, 3)) / 8, jnp.float32), "b": jnp.float32(0.5)}
MODELS = jax.tree.map(
    lambda x: x[None] + jnp.asarray(RNG.integers(-8, 9, (N, *x.shape)) / 16, jnp.float32), START
)
WEIGHTS = jnp.array([3, 1, 0, 4])
FRESH, OLD = context_hash(START), context_hash(jax.tree.map(lambda x: x + 1.0, START))


def float_mean(models, weights):
    shares = np.asarray(weights) / np.sum(np.asarray(weights))
    return jax.tree.map(lambda x: np.tensordot(shares, np.asarray(x), axes=1), models)


def average(models=MODELS, session=None, **arguments):
    session = any_session(N) if session is None else session
    return average_parameters(models, session, **{"codec": CODEC, **arguments})


def assert_equal(found, wanted):
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, np.float32(b)), found, wanted)


@pytest.mark.parametrize("start", [START, None])
@pytest.mark.parametrize("weights", [WEIGHTS, None])
def test_on_grid_values_both_forms_are_the_weighted_mean_exactly(start, weights):
    found, report, stale = average(start=start, weights=weights)
    assert_equal(found, float_mean(MODELS, np.ones(N) if weights is None else weights))
    assert float(report.total_weight) == (N if weights is None else 8.0)
    assert not stale.any()


def test_off_the_grid_the_forms_differ_by_the_steps_of_their_grids():
    """The delta form spans a change with the levels that the direct form spends on a model."""
    rng = np.random.default_rng(1)
    start = {"w": jnp.asarray(100 * rng.normal(size=50), jnp.float32)}
    noise = rng.uniform(-0.5, 0.5, (N, 50)).astype(np.float32)
    models = {"w": start["w"][None] + noise}
    wanted = float_mean(models, WEIGHTS)["w"]
    errors = {}
    for form, clip in (("delta", 0.5), ("direct", 400.0)):
        codec = fa.FixedPoint(clip=clip, levels=2**12, norm="linf", rounding="nearest")
        found, _, _ = average(
            models, codec=codec, weights=WEIGHTS, start=start if form == "delta" else None
        )
        errors[form] = np.abs(np.asarray(found["w"]) - wanted).max()
        assert errors[form] <= 0.5 * clip / 2**12 + 1e-4
    assert errors["delta"] < 0.01 * errors["direct"]


def test_a_client_with_a_stale_start_is_left_out_and_named():
    hashes = jnp.stack([FRESH, OLD, FRESH, FRESH])
    found, report, stale = average(start=START, start_hashes=hashes)
    assert stale.tolist() == [False, True, False, False]
    assert report.survivors.tolist() == [True, False, True, True]
    dropped, _, _ = average(start=START, participation=jnp.arange(N) != 1)
    same_bits(found, dropped)
    # The control: with it the mean is another one.
    everybody, _, _ = average(start=START)
    assert (found["w"] != everybody["w"]).any()
    # One bit of one leaf is enough.
    bits = jax.lax.bitcast_convert_type(START["b"], jnp.uint32) ^ jnp.uint32(1)
    near = START | {"b": jax.lax.bitcast_convert_type(bits, jnp.float32)}
    hashes = jnp.stack([FRESH, context_hash(near), FRESH, FRESH])
    assert average(start=START, start_hashes=hashes)[2].tolist() == stale.tolist()


def test_without_anybody_the_average_is_the_start_and_in_the_direct_form_zero():
    all_old = jnp.broadcast_to(OLD, (N, 32))
    for arguments in (
        {"start_hashes": all_old},
        {"participation": jnp.zeros(N, bool)},
        {"weights": jnp.zeros(N, jnp.int32)},
    ):
        found, report, _ = average(start=START, **arguments)
        assert not bool(report.ok)
        same_bits(found, START)
    found, report, _ = average(weights=jnp.zeros(N, jnp.int32))
    assert not bool(report.ok)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(found))


def test_a_lost_and_a_stale_client_are_both_left_out_under_jit_too():
    hashes = jnp.stack([OLD, FRESH, FRESH, FRESH])
    lost = fa.Participation.until("upload", jnp.arange(N) != 3)
    arguments = (MODELS, any_session(N))

    @jax.jit
    def compiled(models, session, hashes, lost):
        return average(models, session, start=START, start_hashes=hashes, participation=lost)

    found, report, stale = compiled(*arguments, hashes, lost)
    assert stale.tolist() == [True, False, False, False]
    assert report.survivors.tolist() == [False, True, True, False]
    assert_equal(found, float_mean(MODELS, [0, 1, 1, 0]))


def test_models_in_half_precision_stay_so():
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (MODELS, START))
    for start in (half[1], None):
        found, _, _ = average(half[0], start=start)
        assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype(jnp.bfloat16)}
