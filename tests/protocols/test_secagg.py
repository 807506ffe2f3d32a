"""SecAgg and SecAgg+: known answers, every pattern of dropouts, every refusal.

The oracle of the patterns is the paper's: a stage goes on with whoever has enough neighbours left.
"""

import collections
import dataclasses
import functools
import itertools
import json
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fedjax_agg as fa
from fedjax_agg.arithmetic import Ring
from fedjax_agg.participation import STAGES
from fedjax_agg.protocols.secagg import RULES, Client, _keys
from fedjax_agg.wire import Attestations
from tests import taint
from tests.protocols import reference, rounds
from tests.protocols.rounds import LENGTH, LEVELS, PROTOCOL, THRESHOLD, Case, N

VECTORS = json.loads(reference.PATH.read_text())
MINUS_ONE = 2**32 - 1


# ---- known answers ------------------------------------------------------------------------------


# Of masks: raw ChaCha20 keys, nonce and counter 0, the ring of 32 bits.
PAIR_SEEDS = {(1, 2): b"\1" * 32, (1, 3): b"\2" * 32, (2, 3): b"\3" * 32}
SELF_SEEDS = {1: b"\x11" * 32, 2: b"\x12" * 32, 3: b"\x13" * 32}
UPLOADS_OF_THREE = {
    1: [2429108501, 3205542003, 2850286431, 2141158299],
    2: [790127037, 2062953293, 184850694, 3435354018],
    3: [499119112, 2999688023, 4220921031, 1288337685],
}


def pair_seed(u, v):
    return PAIR_SEEDS[min(u, v), max(u, v)]


def test_known_uploads_of_three_clients():
    ones = np.uint32([1, 2, 3, 4])
    inputs = {1: ones, 2: ones * np.uint32(10), 3: ones * np.uint32(100)}

    def upload(u):
        """By hand: the mask in common with a smaller id is added."""
        peers = [v for v in SELF_SEEDS if v != u]
        keys = [*(pair_seed(u, v) for v in peers), SELF_SEEDS[u]]
        signs = [1 if v < u else MINUS_ONE for v in peers]
        blank = dict.fromkeys(Client._fields)
        state = Client(**blank)._replace(
            mask_keys=jnp.stack([*map(rounds.words_of, keys)]), signs=jnp.uint32([*signs, 1])
        )
        return fa.SecAgg().protect(jnp.asarray(inputs[u]), state, fa.RoundContext()).words

    for u, words in UPLOADS_OF_THREE.items():
        assert upload(u).tolist() == words


def test_known_sum_of_three_clients(monkeypatch):
    """The server rebuilds the same seeds from shares, of all three and where the third is lost.

    Only the step from a seed to the key of a mask is left out, which the vector does not have.
    """
    monkeypatch.setattr(_keys, "self_key", lambda seed, session_id, ctx: seed)
    monkeypatch.setattr(_keys, "pair_keys", lambda shared, *parties: shared)
    # Of three clients one may be lost only if a single share rebuilds a secret.
    recover = jax.jit(lambda *messages: fa.SecAgg(1).recover(*messages))
    setting = reference.Setting(
        threshold=1,
        round_id=0,
        public_seed=bytes(32),
        secrets=(b"",) * 3,
        agreement=(b"", b""),
        session_id=bytes(32),
    )
    recovery = {u: bytes([32 + u]) * 32 for u in setting.clients}
    neighbours = reference.neighbours_on(reference.ring_order(setting), setting.k)
    pairs = [(u, v) for u, peers in neighbours.items() for v in peers]
    pads = {(u, v): reference.pad(recovery[u], neighbours[u].index(v)) for u, v in pairs}
    for survivors, total in (((1, 2, 3), [111, 222, 333, 444]), ((1, 2), [11, 22, 33, 44])):
        secrets = recovery | {u: SELF_SEEDS[u] for u in survivors}
        view = reference.Round(
            setting,
            advertised={u: (bytes(32), reference.public_key(recovery[u])) for u in neighbours},
            neighbours=neighbours,
            entries={
                (u, v): (bytes(32), reference.xor(pair_seed(u, v), pads[u, v])) for u, v in pairs
            },
            sealed=dict.fromkeys(pairs),
            uploads={u: UPLOADS_OF_THREE[u] for u in survivors},
            attested={},
            revealed={(u, v): reference.to_chunks(secrets[v]) for u, v in pairs if u in survivors},
            total=None,
        )
        found = recover(*rounds.server_inputs(view))
        assert found.ok
        assert found.words.tolist() == total


def bytes_of(vector, name):
    return [bytes.fromhex(value) for value in vector[name]]


def setting_of(vector):
    contexts = vector["contexts"]
    return reference.Setting(
        threshold=vector["threshold"],
        degree=vector["degree"],
        bits=vector["ring_bits"],
        consistency=vector["consistency"],
        round_id=vector["round_id"],
        public_seed=bytes.fromhex(vector["public_seed"]),
        secrets=tuple(bytes_of(vector, "secrets")),
        agreement=tuple(bytes_of(vector, "agreement")),
        contexts=None if contexts is None else tuple(bytes_of(vector, "contexts")),
    )


def case_of(vector, lost):
    """A round with the inputs of a vector."""
    words = np.stack([rounds.words_of(bytes.fromhex(x)) for x in vector["inputs"].values()])
    integers = Ring(vector["ring_bits"]).centre_lift(jnp.asarray(words))
    alive = rounds.alive_until(lost, len(words))
    return Case(rounds.session_of(setting_of(vector)), np.asarray(integers), alive)


def shown(view, vector):
    """A round by the library, with its inputs, as the file has one."""
    inputs = {int(u): reference.to_words(bytes.fromhex(x)) for u, x in vector["inputs"].items()}
    # A server holds no secret of a client: these are the file's.
    roots = dataclasses.replace(setting_of(vector), session_id=view.setting.session_id)
    found = reference.shown(view._replace(setting=roots), inputs)
    assert view.setting.public_seed == roots.public_seed
    return {"seed": vector["seed"], **found}


def test_the_file_of_vectors_is_the_reference():
    assert json.loads(json.dumps(reference.vectors())) == VECTORS


@pytest.mark.slow
def test_all_messages_of_a_round_are_the_vector():
    """Public keys, board, sealed shares, uploads, attestations, revealed shares and the sum."""
    vector = VECTORS["complete"]
    (kept,) = rounds.play(case_of(vector, {3: "upload"}))
    assert shown(rounds.server_view(kept), vector) == vector
    assert rounds.octets(kept.total.words).hex() == vector["total"]


@pytest.mark.slow
def test_all_messages_of_a_sparse_round_are_the_vector():
    vector = VECTORS["sparse"]
    protocol = fa.SecAgg(3, degree=4, group=Ring(20))
    (kept,) = rounds.play(case_of(vector, {2: "upload"}), protocol=protocol, quickly=False)
    assert shown(rounds.server_view(kept, 3, degree=4, bits=20), vector) == vector


def test_the_sums_of_the_vectors_are_those_of_the_inputs():
    for name in ("complete", "sparse"):
        vector = VECTORS[name]
        total = [0] * LENGTH
        for u in vector["upload"]:
            words = reference.to_words(bytes.fromhex(vector["inputs"][u]))
            total = reference.add(total, 1, words, vector["ring_bits"])
        assert reference.to_bytes(total).hex() == vector["total"]
        assert len(vector["upload"]) == len(vector["inputs"]) - 1


@functools.cache
def vector_round():
    (kept,) = rounds.play(case_of(VECTORS["complete"], {3: "upload"}))
    return Told(kept)


@pytest.mark.slow
@pytest.mark.parametrize("vector", VECTORS["negative"], ids=lambda vector: vector["what"])
def test_what_must_be_refused(vector):
    """By the library's client or server, in the round of the vector; and by the reference."""
    here, true = vector_round(), reference.complete_round()
    stage, sender = vector["stage"], vector["sender"]
    if stage == "share":
        slot = here.slot_of(sender)
        message = reference.Sealed(*(bytes.fromhex(part) for part in vector["message"]))
        found = rounds.client_stage("receive")(
            *here.sealed(slot, *map(rounds.words_of, message))[1:]
        )
        assert broken_by(found) == {vector["refused_by"]}
        secret = reference.xor(
            true.entries[1, sender][0],
            reference.pad(reference.join(true.setting, 1).channel, slot),
        )
        keys = reference.channel_keys(true.setting, secret, sender, 1)
        assert reference.unseal(true.setting, keys, true.sealed[sender, 1], sender, 1) is not None
        assert reference.unseal(true.setting, keys, message, sender, 1) is None
    elif stage == "attest":
        tag = bytes.fromhex(vector["message"])
        tags, sent = here.inbox("attest")
        inbox = Attestations(tags.at[here.slot_of(sender)].set(rounds.words_of(tag)), sent)
        state, outbox = rounds.client_stage("unmask")(*here.unmask(inbox=inbox)[1:])
        assert broken_by(state) == {vector["refused_by"]}
        assert not outbox.sent.any()
        assert tag != true.attested[sender, 1]
    else:
        share = reference.to_words(bytes.fromhex(vector["message"]))
        wrong = true._replace(revealed=true.revealed | {(sender, vector["owner"]): share})
        assert rounds.recover()(*rounds.server_inputs(true)).ok
        total = rounds.recover()(*rounds.server_inputs(wrong))
        assert not total.ok
        assert not total.words.any()
        assert reference.recover(wrong) is None


def test_no_block_of_keystream_serves_two_purposes(monkeypatch):
    """In two rounds of one seed and one on a sparse graph: no (key, nonce, counter) twice.

    But a pair mask is in two uploads, and whoever opens a message generates its pad again. What the
    library itself computes is on record in ``test_uniformity``.
    """
    purposes = collections.defaultdict(set)
    sealed = collections.Counter()
    original = reference.chacha20

    def logged(key, length, nonce=reference.NO_NONCE, counter=0):
        purpose = sys._getframe(1).f_code.co_name
        for block in range(-(-length // 64)):
            purposes[key, nonce, counter + block].add(purpose)
        sealed[key] += purpose == "seal"
        return original(key, length, nonce, counter)

    monkeypatch.setattr(reference, "chacha20", logged)
    played = [reference.complete_round(7), reference.complete_round(8), reference.sparse_round()]
    found = {purpose for names in purposes.values() for purpose in names}
    inputs = {"inputs_of"}
    cipher = {"public_key", "pad", "edge", "coefficients", "seal", "unseal", "mask", "ring_order"}
    assert found - inputs == cipher
    # Who opens a sealed share has its key from its sender.
    assert {frozenset(names) for names in purposes.values()} == {
        *(frozenset([name]) for name in found - {"seal", "unseal"}),
        frozenset(["seal", "unseal"]),
    }
    messages = sum(len(one.sealed) for one in played)
    assert collections.Counter(sealed.values())[1] == messages == 12 + 12 + 24
    assert max(sealed.values()) == 1


@pytest.mark.parametrize("name", ["complete", pytest.param("sparse", marks=pytest.mark.slow)])
def test_the_roots_of_a_vector_are_those_of_a_simulated_session(name):
    """From the seed of 32 bytes on."""
    vector = VECTORS[name]
    setting = setting_of(vector)
    seed = jnp.asarray(rounds.words_of(bytes.fromhex(vector["seed"])))
    made = fa.simulated_session(seed, num_clients=setting.n, round_id=setting.round_id)
    expected = rounds.session_of(dataclasses.replace(setting, contexts=None))
    jax.tree.map(np.testing.assert_array_equal, made, expected)


# ---- every pattern of dropouts ------------------------------------------------------------------


class Outcome:
    """What must come of a round, from who misses which stage first: the sets of the paper."""

    def __init__(self, neighbours, threshold, least, first_missed, consistency=True):
        around = {u: set(peers) for u, peers in neighbours.items()}
        refused = collections.Counter()

        def stage(number, before, enough=lambda u: True, rule=None):
            there = {u for u in before if first_missed[u] > number}
            silent = {u for u in there if not enough(u)}
            if silent:
                refused[rule] += len(silent)
            return there - silent

        def knows(others):
            return lambda u: len(around[u] & others) >= threshold

        u1 = stage(0, set(around))
        u2 = stage(1, u1, knows(u1), "few-keys")
        u3 = stage(2, u2, knows(u2), "few-shares")

        def survivors_suffice(u):
            return len(around[u] & u3) >= threshold and len(u3) >= least

        if consistency:
            u4 = stage(3, u3, survivors_suffice, "few-survivors")
            u5 = stage(4, u4, knows(u4), "few-attestations")
        else:
            u4 = stage(3, u3)
            u5 = stage(4, u4, survivors_suffice, "few-survivors")
        rebuilt = u3 | {v for v in u2 - u3 if around[v] & u3}
        self.ok = bool(u3) and all(len(around[v] & u5) >= threshold for v in rebuilt)
        self.survivors = u3
        self.refused = dict(refused)


def complete_graph(n):
    return {u: [v for v in range(n) if v != u] for u in range(n)}


def alive_of(patterns):
    """Patterns name, for each client, the first stage that it misses: [P, n] -> bool[P, 5, n]."""
    return np.asarray(patterns)[:, None, :] > np.arange(len(STAGES))[None, :, None]


def flags(clients, n):
    return np.isin(np.arange(n), list(clients))


def succeeding(n, t):
    """How many of the 6^n patterns end with a sum: j clients are lost, each at one of 5 stages."""
    return sum(math.comb(n, j) * 5**j for j in range(n - t))


COMPLETE = [(n, t) for n in (2, 3, 4, 5) for t in range(1, n)]


@pytest.mark.parametrize(("n", "t"), COMPLETE)
def test_up_to_n_minus_1_minus_t_clients_may_be_lost(n, t):
    """The oracle, in closed form: it does not matter when, or who."""
    for pattern in itertools.product(range(6), repeat=n):
        lost = sum(stage < len(STAGES) for stage in pattern)
        assert Outcome(complete_graph(n), t, t + 1, pattern).ok == (lost <= n - 1 - t)


def refused(report):
    """How many clients refused, by rule."""
    return {rule: int(count) for rule, count in report.refusals.items() if count}


def check(kept, case, outcome):
    survivors = flags(outcome.survivors, len(kept.public.survivors))
    np.testing.assert_array_equal(kept.public.survivors, survivors)
    assert bool(kept.total.ok) == outcome.ok
    expected = case.plain_sum(survivors) if outcome.ok else np.zeros_like(kept.total.words)
    np.testing.assert_array_equal(kept.total.words, expected)
    assert not kept.report.suspects.any()
    assert refused(kept.report) == outcome.refused


@pytest.mark.slow
def test_patterns_of_four_clients():
    """The 21 of 1296 that end with a sum, and 139 drawn from the others."""
    patterns = np.array(list(itertools.product(range(6), repeat=N)))
    outcomes = [Outcome(complete_graph(N), THRESHOLD, THRESHOLD + 1, p) for p in patterns]
    good = [i for i, outcome in enumerate(outcomes) if outcome.ok]
    bad = [i for i, outcome in enumerate(outcomes) if not outcome.ok]
    assert (len(patterns), len(good)) == (1296, 21) == (6**N, succeeding(N, THRESHOLD))
    drawn = [*good, *np.random.default_rng(0).choice(bad, 139, replace=False)]
    alive = alive_of(patterns)
    cases = [
        Case(rounds.session(0, round_id=i), rounds.integers(i), alive[i]) for i in map(int, drawn)
    ]
    played = rounds.play(*cases)
    assert len(played) == 160
    for kept, case, i in zip(played, cases, drawn):
        check(kept, case, outcomes[i])


@functools.cache
def summed(protocol, block):
    """The sums and reports of ``block`` patterns, one after the other, each in its own round."""

    def one(session, updates, alive, round_id):
        return fa.secure_sum(
            updates,
            dataclasses.replace(session, round_id=round_id),
            codec=rounds.CODEC,
            protocol=protocol,
            participation=fa.Participation(alive),
        )

    def many(session, updates, alive, round_ids):
        return jax.lax.map(lambda row: one(session, updates, *row), (alive, round_ids))

    return jax.jit(many)


def check_patterns(protocol, neighbours, patterns, integers, session, block=128):
    """Runs every pattern and returns how many ended with a sum."""
    n, t = len(neighbours), protocol.threshold_of(len(neighbours))
    least = protocol.min_survivors or t + 1
    good = 0
    words = np.asarray(integers, np.int64)
    updates = np.float32(integers / LEVELS)
    for first in range(0, len(patterns), block):
        some = np.asarray(patterns[first : first + block])
        padded = np.concatenate([some, np.zeros((block - len(some), n), some.dtype)])
        numbers = np.arange(first, first + block, dtype=np.uint32)
        sums, report = summed(protocol, block)(session, updates, alive_of(padded), numbers)
        sums, report = jax.tree.map(np.asarray, (sums, report))
        for i, pattern in enumerate(some):
            outcome = Outcome(neighbours, t, least, pattern, protocol.consistency)
            survivors = flags(outcome.survivors, n)
            expected = words[survivors].sum(axis=0) if outcome.ok else 0 * words[0]
            # Floats up to 2^24 are integers, and exact.
            np.testing.assert_array_equal(sums[i] * LEVELS, expected)
            assert bool(report.ok[i]) == outcome.ok
            np.testing.assert_array_equal(report.survivors[i], survivors)
            assert refused(jax.tree.map(lambda x: x[i], report)) == outcome.refused  # noqa: B023
            good += outcome.ok
    return good


def marked(*arguments, slow):
    return pytest.param(*arguments, marks=pytest.mark.slow if slow else pytest.mark.exhaustive)


@pytest.mark.parametrize(("n", "t"), [marked(n, t, slow=n < 5) for n, t in COMPLETE])
def test_every_pattern_up_to_five_clients(n, t):
    """6^n patterns of who is lost before which stage: the plain sum, or zeros."""
    patterns = list(itertools.product(range(6), repeat=n))
    session = rounds.session(n, n, contexts=None)
    integers = rounds.integers(t, n, 17)
    good = check_patterns(fa.SecAgg(t), complete_graph(n), patterns, integers, session)
    assert (len(patterns), good) == (6**n, succeeding(n, t))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("protocol", "good"),
    [
        (fa.SecAgg(2, consistency=False), succeeding(4, 2)),
        # All upload, and two or more answer: any other may be lost at one of the last two stages.
        (fa.SecAgg(1, min_survivors=4), 1 + 4 * 2 + 6 * 2**2),
    ],
    ids=["without attestations", "at least four survivors"],
)
def test_every_pattern_of_other_configurations(protocol, good):
    patterns = list(itertools.product(range(6), repeat=4))
    session = rounds.session(4, 4, contexts=None)
    integers = rounds.integers(0, 4, 17)
    assert check_patterns(protocol, complete_graph(4), patterns, integers, session) == good


SPARSE = [(12, 6, 3), (10, 5, 2), (9, 4, 3), (12, 11, 8)]


@pytest.mark.parametrize(("n", "k", "t"), [marked(*x, slow=x == SPARSE[0]) for x in SPARSE])
def test_drawn_patterns_on_sparse_graphs(n, k, t):
    """Most clients stay; whoever is lost is so before any stage. The graph is that of the board."""
    protocol = fa.SecAgg(t, degree=k)
    session = rounds.session(n, n, contexts=None)
    integers = rounds.integers(k, n, 17)
    setting = rounds.setting_of(session, t, degree=k)
    found = collections.Counter()

    @settings(max_examples=60)
    @given(st.data())
    def drawn(data):
        stage = st.sampled_from([5] * data.draw(st.integers(1, 40)) + [0, 1, 2, 3, 4])
        pattern = data.draw(st.tuples(*[stage] * n))
        round_id = data.draw(st.integers(0, 2**32 - 1))
        here = dataclasses.replace(setting, round_id=round_id)
        advertised = {
            u: tuple(map(reference.public_key, reference.join(here, u)[:2]))
            for u in here.clients
            if pattern[u - 1] > 0
        }
        order = reference.ring_order(here.advertised(advertised))
        neighbours = {
            u - 1: [v - 1 for v in peers]
            for u, peers in reference.neighbours_on(order, here.k).items()
        }
        # One at a time: the round is part of the draw.
        moved = dataclasses.replace(session, round_id=jnp.uint32(round_id))
        outcome = Outcome(neighbours, t, t + 1, pattern)
        survivors = flags(outcome.survivors, n)
        sums, report = summed(protocol, 1)(
            moved,
            np.float32(integers / LEVELS),
            alive_of([pattern]),
            np.full(1, round_id, np.uint32),
        )
        expected = integers[survivors].sum(axis=0) if outcome.ok else 0 * integers[0]
        np.testing.assert_array_equal(sums[0] * LEVELS, expected)
        assert bool(report.ok[0]) == outcome.ok
        assert refused(jax.tree.map(lambda x: x[0], report)) == outcome.refused
        found[outcome.ok, len(outcome.survivors) < n] += 1

    drawn()
    # Both ends occur, and sums without everybody.
    assert found[True, True]
    assert found[False, True]


# ---- one protocol, and one that sees messages only ----------------------------------------------


def round_jaxpr(protocol):
    def run(session, updates, alive):
        return fa.secure_sum(
            updates,
            session,
            codec=rounds.CODEC,
            protocol=protocol,
            participation=fa.Participation(alive),
        )

    updates = jnp.zeros((N, LENGTH), jnp.float32)
    return str(jax.make_jaxpr(run)(rounds.session(), updates, jnp.asarray(rounds.alive_until())))


@pytest.mark.slow
def test_degree_n_minus_1_is_the_complete_graph():
    """One program for both, so that they agree in every message."""
    dense = round_jaxpr(fa.SecAgg(THRESHOLD, degree=N - 1))
    assert dense == round_jaxpr(PROTOCOL)
    assert len(dense) > 10**5


@pytest.mark.slow
def test_degree_n_minus_1_sends_the_same_messages():
    cases = [
        Case(rounds.session(i), rounds.integers(i), rounds.alive_until(lost))
        for i, lost in enumerate([{}, {2: "upload"}, {4: "attest"}])
    ]
    dense = rounds.play(*cases, protocol=fa.SecAgg(THRESHOLD, degree=N - 1), quickly=False)
    jax.tree.map(np.testing.assert_array_equal, dense, rounds.play(*cases, quickly=False))
    # And what the compiler was asked to leave out in the quick tests changes nothing.
    jax.tree.map(np.testing.assert_array_equal, dense, rounds.play(*cases))


@functools.cache
def base_rounds():
    """Everybody stays; the third is lost; and both again in another round of the same session."""
    everybody, without_3 = rounds.alive_until(), rounds.alive_until({3: "upload"})
    return rounds.play(
        *[
            Case(rounds.session(round_id=round_id), rounds.integers(), alive)
            for round_id in (7, 8)
            for alive in (everybody, without_3)
        ]
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_recover_needs_only_what_the_server_holds(number):
    kept = base_rounds()[number]
    view = kept.view(server=True)
    uploads = view.server["upload"].outboxes.words.sum(axis=0, dtype=np.uint32)
    total = rounds.recover()(uploads, view.server, view.public)
    jax.tree.map(np.testing.assert_array_equal, total, kept.total)
    assert total.ok


def captured_words(function, *arguments):
    """Every word that a function brings along instead of being given it."""
    closed = jax.make_jaxpr(function)(*arguments)
    assert len(closed.jaxpr.invars) == len(jax.tree.leaves(arguments))
    constants = list(closed.consts)
    for equation in taint.equations(closed.jaxpr):
        for inner in taint.sub_jaxprs(equation.params):
            constants += getattr(inner, "consts", [])
        constants += [atom.val for atom in equation.invars if hasattr(atom, "val")]
    return {int(word) for constant in constants for word in np.ravel(constant)}


def test_recover_is_a_function_of_messages():
    """Its closed jaxpr brings no word of the session along, nor of what clients derive from it."""
    kept, session = base_rounds()[1], rounds.session()
    view = kept.view(server=True)
    uploads = np.zeros(LENGTH, np.uint32)
    arguments = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (uploads, dict(view.server), view.public)
    )
    private = session.secrets, session.agreement, session.public_seed, kept.keys, kept.private
    words = {int(word) for leaf in jax.tree.leaves(private) for word in np.ravel(leaf)}
    words = {word for word in words if 2**16 <= word < MINUS_ONE}
    assert len(words) > 500
    captured = captured_words(PROTOCOL.recover, *arguments)
    assert captured & words == set()
    # The controls: the walk sees constants, and a secret that the server has kept.
    assert set(reference.to_words(b"expand 32-byte k")) < captured
    secret = jnp.asarray(kept.secrets[0])

    def knows_a_secret(uploads, mail, ctx):
        return PROTOCOL.recover(uploads, mail, ctx), jax.jit(lambda x: x + secret)(uploads[:8])

    assert captured_words(knows_a_secret, *arguments) & words == set(secret.tolist())


# ---- refusals -----------------------------------------------------------------------------------


def on_device(tree):
    return jax.tree.map(jnp.asarray, tree)


@functools.partial(jax.jit, compiler_options=rounds.QUICKLY)
def session_id_of(board, ctx):
    return PROTOCOL._session_id(board.keys, board.present, ctx)


class Told:
    """Client 1 of a round, what it holds before each stage and what it is honestly told."""

    def __init__(self, kept):
        self.kept = kept

    def slot_of(self, neighbour):
        return self.board.neighbours[0].tolist().index(neighbour - 1)

    def row(self, tree, client=1):
        return on_device(jax.tree.map(lambda x: x[client - 1], tree))

    @functools.cached_property
    def ctx(self):
        public = self.kept.public
        return on_device(public._replace(client=np.uint32(1), context_hash=public.context_hash[0]))

    @property
    def board(self):
        return self.ctx.board

    @property
    def joined(self):
        return self.row(self.kept.keys)

    @property
    def shared(self):
        """Before it has its neighbours' shares."""
        private = self.received
        here = self.board.present[self.board.neighbours[0]]
        return private._replace(shares=jnp.zeros_like(private.shares), present=here)

    @property
    def received(self):
        return self.row(self.kept.private)

    @functools.cached_property
    def attested(self):
        state, _ = rounds.client_stage("attest")(self.received, None, self.ctx)
        return state

    @functools.cached_property
    def answered(self):
        state, _ = rounds.client_stage("unmask")(self.attested, self.inbox("attest"), self.ctx)
        return state

    def inbox(self, stage):
        return self.row(self.kept.stages[stage].inboxes)

    # What a stage is called with.

    def share(self, **board):
        """On another board, which is consistent in itself."""
        board = self.board._replace(**board)
        session_id = session_id_of(board, self.ctx)
        ctx = self.ctx._replace(board=board._replace(session_id=session_id))
        return "share", self.joined, None, ctx

    def keys(self, kind, row, value):
        """The board with another key."""
        posted = getattr(self.board.keys, kind).at[row].set(value)
        return self.share(keys=self.board.keys._replace(**{kind: posted}))

    def receive(self, private=None, **inbox):
        private = self.shared if private is None else private
        return "receive", private, self.inbox("share")._replace(**inbox), self.ctx

    def sealed(self, slot, ciphertext=None, tag=None):
        """Another message in a slot."""
        sealed = self.inbox("share").sealed
        if ciphertext is not None:
            sealed = sealed._replace(ciphertext=sealed.ciphertext.at[slot].set(ciphertext))
        if tag is not None:
            sealed = sealed._replace(tag=sealed.tag.at[slot].set(tag))
        return self.receive(sealed=sealed)

    def attest(self, private=None, survivors=None):
        return self.named("attest", self.received if private is None else private, None, survivors)

    def unmask(self, private=None, inbox=None, survivors=None):
        inbox = self.inbox("attest") if inbox is None else inbox
        private = self.attested if private is None else private
        return self.named("unmask", private, inbox, survivors)

    def named(self, stage, private, inbox, survivors):
        """The server names these survivors."""
        ctx = self.ctx
        if survivors is not None:
            ctx = ctx._replace(survivors=jnp.array(survivors, bool))
        return stage, private, inbox, ctx


@functools.cache
def told(number=0):
    return Told(base_rounds()[number])


def relayed(number, sender, receiver):
    """The sealed share that one client sent another in a round, as it travels."""
    kept = base_rounds()[number]
    slot = kept.public.board.neighbours[sender - 1].tolist().index(receiver - 1)
    outbox = kept.stages["share"].outboxes.sealed
    return outbox.ciphertext[sender - 1, slot], outbox.tag[sender - 1, slot]


def flip(words, bit):
    words = np.array(words)
    words[bit // 32] ^= np.uint32(1 << bit % 32)
    return words


def forged(position, bit=0):
    """The attestations that arrive, with a bit of one of them flipped."""
    tags, sent = told().inbox("attest")
    return Attestations(tags.at[position].set(flip(tags[position], bit)), sent)


def attestations_on(survivors):
    """What neighbours in client 1's slots say when the server has named them another set."""
    kept = base_rounds()[0]
    ctx = kept.public._replace(survivors=np.array(survivors, bool))
    outboxes = []
    for client in range(1, N + 1):
        own = ctx._replace(client=np.uint32(client), context_hash=ctx.context_hash[client - 1])
        state = jax.tree.map(lambda x: x[client - 1], kept.private)  # noqa: B023
        outboxes.append(rounds.client_stage("attest")(state, None, own)[1])
    stacked = jax.tree.map(lambda *rows: np.stack(rows), *outboxes)
    here = jnp.array(survivors, bool)
    inboxes = PROTOCOL.respond(N)[0].server(on_device(stacked), here, on_device(kept.public))
    return jax.tree.map(lambda x: x[0], inboxes)


ALL, WITHOUT_4 = [True] * 4, [True, True, True, False]
# Client 1's neighbours are 2, 3 and 4, in slots 0, 1 and 2.
BROKEN = {
    "own-keys": {
        "it is not on the board": lambda: told().share(
            present=told().board.present.at[0].set(False)
        ),
        "another channel key in its place": lambda: told().keys("channel", 0, jnp.uint32(5)),
        "another mask key in its place": lambda: told().keys("mask", 0, jnp.uint32(5)),
        "its channel key twice": lambda: told().keys("channel", 2, told().joined.public.channel),
        "its mask key twice": lambda: told().keys("mask", 3, told().joined.public.mask),
        "a channel key of two others": lambda: told().keys(
            "channel", 2, told().board.keys.channel[3]
        ),
    },
    "invalid-key": {
        "a channel key of zeros": lambda: told().keys("channel", 1, jnp.uint32(0)),
        "a mask key of zeros": lambda: told().keys("mask", 3, jnp.uint32(0)),
    },
    "graph": {
        "two slots exchanged": lambda: told().share(
            neighbours=told().board.neighbours.at[0].set(jnp.array([2, 1, 3], jnp.int32))
        ),
        "one neighbour twice": lambda: told().share(
            neighbours=told().board.neighbours.at[0, 2].set(1)
        ),
        "its own neighbour": lambda: told().share(
            neighbours=told().board.neighbours.at[0, 0].set(0)
        ),
        "the digest of another list of keys": lambda: (
            *told().share()[:3],
            told().ctx._replace(board=told().board._replace(session_id=told(2).board.session_id)),
        ),
    },
    "few-keys": {
        "one neighbour": lambda: told().share(present=jnp.array([True, False, True, False])),
        "none": lambda: told().share(present=jnp.array([True, False, False, False])),
    },
    "late-share": {
        "a share of one who is not on the board": lambda: told().receive(
            told().shared._replace(present=jnp.array([True, True, False]))
        ),
    },
    "sealed-share": {
        "a bit of the ciphertext": lambda: told().sealed(0, flip(relayed(0, 2, 1)[0], 0)),
        "the last bit of the ciphertext": lambda: told().sealed(
            2, flip(relayed(0, 4, 1)[0], 18 * 32 - 1)
        ),
        "a bit of the tag": lambda: told().sealed(1, tag=flip(relayed(0, 3, 1)[1], 255)),
        "replayed from another round": lambda: told().sealed(0, *relayed(2, 2, 1)),
        "reflected": lambda: told().sealed(0, *relayed(0, 1, 2)),
        "of another sender": lambda: told().sealed(0, *relayed(0, 3, 1)),
        "for another receiver": lambda: told().sealed(0, *relayed(0, 2, 3)),
        "nothing but zeros": lambda: told().sealed(0, jnp.uint32(0), jnp.uint32(0)),
    },
    "few-shares": {
        "one share": lambda: told().receive(sent=jnp.array([False, True, False])),
        "none": lambda: told().receive(sent=jnp.zeros(3, bool)),
    },
    "declared-lost": {
        "before it attests": lambda: told().attest(survivors=[False, True, True, True]),
    },
    "unknown-survivor": {
        "one without keys, who is no neighbour": lambda: (
            "attest",
            told().received,
            None,
            told().ctx._replace(
                board=told().board._replace(present=jnp.array([True, True, True, False]))
            ),
        ),
        "one who never shared": lambda: told().attest(
            told().received._replace(present=jnp.array([True, False, True]))
        ),
    },
    "few-survivors": {
        "one neighbour": lambda: told().attest(survivors=[True, False, True, False]),
        "none": lambda: told().attest(survivors=[True, False, False, False]),
    },
    "attested-already": {
        "the same set": lambda: told().attest(told().attested),
        "another": lambda: told().attest(told().attested, survivors=WITHOUT_4),
    },
    "other-set": {
        "smaller": lambda: told().unmask(inbox=attestations_on(WITHOUT_4), survivors=WITHOUT_4),
        "none attested before": lambda: told().unmask(told().received),
    },
    "few-attestations": {
        "none": lambda: told().unmask(
            inbox=told().inbox("attest")._replace(sent=jnp.zeros(3, bool))
        ),
        "one": lambda: told().unmask(
            inbox=told().inbox("attest")._replace(sent=jnp.array([False, False, True]))
        ),
        "two, one of them on another set": lambda: told().unmask(
            inbox=Attestations(
                told().inbox("attest").tags.at[0].set(attestations_on(WITHOUT_4).tags[0]),
                jnp.array([True, True, False]),
            )
        ),
        "two, one of them forged": lambda: told().unmask(
            inbox=forged(2, 77)._replace(sent=jnp.array([False, True, True]))
        ),
        "its own, reflected": lambda: told().unmask(
            inbox=told().row(base_rounds()[0].stages["attest"].outboxes)
        ),
        "two, one of them from another round": lambda: told().unmask(
            inbox=Attestations(
                told().inbox("attest").tags.at[1].set(told(2).inbox("attest").tags[1]),
                jnp.array([False, True, True]),
            )
        ),
    },
    "answered-already": {
        "the same question": lambda: told().unmask(told().answered),
        "once more, of a server that asks for the other secret": lambda: told().unmask(
            told().answered._replace(attested=told(1).attested.attested),
            attestations_on([True, True, False, True]),
            survivors=[True, True, False, True],
        ),
    },
}
MISTAKES = [(rule, how) for rule, ways in BROKEN.items() for how in ways]


def broken_by(state):
    flags = np.asarray(getattr(state, "refusals", state).broken)
    return {rule for rule, flag in zip(RULES, flags) if flag}


def test_every_rule_is_broken_somewhere():
    assert tuple(BROKEN) == RULES


@pytest.mark.parametrize(("rule", "how"), MISTAKES, ids=[": ".join(x) for x in MISTAKES])
def test_a_compiled_client_falls_silent(rule, how):
    """It notes this rule and no other, and reveals nothing."""
    stage, private, inbox, ctx = BROKEN[rule][how]()
    found = rounds.client_stage(stage)(private, inbox, ctx)
    if stage == "share":
        refusals, sent = found
        assert broken_by(refusals) == {rule}
        assert not sent.any()
        return
    if stage == "receive":  # The round takes whoever has broken rules for gone.
        assert broken_by(found) == {rule}
        return
    state, outbox = found
    assert broken_by(state) == {rule}
    assert not outbox.sent.any()
    if stage == "unmask":
        assert not outbox.shares.any()
    if stage == "attest":
        assert not outbox.tags.any()
        np.testing.assert_array_equal(state.attested, private.attested)


@pytest.mark.parametrize(("rule", "how"), MISTAKES, ids=[": ".join(x) for x in MISTAKES])
def test_a_client_on_a_host_is_told_the_rule(rule, how):
    stage, private, inbox, ctx = BROKEN[rule][how]()
    with pytest.raises(ValueError, match=rf"^the rule {rule} must be kept .*\[refuse-{rule}\]$"):
        rounds.eager_stage(stage)(private, inbox, ctx)


@pytest.mark.parametrize("number", [0, 1], ids=["everybody", "without 3"])
def test_what_is_honest_is_not_refused(number):
    """The control: what the cases above are made of, and zeros for the keys of who is gone."""
    here = told(number)
    gone = here.share(present=here.board.present.at[2].set(False))
    zeros = jax.tree.map(lambda x: x.at[2].set(jnp.uint32(0)), here.board.keys)
    for stage, private, inbox, ctx in (
        here.share(),
        gone,
        here.share(present=gone[3].board.present, keys=zeros),
        here.receive(),
        here.attest(),
        here.unmask(),
    ):
        found = rounds.client_stage(stage)(private, inbox, ctx)
        state, outbox = found if stage in ("attest", "unmask", "share") else (found, None)
        assert broken_by(state) == set()
        if stage == "share":
            assert outbox.any()  # To whom it sends: to all but who is gone.
    assert outbox.sent.all()
    assert state.answered
    assert not state.shares.any()
    for stage, private, inbox, ctx in (here.receive(), here.attest(), here.unmask()):
        rounds.eager_stage(stage)(private, inbox, ctx)


def test_fewer_than_min_survivors_are_not_unmasked():
    """More than the threshold of its neighbours are left, but not as many as were asked for."""
    protocol = fa.SecAgg(THRESHOLD, min_survivors=N)
    _, private, inbox, ctx = told().attest(survivors=WITHOUT_4)
    with pytest.raises(ValueError, match="refuse-few-survivors"):
        rounds.eager_stage("attest", protocol)(private, inbox, ctx)
    rounds.eager_stage("attest", fa.SecAgg(THRESHOLD, min_survivors=N - 1))(private, inbox, ctx)


# ---- a server that cheats in a compiled round ---------------------------------------------------


class NamesOtherNeighbours(fa.SecAgg):
    def _publish(self, keys, sent, ctx):
        board = super()._publish(keys, sent, ctx)
        return board._replace(neighbours=board.neighbours.at[0].set(board.neighbours[0, ::-1]))


class SwapsShares(fa.SecAgg):
    def prepare(self, num_clients):
        advertise, share = super().prepare(num_clients)

        def server(outboxes, sent, ctx):
            inboxes = share.server(outboxes, sent, ctx)
            return inboxes._replace(sealed=jax.tree.map(lambda x: x[:, ::-1], inboxes.sealed))

        return advertise, share._replace(server=server)


class WithholdsAttestations(fa.SecAgg):
    def respond(self, num_clients):
        attest, unmask = super().respond(num_clients)

        def server(outboxes, sent, ctx):
            inboxes = attest.server(outboxes, sent, ctx)
            return inboxes._replace(sent=inboxes.sent.at[0].set(False))

        return attest._replace(server=server), unmask


@pytest.mark.slow
@pytest.mark.parametrize(
    ("protocol", "counts", "ok"),
    [
        # The others go on without the client that refuses.
        (NamesOtherNeighbours(THRESHOLD), {"graph": 1}, True),
        # The middle slot is its own mirror, but the outer two are not.
        (SwapsShares(THRESHOLD), {"sealed-share": 4}, False),
        (WithholdsAttestations(THRESHOLD), {"few-attestations": 1}, True),
        (WithholdsAttestations(3), {"few-attestations": 1}, False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, fa.SecAgg) else None,
)
def test_the_report_counts_refusals(protocol, counts, ok):
    """A client that refuses is lost from there on, and what is summed is the survivors'."""
    updates = np.float32(rounds.integers() / LEVELS)
    total, report = fa.secure_sum(
        jnp.asarray(updates), rounds.session(), codec=rounds.CODEC, protocol=protocol
    )
    assert refused(report) == counts
    assert bool(report.ok) == ok
    survivors = np.arange(N) >= counts.get("graph", 0)
    if "sealed-share" in counts:
        survivors = np.zeros(N, bool)
    np.testing.assert_array_equal(report.survivors, survivors)
    expected = rounds.integers()[survivors].sum(axis=0) if ok else np.zeros(LENGTH)
    np.testing.assert_array_equal(np.asarray(total) * LEVELS, expected)
