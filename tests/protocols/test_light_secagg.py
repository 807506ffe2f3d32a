"""LightSecAgg: the laws by the kit, one set of survivors, and what a client refuses."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_agg as fa
from fedjax_agg.arithmetic import M31, m31
from fedjax_agg.protocols.light_secagg import RULES
from fedjax_agg.sharing import lagrange
from fedjax_agg.testing import check_protocol
from tests.parties import QUICKLY
from tests.sessions import any_session

N, LENGTH, PROTOCOL = 5, 7, fa.LightSecAgg(privacy=1, survivors=4)
LEVELS = 2**10
# A coordinate of i / LEVELS becomes the word i.
CODEC = fa.FixedPoint(LEVELS, LEVELS, max_levels=LEVELS, norm="linf", rounding="nearest")


def integers():
    return np.random.default_rng(0).integers(-LEVELS, LEVELS + 1, (N, LENGTH))


@functools.cache
def kept_round():
    """Nobody is lost; seven coordinates in three blocks, so that the last is not full."""
    run = functools.partial(fa.transcript, codec=CODEC, protocol=PROTOCOL)
    updates = jnp.asarray(integers(), jnp.float32)
    return jax.jit(run, compiler_options=QUICKLY)(updates, any_session(N))


@pytest.mark.exhaustive
def test_the_kit_passes():
    """Every pattern of four clients at five stages; with one lost it must succeed."""
    coverage = check_protocol(fa.LightSecAgg(1, 3), 4, tolerates=1)
    assert coverage.patterns == coverage.of == 6**4


@pytest.mark.slow
def test_the_kit_passes_on_a_sample():
    coverage = check_protocol(fa.LightSecAgg(1, 3), 4, tolerates=1, max_patterns=120)
    assert coverage.patterns == 120


@pytest.mark.slow
def test_a_sum_with_weights_and_lost_clients_is_that_of_plain_in_the_field():
    updates, session = jnp.asarray(integers(), jnp.float32) / 3, any_session(N)
    alive = jnp.array([True, False, True, True, True])
    options = {"codec": CODEC, "weights": jnp.arange(N), "max_weight": 9, "participation": alive}
    plain, _ = fa.secure_sum(updates, session, protocol=fa.Plain(group=M31()), **options)
    masked, report = fa.secure_sum(updates, session, protocol=PROTOCOL, **options)
    in_ring, _ = fa.secure_sum(updates, session, **options)
    assert bool(report.ok)
    np.testing.assert_array_equal(masked, plain)
    np.testing.assert_array_equal(masked, in_ring)


def coded_sums(kept, survivors):
    """What every client would answer about a set, had it no rules."""
    rows = jnp.asarray(survivors)[None, :, None]
    return m31.sum(jnp.where(rows, kept.private.coded, np.uint32(0)), axis=1)


@pytest.mark.slow
def test_two_sets_of_survivors_open_an_update():
    """Red: with answers about two sets the server has one client's mask, and so its words."""
    kept = kept_round()
    everybody, without = np.ones(N, bool), np.arange(N) != 2
    masks = [
        lagrange.decode(coded_sums(kept, s), jnp.ones(N, bool), 3).reshape(-1)[:LENGTH]
        for s in (everybody, without)
    ]
    upload = kept.stages["upload"].outboxes.words[2]
    opened = m31.subtract(upload, m31.subtract(*masks))
    assert M31().centre_lift(opened).tolist() == integers()[2].tolist()


@pytest.mark.slow
def test_one_answer_of_each_client_about_mixed_sets_opens_a_part_of_an_update():
    """Red, and why clients attest: two answers about each set are enough, where U are four.

    Clients 1 and 3 answer about everybody, 2 and 4 about all but the third, and the fifth is
    corrupt. Each answers once, names itself a survivor, and 2 U > N + T.
    """
    kept, sets = kept_round(), (np.ones(N, bool), np.arange(N) != 2)
    about_all, about_rest = (np.asarray(coded_sums(kept, s))[:, 0].tolist() for s in sets)
    own = np.asarray(kept.private.coded)[4, :, 0].tolist()  # what the fifth was sent
    points = lagrange.client_points(N), lagrange.data_points(N, 4)
    coding = np.asarray(lagrange.weights(*map(jnp.asarray, points), jnp.ones(4, bool))).tolist()
    # A divided difference of order four: of a polynomial of degree three it is zero.
    weights = [pow(math.prod(j - i for i in range(N) if i != j), -1, m31.PRIME) for j in range(N)]
    told = [about_all[0], about_rest[1], about_all[2], about_rest[3], sum(own) - own[2]]
    left = sum(w * answer for w, answer in zip(weights, told))
    # What is left is of the third one's mask alone; the fifth one's vector takes out the noise.
    code = [weights[0] * a + weights[2] * b for a, b in zip(coding[0], coding[2])]
    factor = -code[3] * pow(coding[4][3], -1, m31.PRIME)
    code = [a + factor * b for a, b in zip(code, coding[4])]
    assert code[3] % m31.PRIME == 0
    assert all(a % m31.PRIME for a in code[:3])
    upload = np.asarray(kept.stages["upload"].outboxes.words)[2, ::3].tolist()
    opened = sum(a * y for a, y in zip(code, upload)) - (left + factor * own[2])
    update = integers()[2, ::3].tolist()
    assert (opened - sum(a * x for a, x in zip(code, update))) % m31.PRIME == 0


def client_stage(name):
    stages = {s.name: s.client for s in (*PROTOCOL.prepare(N), *PROTOCOL.respond(N))}
    return jax.jit(stages[name], compiler_options=QUICKLY)


def row(tree, client):
    return jax.tree.map(lambda x: x[client - 1], tree)


def asked(private, kept, survivors, stage, client=1):
    inbox = row(kept.stages["attest"].inboxes, client) if stage == "unmask" else None
    ctx = kept.public._replace(client=jnp.uint32(client), survivors=jnp.asarray(survivors))
    return client_stage(stage)(private, inbox, ctx)


def broken(private):
    return [rule for rule, flag in zip(RULES, private.refusals.broken) if flag]


@pytest.mark.slow
def test_a_client_answers_about_one_set_and_once():
    """Green: the second set is refused at both stages, and so is the first one's repetition."""
    kept, everybody, without = kept_round(), np.ones(N, bool), np.arange(N) != 2
    attested, _ = asked(row(kept.private, 1), kept, everybody, "attest")
    assert broken(attested) == []
    again, _ = asked(attested, kept, without, "attest")
    assert broken(again) == ["attested-already"]
    other, answer = asked(attested, kept, without, "unmask")
    assert broken(other) == ["other-set", "few-attestations"]
    assert not bool(answer.sent)
    assert not answer.words.any()
    answered, answer = asked(attested, kept, everybody, "unmask")
    assert broken(answered) == []
    np.testing.assert_array_equal(answer.words, coded_sums(kept, everybody)[0])
    assert not answered.coded.any()
    for survivors in (everybody, without):
        twice, answer = asked(answered, kept, survivors, "unmask")
        assert "answered-already" in broken(twice)
        assert not answer.words.any()


@pytest.mark.slow
def test_what_the_server_cannot_honestly_name_is_refused():
    kept = kept_round()
    found = {
        name: broken(asked(row(kept.private, 1), kept, survivors, "attest")[0])
        for name, survivors in {
            "lost": [False, True, True, True, True],
            "few": [True, True, True, False, False],
        }.items()
    }
    assert found == {"lost": ["declared-lost"], "few": ["few-survivors"]}
    unknown = row(kept.private, 1)._replace(present=jnp.arange(N) != 4)
    assert broken(asked(unknown, kept, np.ones(N, bool), "attest")[0]) == ["unknown-survivor"]


@pytest.mark.slow
def test_a_changed_or_missing_vector_is_refused():
    kept = kept_round()
    receive = jax.jit(PROTOCOL.receive, compiler_options=QUICKLY)
    ctx = kept.public._replace(client=jnp.uint32(1))
    inbox = row(kept.stages["share"].inboxes, 1)
    shared = row(kept.private, 1)
    assert broken(receive(shared, inbox, ctx)) == []
    changed = inbox.sealed.ciphertext.at[3, 0].add(np.uint32(1))
    spoilt = inbox._replace(sealed=inbox.sealed._replace(ciphertext=changed))
    assert broken(receive(shared, spoilt, ctx)) == ["sealed-share"]
    few = inbox._replace(sent=inbox.sent & (jnp.arange(N) < 3))
    assert broken(receive(shared, few, ctx)) == ["few-shares"]
    absent = shared._replace(present=shared.present & (jnp.arange(N) != 4))
    assert broken(receive(absent, inbox, ctx)) == ["late-share"]


def test_costs_do_not_grow_with_the_lost_where_those_of_secagg_do():
    light, heavy = fa.LightSecAgg(50, 70), fa.SecAgg(67)
    light_costs, heavy_costs = (
        [protocol.cost(10**5, 100, dropped=lost) for lost in (0, 30)] for protocol in (light, heavy)
    )
    assert light_costs[0] == light_costs[1]
    few, many = (cost.server_keystream_words["unmask"] for cost in heavy_costs)
    assert many > 20 * few
    # The price: every client sends about five times its update before the round.
    shared = light_costs[0].bytes_up["share"] / light_costs[0].bytes_up["upload"]
    assert 4.9 < shared < 5.1
