"""Law 1, exactness: the total is the plain sum of the survivors' words, bit for bit.

The oracle adds Python-sized integers in NumPy. Bounds on random results are in standard errors:
at five, a right program fails one comparison in 1.7 million, and seeds are fixed.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import fedjax_agg as fa
from fedjax_agg import rounding
from fedjax_agg.arithmetic import Ring
from fedjax_agg.participation import STAGES
from fedjax_agg.structure import Structure
from fedjax_agg.symmetric import key_schedule
from tests.parties import QUICKLY, everybody, play

STANDARD_ERRORS = 5


def make_session(n, number=0):
    """A session of any words: the laws hold however they were derived."""
    rng = np.random.default_rng([n, number])

    def words(*shape):
        return jnp.asarray(rng.integers(2**32, size=shape, dtype=np.uint32))

    agreement = jnp.broadcast_to(words(2, 8), (n, 2, 8))
    round_id = jnp.uint32([0, 1, 2**32 - 1][number % 3])
    return fa.Session(
        round_id, words(8), jnp.arange(1, n + 1, dtype=jnp.uint32), words(n, 8), agreement
    )


# ---- the oracle ---------------------------------------------------------------------------------


@jax.jit
def client_units(codec, updates, ctx):
    return jax.vmap(lambda update: codec.forward(update, ctx))(updates)


def rounded(units, session):
    """One client after the other, which compiles the key derivation once for all tests."""
    rows = []
    for row, secret in zip(units, session.secrets):
        key = key_schedule.derive_key(
            secret, key_schedule.ROUNDING, salt=session.public_seed, round_id=session.round_id
        )
        rows.append(np.asarray(round_stochastically(row, key)).astype(np.int64))
    return np.stack(rows)


@jax.jit
def round_stochastically(units, key):
    return rounding.round_to_grid("stochastic", units, key)


def integer_weights(weights, max_weight):
    """The weights on their grid, and how many of them make one."""
    if weights is None:
        return None, 1
    if np.issubdtype(weights.dtype, np.integer):
        return weights.astype(np.float32), 1
    return np.rint(np.float32(weights) * np.float32(max_weight)), max_weight


def oracle_words(updates, session, codec, weights):
    """int64[n, D or D + 1]: what every client rounds to; ``weights`` on their grid."""
    one = jax.tree.map(lambda x: x[0], updates)
    ctx = fa.RoundContext(structure=Structure.of(one))
    n = session.num_clients
    units = np.zeros((n, 0), np.float32)
    if ctx.structure.size:
        units = np.asarray(client_units(codec, updates, ctx))
    assert units.dtype == np.float32
    limit = np.float32(codec.max_levels)
    units = np.clip(np.where(np.isfinite(units), units, np.float32(0)), -limit, limit)
    if weights is not None:
        units = np.concatenate([units * weights[:, None], weights[:, None]], axis=1)
    if codec.rounding == "nearest":
        return np.rint(units).astype(np.int64)
    return rounded(jnp.asarray(units), session)


def oracle_sum(updates, session, codec, weights, grid, survivors, bits):
    """The weighted sum in the structure of one update, from an integer sum that did not wrap."""
    words = oracle_words(updates, session, codec, weights)
    total = np.sum(words[np.asarray(survivors)], axis=0, dtype=np.int64)
    assert (np.abs(total) <= 2 ** (bits - 1) - 1).all()
    step = np.float32(codec.clip) / np.float32(codec.levels)
    value = total.astype(np.float32) * step / np.float32(grid)
    leaves, begin = [], 0
    for leaf in jax.tree.leaves(updates):
        size = int(np.prod(leaf.shape[1:]))
        leaves.append(value[begin : begin + size].reshape(leaf.shape[1:]).astype(leaf.dtype))
        begin += size
    return jax.tree.unflatten(jax.tree.structure(updates), leaves)


def assert_same_bits(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), strict=True)


# ---- the matrix ---------------------------------------------------------------------------------

BF16, F16, F32 = ml_dtypes.bfloat16, np.float16, np.float32


def nnx_template(zeros):
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    return jax.tree.map(lambda x: zeros(F32, *x.shape), nnx.state(model))


TREES = {
    "vector": lambda zeros: zeros(F32, 5),
    "scalar": lambda zeros: zeros(F32),
    "bfloat16": lambda zeros: zeros(BF16, 4),
    "float16": lambda zeros: {"x": zeros(F16, 2, 2)},
    "empty leaves": lambda zeros: {
        "a": zeros(F32, 0),
        "w": zeros(F32, 2, 3),
        "b": zeros(F16, 4, 0),
    },
    "nested": lambda zeros: {"a": (zeros(F32, 2), [zeros(BF16, 3)]), "b": {"c": zeros(F16, 2, 2)}},
    "nothing": lambda zeros: {},
    "nnx": nnx_template,
}


@dataclasses.dataclass(frozen=True)
class Case:
    tree: str
    n: int
    bits: int
    levels: int
    rounding: str
    norm: str = "l2"
    weights: str | None = None
    max_weight: int | None = None

    @property
    def codec(self):
        return fa.FixedPoint(
            2.0, self.levels, max_levels=self.levels, norm=self.norm, rounding=self.rounding
        )

    def updates(self, seed):
        """Multiples of 1/16 up to 2: squares add up exactly, so a norm does not depend on order."""
        rng = np.random.default_rng([seed, self.n])

        def draw(dtype, *shape):
            sixteenths = rng.integers(-32, 33, size=(self.n, *shape))
            return jnp.asarray((sixteenths / 16).astype(dtype))

        return TREES[self.tree](draw)

    def client_weights(self, seed):
        rng = np.random.default_rng([seed, self.n, 1])
        if self.weights == "integers":
            return rng.integers(0, 20, size=self.n, dtype=np.int32)
        if self.weights == "fractions":
            return rng.uniform(size=self.n).astype(np.float32)
        return None

    def arguments(self, seed, protocol=fa.Plain):
        weights = self.client_weights(seed)
        return {
            "codec": self.codec,
            "protocol": protocol(group=Ring(self.bits)),
            "weights": None if weights is None else jnp.asarray(weights),
            "max_weight": self.max_weight,
        }


CASES = [
    Case("vector", 2, 8, 32, "nearest"),
    Case("nested", 3, 32, 2**15, "stochastic", weights="integers", max_weight=20),
    Case("nested", 7, 20, 2**12, "nearest", "linf", "fractions", 16),
    Case("nothing", 2, 9, 16, "nearest"),
    Case("scalar", 2, 17, 2**14, "nearest"),
    Case("empty leaves", 3, 24, 2**10, "nearest", "linf", "fractions", 255),
    Case("bfloat16", 7, 32, 2**20, "nearest"),
    Case("float16", 3, 12, 2**9, "nearest", "linf"),
    Case("nnx", 7, 26, 2**10, "nearest", weights="integers", max_weight=100),
]
# With SecAgg, compiled once for all quick tests: eight clients with five neighbours each, of whom
# any two rebuild a secret, so that any three clients may be lost.
MASKED = Case("nested", 8, 20, 2**11, "stochastic", "linf", "fractions", 16)
SPARSE = functools.partial(fa.SecAgg, 2, 5)
SLOW = [*CASES[:2], *CASES[4:], Case("vector", 7, 19, 2**15, "stochastic")]


def case_id(case):
    return f"{case.tree}-{case.n}-ring{case.bits}-{case.rounding}-{case.norm}-{case.weights}"


def survivor_sets(n):
    """Everybody, all but one, one alone, and every other client."""
    masks = [np.ones(n, bool), np.arange(n) != 1, np.arange(n) == n - 1, np.arange(n) % 2 == 0]
    return list({mask.tobytes(): mask for mask in masks}.values())


@functools.cache
def sum_of(case, protocol):
    """``secure_sum``; under SecAgg in a program that takes less time to compile.

    There clip, levels and grid are constants, which XLA may fold in another order. In ``MASKED``
    they are powers of two, so that no order matters.
    """
    options = {"codec": case.codec, "protocol": protocol, "max_weight": case.max_weight}

    def total(updates, session, weights, participation):
        return fa.secure_sum(
            updates, session, weights=weights, participation=participation, **options
        )

    return jax.jit(total, compiler_options=QUICKLY) if case is MASKED else total


def check_case(case, protocol, participations, seeds=(0, 1), succeeds=True):
    """Against the oracle, for every session and everyone who may be missing.

    ``participations`` are bool[n], or bool[5, n] by stage. Where ``succeeds`` is False the
    protocol must fail, and the sum is zero.
    """
    protocol = protocol(group=Ring(case.bits))
    for seed in seeds:
        session, updates = make_session(case.n, seed), case.updates(seed)
        client_weights = case.client_weights(seed)
        weights, grid = integer_weights(client_weights, case.max_weight)
        given = None if weights is None else jnp.asarray(client_weights)
        for alive in map(np.asarray, participations):
            staged = fa.Participation(jnp.asarray(alive)) if alive.ndim == 2 else jnp.asarray(alive)
            found, report = sum_of(case, protocol)(updates, session, given, staged)
            survivors = alive if alive.ndim == 1 else alive[: 1 + STAGES.index("upload")].all(0)
            np.testing.assert_array_equal(report.survivors, survivors)
            counted = (np.ones(case.n) if weights is None else weights)[survivors].sum() * succeeds
            if counted == 0:
                survivors = np.zeros(case.n, bool)
            expected = oracle_sum(updates, session, case.codec, weights, grid, survivors, case.bits)
            assert_same_bits(found, expected)
            assert bool(report.ok) == (counted > 0)
            assert float(report.total_weight) == pytest.approx(counted / grid, rel=1e-6)
            assert not report.suspects.any()
            # The control: there is something to get wrong.
            size = sum(leaf.size for leaf in jax.tree.leaves(found))
            assert any(np.asarray(leaf).any() for leaf in jax.tree.leaves(found)) == (
                counted > 0 and size > 0
            )


@pytest.mark.quick_cases(5)
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_plain_total_is_the_sum_of_words(case):
    check_case(case, fa.Plain, survivor_sets(case.n))


def missing(n, **lost):
    """Who is there at each stage, bool[5, n], where ``lost`` names by stage who is from it on."""
    alive = np.ones((len(STAGES), n), bool)
    for stage, clients in lost.items():
        alive[STAGES.index(stage) :, clients] = False
    return alive


TOLERATED = [
    {},
    *[{stage: [number]} for number, stage in enumerate(STAGES)],
    *[{stage: [7, 1, 4]} for stage in STAGES],
    {"advertise": [0], "upload": [6], "unmask": [3]},
    {"share": [2], "attest": [1, 5]},
]


@pytest.mark.parametrize("lost", TOLERATED, ids=str)
@pytest.mark.parametrize(
    "protocol", [fa.Plain, pytest.param(SPARSE, marks=pytest.mark.slow)], ids=["plain", "secagg"]
)
def test_the_total_is_the_sum_of_the_survivors_whoever_is_lost_when(protocol, lost):
    """Survivors are those who uploaded, whether they are there to unmask or not. Both protocols
    give the same bits for the same session, stochastic rounding and hidden weights included."""
    check_case(MASKED, protocol, [missing(8, **lost)], seeds=range(3))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lost", "rule"),
    [
        ({"upload": [0, 1, 2, 3, 4, 5]}, "few-survivors"),
        ({"advertise": [0, 1, 2, 3, 4, 5, 6]}, "few-keys"),
        ({"share": [1, 2, 3, 4, 5, 6, 7]}, "few-shares"),
        ({"attest": [0, 1, 2, 3, 4, 5, 6]}, "few-attestations"),
        ({"unmask": [1, 2, 3, 4, 5, 6, 7]}, None),
        ({"upload": [0, 1, 2, 3, 4, 5, 6, 7]}, None),
    ],
)
def test_who_is_lost_beyond_the_threshold_takes_the_round_with_it(lost, rule):
    """Zeros and ``ok`` False, never a part of the sum; the report says which rule it was."""
    session, updates = make_session(8), MASKED.updates(0)
    protocol = SPARSE(group=Ring(MASKED.bits))
    weights, alive = jnp.ones(8), fa.Participation(jnp.asarray(missing(8, **lost)))
    found, report = sum_of(MASKED, protocol)(updates, session, weights, alive)
    assert not bool(report.ok)
    assert float(report.total_weight) == 0
    assert_same_bits(found, jax.tree.map(lambda x: np.zeros(x.shape[1:], x.dtype), updates))
    assert {name for name, count in report.refusals.items() if count} == {rule} - {None}


@pytest.mark.slow
@pytest.mark.parametrize(
    "protocol",
    [
        fa.SecAgg,
        functools.partial(fa.SecAgg, 4, 7),
        functools.partial(fa.SecAgg, 1, 4, False, min_survivors=2),
        functools.partial(fa.SecAgg, 2, 6, min_survivors=5),
    ],
    ids=["defaults", "complete", "one share is enough, no attestations", "five survivors"],
)
def test_the_total_under_other_thresholds_and_degrees(protocol):
    """Whatever the threshold, what is given is the sum of the survivors, or zeros."""
    threshold = protocol().threshold_of(8)
    neighbours = protocol().degree_of(8)
    check_case(MASKED, protocol, [missing(8)])
    # So many that every client has enough neighbours left.
    bearable = list(range(min(neighbours - threshold, 3)))
    for stage in STAGES:
        check_case(MASKED, protocol, [missing(8, **{stage: bearable})])
    check_case(MASKED, protocol, [missing(8, unmask=list(range(8)))], succeeds=False)


@pytest.mark.slow
@pytest.mark.parametrize("case", SLOW, ids=case_id)
def test_secagg_total_is_the_sum_of_words_in_more_cases(case):
    check_case(case, fa.SecAgg, [np.ones(case.n, bool)])
    check_case(case, fa.Plain, survivor_sets(case.n))


@functools.cache
def play_quickly(protocol):
    return jax.jit(functools.partial(play, protocol), compiler_options=QUICKLY)


def check_any_words(protocol, seed):
    """Words over the whole ring, sums that wrap included, and up to two clients lost."""
    group, n = protocol.group, 5
    rng = np.random.default_rng(seed)
    words = rng.integers(2**group.bits, size=(n, 3), dtype=np.uint32)
    survivors = ~np.isin(np.arange(n), rng.choice(n, size=seed % 3, replace=False))
    alive = everybody(n).at[STAGES.index("upload") :].set(survivors)
    played = play_quickly(protocol)(jnp.asarray(words), make_session(n, seed), alive)
    expected = np.sum(words[survivors], axis=0, dtype=np.int64) % 2**group.bits
    np.testing.assert_array_equal(np.asarray(played.total.words, np.int64), expected)
    assert bool(played.total.ok)
    uploads = np.asarray(played.mail["upload"].outboxes.words)
    np.testing.assert_array_equal(uploads[~survivors], 0)
    return words[survivors], uploads[survivors]


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_any_ring_elements_add_up(seed):
    words, uploads = check_any_words(fa.SecAgg(2, group=Ring(9)), seed)
    assert (uploads < 2**9).all()
    assert (uploads != words).mean() > 0.5  # the control: there was something to cancel


@pytest.mark.slow
@pytest.mark.parametrize("bits", [1, 8, 17, 31, 32])
def test_any_ring_elements_add_up_in_other_rings(bits):
    for seed in range(20):
        check_any_words(fa.SecAgg(2, group=Ring(bits)), seed)


# ---- the mean -----------------------------------------------------------------------------------


def float64_mean(updates, clip, norm, weights, survivors):
    """The weighted mean of clipped updates, in float64."""
    x = np.concatenate(
        [np.asarray(leaf, np.float64).reshape(len(leaf), -1) for leaf in jax.tree.leaves(updates)],
        axis=1,
    )
    if norm == "linf":
        x = np.clip(x, -clip, clip)
    else:
        x = x * np.minimum(1, clip / np.linalg.norm(x, axis=1, keepdims=True))
    w = np.ones(len(x)) if weights is None else np.asarray(weights, np.float64)
    w = w * survivors
    return w @ x / w.sum()


@pytest.mark.parametrize(
    ("norm", "rounding", "weighted"),
    [
        ("linf", "stochastic", False),
        ("linf", "nearest", True),
        ("l2", "nearest", False),
        ("l2", "stochastic", True),
    ],
)
def test_mean_is_within_a_step_of_the_mean_of_clipped_updates(norm, rounding, weighted):
    """Half a step with nearest rounding, and the float32 round-off that the plan states. With
    weights, a step for each survivor over the total weight, which is less."""
    n, clip = 7, 0.75
    rng = np.random.default_rng(3)
    updates = {
        "w": jnp.asarray(rng.normal(size=(n, 5, 4)), jnp.float32),
        "b": jnp.asarray(rng.normal(size=n) / 9, jnp.float32),
    }
    one = jax.tree.map(lambda x: x[0], updates)
    weights = rng.integers(1, 10, size=n) if weighted else None
    for bits, survivors in [(8, np.arange(n) != 2), (14, np.ones(n, bool))]:
        plan = fa.plan_round(one, num_clients=n, clip=clip, bits=bits, max_weight=9)
        mean, report = fa.secure_mean(
            updates,
            make_session(n, bits),
            codec=fa.FixedPoint(
                clip, plan.levels, max_levels=2**13 - 1, norm=norm, rounding=rounding
            ),
            weights=None if weights is None else jnp.asarray(weights, jnp.int32),
            max_weight=9 if weighted else None,
            participation=jnp.asarray(survivors),
        )
        assert bool(report.ok)
        found = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(mean)])
        steps = (0.5 if rounding == "nearest" else 1.0) * survivors.sum()
        steps /= survivors.sum() if weights is None else weights[survivors].sum()
        assert steps <= 1
        bound = plan.error_bound - plan.step + plan.step * steps
        expected = float64_mean(updates, clip, norm, weights, survivors)
        error = np.abs(found - expected).max()
        assert plan.step * steps / 20 < error <= bound
        # The control: a mean over other survivors is far off.
        other = float64_mean(updates, clip, norm, weights, np.arange(n) != 5)
        assert np.abs(found - other).max() > bound


def test_plan_and_protocol_fit_together():
    """The smallest ring of a plan, the codec of the plan, extreme inputs: the mean is the clip."""
    plan = fa.plan_round(3, num_clients=3, clip=0.5, bits=12, max_weight=7)
    mean, _ = fa.secure_mean(
        jnp.full((3, 3), 9.0),
        make_session(3),
        codec=plan.codec(norm="linf", rounding="nearest"),
        protocol=fa.Plain(group=plan.group),
        weights=jnp.full(3, 7),
        max_weight=7,
    )
    np.testing.assert_allclose(mean, 0.5, rtol=2.0**-20)
    with pytest.raises(ValueError, match=r"\[weight-budget\]"):
        fa.secure_mean(
            jnp.full((3, 3), 9.0),
            make_session(3),
            codec=plan.codec(),
            protocol=fa.Plain(group=Ring(plan.ring_bits - 1)),
            weights=jnp.full(3, 7),
            max_weight=7,
        )


@pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
def test_what_lies_on_the_grid_comes_back_exactly(rounding):
    n, step = 7, 2.0**-10
    units = np.random.default_rng(0).integers(-1024, 1025, size=(n, 21))
    codec = fa.FixedPoint(1.0, 1024, max_levels=2**13 - 1, norm="linf", rounding=rounding)
    x = jnp.asarray(units * step, jnp.float32)
    survivors = np.arange(n) < 4
    mean, _ = fa.secure_mean(
        {"w": x[:, 1:].reshape(n, 5, 4), "b": x[:, 0]},
        make_session(n),
        codec=codec,
        participation=jnp.asarray(survivors),
    )
    found = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(mean)])
    np.testing.assert_array_equal(found, units[survivors].sum(0) * step / 4)


def test_the_order_of_clients_does_not_matter():
    """With nearest rounding, which draws nothing."""
    n = 7
    rng = np.random.default_rng(1)
    x, weights = rng.normal(size=(n, 6)).astype(np.float32), rng.integers(0, 9, size=n)
    alive, codec = rng.uniform(size=n) < 0.7, fa.FixedPoint(1.0, rounding="nearest")

    def mean(order):
        arguments = {"weights": jnp.asarray(weights[order]), "participation": alive[order]}
        return np.asarray(fa.secure_mean(jnp.asarray(x[order]), make_session(n), codec=codec,
                                         **arguments)[0])  # fmt: skip

    first = mean(np.arange(n))
    for seed in range(4):
        np.testing.assert_array_equal(mean(np.random.default_rng(seed).permutation(n)), first)
    alive = ~alive
    assert (mean(np.arange(n)) != first).any()  # the control


# ---- rounds that fail, data that is no number ---------------------------------------------------


@pytest.mark.parametrize(
    "protocol", [fa.Plain, pytest.param(SPARSE, marks=pytest.mark.slow)], ids=["plain", "secagg"]
)
def test_a_round_without_weight_gives_zeros(protocol):
    session, updates = make_session(8), MASKED.updates(0)
    total = sum_of(MASKED, protocol(group=Ring(MASKED.bits)))
    everyone = fa.Participation(everybody(8))
    found, report = total(updates, session, jnp.zeros(8), everyone)
    assert not bool(report.ok)
    assert float(report.total_weight) == 0
    assert_same_bits(found, jax.tree.map(lambda x: np.zeros(x.shape[1:], x.dtype), updates))
    found, report = total(updates, session, jnp.zeros(8).at[1].set(1.0), everyone)  # the control
    assert bool(report.ok)
    assert any(np.asarray(leaf).any() for leaf in jax.tree.leaves(found))


@pytest.mark.parametrize(
    "protocol", [fa.Plain, pytest.param(SPARSE, marks=pytest.mark.slow)], ids=["plain", "secagg"]
)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_coordinate_that_is_no_number_counts_as_zero(protocol, bad):
    """It takes neither the client's other coordinates nor anybody else's with it."""
    session, updates = make_session(8), MASKED.updates(0)
    total = sum_of(MASKED, protocol(group=Ring(MASKED.bits)))

    def with_value(value):
        leaf = updates["a"][0].at[1, 0].set(value)
        changed = {**updates, "a": (leaf, updates["a"][1])}
        everyone = fa.Participation(everybody(8))
        found, report = total(changed, session, jnp.linspace(0.5, 1.0, 8), everyone)
        assert bool(report.ok)
        return found

    assert_same_bits(with_value(bad), with_value(0.0))
    other = with_value(0.25)["a"][0][0]
    assert float(other) != float(with_value(0.0)["a"][0][0])  # the control


def test_a_norm_beyond_float32_takes_out_that_client_only():
    codec = fa.FixedPoint(0.5, rounding="nearest")
    x = jnp.array([[0.25, 0.125], [1e30, 0.125], [3e38, 3e38]])
    total, report = fa.secure_sum(x, make_session(3), codec=codec)
    assert bool(report.ok)
    np.testing.assert_array_equal(total, [0.25, 0.125])


@pytest.mark.default_dtypes
@pytest.mark.parametrize(
    ("n", "max_weight", "max_levels", "bits"),
    [(3, 5, 17, 9), (7, 31, 151, 16), (3, 1, 5592405, 25)],
)
@pytest.mark.parametrize("sign", [1, -1])
def test_saturation_reaches_the_bound_and_never_wraps(n, max_weight, max_levels, bits, sign):
    """Traced levels far above the budget, every client at the end of its range: the total is the
    largest element of the ring. One more of anything is refused."""
    assert n * max_weight * max_levels == 2 ** (bits - 1) - 1
    weights = jnp.full(n, max_weight) if max_weight > 1 else None

    @functools.partial(jax.jit, static_argnums=(2, 3, 4))
    def total(x, levels, n=n, max_weight=max_weight, max_levels=max_levels):
        codec = fa.FixedPoint(1.0, levels, max_levels=max_levels, norm="linf", rounding="nearest")
        value, report = fa.secure_sum(
            x[:n],
            make_session(n),
            codec=codec,
            protocol=fa.Plain(group=Ring(bits)),
            weights=None if weights is None else jnp.full(n, max_weight),
            max_weight=max_weight,
        )
        return value * levels, report.ok

    levels = jnp.float32(2**23)
    x = sign * jnp.array([[1.0, 3e38, jnp.inf, 2.0**-23, 0.0]] * (n + 1))
    words, ok = total(x, levels)
    assert bool(ok)
    largest = 2 ** (bits - 1) - 1
    np.testing.assert_array_equal(
        words, [sign * w for w in (largest, largest, 0, n * max_weight, 0)]
    )
    for more in ((n + 1, max_weight, max_levels), (n, max_weight, max_levels + 1)):
        with pytest.raises(ValueError, match=r"\[weight-budget\]"):
            total(x, levels, *more)
    with pytest.raises(ValueError, match=r"\[weight-budget\]"):
        fa.secure_sum(
            x[:n],
            make_session(n),
            codec=fa.FixedPoint(1.0, 1, max_levels=max_levels),
            protocol=fa.Plain(group=Ring(bits)),
            weights=jnp.ones(n, jnp.int32),
            max_weight=max_weight + 1,
        )


@pytest.mark.slow
def test_saturation_never_wraps_under_secagg():
    """The same at 9 bits, where masks wrap all the time."""
    codec = fa.FixedPoint(1.0, 17, max_levels=17, norm="linf", rounding="nearest")
    arguments = {"protocol": fa.SecAgg(group=Ring(9)), "max_weight": 5}
    x = jnp.array([[9.0, -9.0, 1.0, -1.0]] * 3)
    for number in range(4):
        total, _ = fa.secure_sum(
            x, make_session(3, number), codec=codec, weights=jnp.full(3, 5), **arguments
        )
        np.testing.assert_array_equal(np.rint(total * 17), [255, -255, 255, -255])


# ---- properties ---------------------------------------------------------------------------------

ANY_FLOATS = hnp.arrays(np.float32, (3, 4), elements=st.floats(width=32))


@functools.partial(jax.jit, static_argnums=(0,))
def traced_sum(max_levels, x, weights, alive, clip, levels, session):
    codec = fa.FixedPoint(clip, levels, max_levels=max_levels, norm="linf", rounding="nearest")
    return fa.secure_sum(
        x, session, codec=codec, weights=weights, max_weight=50, participation=alive
    )


@settings(max_examples=60, deadline=None)
@given(
    x=ANY_FLOATS,
    weights=hnp.arrays(np.int32, 3, elements=st.integers(0, 50)),
    alive=hnp.arrays(bool, 3),
    clip=st.floats(2.0**-20, 2.0**20, width=32),
    levels=st.floats(1, 2.0**22, width=32),
)
def test_any_floats_against_numpy(x, weights, alive, clip, levels):
    """NaN, infinities and subnormals, any clip and levels: all arithmetic redone in NumPy."""
    clip, levels, limit = np.float32(clip), np.float32(levels), np.float32(1000)
    with np.errstate(over="ignore"):
        clips = np.where(np.isfinite(x), x, np.float32(0)) * (np.float32(1) / clip)
    units = np.clip(np.clip(clips, -1, 1) * levels, -limit, limit)
    words = np.rint(units * weights[:, None].astype(np.float32)).astype(np.int64)
    total = words[alive].sum(0)
    ok = weights[alive].sum() > 0
    expected = total.astype(np.float32) * (clip / levels) if ok else np.zeros(4, np.float32)
    found, report = traced_sum(1000, x, weights, alive, clip, levels, make_session(3))
    assert bool(report.ok) == ok
    np.testing.assert_array_equal(np.asarray(found), expected)


# ---- stochastic rounding ------------------------------------------------------------------------


def test_rounding_is_unbiased_and_independent():
    """The error of a sum has mean 0 and the variance of independent draws, f(1 - f) for each
    client, at every coordinate; coordinates, clients, sessions and rounds draw independently."""
    sessions = 4000
    x = jnp.array([[0.3, 0.75, -0.1, 0.0], [0.3, 0.5, 0.02, -1.0]])
    f = np.abs(np.asarray(x, np.float64)) % 1
    base = make_session(2)
    rng = np.random.default_rng(0)
    words = jnp.asarray(rng.integers(2**32, size=(sessions, 2, 8), dtype=np.uint32))

    @jax.jit
    def totals(words, alive):
        def one(secrets, round_id):
            session = dataclasses.replace(base, secrets=secrets, round_id=round_id)
            codec = fa.FixedPoint(2.0, 2, norm="linf")
            return fa.secure_sum(x, session, codec=codec, participation=alive)[0]

        return jax.vmap(one)(words, jnp.arange(sessions, dtype=jnp.uint32))

    def check(words, alive):
        found = np.asarray(totals(words, jnp.asarray(alive)), np.float64)
        error = found - (np.asarray(x, np.float64) * alive[:, None]).sum(0)
        variance = (f * (1 - f) * alive[:, None]).sum(0)
        bound = STANDARD_ERRORS * np.sqrt(variance / sessions) + 1e-6
        np.testing.assert_array_less(np.abs(error.mean(0)), bound)
        # The last coordinate is on the grid: no error at all.
        np.testing.assert_array_equal(error[:, 3], 0)
        squares, variance = error[:, :3] ** 2, variance[:3]
        spread = STANDARD_ERRORS * squares.std(0) / np.sqrt(sessions)
        off = np.abs(squares.mean(0) - variance)
        np.testing.assert_array_less(off, spread)
        correlations = np.corrcoef(error[:, :3].T) - np.eye(3)
        assert np.abs(correlations).max() < STANDARD_ERRORS / np.sqrt(sessions)
        return squares.mean(0), spread

    both, first = np.array([True, True]), np.array([True, False])
    squares, spread = check(words, both)
    # The control: with one draw for both clients equal fractions would have four times the
    # variance of one, not twice.
    assert abs(squares[0] - 4 * 0.21) > spread[0]
    check(words, first)
    check(jnp.broadcast_to(words[:1], words.shape), both)  # only the round changes
