"""Codecs side by side: the laws, each part as if alone, and one budget."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_agg as fa
from fedjax_agg.codecs import Beside
from fedjax_agg.structure import Structure
from fedjax_agg.testing import check_codec
from tests.sessions import any_session

MODEL = fa.FixedPoint(clip=2.0, levels=2**12, max_levels=2**12, rounding="nearest")
METRICS = fa.FixedPoint(clip=16.0, levels=2**10, max_levels=2**11, norm="linf", rounding="nearest")
UPDATE = ({"w": jnp.zeros((2, 2)), "b": jnp.zeros(())}, jnp.zeros(3))


@pytest.mark.slow
def test_beside_keeps_the_laws_of_a_codec():
    check_codec(Beside((MODEL, METRICS)), UPDATE)


def draw(n, scale):
    rng = np.random.default_rng(n)
    return jax.tree.map(
        lambda x: jnp.asarray(scale * rng.normal(size=(n, *x.shape)), jnp.float32), UPDATE
    )


@pytest.mark.parametrize("scale", [0.1, 30.0])
def test_each_part_is_what_its_own_codec_makes_of_it(scale):
    update = jax.tree.map(lambda x: x[0], draw(2, scale))
    ctx = fa.RoundContext(structure=Structure.of(update))
    units = Beside((MODEL, METRICS)).forward(update, ctx)
    alone = [codec.forward(part, ctx) for codec, part in zip((MODEL, METRICS), update)]
    np.testing.assert_array_equal(units, np.concatenate(alone))


@pytest.mark.parametrize("scale", [0.1, 30.0])
def test_a_round_of_two_parts_is_two_rounds(scale):
    updates, session = draw(4, scale), any_session(4)
    weights = jnp.array([4, 0, 1, 3])  # eight: every division is exact
    both, _ = fa.secure_mean(
        updates, session, codec=Beside((MODEL, METRICS)), weights=weights, max_weight=4
    )
    for codec, part, found in zip((MODEL, METRICS), updates, both):
        alone, _ = fa.secure_mean(part, session, codec=codec, weights=weights, max_weight=4)
        jax.tree.map(np.testing.assert_array_equal, found, alone)


def test_the_budget_is_the_largest_and_every_part_saturates_at_its_own():
    codec = Beside((MODEL, METRICS))
    assert (codec.bound(), codec.max_levels, codec.rounding) == (2**12, 2**12, "nearest")
    wide = jax.tree.map(lambda x: 100.0 * x, METRICS)  # 100 times the levels of a clip
    ctx = fa.RoundContext(structure=Structure.of(UPDATE))
    full = jax.tree.map(lambda x: jnp.full_like(x, 1e9), UPDATE)
    units = Beside((MODEL, wide)).forward(full, ctx)
    assert units[5:].tolist() == [2.0**11] * 3


def test_it_nests_and_prints_as_what_it_is():
    inner = Beside((MODEL, METRICS))
    codec = Beside([inner, MODEL])
    assert codec == Beside((Beside((MODEL, METRICS)), MODEL))
    assert hash(codec) == hash(Beside((inner, MODEL)))
    assert eval(repr(codec), {"Beside": Beside, "FixedPoint": fa.FixedPoint}) == codec
    update = (UPDATE, jnp.ones(2))
    ctx = fa.RoundContext(structure=Structure.of(update))
    back = codec.inverse(codec.forward(update, ctx), ctx)
    assert jax.tree.structure(back) == jax.tree.structure(update)


def test_one_part_clipped_is_clipped():
    codec = Beside((MODEL, METRICS))
    small = jax.tree.map(lambda x: x + 0.1, UPDATE)
    assert not bool(codec.clipped(small))
    assert bool(codec.clipped((small[0], small[1] + 21.0)))
    assert bool(codec.clipped(({"w": jnp.ones((2, 2)), "b": jnp.ones(())}, small[1])))
