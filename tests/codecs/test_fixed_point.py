"""The fixed-point codec: its edge cases row by row, its bounds, its life as a pytree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import fedjax_agg as fa
from fedjax_agg.diagnostics import diagnose
from fedjax_agg.session import RoundContext
from fedjax_agg.structure import Structure

NORMS = ("l2", "linf")
every_norm = pytest.mark.parametrize("norm", NORMS)


@jax.jit
def forward(codec, update):
    return codec.forward(update, RoundContext(structure=Structure.of(update)))


@jax.jit
def back(codec, units, update):
    return codec.inverse(units, RoundContext(structure=Structure.of(update)))


@jax.jit
def clipped(codec, update):
    return codec.clipped(update)


@jax.jit
def jacobian(codec, update):
    return jax.jacrev(forward, argnums=1)(codec, update)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def norm_of(units):
    """The l2 norm in float64."""
    return float(np.sqrt(np.sum(np.asarray(units, np.float64) ** 2)))


# The edge-case table.


@pytest.mark.parametrize("name", ["clip", "levels"])
@pytest.mark.parametrize("value", [0, 0.0, -1.0, np.nan, np.inf, -np.inf, "1", None, 1j, True])
def test_static_clip_or_levels_not_positive_is_refused(name, value):
    with pytest.raises(ValueError, match=rf"{name}=.* \[{name}\]"):
        fa.FixedPoint(**{"clip": 1.0, "levels": 8, name: value})


@pytest.mark.default_dtypes
@every_norm
def test_traced_clip_or_levels_not_positive_stays_finite(norm):
    """The units, their inverse, and the mean of a round; none of them means anything."""
    update = jnp.array([0.0, 1.0, -2.0])
    session = fa.simulated_session(fa.fixed_seed(0), num_clients=2)

    @jax.jit
    @jax.vmap
    def outputs(clip, levels):
        codec = fa.FixedPoint(clip, levels, norm=norm)
        units = forward(codec, update)
        mean, _ = fa.secure_mean(jnp.stack([update] * 2), session, codec=codec)
        return units, back(codec, units, update), mean

    clips, levels = jnp.array([[0.0, 9.0], [-1.0, 9.0], [1.0, 0.0], [1.0, -9.0], [0.0, 0.0]]).T
    units, inverses, means = outputs(clips, levels)
    assert np.isfinite(units).all()
    assert np.isfinite(inverses).all()
    assert np.isfinite(means).all()


@pytest.mark.default_dtypes
def test_levels_beyond_the_budget():
    """Static: refused, at the budget and one above. Traced: units saturate, and only those."""
    assert fa.FixedPoint(1.0, 100, max_levels=100).bound() == 100
    with pytest.raises(ValueError, match=r"levels=101 .* max_levels=100; .* \[levels-budget\]"):
        fa.FixedPoint(1.0, 101, max_levels=100)
    session = fa.simulated_session(fa.fixed_seed(0), num_clients=2)
    updates = jnp.array([[1.0, 0.25, -1.0], [0.0, 0.0, 0.0]])

    @jax.jit
    def total(levels):
        codec = fa.FixedPoint(1.0, levels, max_levels=100, norm="linf")
        return fa.secure_sum(updates, session, codec=codec)[0] * levels

    np.testing.assert_allclose(total(jnp.float32(100)), [100, 25, -100], rtol=1e-6)
    np.testing.assert_allclose(total(jnp.float32(200)), [100, 50, -100], rtol=1e-6)


@every_norm
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_coordinates_count_as_zero(norm, bad):
    """And do not spread to their neighbours, neither in value nor in derivative."""
    codec = fa.FixedPoint(clip=1.0, levels=64, norm=norm)
    update, cleaned = jnp.array([3.0, bad, -4.0]), jnp.array([3.0, 0.0, -4.0])
    np.testing.assert_array_equal(forward(codec, update), forward(codec, cleaned))
    expected = np.array(jacobian(codec, cleaned))
    expected[:, 1] = 0
    np.testing.assert_array_equal(jacobian(codec, update), expected)


def test_eager_equals_compiled():
    """The codec as Python numbers and as traced ones: the same clipping, within an ulp or two."""
    update = {"w": normal(0, 7), "b": jnp.float16(0.5)}
    for norm in NORMS:
        codec = fa.FixedPoint(clip=0.8, levels=1000, norm=norm)
        eager = codec.forward(update, None)
        np.testing.assert_allclose(forward(codec, update), eager, rtol=5e-7)
        assert bool(codec.clipped(update)) == bool(clipped(codec, update))


@pytest.mark.parametrize("size", [1, 1000])
def test_norm_beyond_float32_makes_the_whole_update_zero(size):
    """Just below 2^64 clips it is scaled to the clip; beyond, zero; linf clips in either case."""
    codec = fa.FixedPoint(clip=2.0, levels=64)
    for scale, expected in ((2.0**62, 64.0), (2.0**66, 0.0)):
        update = jnp.full(size, scale * 2.0 / np.sqrt(size), jnp.float32)
        units = forward(codec, update)
        assert norm_of(units) == pytest.approx(expected, rel=1e-6)
        assert np.isfinite(jax.grad(lambda x: forward(codec, x).sum())(update)).all()
    linf = fa.FixedPoint(clip=2.0, levels=64, norm="linf")
    np.testing.assert_array_equal(forward(linf, update), np.full(size, 64.0))


@every_norm
def test_zero_and_norm_equal_to_clip_are_unchanged(norm):
    """Exactly, where the squares are exact; a little above the clip is clipped."""
    codec = fa.FixedPoint(clip=4.0, levels=4, norm=norm)
    at_clip = jnp.array([2.0, -2.0, 2.0, 2.0]) * (1.0 if norm == "l2" else 2.0)
    for update in (jnp.zeros(4), at_clip):
        np.testing.assert_array_equal(forward(codec, update), update)
        assert not clipped(codec, update)
        assert np.isfinite(jacobian(codec, update)).all()
    above = at_clip * 1.001
    assert clipped(codec, above)
    np.testing.assert_allclose(forward(codec, above), at_clip, rtol=2e-7)


@pytest.mark.parametrize(
    ("change", "tag"),
    [
        (dict(max_levels=0), "max-levels"),
        (dict(max_levels=2**23), "max-levels"),
        (dict(max_levels=100.0), "max-levels"),
        (dict(norm="L2"), "norm"),
        (dict(norm=2), "norm"),
        (dict(rounding="up"), "rounding"),
        (dict(rounding=None), "rounding"),
    ],
)
def test_static_fields_are_checked(change, tag):
    with pytest.raises(ValueError, match=rf"{next(iter(change))}=.* \[{tag}\]"):
        fa.FixedPoint(**{"clip": 1.0, "levels": 1, **change})
    assert fa.FixedPoint(clip=1.0, levels=1, max_levels=2**23 - 1).bound() == 2**23 - 1


# Norms.


def test_l2_scales_and_linf_clips():
    update = {"b": jnp.array([[3.0], [0.5]]), "a": jnp.array(-4.0)}
    norm = np.sqrt(9 + 0.25 + 16)
    l2 = fa.FixedPoint(clip=1.0, levels=100)
    np.testing.assert_allclose(forward(l2, update), np.array([-4, 3, 0.5]) * 100 / norm, rtol=1e-6)
    linf = fa.FixedPoint(clip=1.0, levels=100, norm="linf")
    np.testing.assert_array_equal(forward(linf, update), [-100, 100, 50])
    assert clipped(l2, update)
    assert clipped(linf, update)
    half = jax.tree.map(lambda x: x / 8, update)
    assert not clipped(l2, half)
    assert not clipped(linf, half)
    np.testing.assert_array_equal(forward(l2, half), forward(linf, half))
    between = {"b": jnp.array([[0.9], [0.9]]), "a": jnp.array(0.9)}
    assert clipped(l2, between)
    assert not clipped(linf, between)


@pytest.mark.default_dtypes
@pytest.mark.parametrize("size", [1, 2, 1000, 10**5])
@pytest.mark.parametrize("kind", ["normal", "constant", "positive", "one large"])
def test_norm_of_forward_stays_below_levels(size, kind):
    """At most levels (1 + 2^-20), summed in float64, and reached: the clip is tight."""
    rng = np.random.default_rng(size)
    update = {
        "normal": lambda: rng.normal(size=size),
        "constant": lambda: np.full(size, 0.7),
        "positive": lambda: rng.uniform(1, 2, size),
        "one large": lambda: np.append(np.full(size - 1, 1e-3), 1e4),
    }[kind]()
    levels = 2**15
    for scale in (1.0, 1e8, 1e-8):
        codec = fa.FixedPoint(clip=0.37 * scale * np.linalg.norm(update), levels=levels)
        units = forward(codec, jnp.asarray(update * scale, jnp.float32))
        assert levels * (1 - 2.0**-20) <= norm_of(units) <= levels * (1 + 2.0**-20)


@pytest.mark.default_dtypes
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_norms_of_half_precision_do_not_underflow(dtype):
    """Squares of 1e-4 are zero in float16, so a norm taken there would not clip."""
    update = jnp.full(10_000, 1e-4, dtype)
    if dtype == jnp.float16:
        assert float(jnp.max(update * update)) <= 6e-8
    exact = np.asarray(update, np.float64)
    norm = np.linalg.norm(exact)
    codec = fa.FixedPoint(clip=norm / 4, levels=2**15)
    assert clipped(codec, update)
    units = forward(codec, update)
    assert units.dtype == jnp.float32
    np.testing.assert_allclose(units, exact / norm * 2**15, rtol=1e-5)
    large = jnp.full(100, 6e4 if dtype == jnp.float16 else 1e18, dtype)
    codec = fa.FixedPoint(clip=1.0, levels=2**15)
    assert norm_of(forward(codec, large)) == pytest.approx(2**15, rel=1e-6)


# The inverse.


@every_norm
@pytest.mark.parametrize("clip", [1.0, 0.25, 64.0])
def test_inverse_of_forward_is_the_identity_on_grid_values(norm, clip):
    """Exactly, for clips and levels that are powers of two and updates that are not clipped."""
    codec = fa.FixedPoint(clip=clip, levels=2**15, norm=norm)
    grid = np.random.default_rng(0).integers(-1000, 1001, 900)
    update = {"w": jnp.asarray(grid.reshape(30, 30) * (clip / 2**15), jnp.float32)}
    assert not clipped(codec, update)
    units = forward(codec, update)
    np.testing.assert_array_equal(units, grid)
    np.testing.assert_array_equal(back(codec, units, update)["w"], update["w"])


@every_norm
def test_grid_values_of_any_clip_survive_rounding(norm):
    """Any clip and levels: nearest rounding finds the grid point, one ulp or two around it."""
    for clip, levels in ((0.3, 1000), (7.1, 32767), (1e-6, 127), (123.4, 3)):
        codec = fa.FixedPoint(clip=clip, levels=levels, norm=norm)
        largest = max(1, levels // 40)
        grid = np.random.default_rng(levels).integers(-largest, largest + 1, 500)
        grid = grid if norm == "linf" or levels > 3 else grid * (np.arange(500) < 3)
        update = jnp.asarray(grid * (clip / levels), jnp.float32)
        assert not clipped(codec, update)
        units = forward(codec, update)
        np.testing.assert_array_equal(np.rint(units), grid)
        np.testing.assert_allclose(back(codec, units, update), update, rtol=5e-7)


def test_inverse_is_linear_and_undoes_the_sum():
    codec = fa.FixedPoint(clip=10.0, levels=2**10)
    updates = normal(1, 5, 40)
    units = jax.vmap(lambda x: forward(codec, x))(updates)
    np.testing.assert_allclose(
        back(codec, jnp.sum(units, axis=0), updates[0]), jnp.sum(updates, axis=0), atol=2e-5
    )
    four = back(codec, 4 * units[0], updates[0])
    np.testing.assert_array_equal(four, 4 * back(codec, units[0], updates[0]))


def test_state_of_a_network_comes_back_in_its_structure():
    """flax.nnx.State in and out, through the codec alone and through a round."""
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    state = nnx.state(model)
    state = jax.tree.map(lambda x: jnp.round(x * 64) / 64, state)
    codec = fa.FixedPoint(clip=8.0, levels=512, rounding="nearest")
    restored = back(codec, forward(codec, state), state)
    assert isinstance(restored, nnx.State)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    session = fa.simulated_session(fa.fixed_seed(0), num_clients=2)
    stacked = jax.tree.map(lambda x: jnp.stack([x, x]), state)
    mean, _ = fa.secure_mean(stacked, session, codec=codec)
    assert isinstance(mean, nnx.State)
    jax.tree.map(np.testing.assert_array_equal, mean, state)
    nnx.update(model, mean)
    assert jnp.all(model.kernel[...] == state["kernel"][...])


# The codec as a pytree.


def test_ranges_are_leaves_and_the_budget_is_static():
    codec = fa.FixedPoint(2.0, 8.0, max_levels=9, norm="linf", rounding="nearest")
    leaves, treedef = jax.tree.flatten(codec)
    assert leaves == [2.0, 8.0]
    assert jax.tree.unflatten(treedef, leaves) == codec
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(codec)]
    assert paths == [".clip", ".levels"]
    other = fa.FixedPoint(2.0, 8.0, max_levels=10, norm="linf", rounding="nearest")
    assert jax.tree.structure(other) != treedef
    assert hash(codec) == hash(
        fa.FixedPoint(2.0, 8.0, max_levels=9, norm="linf", rounding="nearest")
    )


def test_trees_of_codecs_are_not_validated_again():
    """Values that the constructor refuses pass through tree operations: placeholders, tangents."""
    codec = fa.FixedPoint(2.0, 8.0)
    negative = jax.tree.map(lambda x: -x, codec)
    assert (negative.clip, negative.levels) == (-2.0, -8.0)
    assert jax.tree.map(lambda x: None, codec).clip is None
    above = jax.tree.map(lambda x: 1e9 * x, codec)
    assert above.levels > above.max_levels
    assert jax.tree.unflatten(jax.tree.structure(codec), [object(), "levels"]).levels == "levels"
    with pytest.raises(ValueError, match=r"\[clip\]"):
        fa.FixedPoint(-2.0, 8.0)
    shapes = jax.eval_shape(lambda c: c, jax.tree.map(jnp.float32, codec))
    assert shapes.clip.dtype == jnp.float32


@pytest.mark.default_dtypes
def test_vmap_over_a_batch_of_codecs_equals_each_of_them():
    update, clips = normal(2, 50), jnp.array([0.5, 1.0, 100.0])
    batch = fa.FixedPoint(clips, jnp.array([10.0, 100.0, 1000.0]))
    found = jax.vmap(forward, in_axes=(0, None))(batch, update)
    for i in range(3):
        one = fa.FixedPoint(float(clips[i]), float(batch.levels[i]))
        np.testing.assert_allclose(found[i], forward(one, update), rtol=1e-6)
    assert np.asarray(jax.vmap(lambda c: clipped(c, update))(batch)).tolist() == [True, True, False]


@pytest.mark.default_dtypes
@every_norm
def test_derivatives_in_clip_and_levels_equal_finite_differences(norm):
    """The ranges are learnable: d(sum of units) / d(clip, levels)."""
    update = normal(3, 20)

    def total(clip, levels):
        codec = fa.FixedPoint(clip, levels, norm=norm)
        return jnp.sum(forward(codec, update) * jnp.arange(20.0))

    point = (jnp.float32(1.3), jnp.float32(50.0))
    found = jax.grad(total, argnums=(0, 1))(*point)
    for i, h in ((0, 1e-2), (1, 1.0)):
        up, down = list(point), list(point)
        up[i], down[i] = point[i] + jnp.float32(h), point[i] - jnp.float32(h)
        numeric = (total(*up) - total(*down)) / (2 * h)
        np.testing.assert_allclose(found[i], numeric, rtol=2e-2, atol=1e-2)


# Diagnostics.


def test_diagnose_counts_what_a_round_does():
    """Non-finite coordinates over all leaves, clipped clients, saturated coordinates."""
    updates = {
        "a": jnp.array([[3.0, 4.0], [0.1, 0.1], [np.nan, np.inf], [0.0, 0.0]]),
        "b": jnp.array([0.0, 0.1, -np.inf, 0.0], jnp.float16),
    }
    found = diagnose(updates, codec=fa.FixedPoint(clip=1.0, levels=100))
    assert found.non_finite.tolist() == [0, 0, 3, 0]
    assert found.clipped.tolist() == [True, False, False, False]
    assert found.saturated.tolist() == [0, 0, 0, 0]
    assert found.non_finite.dtype == found.saturated.dtype == jnp.int32
    assert found.clipped.dtype == jnp.bool_
    codec = jax.tree.map(lambda x: 400.0 * x, fa.FixedPoint(clip=1.0, levels=100, max_levels=100))
    beyond = diagnose(updates, codec=codec)
    # 40000 steps in 400 clips: a step is 0.01, and the budget ends at 1.
    assert beyond.saturated.tolist() == [2, 0, 0, 0]
    assert beyond.clipped.tolist() == [False] * 4


@pytest.mark.default_dtypes
@pytest.mark.parametrize("size", [1, 2])
def test_full_clips_are_not_counted_as_saturated(size):
    """An update of one coordinate beyond the clip fills all levels, and no more than those."""
    values = np.random.default_rng(4).uniform(1, 50, 300)
    updates = jnp.zeros((300, size), jnp.float32).at[:, 0].set(values)
    found = diagnose(updates, codec=fa.FixedPoint(clip=0.37))
    assert found.clipped.all()
    assert int(jnp.sum(found.saturated)) == 0
