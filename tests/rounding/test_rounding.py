"""float -> integer: the draws, exactness on integers, no bias at any magnitude, independence."""

import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_agg as fa
from fedjax_agg import rounding
from fedjax_agg.rounding.nearest import nearest
from fedjax_agg.rounding.stochastic import stochastic, threefry2x32

VECTORS = json.loads(
    (pathlib.Path(__file__).parents[1] / "vectors" / "threefry2x32.json").read_text()
)
LARGEST = 2**23 - 1
TINY = [-1e-10, -(2.0**-40), -(2.0**-149), -(2.0**-31), -(2.0**-32), -(2.0**-30)]

round_jit = jax.jit(stochastic)


def key_of(seed):
    return np.random.default_rng(seed).integers(0, 2**32, 8, dtype=np.uint32)


def threefry_numpy(key, counter, rounds):
    """An independent Threefry-2x32, to replay draws with."""
    rotations = [13, 15, 26, 6, 17, 29, 16, 24]
    extended = [key[0], key[1], np.uint32(0x1BD11BDA) ^ key[0] ^ key[1]]
    x, y = counter[0] + extended[0], counter[1] + extended[1]
    for r in range(rounds):
        x = x + y
        k = rotations[r % 8]
        y = (y << np.uint32(k) | y >> np.uint32(32 - k)) ^ x
        if r % 4 == 3:
            j = r // 4 + 1
            x, y = x + extended[j % 3], y + extended[(j + 1) % 3] + np.uint32(j)
    return x, y


def draws_numpy(key, length):
    """The 31-bit draw of each coordinate, as Python would compare it: int64[length]."""
    with np.errstate(over="ignore"):
        position = np.arange(length, dtype=np.uint32)
        words, _ = threefry_numpy(key[:2], (position, np.full(length, key[2])), 13)
    return (words >> np.uint32(1)).astype(np.int64)


def rounded_numpy(units, key):
    """Stochastic rounding with exact integers: the magnitude in units of 2^-31, rounded down."""
    rounded = []
    for value, draw in zip(np.asarray(units).tolist(), draws_numpy(key, len(units)).tolist()):
        mantissa, exponent = math.frexp(abs(value))
        scaled = int(mantissa * 2**53)
        shift = exponent - 53 + 31
        fixed = scaled << shift if shift >= 0 else scaled >> -shift
        below, fraction = divmod(fixed, 2**31)
        magnitude = below + (draw < fraction)
        rounded.append(-magnitude if value < 0 else magnitude)
    return np.array(rounded, np.int64)


def awkward(length, seed):
    """Floats of every magnitude below 2^23 and of both signs, with the corners in front."""
    rng = np.random.default_rng(seed)
    values = rng.uniform(1, 2, length) * 2.0 ** rng.uniform(-149, 22.9, length)
    values = np.minimum(values, LARGEST) * rng.choice([-1, 1], length)
    corners = [*TINY, 0.0, -0.0, 0.5, -0.5, 1 - 2.0**-24, -(1 - 2.0**-24), LARGEST, -LARGEST]
    corners += [2.0**22 + 0.5, -(2.0**22) - 0.5, 1.5, -1.5, 2.0**-126, 0.1, -0.1]
    values[: len(corners)] = corners
    return values.astype(np.float32)


# The generator.


@pytest.mark.parametrize(
    "vector", VECTORS["vectors"], ids=lambda v: f"{v['rounds']}-{v['counter'][0]}"
)
def test_threefry_known_answers(vector):
    """Also of the NumPy copy that this file replays draws with."""
    key, counter, output = (
        [np.uint32(int(word, 16)) for word in vector[name]] for name in ("key", "counter", "output")
    )
    rounds = vector["rounds"]
    found = jax.jit(threefry2x32, static_argnums=2)(key, counter, rounds)
    assert [int(word) for word in found] == [int(word) for word in output]
    with np.errstate(over="ignore"):
        assert list(threefry_numpy(key, counter, rounds)) == output
        assert list(threefry_numpy(key, counter, rounds + 1)) != output


# One coordinate.


@pytest.mark.parametrize("seed", range(4))
def test_stochastic_equals_an_exact_integer_comparison(seed):
    """Bit for bit, over 300 binary orders of magnitude: no float error enters the comparison."""
    units, key = awkward(4096, seed), key_of(seed)
    # A float32 subnormal may be flushed to zero, which rounds to zero as well.
    np.testing.assert_array_equal(round_jit(units, key), rounded_numpy(units, key))


def test_the_replay_tells_a_float_comparison_apart():
    """The positive control: flooring the signed value, with a float draw, gives other integers."""
    units, key = awkward(4096, 0), key_of(0)
    with np.errstate(invalid="ignore"):
        uniform = draws_numpy(key, len(units)).astype(np.float32) / np.float32(2**31)
        below = np.floor(units)
        naive = below + (uniform < units - below)
    assert (naive != rounded_numpy(units, key)).any()


@pytest.mark.parametrize("value", TINY)
def test_tiny_negative_values_are_not_pulled_down(value):
    """P(-1) is floor(|value| 2^31) / 2^31 exactly, so the bias is below 2^-31."""
    units, key = np.full(20_000, value, np.float32), key_of(1)
    threshold = int(abs(float(np.float32(value))) * 2**31)
    expected = -(draws_numpy(key, len(units)) < threshold).astype(np.int64)
    np.testing.assert_array_equal(round_jit(units, key), expected)
    assert 0 <= abs(value) - threshold / 2**31 < 2.0**-31


def test_integers_are_exact_up_to_the_largest():
    edges = np.arange(-1000, 1001)
    near = np.concatenate([2**k + np.arange(-3, 4) for k in range(11, 23)])
    ends = np.concatenate([edges, near, -near, LARGEST - np.arange(10), np.arange(10) - LARGEST])
    for seed in range(3):
        found = round_jit(ends.astype(np.float32), key_of(seed))
        assert found.dtype == jnp.int32
        np.testing.assert_array_equal(found, ends)


def test_never_further_than_one_and_to_both_neighbours():
    units = awkward(20_000, 3)
    found = np.asarray(round_jit(units, key_of(3)), np.float64)
    exact = units.astype(np.float64)
    assert (np.abs(found - exact) < 1).all()
    fractional = (np.abs(exact) > 0.25) & (exact != np.rint(exact))
    up = found[fractional] > exact[fractional]
    assert 0.4 < up.mean() < 0.6


@pytest.mark.parametrize("whole", [0, 3, -3, 2**22 - 1])
def test_expected_value_over_a_grid_of_fractions(whole):
    """Each mean lies within 5 standard errors of the value: 33 tests, false alarms below 2e-5."""
    fractions = np.arange(33) / 32
    # A fraction of 1/32 would be lost at 2^22, where the spacing is 1/2.
    fractions = fractions if abs(whole) < 2**18 else fractions[::16]
    values = np.repeat(np.copysign(abs(whole) + fractions, whole), 4000).astype(np.float32)
    found = np.asarray(round_jit(values, key_of(5)), np.float64).reshape(len(fractions), -1)
    error = found.mean(axis=1) - values.reshape(found.shape)[:, 0]
    spread = np.sqrt(fractions * (1 - fractions) / found.shape[1])
    assert (np.abs(error) <= 5 * spread + 1e-12).all()


def test_sign_symmetry():
    """Rounding -y is minus rounding y, so no direction is preferred."""
    units, key = awkward(4096, 7), key_of(7)
    np.testing.assert_array_equal(round_jit(-units, key), -np.asarray(round_jit(units, key)))


def test_same_draws_eagerly_compiled_and_batched():
    units, keys = awkward(300, 8), np.stack([key_of(i) for i in range(3)])
    expected = [rounded_numpy(units, key).tolist() for key in keys]
    assert jax.jit(jax.vmap(stochastic, in_axes=(None, 0)))(units, keys).tolist() == expected
    assert stochastic(jnp.asarray(units), jnp.asarray(keys[0])).tolist() == expected[0]
    with jax.enable_x64(True):
        found = jax.jit(stochastic)(units, keys[0])
        assert found.dtype == jnp.int32
    assert found.tolist() == expected[0]


# Independence of draws.

CORRELATION_BOUND = 5.0


def correlations(rows):
    """|correlation| of every two rows in standard errors, from signs -1 and 1 of mean zero."""
    signs = 2.0 * np.asarray(rows, np.float64) - 1.0
    count = signs.shape[1]
    gram = np.abs(signs @ signs.T) / math.sqrt(count)
    return gram[np.triu_indices(len(signs), 1)]


def test_draws_of_clients_rounds_and_sessions_are_independent():
    """Sums of 0.5 through the whole round, so with the keys that the round derives.

    66 correlations, each beyond 5 standard errors with probability 6e-7: false alarms below
    4e-5. The same session twice is the positive control.
    """
    length, n = 20_000, 3
    codec = fa.FixedPoint(clip=1.0, levels=2, norm="linf")
    updates = np.full((n, length), 0.25, np.float32)

    @jax.jit
    def draws(seed, round_id):
        session = fa.simulated_session(seed, num_clients=n, round_id=round_id)

        def alone(present):
            return fa.secure_sum(updates, session, codec=codec, participation=present)[0]

        return jax.vmap(alone)(jnp.eye(n, dtype=bool)) * 2

    runs = [(0, 0), (0, 1), (0, 2), (1, 0)]
    rows = [draws(fa.fixed_seed(seed), jnp.uint32(round_id)) for seed, round_id in runs]
    rows = np.concatenate(rows)
    assert set(np.unique(rows).tolist()) == {0.0, 1.0}
    assert correlations(rows).max() < CORRELATION_BOUND
    again = draws(fa.fixed_seed(0), jnp.uint32(0))
    assert correlations([rows[0], again[0]])[0] > 100


def test_draws_of_neighbouring_coordinates_are_independent():
    """Lags 1 to 16 under one key; every second coordinate copied is the positive control."""
    halves = np.full(40_000, 0.5, np.float32)
    draws = np.asarray(round_jit(halves, key_of(9)))
    shifted = [draws[lag : lag + 39_000] for lag in range(17)]
    assert correlations(shifted).max() < CORRELATION_BOUND
    copied = np.repeat(draws[::2], 2)
    assert correlations([copied[:-1], copied[1:]])[0] > CORRELATION_BOUND


@pytest.mark.parametrize("word", [0, 1, 2])
def test_each_key_word_in_use_changes_the_draws(word):
    """A flipped bit gives draws that agree on half of the coordinates, within 5 errors."""
    halves = np.full(20_000, 0.5, np.float32)
    key = key_of(10)
    flips = np.tile(key, (32, 1))
    flips[:, word] ^= np.uint32(1) << np.arange(32, dtype=np.uint32)
    rows = jax.jit(jax.vmap(stochastic, in_axes=(None, 0)))(halves, np.vstack([key, flips]))
    assert correlations(rows).max() < CORRELATION_BOUND


# Nearest.


def test_nearest_equals_numpy_rint(jit_or_not):
    halves = np.arange(-200, 200) / 2
    units = np.concatenate([awkward(4096, 11), halves, [LARGEST - 0.5, 0.49999997]])
    units = units.astype(np.float32)
    found = jit_or_not(nearest)(jnp.asarray(units))
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found, np.rint(units))
    assert (np.abs(np.asarray(found) - units.astype(np.float64)) <= 0.5).all()


@pytest.mark.parametrize("bound", [1, 100, 2**22 - 1, 2**22, LARGEST])
def test_nearest_is_the_same_for_every_bound(bound, jit_or_not):
    """Up to the bound and with its halves, on both sides of where the method changes."""
    halves = np.arange(2 * bound, 2 * bound - 400, -1) / 2
    units = np.concatenate([awkward(4096, 13) * (bound / LARGEST), halves, -halves])
    units = units[np.abs(units) <= bound].astype(np.float32)
    found = jit_or_not(lambda units: nearest(units, bound))(jnp.asarray(units))
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found, np.rint(units))


def test_mode_chooses_the_rule():
    units, key = jnp.asarray(awkward(100, 12)), jnp.asarray(key_of(12))
    by_mode = {mode: rounding.round_to_grid(mode, units, key) for mode in rounding.MODES}
    assert set(by_mode) == {"stochastic", "nearest"}
    np.testing.assert_array_equal(by_mode["stochastic"], rounded_numpy(units, np.asarray(key)))
    np.testing.assert_array_equal(by_mode["nearest"], np.rint(units))
