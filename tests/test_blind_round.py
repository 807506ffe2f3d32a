"""The blind round: the clients open what the server added, and the server cannot."""

import dataclasses
import functools
import itertools
import os
import pathlib
import pickle
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

import fedjax_agg as fa
from fedjax_agg import _group_mask, blind_round
from fedjax_agg.budget import blind_shift
from fedjax_agg.group_key import GroupKeys
from fedjax_agg.protocols import secagg
from fedjax_agg.session import context_hash
from fedjax_agg.symmetric.chacha20 import keystream
from fedjax_agg.symmetric.homomorphic_mac import TAG_WORDS
from fedjax_agg.wire import Mail
from tests.protocols import rounds

SEED = fa.fixed_seed(1)
LEVELS = 2**10
# A coordinate of i / LEVELS becomes the word i.
EXACT = fa.FixedPoint(LEVELS, LEVELS, max_levels=LEVELS, norm="linf", rounding="nearest")
STANDARD_ERRORS = 5
RING = fa.arithmetic.Ring(32)


def cohort(n, round_id=0):
    """A session, and keys as ``agree_group_key`` leaves them, of which other tests are."""
    rng = np.random.default_rng([n, round_id])

    def words(*shape):
        return jnp.asarray(rng.integers(2**32, size=shape, dtype=np.uint32))

    session = fa.Session(
        round_id=jnp.uint32(round_id),
        public_seed=words(8),
        client_ids=jnp.arange(1, n + 1, dtype=jnp.uint32),
        secrets=words(n, 8),
        agreement=jnp.broadcast_to(words(2, 8), (n, 2, 8)),
    )
    key = np.random.default_rng(0).integers(2**32, size=8, dtype=np.uint32)
    return session, GroupKeys(jnp.broadcast_to(key, (n, 8)), jnp.ones(n, bool))


def integers(n, length, number=0):
    rng = np.random.default_rng([number, n, length])
    return rng.integers(-LEVELS, LEVELS + 1, (n, length))


def opened_by_all(blinded, group, codec, contexts=None):
    def open_one(key, context):
        return fa.open_blind(blinded, key, codec=codec, context_hash=context)

    return jax.vmap(open_one)(group.keys, contexts)


# ---- the law ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "weighted"), [(7, True), pytest.param(8, False, marks=pytest.mark.slow)]
)
def test_what_clients_open_is_the_mean_of_the_open_round(n, weighted):
    """Bit for bit, whoever is lost, in the structure and dtypes of the update."""
    session, group = cohort(n, round_id=n)
    rng = np.random.default_rng(n)
    updates = {
        "w": jnp.asarray(rng.normal(size=(n, 3, 5)), jnp.float32),
        "b": jnp.asarray(rng.normal(size=(n, 4)), jnp.bfloat16),
    }
    codec = fa.FixedPoint(2.0, 2**9, max_levels=2**9)
    options = {"codec": codec}
    if weighted:
        options |= {"weights": jnp.arange(1, n + 1), "max_weight": 20}
    for lost in range(n):
        alive = jnp.arange(n) >= lost
        mean, report = fa.secure_mean(updates, session, participation=alive, **options)
        blinded, blind_report = fa.blind_mean(
            updates, session, group, participation=alive, **options, protocol=fa.Plain()
        )
        means, ok = opened_by_all(blinded, group, codec)
        assert ok.all()
        assert report.ok
        assert blind_report.ok
        np.testing.assert_array_equal(blind_report.survivors, alive)
        for client in range(n):
            chex.assert_trees_all_equal(jax.tree.map(lambda x: x[client], means), mean)  # noqa: B023
        assert {k: v.dtype for k, v in means.items()} == {k: v.dtype for k, v in updates.items()}
        # The server knows how many took part, and not what their weights were.
        assert np.isnan(blind_report.total_weight) == weighted


@pytest.mark.slow
def test_over_secagg_too_with_a_lost_client():
    n = 4
    session, group = cohort(n)
    session = session.bind(context_hash({"model": jnp.ones(3)}))
    updates = jnp.asarray(integers(n, 20), jnp.float32)
    alive = jnp.array([True, True, False, True])
    protocol = fa.SecAgg(threshold=2)
    blinded, report = fa.blind_mean(
        updates, session, group, codec=EXACT, protocol=protocol, participation=alive
    )
    means, ok = opened_by_all(blinded, group, EXACT, session.context)
    assert report.ok
    assert ok.all()
    expected, _ = fa.secure_mean(updates, session, codec=EXACT, participation=alive)
    np.testing.assert_array_equal(means, np.broadcast_to(expected, means.shape))


RULES = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(0.1, momentum=0.9),
    "adam": optax.adam(0.1),
    "yogi": optax.yogi(0.1),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "protocol"),
    [*((name, fa.Plain()) for name in RULES), ("adam", fa.SecAgg(threshold=3))],
)
def test_ten_rounds_with_dropouts_are_the_same_run_blind(name, protocol):
    """Replicated: every client's model and optimiser state are those of an open server."""
    n, d, rule, codec = 6, 12, RULES[name], fa.FixedPoint(4.0, 2**12, max_levels=2**12)
    targets = jnp.asarray(np.random.default_rng(3).normal(size=(n, d)), jnp.float32)
    _, group = cohort(n)

    @jax.jit
    def apply(params, state, mean):  # One program for both: what is fused may round differently.
        with jax.numpy_dtype_promotion("standard"):
            update, state = rule.update(mean, state, params)
        return optax.apply_updates(params, update), state

    grads = jax.jit(lambda params: params[None] - targets)
    server = clients = (jnp.zeros(d), rule.init(jnp.zeros(d)))
    clients = [clients] * n
    for r in range(10):
        session, _ = cohort(n, round_id=r)
        alive = fa.drop_clients(SEED, n, 0.34, round_id=r)
        mean, _ = fa.secure_mean(grads(server[0]), session, codec=codec, participation=alive)
        server = apply(*server, mean)
        updates = grads(clients[0][0])
        blinded, _ = fa.blind_mean(
            updates, session, group, codec=codec, protocol=protocol, participation=alive
        )
        means, ok = opened_by_all(blinded, group, codec)
        assert ok.all()
        clients = [apply(*clients[i], means[i]) for i in range(n)]
        for client in clients:
            chex.assert_trees_all_equal(client, server)
    assert jnp.linalg.norm(server[0]) > 0.1


@pytest.mark.slow
def test_personal_clients_follow_their_own_rules_and_schedules():
    """From the same opened sums each makes its own steps: three rounds against closed forms."""
    n, d, num_rounds = 4, 8, 3
    rules = [
        optax.sgd(optax.linear_schedule(0.5, 0.0, 2)),  # rates 1/2, 1/4, 0
        optax.sgd(0.25, momentum=0.5),
        optax.sign_sgd(optax.piecewise_constant_schedule(1.0, {2: 0.125})),  # 1, 1, 1/8
        optax.sgd(0.0),
    ]
    params = [jnp.zeros(d)] * n
    states = [rule.init(jnp.zeros(d)) for rule in rules]
    means = []
    for r in range(num_rounds):
        session, group = cohort(n, round_id=r)
        updates = jnp.asarray(integers(n, d, r), jnp.float32)
        blinded, _ = fa.blind_mean(updates, session, group, codec=EXACT, protocol=fa.Plain())
        means.append(np.asarray(updates).mean(axis=0))
        for i, rule in enumerate(rules):
            opened, ok = fa.open_blind(blinded, group.keys[i], codec=EXACT)
            assert ok
            with jax.numpy_dtype_promotion("standard"):  # Schedules need it.
                update, states[i] = rule.update(opened, states[i], params[i])
            params[i] = optax.apply_updates(params[i], update)
    one, two, three = means
    velocities = [one, two + 0.5 * one, three + 0.5 * two + 0.25 * one]
    expected = [
        -(0.5 * one + 0.25 * two),
        -0.25 * sum(velocities),
        -(np.sign(one) + np.sign(two) + 0.125 * np.sign(three)),
        np.zeros(d),
    ]
    np.testing.assert_allclose(np.stack(params), np.stack(expected), rtol=1e-6)


# ---- what the server sees -----------------------------------------------------------------------


@functools.partial(jax.jit, static_argnums=2)
def blinded_words(words, keys, cohort_size):
    ctx = fa.RoundContext(
        round_id=jnp.uint32(0), public_seed=jnp.zeros(8, jnp.uint32), client=jnp.uint32(1)
    )
    return _group_mask.blind(words, keys, ctx, ring=RING, num_clients=cohort_size)


def blinded_sum(survivors, cohort_size, total):
    """Z of the library's own words for a sum that the first of so many survivors has alone.

    In a "cohort" of one client v is zero: the mask without the shift.
    """
    keys = jnp.asarray(np.random.default_rng(5).integers(2**32, size=(2, 8), dtype=np.uint32))
    words = [np.asarray([total], np.uint32)] + [np.zeros(1, np.uint32)] * (survivors - 1)
    sent = [blinded_words(jnp.asarray(w), keys, cohort_size) for w in words]
    mask = _group_mask.group_mask(keys[0], RING, 1)
    return int(np.sum(np.stack(sent), axis=0, dtype=np.uint32)[0]), int(mask[0])


@pytest.mark.slow
@pytest.mark.parametrize("survivors", [2, 3, 4, 6])
def test_low_bits_leak_without_the_shift_and_not_with_it(survivors):
    """|U| g is a multiple of the power of two in |U|: modulo it, Z is the sum for any mask."""
    low = survivors & -survivors  # The largest power of two that divides it.
    assert low <= 2 ** blind_shift(survivors)
    sums = [1234567 + j for j in range(4)]
    bare = [blinded_sum(survivors, 1, total) for total in sums]
    assert [z % low for z, _ in bare] == [total % low for total in sums]
    # The mask is there all the same, and what it hides is the rest.
    assert [z for z, _ in bare] == [(t + survivors * g) % 2**32 for t, (_, g) in zip(sums, bare)]
    assert not any(blinded_sum(survivors, survivors, total)[0] % low for total in sums)


@functools.cache
def many_sums(n=4, length=64, count=200):
    """Z of the same updates in many rounds: uint32[count, length]."""
    updates = jnp.full((n, length), 3.0)
    _, group = cohort(n)

    def one(r):
        session = fa.simulated_session(SEED, num_clients=n, round_id=r)
        return fa.blind_mean(updates, session, group, codec=EXACT, protocol=fa.Plain())[0].words

    return np.asarray(jax.jit(lambda: jax.lax.map(one, jnp.arange(count)))())


@pytest.mark.slow
def test_the_sum_that_the_server_has_is_uniform_above_the_shift():
    """Bits v and up, by bytes: a right program fails at 10^-6; its low bits are constant."""
    words = many_sums()
    assert (words % 4 == 0).all()
    for shift in (2, 10, 18, 24):
        counts = np.bincount((words >> shift).ravel() & 255, minlength=256)
        assert scipy.stats.chisquare(counts).pvalue > 1e-6
    assert len(np.unique(words)) > 0.999 * words.size


@pytest.mark.slow
def test_another_round_has_another_mask_and_so_has_another_model():
    n = 4
    session, group = cohort(n)
    updates = jnp.ones((n, 8))
    models = [context_hash(jnp.full(2, i)) for i in range(2)]
    sessions = [session, cohort(n, round_id=1)[0], *(session.bind(m) for m in models)]
    words = [
        fa.blind_mean(updates, s, group, codec=EXACT, protocol=fa.Plain())[0].words
        for s in sessions
    ]
    for i in range(4):
        for j in range(i):
            assert not (words[i] == words[j]).any()


@pytest.mark.slow
def test_two_sets_of_survivors_under_one_mask_leak():
    """|U'| Z - |U| Z' is free of the mask: what the consistency round is there to prevent."""
    n = 4
    session, group = cohort(n)
    numbers = integers(n, 8)
    sets = np.array([[1, 1, 1, 1], [1, 1, 0, 1]], bool)
    z, z_ = (
        np.asarray(
            fa.blind_mean(
                jnp.asarray(numbers, jnp.float32),
                session,
                group,
                codec=EXACT,
                participation=jnp.asarray(alive),
                protocol=fa.Plain(),
            )[0].words[:8]
        ).astype(np.int64)
        for alive in sets
    )
    x, x_ = (numbers[alive].sum(axis=0) for alive in sets)
    leaked = (3 * z - 4 * z_) % 2**32
    np.testing.assert_array_equal(leaked, (4 * (3 * x - 4 * x_)) % 2**32)  # 2^v = 4


N, PROTOCOL = 4, fa.SecAgg(threshold=2)


@functools.cache
def blind_program(protocol):
    run = functools.partial(blind_round.blind_transcript, codec=EXACT, protocol=protocol)

    def play(updates, session, group, alive):
        return run(updates, session, group, participation=fa.Participation(alive))

    return jax.jit(play, compiler_options=rounds.QUICKLY)


@functools.cache
def kept_round(lost=((3, "upload"),), protocol=PROTOCOL, n=N):
    """A blind round over SecAgg as it is kept, the group's keys, and the sum of the survivors."""
    session, group = cohort(n)
    numbers = integers(n, 24)
    alive = rounds.alive_until(lost, n)
    kept = blind_program(protocol)(jnp.asarray(numbers, jnp.float32), session, group, alive)
    return kept, group, numbers[np.asarray(kept.public.survivors)].sum(axis=0)


def row(tree, client):
    return jax.tree.map(lambda x: x[client - 1], tree)


def asked(stage, private, kept, survivors, client, inboxes=None, protocol=PROTOCOL):
    """One client is asked about a set of survivors, in a stage after the uploads."""
    inboxes = inboxes or kept.stages["attest"].inboxes
    inbox = row(inboxes, client) if stage == "unmask" else None
    ctx = kept.public._replace(client=jnp.uint32(client), survivors=jnp.array(survivors))
    private = private or row(kept.private, client)
    return rounds.client_stage(stage, protocol)(private, inbox, ctx)


@pytest.mark.slow
def test_the_consistency_round_answers_one_set_only():
    """A server that has one sum asks for that of others: no client attests or reveals a thing."""
    kept, _, _ = kept_round()
    for client in (1, 2, 4):
        attested, _ = asked("attest", None, kept, [True, True, False, True], client)
        answered, outbox = asked("unmask", attested, kept, [True, True, False, True], client)
        assert outbox.sent.any()
        assert not answered.refusals.broken.any()
        for private in (attested, answered):
            for stage in ("attest", "unmask"):
                state, outbox = asked(stage, private, kept, [True, True, False, False], client)
                assert state.refusals.broken.any()
                if stage == "unmask":
                    assert not outbox.sent.any()
                    assert not outbox.shares.any()


def broken_rules(state):
    return {rule for rule, flag in zip(secagg.RULES, state.refusals.broken) if flag}


def counted(report):
    return {rule: int(count) for rule, count in report.refusals.items() if count}


def recovered(view, protocol, survivors, answers):
    """What the server makes of these clients' uploads, and of answers {client: shares}."""
    n = len(survivors)
    nothing = jax.tree.map(jnp.zeros_like, next(iter(answers.values())))
    rows = [answers.get(client, nothing) for client in range(1, n + 1)]
    shares = jax.tree.map(lambda *x: jnp.stack(x), *rows)
    mail = {"share": view.server["share"], "unmask": Mail(shares, jnp.any(shares.sent, axis=1))}
    uploads = view.server["upload"].outboxes.words[survivors].sum(axis=0, dtype=np.uint32)
    public = view.public._replace(survivors=jnp.asarray(survivors))
    return rounds.recover(protocol)(uploads, mail, public)


def free_of_the_mask(totals, sets):
    """Whether |U'| Z - |U| Z' is that of the sums of the two sets: of all words, or of none."""
    n = len(sets[0])
    z, z_ = (np.asarray(total.words[:24]).astype(np.int64) for total in totals)
    x, x_ = (integers(n, 24)[members].sum(axis=0) for members in sets)
    u, u_ = (int(np.sum(members)) for members in sets)
    agree = (u_ * z - u * z_) % 2**32 == 2 ** blind_shift(n) * (u_ * x - u * x_) % 2**32
    assert agree.all() == agree.any()
    return agree.all()


@pytest.mark.slow
@pytest.mark.parametrize("consistency", [False, True])
def test_a_split_view_of_the_survivors_takes_the_group_mask_off(consistency):
    """Clients 1, 2 and 3 of five hear of everybody, 4 and 5 that client 1 is lost. None is corrupt.

    Red: without attestations the server recovers both sums, and 4 Z - 5 Z' is free of g.
    Green: with them 4 and 5 find one attestation of their set, and there is one sum under g.
    """
    n, victim = 5, 1
    kept, _, _ = kept_round((), n=n)
    protocol = dataclasses.replace(PROTOCOL, consistency=consistency)
    view, sets = kept.view(server=True), np.ones((2, n), bool)
    sets[1, victim - 1] = False
    told, answers, refused = ((1, 2, 3), (4, 5)), ({}, {}), set()
    for survivors, clients, found in zip(sets, told, answers):
        words = [asked("attest", None, kept, survivors, client) for client in range(1, n + 1)]
        outboxes = jax.tree.map(lambda *rows: jnp.stack(rows), *(outbox for _, outbox in words))
        sent = np.isin(np.arange(1, n + 1), clients)
        inboxes = PROTOCOL.respond(n)[0].server(outboxes, sent, kept.public)
        for client in clients:
            private = words[client - 1][0] if consistency else None
            arguments = private, kept, survivors, client, inboxes, protocol
            state, found[client] = asked("unmask", *arguments)
            refused |= broken_rules(state)
    assert refused == ({"few-attestations"} if consistency else set())

    def of_others(client, shares):
        """Of all but the victim every client has revealed the same share."""
        of_victim = view.public.board.neighbours[client - 1] == victim - 1
        return shares._replace(sent=shares.sent & ~of_victim)

    totals = [
        recovered(
            view,
            PROTOCOL,
            survivors,
            own | {client: of_others(client, shares) for client, shares in other.items()},
        )
        for survivors, own, other in zip(sets, answers, answers[::-1])
    ]
    assert [bool(total.ok) for total in totals] == [True, not consistency]
    assert free_of_the_mask(totals, sets) == (not consistency)


@pytest.mark.slow
@pytest.mark.parametrize(("threshold", "broken"), [(1, True), (2, False)])
def test_two_lists_of_keys_are_two_cohorts_under_one_group_mask(threshold, broken):
    """Clients 1 and 2 are shown no keys but each other's, and so are 3 and 4; all attest.

    Red: where t is not above half of the neighbours each pair goes on alone, and Z - Z' is free
    of g. Green: above it nobody shares anything.
    """
    apart = [((3, "advertise"), (4, "advertise")), ((1, "advertise"), (2, "advertise"))]
    kept = [kept_round(lost, fa.SecAgg(threshold))[0] for lost in apart]
    sets = np.array([[True, True, False, False], [False, False, True, True]])
    assert free_of_the_mask([one.view(server=True).total for one in kept], sets) == broken
    for one in kept:
        assert counted(one.report) == ({} if broken else {"few-keys": 2})


@pytest.mark.slow
@pytest.mark.parametrize(("threshold", "broken"), [(2, True), (3, False)])
def test_a_cut_of_a_sparse_graph_gives_two_sums_under_one_group_mask(threshold, broken):
    """Of a ring of twelve two pairs are lost, and what is left are two arcs without a common mask.

    Red: where t is half of the neighbours, an honest round has a sum for each arc. Green: above
    half, who stands beside a gap refuses, and who waits for its word.
    """
    n, protocol = 12, fa.SecAgg(threshold, degree=4)
    neighbours, order = kept_round((), protocol, n)[0].public.board.neighbours, [0]
    while len(order) < n:  # Slot 0 is the next client on the ring.
        order.append(int(neighbours[order[-1], 0]))
    gaps = tuple((order[place] + 1, "upload") for place in (0, 1, 6, 7))
    kept, _, _ = kept_round(gaps, protocol, n)
    view, sets = kept.view(server=True), np.zeros((2, n), bool)
    sets[0, order[2:6]] = sets[1, order[8:]] = True
    answers = {u: row(view.server["unmask"].outboxes, u) for u in range(1, n + 1)}
    totals = [recovered(view, protocol, arc, answers) for arc in sets]
    assert [bool(total.ok) for total in totals] == [broken, broken]
    assert free_of_the_mask(totals, sets) == broken
    silent = {"few-survivors": 4, "few-attestations": 4}
    assert counted(kept.report) == ({} if broken else silent)


@pytest.mark.slow
def test_clients_that_were_shown_other_lists_open_nothing_of_each_other():
    """Client 2 saw the keys of all, client 1 a list without those of 4: so no cohort has both."""
    (kept, _, _), (other, _, _) = kept_round(()), kept_round(((4, "advertise"),))
    board = kept.public.board
    private = row(kept.private, 2)
    private = private._replace(
        shares=jnp.zeros_like(private.shares), present=board.present[board.neighbours[1]]
    )
    slot = board.neighbours[1].tolist().index(0)
    here, there = (row(one.stages["share"].inboxes, 2) for one in (kept, other))
    swapped = jax.tree.map(lambda x, y: x.at[slot].set(y[slot]), here.sealed, there.sealed)
    ctx = kept.public._replace(client=jnp.uint32(2))
    for sealed, refused in ((here.sealed, set()), (swapped, {"sealed-share"})):
        state = rounds.client_stage("receive")(private, here._replace(sealed=sealed), ctx)
        assert broken_rules(state) == refused


SERVER = """
import pickle, sys
import jax, numpy as np
import fedjax_agg as fa
from fedjax_agg.symmetric.chacha20 import keystream
received = pickle.loads(arrived := open(sys.argv[1], "rb").read())
if received["kind"] == "blind":
    recover = jax.jit(
        lambda uploads, mail, ctx: fa.SecAgg(threshold=2).recover(uploads, mail, ctx).words,
        compiler_options={"xla_backend_optimization_level": 0})
    uploads = received["uploads"].sum(axis=0, dtype=np.uint32)
    held = recover(uploads, received["mail"], received["ctx"])
else:  # Transit encryption: the server has every client's key.
    clear = [c ^ np.asarray(keystream(k, np.zeros(3, np.uint32), c.size))
             for k, c in zip(received["keys"], received["ciphertexts"])]
    held = np.sum(clear, axis=0, dtype=np.uint32)
everything = arrived + np.asarray(held).tobytes() + np.asarray(held).byteswap().tobytes()
needles = pickle.loads(open(sys.argv[2], "rb").read())
print(*[name.replace(" ", "-") for name, windows in needles.items()
                  if any(window in everything for window in windows)])
np.save(sys.argv[3], held)
"""


def windows(words):
    """Every eight neighbouring bytes of some words, in both orders of bytes."""
    texts = [words.astype("<u4").tobytes(), words.astype(">u4").tobytes()]
    return {text[i : i + 8] for text in texts for i in range(0, len(text) - 7, 4)}


def serve(folder, message, needles):
    """A server in a process of its own, which holds what it was sent and what it makes of it."""
    files = [folder / name for name in ("server.py", "received", "needles", "held.npy")]
    for file, content in zip(
        files, (SERVER.encode(), pickle.dumps(message), pickle.dumps(needles))
    ):
        file.write_bytes(content)
    environment = os.environ | {"PYTHONPATH": str(pathlib.Path(fa.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, *map(str, files)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split(), np.load(files[3])


@pytest.mark.slow
def test_a_server_in_another_process_has_neither_the_sum_nor_the_key(tmp_path):
    """What it received and what it computed, searched; then clients open what it computed."""
    kept, group, total = kept_round()
    view = jax.tree.map(np.asarray, kept.view(server=True))
    agreed, group_mail = fa.agree_group_key(cohort(5)[0])
    message = {
        "kind": "blind",
        "group mail": jax.tree.map(np.asarray, group_mail),
        "uploads": view.server["upload"].outboxes.words,
        "mail": dict(view.server),
        "ctx": view.public._replace(structure=None),
    }
    total = total.astype(np.int64).astype(np.uint32)
    needles = {
        "sum": windows(total),
        "shifted sum": windows(total << np.uint32(2)),
        "group key": windows(np.asarray(group.keys[0])),
        "agreed group key": windows(np.asarray(agreed.keys[0])),
    }
    found, held = serve(tmp_path, message, needles)
    assert found == []
    blinded = dataclasses.replace(kept.mean, words=jnp.asarray(held))
    mean, ok = fa.open_blind(blinded, group.keys[1], codec=EXACT)
    assert ok
    np.testing.assert_array_equal(np.rint(3 * np.asarray(mean)), total.astype(np.int32))


@pytest.mark.slow
def test_with_encryption_in_transit_only_a_server_has_the_sum(tmp_path):
    """The control: the same search finds what is there to be found."""
    words = integers(3, 24).astype(np.int64).astype(np.uint32)
    keys = np.random.default_rng(0).integers(2**32, size=(3, 8), dtype=np.uint32)
    pads = [np.asarray(keystream(key, np.zeros(3, np.uint32), 24)) for key in keys]
    total = words.sum(axis=0, dtype=np.uint32)
    message = {"kind": "transit", "keys": keys, "ciphertexts": words ^ pads}
    needles = {"sum": windows(total), "key": windows(keys[0]), "another": windows(total + 1)}
    found, held = serve(tmp_path, message, needles)
    assert sorted(found) == ["key", "sum"]
    np.testing.assert_array_equal(held, total)


@pytest.mark.slow
def test_uploads_under_the_group_mask_alone_give_every_difference():
    """Red: under Plain all have one mask. Green: under SecAgg differences agree by chance only."""
    kept, group, _ = kept_round()
    numbers = integers(N, 24)
    updates = jnp.asarray(numbers, jnp.float32)
    session, _ = cohort(N)
    plain = blind_round.blind_transcript(updates, session, group, codec=EXACT, protocol=fa.Plain())
    for transcript, leaks in ((plain, True), (kept, False)):
        words = np.asarray(transcript.view(server=True).server["upload"].outboxes.words)
        # Of four clients the words are shifted by two bits.
        difference = (words[0] - words[1]).astype(np.int32)[:24] >> 2
        agree = difference == numbers[0] - numbers[1]
        assert agree.all() == leaks
        assert agree.any() == leaks


# ---- keys ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_who_has_not_confirmed_takes_no_part():
    n = 4
    session, group = cohort(n)
    group = dataclasses.replace(group, confirmed=jnp.array([True, True, False, True]))
    _, report = fa.blind_mean(jnp.ones((n, 8)), session, group, codec=EXACT, protocol=fa.Plain())
    assert report.survivors.tolist() == [True, True, False, True]


@pytest.mark.slow
def test_with_another_key_the_sum_is_refused():
    """One client masks with another key: what anybody opens is noise, out of range or odd."""
    n = 4
    session, group = cohort(n)
    other = dataclasses.replace(group, keys=group.keys.at[2, 7].set(jnp.uint32(0)))
    blinded, _ = fa.blind_mean(jnp.ones((n, 8)), session, other, codec=EXACT, protocol=fa.Plain())
    means, ok = opened_by_all(blinded, group, EXACT)
    assert not ok.any()
    assert not means.any()


@pytest.mark.slow
def test_a_client_with_another_model_spoils_the_sum():
    n = 4
    session, group = cohort(n)
    models = [context_hash(jnp.full(2, i)) for i in (0, 0, 0, 1)]
    blinded, _ = fa.blind_mean(
        jnp.ones((n, 8)), session.bind(jnp.stack(models)), group, codec=EXACT, protocol=fa.Plain()
    )
    _, ok = opened_by_all(blinded, group, EXACT, jnp.stack(models))
    assert not ok.any()
    same = session.bind(models[0])
    blinded, _ = fa.blind_mean(jnp.ones((n, 8)), same, group, codec=EXACT, protocol=fa.Plain())
    _, ok = opened_by_all(blinded, group, EXACT, same.context)
    assert ok.all()


# ---- integrity ----------------------------------------------------------------------------------


@functools.cache
def sent(round_id=0):
    """What four clients are sent after a round of two coordinates and weights.

    Also their key, and what each has sent. The third was lost.
    """
    session, group = cohort(4, round_id)
    updates = jnp.asarray(integers(4, 2, round_id), jnp.float32)
    kept = blind_round.blind_transcript(
        updates,
        session,
        group,
        codec=EXACT,
        weights=jnp.arange(1, 5),
        max_weight=9,
        participation=jnp.array([True, True, False, True]),
        protocol=fa.Plain(),
    )
    return kept.mean, group.keys[0], kept.stages["upload"].outboxes.words


@jax.jit
def accepted(blinded, words, survivors):
    """Whether words and survivors are opened, which come in the place of those sent: bool[k]."""
    _, key, _ = sent()

    def one(words, survivors):
        ctx = blinded.ctx._replace(survivors=survivors)
        return fa.open_blind(dataclasses.replace(blinded, words=words, ctx=ctx), key, codec=EXACT)

    means, ok = jax.vmap(one)(words, survivors)
    return ok, jnp.any(means != 0, axis=1)


COUNT = 33  # One at a time: the words of a broadcast with each bit flipped, and as they are.


def offered(blinded, words, survivors=None):
    """Which of some broadcasts are opened, COUNT at a time."""
    if survivors is None:
        survivors = np.broadcast_to(blinded.ctx.survivors, (len(words), 4))
    found = []
    for first in range(0, len(words), COUNT):
        chosen = [
            np.resize(x[first : first + COUNT], (COUNT, *x.shape[1:]))
            for x in (np.asarray(words), np.asarray(survivors))
        ]
        ok, any_value = accepted(blinded, *chosen)
        np.testing.assert_array_equal(ok, any_value)
        found += np.asarray(ok).tolist()
    return found[: len(words)]


@pytest.mark.slow
def test_no_bit_of_a_broadcast_can_be_changed():
    """Each of all bits of all words: of the sum, of the weight, of the tag."""
    blinded, _, _ = sent()
    words = np.asarray(blinded.words)
    assert words.shape == (2 + 1 + TAG_WORDS,)
    flips = np.eye(words.size, dtype=np.uint32)[:, None] << np.arange(32, dtype=np.uint32)[:, None]
    changed = words ^ flips.reshape(-1, words.size)
    found = offered(blinded, np.concatenate([changed, words[None]]))
    assert found == [False] * 32 * words.size + [True]


@pytest.mark.slow
def test_no_other_survivors_can_be_named():
    """Of all sixteen sets only the one whose sum it is, of equal size or not."""
    blinded, _, _ = sent()
    sets = np.array(list(itertools.product([False, True], repeat=4)))
    found = offered(blinded, np.tile(blinded.words, (16, 1)), sets)
    assert sets[found].tolist() == [[True, True, False, True]]


@pytest.mark.slow
def test_a_broadcast_of_an_earlier_round_is_refused():
    """Its words in this round, and all of it to whoever knows the round or has ratcheted."""
    old, key, _ = sent(1)
    blinded, _, _ = sent()
    assert offered(blinded, old.words[None]) == [False]
    ratcheted = GroupKeys(key[None], jnp.ones(1, bool)).ratchet().keys[0]
    for own_key, round_id, ok in (
        (key, None, True),
        (key, 1, True),
        (key, 0, False),
        (ratcheted, None, False),
    ):
        mean, found = fa.open_blind(old, own_key, codec=EXACT, round_id=round_id)
        assert found == ok
        assert mean.any() == ok


@pytest.mark.slow
def test_below_the_tag_the_server_can_shift_a_sum_unseen():
    """The control: multiples of 2^v, in the range, are a sum like any other but for the tag."""
    blinded, key, uploads = sent()
    codec = jax.tree.map(jnp.float32, EXACT)  # as in a round
    mask_key, tag_key = _group_mask.round_keys(key, blinded.ctx, codec)
    mask = _group_mask.group_mask(mask_key, RING, blinded.words.size)
    survivors = blinded.ctx.survivors
    shift = np.uint32(4) * jnp.array([7, 2**32 - 5, 0], jnp.uint32)
    opened = [
        _group_mask.unmasked(words, mask[:3], survivors, RING, blinded.limit)
        for words in (blinded.words[:3], blinded.words[:3] + shift)
    ]
    assert [bool(possible) for _, possible in opened] == [True, True]
    assert (opened[1][0] - opened[0][0]).tolist() == [7, -5, 0]
    expected = [
        _group_mask.tag_words(tag_key, mask[3:], total, survivors, RING) for total, _ in opened
    ]
    assert (expected[0] == blinded.words[3:]).all()
    assert (expected[1] != blinded.words[3:]).any()
    # Nor may it count one client twice and another not at all.
    twice = jnp.sum(uploads * jnp.array([[2], [0], [0], [1]], jnp.uint32), axis=0, dtype=jnp.uint32)
    assert _group_mask.unmasked(twice[:3], mask[:3], survivors, RING, blinded.limit)[1]
    changed = jnp.stack([blinded.words.at[:3].add(shift), twice])
    assert offered(blinded, changed) == [False, False]


@pytest.mark.slow
def test_with_another_codec_nothing_opens():
    """Of another range: the words would be as good a sum in another unit. Of another kind: said."""
    session, group = cohort(4)
    codec = fa.FixedPoint(clip=1.0, levels=100)
    blinded, _ = fa.blind_mean(jnp.ones((4, 2)), session, group, codec=codec, protocol=fa.Plain())

    def opens(**changed):
        return bool(
            fa.open_blind(blinded, group.keys[0], codec=dataclasses.replace(codec, **changed))[1]
        )

    assert opens()
    assert opens(clip=jnp.float32(1))
    assert not opens(clip=2.0)
    assert not opens(levels=50)
    for changed in ({"norm": "linf"}, {"rounding": "nearest"}, {"max_levels": 200}):
        with pytest.raises(ValueError, match="blind-codec"):
            opens(**changed)


@pytest.mark.slow
def test_tags_tell_no_more_than_the_sum():
    """What clients open has the same tag, whoever contributed what to the sum."""
    n = 4
    session, group = cohort(n)
    one = jnp.asarray(integers(n, 8), jnp.float32).at[:, 0].set(1.0)
    moved = one.at[0, 0].add(3.0).at[1, 0].add(-3.0)
    swapped = one[jnp.array([1, 0, 3, 2])]
    words = [
        fa.blind_mean(x, session, group, codec=EXACT, protocol=fa.Plain())[0].words
        for x in (one, moved, swapped)
    ]
    assert not (one == moved).all()
    np.testing.assert_array_equal(words[0], words[1])
    np.testing.assert_array_equal(words[0], words[2])


def test_the_range_is_exact():
    """The largest honest sum is possible; one step more is not, nor one with low bits."""
    survivors, mask = jnp.ones(4, bool), jnp.zeros(8, jnp.uint32)
    largest = jnp.full(8, 4 * 4 * LEVELS, jnp.uint32)
    for sign in (1, 2**32 - 1):
        sum_words = np.uint32(sign) * largest
        for change, possible in ((0, True), (4, False), (1, False), (2, False)):
            words = sum_words.at[5].add(np.uint32(sign * change % 2**32))
            found = _group_mask.unmasked(words, mask, survivors, RING, LEVELS)[1]
            assert found == possible


@pytest.mark.slow
def test_the_budget_leaves_room_for_the_shift():
    """A ring that holds the sum, but not above its v low bits, is refused with the numbers."""
    n = 4
    session, group = cohort(n)
    updates = jnp.ones((n, 2))
    for bits in (14, 15, 16):
        protocol = fa.Plain(fa.arithmetic.Ring(bits))
        fa.secure_mean(updates, session, codec=EXACT, protocol=protocol)
        if bits == 16:
            fa.blind_mean(updates, session, group, codec=EXACT, protocol=protocol)
            continue
        with pytest.raises(ValueError, match=rf"= 4096 must be at most 2\*\*{bits - 3} - 1"):
            fa.blind_mean(updates, session, group, codec=EXACT, protocol=protocol)


@pytest.mark.parametrize("n", [2, 4, 50, 63, 64, 200])
def test_a_plan_makes_room(n):
    """The smallest ring in which the shifted sum cannot wrap."""
    options = {"num_clients": n, "clip": 1.0, "bits": 12, "max_weight": 3}
    plan = fa.plan_round(100, **options, blind=True)
    in_the_open = fa.plan_round(100, **options)
    assert plan.ring_bits == in_the_open.ring_bits + blind_shift(n)
    # The tag takes 64 words of this ring, and no bit of the budget.
    assert plan.length == in_the_open.length + TAG_WORDS == 165
    assert plan.bytes_up - in_the_open.bytes_up == -(-165 * plan.ring_bits // 8) - (
        -(-101 * in_the_open.ring_bits // 8)
    )
    if n == 50:
        text = "50 clients x weight 3 x 2047 levels x 2**5 (blind) = 9825600 <= 2**24 - 1"
        assert str(plan).startswith(text)
    with pytest.raises(ValueError, match="would fit"):
        fa.plan_round(100, num_clients=4000, clip=1.0, bits=10, max_weight=10, blind=True)
    fa.plan_round(100, num_clients=4000, clip=1.0, bits=10, max_weight=10)


@pytest.mark.slow
def test_nobody_left_and_no_weight():
    n = 4
    session, group = cohort(n)
    updates = jnp.ones((n, 8))
    for options in ({"participation": jnp.zeros(n, bool)}, {"weights": jnp.zeros(n, int)}):
        blinded, _ = fa.blind_mean(
            updates, session, group, codec=EXACT, **options, protocol=fa.Plain()
        )
        mean, ok = fa.open_blind(blinded, group.keys[0], codec=EXACT)
        assert not ok
        assert not mean.any()


@pytest.mark.slow
def test_one_trace_for_all_rounds():
    n, traces = 3, []

    @jax.jit
    def step(session, group, alive, weights, clip):
        traces.append(1)
        codec = fa.FixedPoint(clip, 2**8, max_levels=2**8)
        blinded, _ = fa.blind_mean(
            jnp.ones((n, 2)),
            session,
            group,
            codec=codec,
            weights=weights,
            max_weight=9,
            participation=alive,
            protocol=fa.Plain(),
        )
        return fa.open_blind(blinded, group.keys[0], codec=codec)

    for r in range(3):
        session, group = cohort(n, round_id=r)
        step(session, group, jnp.arange(n) >= r, jnp.full(n, r), 1.0 + r)
    assert len(traces) == 1
