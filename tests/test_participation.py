"""Who is there at which stage, and the draws of who is not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_agg as fa
from fedjax_agg.participation import STAGES, as_participation

SEED = fa.fixed_seed(0)
N, ROUNDS = 10, 4000
STANDARD_ERRORS = 5
TRACES = []


def lost_at(participation):
    """How many clients are gone at each stage."""
    return (~np.asarray(participation.alive)).sum(axis=1).tolist()


# ---- Participation ------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_until_a_stage_everybody_is_there(stage):
    alive = np.array([True, False, True])
    participation = fa.Participation.until(stage, jnp.asarray(alive))
    assert participation.alive.shape == (len(STAGES), 3)
    for number, name in enumerate(STAGES):
        expected = alive if number >= STAGES.index(stage) else np.ones(3, bool)
        np.testing.assert_array_equal(participation.alive[number], expected)
        np.testing.assert_array_equal(participation.at(name), expected)


def test_who_was_gone_is_gone():
    """Also where traced flags say otherwise: at a stage is who was at all stages before."""
    alive = np.ones((len(STAGES), 2), bool)
    alive[1, 0] = False
    found = [fa.Participation(jnp.asarray(alive)).at(stage).tolist() for stage in STAGES]
    assert found == [[True, True]] + [[False, True]] * 4


def test_flags_of_uploads_and_none():
    flags = jnp.array([True, False])
    np.testing.assert_array_equal(
        as_participation(flags, 2).alive, fa.Participation.until("upload", flags).alive
    )
    assert as_participation(None, 3).alive.all()
    whole = fa.Participation.until("share", flags)
    np.testing.assert_array_equal(as_participation(whole, 2).alive, whole.alive)


def returning():
    alive = np.ones((len(STAGES), 3), bool)
    alive[2, 1] = False
    return fa.Participation(jnp.asarray(alive))


MISTAKES = [
    (lambda: jnp.ones(2, bool), r"the shape \(2,\) of participation must be \(3,\)"),
    (lambda: jnp.ones((5, 3), bool), r"the shape \(5, 3\) of participation"),
    (lambda: fa.Participation(jnp.ones((4, 3), bool)), r"the shape \(4, 3\) of participation"),
    (lambda: fa.Participation(jnp.ones((5, 4), bool)), r"the shape \(5, 4\) of participation"),
    (lambda: [True, True, True], "participation of type list"),
    (lambda: jnp.ones(3, jnp.int32), "the dtype int32 of participation must be bool"),
    (lambda: jnp.ones(3, jnp.float32), "the dtype float32 of participation must be bool"),
    (
        returning,
        r"participation.alive\[3, 1\]=True must be False where alive\[2, 1\] is",
    ),
]


@pytest.mark.parametrize(("make", "message"), MISTAKES)
def test_static_mistakes_name_what_is_wrong(make, message):
    with pytest.raises(ValueError, match=message):
        as_participation(make(), 3)


@pytest.mark.parametrize(("make", "message"), MISTAKES)
def test_a_round_refuses_them(make, message):
    session = fa.Session(
        jnp.uint32(0),
        SEED,
        jnp.arange(1, 4, dtype=jnp.uint32),
        jnp.zeros((3, 8), jnp.uint32),
        jnp.zeros((3, 2, 8), jnp.uint32),
    )
    with pytest.raises(ValueError, match=message):
        fa.secure_sum(
            jnp.ones((3, 2), jnp.float32),
            session,
            codec=fa.FixedPoint(clip=1.0, rounding="nearest"),
            participation=make(),
        )


def test_traced_flags_pass():
    alive = jax.jit(lambda flags: as_participation(fa.Participation(flags), 3).alive)
    np.testing.assert_array_equal(alive(returning().alive), returning().alive)


def test_an_unknown_stage():
    with pytest.raises(ValueError, match=r"stage='download' must be 'advertise' or .*\[stage\]"):
        fa.Participation.until("download", jnp.ones(3, bool))


# ---- drop_clients -------------------------------------------------------------------------------


def test_the_number_lost_is_exact():
    """Rate * n rounded down, whatever is drawn; both ends included."""
    for lost in range(N + 1):
        for off in (0, 0.4, 0.9):
            rate = min(max((lost + off) / N, 0.0), 1.0)
            for round_id in (0, 1):
                participation = fa.drop_clients(SEED, N, rate, round_id=round_id)
                assert lost_at(participation) == [0, 0, lost, lost, lost]


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("num_clients", [7, 64, 100, 256, 1000])
def test_as_many_are_lost_as_were_planned_for(num_clients):
    for percent in (1, 7, 10, 29, 57, 58, 99):
        left = fa.drop_clients(SEED, num_clients, percent / 100).alive[-1].sum()
        assert num_clients - left == percent * num_clients // 100


@pytest.mark.parametrize("stage", STAGES)
def test_lost_at_a_stage_and_at_all_later_ones(stage):
    participation = fa.drop_clients(SEED, N, 0.3, stage=stage)
    number = STAGES.index(stage)
    assert lost_at(participation) == [0] * number + [3] * (len(STAGES) - number)
    # Monotone, so that a round takes it.
    as_participation(participation, N)
    # The stage says when, and not who.
    uploads = fa.drop_clients(SEED, N, 0.3)
    np.testing.assert_array_equal(participation.alive[-1], uploads.alive[-1])


@functools.cache
def draws():
    """Many draws in one program: rates float32[4000], rounds uint32[4000] -> bool[4000, 5, n]."""

    def draw(arguments):
        TRACES.append(1)
        rate, round_id = arguments
        return fa.drop_clients(SEED, N, rate, round_id=round_id).alive

    return jax.jit(lambda rates, rounds: jax.lax.map(draw, (rates, rounds)))


@functools.cache
def drawn():
    """Who is left of ten clients of which three are lost, in 4000 rounds: bool[4000, n]."""
    alive = draws()(np.full(ROUNDS, 0.3, np.float32), np.arange(ROUNDS, dtype=np.uint32))
    return np.asarray(alive[:, -1])


def test_every_round_loses_others():
    """Of 120 sets, two rounds in succession draw the same in one of 120; within five errors."""
    left = drawn()
    assert (left.sum(axis=1) == 7).all()
    same = np.mean((left[1:] == left[:-1]).all(axis=1))
    error = np.sqrt(1 / 120 * 119 / 120 / (ROUNDS - 1))
    assert abs(same - 1 / 120) < STANDARD_ERRORS * error
    assert len(np.unique(left, axis=0)) == 120


def test_every_client_is_lost_equally_often():
    """And every two, 3/10 * 2/9 of the rounds: 55 comparisons within five errors."""
    lost = (~drawn()).astype(np.float64)
    together = lost.T @ lost / ROUNDS
    expected = np.where(np.eye(N, dtype=bool), 0.3, 0.3 * 2 / 9)
    errors = np.sqrt(expected * (1 - expected) / ROUNDS)
    assert (np.abs(together - expected) < STANDARD_ERRORS * errors).all()


def test_the_same_seed_and_round_lose_the_same():
    first, again = (fa.drop_clients(SEED, N, 0.5, round_id=3) for _ in range(2))
    np.testing.assert_array_equal(first.alive, again.alive)
    others = [
        fa.drop_clients(SEED, N, 0.5, round_id=4),
        fa.drop_clients(fa.fixed_seed(1), N, 0.5, round_id=3),
    ]
    for other in others:
        assert (other.alive != first.alive).any()


def test_rate_and_round_may_be_traced():
    """Swept without another trace, and as the static ones are."""
    rates = np.linspace(0, 1, ROUNDS, dtype=np.float32)
    rounds = np.arange(ROUNDS, dtype=np.uint32)[::-1] * np.uint32(1073741)
    drawn()
    before = len(TRACES)
    alive = np.asarray(draws()(rates, rounds))
    assert len(TRACES) == before
    np.testing.assert_array_equal((~alive[:, -1]).sum(axis=1), np.floor((rates + 2**-20) * N))
    for i in (0, 1, 1000, 2500, ROUNDS - 1):
        expected = fa.drop_clients(SEED, N, float(rates[i]), round_id=rounds[i])
        np.testing.assert_array_equal(alive[i], expected.alive)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fa.drop_clients(SEED, N, -0.1), r"rate=-0.1 must be a number from 0 to 1"),
        (lambda: fa.drop_clients(SEED, N, 1.1), r"rate=1.1 must be a number from 0 to 1"),
        (lambda: fa.drop_clients(SEED, N, float("nan")), r"rate=nan must be"),
        (lambda: fa.drop_clients(SEED, N, "half"), r"rate='half' must be a number from 0 to 1"),
        (lambda: fa.drop_clients(SEED, N, 0.1, round_id=-1), r"round_id=-1 must be"),
        (lambda: fa.drop_clients(SEED, N, 0.1, round_id=1.5), r"round_id=1.5 must be"),
        (lambda: fa.drop_clients(SEED, N, 0.1, round_id=2**32), r"round_id=4294967296 must be"),
        (lambda: fa.drop_clients(SEED, N, 0.1, stage="uploads"), r"stage='uploads' must be"),
        (lambda: fa.drop_clients(7, 10, 0.1), r"seed of type int must be"),
        (lambda: fa.drop_clients(SEED[:4], 10, 0.1), r"seed of type uint32\[4\] must be"),
        (lambda: fa.drop_clients(SEED, 1, 0.1), r"num_clients=1 must be"),
        (lambda: fa.drop_clients(SEED, 2.5, 0.1), r"num_clients=2.5 must be"),
    ],
)
def test_static_mistakes_of_draws(call, message):
    with pytest.raises(ValueError, match=message):
        call()
