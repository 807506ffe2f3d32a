"""Attacks on masked rounds: each opens an update where its guard is off, and none where it is on.

An attacker has a ``Transcript.view``: all messages as the server holds them, and all that a
corrupt client holds. What it computes is plain Python. Opened means the victim's words, bit for
bit. Closed means that its best guess agrees with them in no more of the half-bytes than a guess at
random would, within five standard errors: a right program fails one comparison in 3 million, and
sessions are fixed.
"""

import dataclasses
import functools
import hmac
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import fedjax_agg as fa
from fedjax_agg.arithmetic import Ring
from fedjax_agg.protocols.secagg import RULES
from fedjax_agg.sharing import graph
from fedjax_agg.wire import Attestations, Mail
from tests.protocols import reference, rounds
from tests.protocols.rounds import LEVELS, PROTOCOL, THRESHOLD, Case, N

# Most of them look at the same rounds, whose program takes a while to compile.
pytestmark = pytest.mark.slow

STANDARD_ERRORS = 5
GUESS_BITS = 4
VICTIM = 1
ALL = [True] * N
WITHOUT_VICTIM = [False, True, True, True]
# The keys that a client attests with, among those of a channel.
ATTESTATION = 2


# ---- what attackers compute ---------------------------------------------------------------------


def half_bytes(words):
    data = np.frombuffer(reference.to_bytes(words), np.uint8)
    return np.stack([data >> 4, data & 15])


def agreement(guess, truth):
    """How many half-bytes agree beyond the expectation of a random guess, in standard errors."""
    same = half_bytes(guess) == half_bytes(truth)
    chance = 2**-GUESS_BITS
    return (same.mean() - chance) / np.sqrt(chance * (1 - chance) / same.size)


def opened(guess, truth):
    """True where the words are the victim's, False where they tell nothing; no third way."""
    if list(guess) == list(truth):
        return True
    assert agreement(guess, truth) <= STANDARD_ERRORS
    return False


def shares_of(view, owner):
    """What holders have revealed about an owner, by the point of their share."""
    points = {v: slot + 1 for slot, v in enumerate(view.neighbours[owner])}
    return {points[u]: share for (u, v), share in view.revealed.items() if v == owner}


def point(view, owner, holder):
    return view.neighbours[owner].index(holder) + 1


def rebuilt(shares):
    """The secret that some shares give, or where they give none a guess."""
    secret = reference.from_chunks(reference.interpolate(shares)) if shares else None
    return bytes(32) if secret is None else secret


def without_self_mask(view, words, client, seed):
    return reference.add(
        words, -1, reference.mask(reference.self_key(view.setting, seed, client), len(words))
    )


def without_pair_masks(view, words, client, recovery):
    """Takes off what a client has in common with its neighbours, by its recovery secret."""
    context = view.setting.contexts or (b"",) * view.setting.n
    for slot, v in enumerate(view.neighbours[client]):
        if v in view.shared:
            shared = reference.xor(view.entries[client, v][1], reference.pad(recovery, slot))
            key = reference.pair_key(view.setting, shared, client, v, context[client - 1])
            sign = -1 if v < client else 1
            words = reference.add(words, sign, reference.mask(key, len(words)))
    return words


def open_update(view, seed, recovery, victim=VICTIM):
    """An upload without its masks, given both secrets of the client."""
    words = without_self_mask(view, view.uploads[victim], victim, seed)
    return without_pair_masks(view, words, victim, recovery)


def row(tree, client):
    return jax.tree.map(lambda x: jnp.asarray(x[client - 1]), tree)


def state(kept, client):
    """What a client holds before its upload, and what it knows."""
    ctx = kept.public._replace(client=np.uint32(client))
    if ctx.context_hash is not None:
        ctx = ctx._replace(context_hash=ctx.context_hash[client - 1])
    return row(kept.private, client), jax.tree.map(jnp.asarray, ctx)


def held_shares(kept, corrupt, owner):
    """Both shares of an owner's secrets that a corrupt client holds: self seed, recovery secret."""
    private = kept.view(clients=(corrupt,)).clients[corrupt].private[1]
    slot = kept.public.board.neighbours[corrupt - 1].tolist().index(owner - 1)
    words = [int(word) for word in private.shares[slot]]
    return words[: reference.CHUNKS], words[reference.CHUNKS :]


@functools.cache
def played():
    """All quick rounds, by what happens in them; sessions of one seed, but for *other*."""
    everybody, late = rounds.alive_until(), rounds.alive_until({VICTIM: "upload"})
    one, round_8 = rounds.session(1), rounds.session(1, round_id=8)
    first, second = rounds.integers(1), rounds.integers(2)
    lone = first.copy()
    lone[VICTIM:] = 0  # Dead units everywhere but in the victim's model.
    inconsistent = [b"a model for the victim", *[b"a model of dead units"] * (N - 1)]
    cases = {
        "everybody": Case(one, first, everybody),
        "everybody again": Case(one, second, everybody),
        "everybody in round 8": Case(round_8, second, everybody),
        "late": Case(one, second, late),
        "late in round 8": Case(round_8, second, late),
        "4 lost": Case(one, first, rounds.alive_until({4: "upload"})),
        "inconsistent, not bound": Case(one, lone, everybody),
        **{
            f"inconsistent {i}": Case(
                rounds.bind(rounds.session(1, round_id=i), inconsistent), lone, everybody
            )
            for i in range(8)
        },
    }
    return cases, dict(zip(cases, rounds.play(*cases.values())))


def kept_round(name):
    """The transcript, the server's view, and the words of the victim."""
    cases, kept = played()
    return kept[name], rounds.server_view(kept[name]), cases[name].words[VICTIM - 1].tolist()


def test_the_statistic_tells_a_guess_from_knowledge():
    """Random words pass, and words that share every eighth position with the victim's do not."""
    _, _, truth = kept_round("everybody")
    guess = np.random.default_rng(0).integers(2**32, size=len(truth)).tolist()
    assert not opened(guess, truth)
    with pytest.raises(AssertionError):
        opened([t if i % 8 == 0 else g for i, (g, t) in enumerate(zip(guess, truth))], truth)


def test_a_view_of_everybody_opens_everything():
    """The tools are right: with both secrets of a client its update is open."""
    kept, view, truth = kept_round("everybody")
    seed, recovery = (
        rounds.octets(kept.keys[name][VICTIM - 1])
        for name in map(type(kept.keys)._fields.index, ("self_seed", "recovery_secret"))
    )
    assert opened(open_update(view, seed, recovery), truth)
    assert rebuilt(shares_of(view, VICTIM)) == seed


# ---- two sets of survivors ----------------------------------------------------------------------


def ask(protocol, kept, client, survivors, inbox):
    """One client is asked to unmask a set of survivors: its state and what it reveals."""
    private, ctx = state(kept, client)
    ctx = ctx._replace(survivors=jnp.array(survivors))
    if protocol.consistency:
        private, _ = rounds.client_stage("attest", protocol)(private, None, ctx)
    return rounds.client_stage("unmask", protocol)(private, inbox, ctx)


def attestation_of(kept, client, receiver, survivors):
    """A client's word to another on any set: what the corrupt do, and the honest once."""
    private, _ = state(kept, client)
    slot = kept.public.board.neighbours[client - 1].tolist().index(receiver - 1)
    setting = rounds.server_view(kept).setting
    digest = reference.survivors_digest(setting, 1 + np.flatnonzero(survivors))
    key = rounds.octets(private.channel_keys[slot, ATTESTATION])
    return rounds.words_of(hmac.digest(key, digest, "sha256"))


def relay(kept, receiver, told, corrupt, survivors):
    """The words that the server can show a client that was told a set of survivors."""
    tags, sent = [], []
    for peer in kept.public.board.neighbours[receiver - 1] + 1:
        # An honest client has given its word on one set, the corrupt give it on any.
        says = survivors if peer in corrupt else told[int(peer)]
        tags.append(attestation_of(kept, int(peer), receiver, says))
        sent.append(bool(survivors[peer - 1]))
    return Attestations(jnp.asarray(np.stack(tags)), jnp.array(sent))


def two_sets(protocol, kept, view, told, corrupt):
    """Half of the clients hear that the victim survived, half that it did not.

    Returns the guess at the victim's words and the rules by which clients refused.
    """
    seeds, recoveries, refused = {}, {}, set()
    for holder, survivors in told.items():
        if holder == VICTIM:
            continue
        inbox = relay(kept, holder, told, corrupt, survivors) if protocol.consistency else None
        client, outbox = ask(protocol, kept, holder, survivors, inbox)
        refused |= {rule for rule, flag in zip(RULES, client.refusals.broken) if flag}
        slot = kept.public.board.neighbours[holder - 1].tolist().index(VICTIM - 1)
        if outbox.sent[slot]:
            shares = seeds if survivors[VICTIM - 1] else recoveries
            shares[point(view, VICTIM, holder)] = [int(word) for word in outbox.shares[slot]]
    for client in corrupt:
        of_seed, of_recovery = held_shares(kept, client, VICTIM)
        seeds[point(view, VICTIM, client)] = of_seed
        recoveries[point(view, VICTIM, client)] = of_recovery
    return open_update(view, rebuilt(seeds), rebuilt(recoveries)), refused


@pytest.mark.parametrize("consistency", [False, True])
def test_two_sets_of_survivors(consistency):
    """Client 4 is corrupt, 2 hears of everybody, 3 hears that the victim is lost.

    Without attestations the server has two shares of either secret. With them, 3 finds no two
    neighbours that attest its set: 2 t > k + corrupt - 1.
    """
    kept, view, truth = kept_round("everybody")
    protocol = dataclasses.replace(PROTOCOL, consistency=consistency)
    told = {1: ALL, 2: ALL, 3: WITHOUT_VICTIM}
    guess, refused = two_sets(protocol, kept, view, told, corrupt=(4,))
    assert opened(guess, truth) == (not consistency)
    assert refused == ({"few-attestations"} if consistency else set())


@pytest.mark.parametrize(("threshold", "broken"), [(2, True), (4, False)])
def test_attestations_help_only_above_half_of_the_neighbours(threshold, broken):
    """Nobody is corrupt and every client checks attestations; 2 t > k decides."""
    n = 6
    protocol = fa.SecAgg(threshold)
    case = Case(rounds.session(0, n), rounds.integers(0, n), rounds.alive_until(num_clients=n))
    (kept,) = rounds.play(case, protocol=protocol)
    view = rounds.server_view(kept, threshold)
    everybody, without = [True] * n, [False] + [True] * (n - 1)
    told = {u: everybody if u <= 3 else without for u in range(1, n + 1)}
    guess, refused = two_sets(protocol, kept, view, told, corrupt=())
    assert opened(guess, case.words[VICTIM - 1].tolist()) == broken
    assert refused == (set() if broken else {"few-attestations"})


def test_regions_of_a_sparse_graph_may_answer_two_sets_and_no_update_is_opened():
    """What attestations do not give: on a ring of 40 clients the server names one set to one half
    and another to the other half, and learns the sum of those who are in both. No client's two
    secrets are opened: of each it has shares of one kind only."""
    n, t, k = 40, 4, 6
    protocol = fa.SecAgg(t, degree=k, min_survivors=37)
    case = Case(rounds.session(0, n), rounds.integers(0, n, 16), rounds.alive_until(num_clients=n))
    (kept,) = rounds.play(case, protocol=protocol)
    neighbours, order = kept.public.board.neighbours, [0]
    while len(order) < n:  # Slot 0 is the next client on the ring.
        order.append(int(neighbours[order[-1], 0]))
    place = np.argsort(order)
    sets = np.ones((2, n), bool)
    for half, start in enumerate((6, 26)):
        sets[half, [order[start + step] for step in (0, 3, 6)]] = False
    told = {client + 1: sets[place[client] // (n // 2)].tolist() for client in range(n)}
    sent, outboxes = np.zeros(n, bool), []
    for client in range(1, n + 1):
        if told[client][client - 1]:
            inbox = relay(kept, client, told, (), told[client])
            found, outbox = ask(protocol, kept, client, told[client], inbox)
            sent[client - 1] = not np.any(found.refusals.broken)
            outboxes.append(outbox)
        else:
            outboxes.append(None)
    nothing = jax.tree.map(np.zeros_like, next(x for x in outboxes if x is not None))
    stacked = jax.tree.map(
        lambda *rows: np.stack(rows), *[nothing if x is None else x for x in outboxes]
    )
    for half in (0, 1):
        assert sent[place // (n // 2) == half].sum() >= 15
    both = sets.all(axis=0)
    uploads = kept.stages["upload"].outboxes.words[both].sum(axis=0, dtype=np.uint32)
    mail = {"share": kept.stages["share"], "unmask": Mail(stacked, sent)}
    total = rounds.recover(protocol)(uploads, mail, kept.public._replace(survivors=both))
    assert total.ok
    assert both.sum() < protocol.min_survivors
    np.testing.assert_array_equal(total.words, case.plain_sum(both))
    for owner in range(n):  # Of each client's holders, at least t were told one thing of it.
        of_seed = [told[v + 1][owner] for v in neighbours[owner] if sent[v]]
        assert sum(of_seed) < t or len(of_seed) - sum(of_seed) < t


@functools.cache
def stage_of_all(stage, protocol):
    """One client's part of a stage, for all of them: each is asked about a set of its own."""
    run = rounds.eager_stage(stage, protocol)

    def asked(private, inbox, client, survivors, public):
        return run(private, inbox, public._replace(client=client, survivors=survivors))

    each = jax.vmap(asked, (0, 0, 0, 0, None))
    return jax.jit(each, compiler_options=rounds.QUICKLY)


def answers_of_all(protocol, kept, sets, told, corrupt):
    """What all clients reveal, who were told one set or the other; the corrupt attest both."""
    n, public = len(told), kept.public
    clients = np.arange(1, n + 1, dtype=np.uint32)
    faces = []
    for number in (0, 1):
        named = np.broadcast_to(sets[number], (n, n))
        private, outboxes = stage_of_all("attest", protocol)(
            kept.private, None, clients, named, public
        )
        words = (told == number) | np.isin(clients, list(corrupt))
        faces.append((private, protocol.respond(n)[0].server(outboxes, words, public)))

    def as_told(one, other):
        return np.where(told.reshape(-1, *[1] * (one.ndim - 1)), other, one)

    private, inboxes = jax.tree.map(as_told, *faces)
    return stage_of_all("unmask", protocol)(private, inboxes, clients, sets[told], public)


@functools.cache
def round_of_many(protocol, n):
    """A round of n clients, all of whom stay, what the server sees of it, and their words."""
    case = Case(
        rounds.session(0, n, contexts=None),
        rounds.integers(0, n),
        rounds.alive_until(num_clients=n),
    )
    run = functools.partial(fa.transcript, codec=rounds.CODEC, protocol=protocol)
    kept = jax.jit(run, compiler_options=rounds.QUICKLY)(
        np.float32(case.integers / LEVELS), case.session
    )
    kept = jax.tree.map(np.asarray, kept)
    view = rounds.server_view(kept, protocol.threshold, degree=protocol.degree)
    return kept, view, case.words


@pytest.mark.parametrize(
    ("k", "t", "corrupt_fraction", "broken"),
    [(72, 24, 0, True), (52, 37, 0.05, False), (52, 37, 0.2, False)],
)
def test_two_sets_of_survivors_with_the_parameters_of_production(k, t, corrupt_fraction, broken):
    """Half of 150 clients hear that the victim is lost, and every one of them attests and checks.

    With 72/24, for a server that follows the protocol, no client refuses, and without any that is
    corrupt the victim is opened. With 52/37 most refuse, and of the victim the server has too few
    shares of either secret.
    """
    n, rng = 150, np.random.default_rng(k)
    protocol = fa.SecAgg(t, degree=k)
    kept, view, words = round_of_many(protocol, n)
    assert kept.total.ok  # The control: they do answer about one set.
    corrupt = set((2 + rng.permutation(n - 1)[: int(corrupt_fraction * n)]).tolist())
    told, sets = rng.permutation(n) % 2, np.ones((2, n), bool)
    told[VICTIM - 1] = 0
    sets[1, VICTIM - 1] = False
    clients, outboxes = answers_of_all(protocol, kept, sets, told, corrupt)

    honest = np.array([u - 1 for u in view.neighbours if u not in corrupt])
    refused = np.asarray(clients.refusals.broken)[honest]
    assert {RULES[i] for i in np.flatnonzero(refused.any(axis=0))} == (
        set() if broken else {"few-attestations"}
    )
    assert (refused.any(axis=1).mean() > 0.5) == (not broken)
    found = {}, {}  # of the self seed, of the recovery secret
    for holder in view.neighbours[VICTIM]:
        slot, x = view.neighbours[holder].index(VICTIM), point(view, VICTIM, holder)
        if holder in corrupt:
            for shares, share in zip(found, held_shares(kept, holder, VICTIM)):
                shares[x] = share
        elif outboxes.sent[holder - 1, slot]:
            found[told[holder - 1]][x] = [int(word) for word in outboxes.shares[holder - 1, slot]]
    assert [len(shares) >= t for shares in found] == [broken, broken]
    guess = open_update(view, *map(rebuilt, found))
    assert opened(guess, words[VICTIM - 1].tolist()) == broken


def answers_to_two_sets(neighbours, told, corrupt, threshold):
    """Who answers when each client was told one of two sets, by who attests which."""
    answering = set()
    for u, peers in neighbours.items():
        agreeing = [v for v in peers if v in corrupt or told[v] == told[u]]
        if len(agreeing) >= threshold:
            answering.add(u)
    return answering


@pytest.mark.parametrize(
    ("k", "t", "corrupt_fraction", "broken"),
    [(72, 24, 0.05, True), (52, 37, 0.05, False), (52, 37, 0.2, False)],
)
def test_two_sets_of_survivors_among_a_thousand(k, t, corrupt_fraction, broken):
    """The parameters of a server that follows the protocol let one that does not open an update.

    With 72/24 no client refuses, and the victim's neighbours give away both of its secrets. With
    52/37 = more than half of the neighbours and of the corrupt among them, nobody answers.
    """
    n, rng = 1000, np.random.default_rng(k)
    neighbours = reference.neighbours_on((1 + rng.permutation(n)).tolist(), k)
    corrupt = set((2 + rng.permutation(n - 1)[: int(corrupt_fraction * n)]).tolist())
    told = dict(zip(range(1, n + 1), rng.integers(2, size=n).tolist()))
    told[VICTIM] = 0
    answering = answers_to_two_sets(neighbours, told, corrupt, t)
    holders = [
        {v for v in neighbours[VICTIM] if v in corrupt or (v in answering and told[v] == kind)}
        for kind in (0, 1)
    ]
    assert all(len(shares) >= t for shares in holders) == broken
    if (k, t) == (72, 24):
        assert len(answering) == n
    # The inequality: so that no split of any victim's neighbours gives both secrets.
    in_reach = max(len(corrupt & set(peers)) for peers in neighbours.values())
    assert (2 * t > k + in_reach) == (not broken)


def test_the_planner_leaves_no_room_for_two_sets():
    """2 t > k + corrupt neighbours with consistency on, and not without."""

    def planned(consistency):
        return fa.plan_round(
            100, num_clients=1000, clip=1.0, bits=16, dropout=0.05, collusion=0.05,
            consistency=consistency,
        )  # fmt: skip

    plan = planned(True)
    assert (plan.degree, plan.threshold) == (52, 37)
    assert 2 * plan.threshold > plan.degree + 21
    assert 2 * planned(False).threshold <= planned(False).degree + 21


# ---- late, and again ----------------------------------------------------------------------------


class SingleMask(fa.SecAgg):
    """Pair masks only."""

    def protect(self, words, private, ctx):
        return super().protect(words, private._replace(signs=private.signs.at[-1].set(0)), ctx)


@pytest.mark.parametrize(("protocol", "broken"), [(SingleMask(THRESHOLD), True), (PROTOCOL, False)])
def test_a_late_upload_of_a_client_declared_lost(protocol, broken):
    """Its recovery secret has been rebuilt when its upload arrives after all."""
    kept, view, truth = kept_round("late")
    private, ctx = state(kept, VICTIM)
    late = rounds.client_stage("protect", protocol)(jnp.asarray(np.uint32(truth)), private, ctx)
    recovery = rebuilt(shares_of(view, VICTIM))
    assert recovery == rounds.octets(kept.keys.recovery_secret[VICTIM - 1])
    guess = without_pair_masks(view, [int(word) for word in late.words], VICTIM, recovery)
    assert opened(guess, truth) == broken


@pytest.mark.parametrize(("again", "broken"), [("late", True), ("late in round 8", False)])
def test_a_session_used_for_two_rounds(again, broken):
    """The victim survives the first round and is lost in the second: each gives one secret.

    In a round of its own number the same roots give another recovery secret.
    """
    _, first, truth = kept_round("everybody")
    _, second, _ = kept_round(again)
    seed, recovery = (rebuilt(shares_of(view, VICTIM)) for view in (first, second))
    assert opened(open_update(first, seed, recovery), truth) == broken


@pytest.mark.parametrize(
    ("again", "broken"), [("everybody again", True), ("everybody in round 8", False)]
)
def test_masks_used_twice(again, broken):
    """Two uploads under the same masks differ by what the updates differ."""
    _, first, truth = kept_round("everybody")
    _, second, other = kept_round(again)
    difference = reference.add(first.uploads[VICTIM], -1, second.uploads[VICTIM])
    assert opened(difference, reference.add(truth, -1, other)) == broken


# ---- messages between clients -------------------------------------------------------------------


def sealed_without_direction(kept, view):
    """The sealed shares, had every pair one key and no direction: {(u, v): ciphertext}."""
    found = {}
    for u, v in view.sealed:
        holder, _ = state(kept, v)
        slot = view.neighbours[v].index(u)
        plaintext = reference.to_bytes(holder.shares[slot])
        low, high = min(u, v), max(u, v)
        channel, _ = state(kept, low)
        key = channel.channel_keys[view.neighbours[low].index(high), 0]
        pad = reference.chacha20(rounds.octets(key), len(plaintext))
        found[u, v] = reference.xor(plaintext, pad)
    return found


@pytest.mark.parametrize("directed", [False, True])
def test_a_pad_used_in_both_directions(directed):
    """A lost client's revealed share uncovers the share of the living peer that revealed it.

    Client 4 is lost; the victim reveals its share of 4's recovery secret. Under one pad this gives
    4's share of the victim's, and a corrupt client 3 has another: together they open the victim.
    """
    kept, view, truth = kept_round("4 lost")
    if directed:
        ciphertexts = {pair: sealed.ciphertext for pair, sealed in view.sealed.items()}
    else:
        ciphertexts = sealed_without_direction(kept, view)
    both = reference.xor(ciphertexts[VICTIM, 4], ciphertexts[4, VICTIM])
    uncovered = reference.xor(
        both[4 * reference.CHUNKS :], reference.to_bytes(view.revealed[VICTIM, 4])
    )
    share_of_4 = reference.to_words(uncovered)
    _, share_of_3 = held_shares(kept, 3, VICTIM)
    recovery = rebuilt({point(view, VICTIM, 4): share_of_4, point(view, VICTIM, 3): share_of_3})
    seed = rebuilt(shares_of(view, VICTIM))
    assert opened(open_update(view, seed, recovery), truth) == (not directed)


@pytest.mark.parametrize("checked", [False, True])
def test_shares_replayed_in_the_next_round(checked):
    """In round 8 the server relays the victim's shares of round 7 and declares it lost.

    Whoever takes them in reveals shares of the recovery secret of round 7, in which the self seed
    is known already.
    """
    first, first_view, truth = kept_round("everybody")
    second, second_view, _ = kept_round("late in round 8")
    shares = {}
    for holder in (2, 3):
        slot = second_view.neighbours[holder].index(VICTIM)
        before, ctx = state(second, holder)
        if checked:
            inbox = row(second.stages["share"].inboxes, holder)
            replay = row(first.stages["share"].inboxes, holder)
            sealed = jax.tree.map(lambda new, old: new.at[slot].set(old[slot]),  # noqa: B023
                                  inbox.sealed, replay.sealed)  # fmt: skip
            taken = rounds.client_stage("receive")(before, inbox._replace(sealed=sealed), ctx)
            assert RULES[int(np.flatnonzero(taken.refusals.broken)[0])] == "sealed-share"
        else:  # Keys of the session instead of the round would have opened it.
            old = state(first, holder)[0].shares[slot]
            taken = before._replace(shares=before.shares.at[slot].set(old))
        client, _ = rounds.client_stage("attest")(taken, None, ctx)
        inbox = row(second.stages["attest"].inboxes, holder)
        _, outbox = rounds.client_stage("unmask")(client, inbox, ctx)
        assert bool(outbox.sent[slot]) == (not checked)
        shares[point(first_view, VICTIM, holder)] = [int(word) for word in outbox.shares[slot]]
    seed = rebuilt(shares_of(first_view, VICTIM))
    assert opened(open_update(first_view, seed, rebuilt(shares)), truth) == (not checked)


def test_one_slot_has_room_for_one_kind_of_share():
    """Whatever set of survivors a client is asked about, and however often: never both kinds."""
    protocol = dataclasses.replace(PROTOCOL, consistency=False)
    unmask = rounds.client_stage("unmask", protocol)
    kept, _, _ = kept_round("everybody")
    private, ctx = state(kept, VICTIM)
    of_seed, of_recovery = np.split(np.asarray(private.shares), 2, axis=1)
    asked = 0
    for survivors in itertools.product([False, True], repeat=N):
        told = ctx._replace(survivors=jnp.array(survivors))
        after, outbox = unmask(private, None, told)
        assert outbox.shares.shape == (N - 1, reference.CHUNKS)
        if not after.answered:
            assert not outbox.sent.any()
            continue
        asked += 1
        survived = np.array(survivors)[1:, None]
        expected = np.where(survived, of_seed, of_recovery)
        np.testing.assert_array_equal(outbox.shares, expected)
        # The state is spent: nothing is left to reveal, of this kind or of the other.
        assert not after.shares.any()
        for others in (ALL, [True, True, True, False]):
            again, nothing = unmask(after, None, ctx._replace(survivors=jnp.array(others)))
            assert not nothing.sent.any()
            assert not nothing.shares.any()
            assert np.flatnonzero(again.refusals.broken) == [RULES.index("answered-already")]
    assert asked == 4  # three or four survivors, itself among them


# ---- the graph ----------------------------------------------------------------------------------


class ChosenOrder(fa.SecAgg):
    """The server says who stands next to whom: the victim between clients 5 and 6."""

    def _graph(self, keys, ctx):
        return graph.neighbours(jnp.array([0, 4, 1, 2, 3, 5], jnp.int32), self.degree)


@pytest.mark.parametrize(
    ("protocol", "broken"), [(ChosenOrder(2, 2), True), (fa.SecAgg(2, 2), False)]
)
def test_a_victim_among_corrupt_neighbours(protocol, broken):
    """They know all of its pair keys, and its self mask is opened for everybody."""
    n, corrupt = 6, (5, 6)
    case = Case(rounds.session(0, n), rounds.integers(0, n), rounds.alive_until(num_clients=n))
    (kept,) = rounds.play(case, protocol=protocol)
    view = rounds.server_view(kept, 2, degree=2)
    assert (set(view.neighbours[VICTIM]) == set(corrupt)) == broken
    words = without_self_mask(view, view.uploads[VICTIM], VICTIM, rebuilt(shares_of(view, VICTIM)))
    for client, known in kept.view(clients=corrupt).clients.items():
        if VICTIM in view.neighbours[client]:
            key = known.private[1].mask_keys[view.neighbours[client].index(VICTIM)]
            # What the victim has subtracted, since its id is the smaller one.
            words = reference.add(words, 1, reference.mask(rounds.octets(key), len(words)))
    assert opened(words, case.words[VICTIM - 1].tolist()) == broken


def test_a_client_recomputes_its_neighbours():
    """From the list of keys and the beacon: a row that the server has changed is refused."""
    true = reference.sparse_round()
    setting = true.setting
    protocol = fa.SecAgg(setting.threshold, degree=setting.degree, group=Ring(setting.bits))
    _, share = protocol.prepare(setting.n)
    secret = rounds.words_of(setting.secrets[VICTIM - 1])

    @functools.partial(jax.jit, compiler_options=rounds.QUICKLY)
    def checks(ctx):
        client, _ = share.client(protocol.join(secret, ctx), None, ctx)
        return client.refusals.broken

    def refused(**board):
        changed = ctx._replace(board=ctx.board._replace(**board))
        return [RULES[i] for i in np.flatnonzero(checks(changed))]

    _, _, ctx = rounds.server_inputs(true)
    ctx = ctx._replace(client=np.uint32(VICTIM))
    honest = ctx.board.neighbours
    assert refused() == []
    # Any other row, such as one with a friend of the server, and the same row in another order.
    (other,) = set(range(setting.n)) - {VICTIM - 1, *honest[VICTIM - 1].tolist()}
    for slot in range(setting.degree):
        changed = honest.copy()
        changed[VICTIM - 1, slot] = other
        assert refused(neighbours=changed) == ["graph"]
    assert refused(neighbours=honest[:, ::-1]) == ["graph"]
    # Another list of keys has another graph.
    swapped = jax.tree.map(lambda x: x[[0, 1, 2, 3, 5, 4]], ctx.board.keys)
    assert refused(keys=swapped) == ["graph"]


# ---- clients that lie ---------------------------------------------------------------------------


def changed_share(played, holder, owner, by):
    """The round with one element of a revealed share changed."""
    share = played.revealed[holder, owner]
    lie = [(share[0] + by) % reference.PRIME, *share[1:]]
    return played._replace(revealed=played.revealed | {(holder, owner): lie})


@functools.cache
def round_of_five(spare):
    """Five clients and a threshold of two: 2 + ``spare`` of client 1's holders answer."""
    setting = reference.Setting.of_seed(bytes(32), 5, 7, threshold=2)
    lost = {client: "unmask" for client in (4, 5)[spare:]}
    return reference.run(setting, reference.inputs_of(5, rounds.LENGTH, LEVELS), lost)


def recover_five(played):
    """What the library's server makes of the messages, and whom it suspects."""
    total = rounds.recover(fa.SecAgg(2))(*rounds.server_inputs(played))
    return total, [1 + int(client) for client in np.flatnonzero(total.suspects)]


@pytest.mark.parametrize("spare", [0, 1, 2])
@pytest.mark.parametrize("by", [1, reference.PRIME - 1, 2**30])
def test_a_share_that_does_not_fit(spare, by):
    """Of t + 2 answers a single wrong one is named, of t + 1 it is noticed, of t it is not."""
    right = round_of_five(spare)
    total, suspects = recover_five(right)
    assert total.ok
    assert total.words.tolist() == right.total
    assert suspects == []

    holder = 2
    total, suspects = recover_five(changed_share(right, holder, VICTIM, by))
    assert suspects == ([holder] if spare == 2 else [])
    if spare:
        assert not total.ok
        assert not total.words.any()
    else:
        # Any t shares are those of some secret. These are of a seed of 256 bits, as most are
        # where one element changes, and nothing tells that it is another one.
        assert total.ok
        assert not opened(total.words.tolist(), right.total)


@pytest.mark.parametrize("by", [1, 2**20, reference.PRIME - 1])
def test_of_t_answers_a_wrong_one_about_a_lost_client_is_noticed(by):
    """Whatever t shares give is some secret, but only one fits the key that was advertised.

    Client 3 is lost before its upload, and two of its holders answer about it, as many as t.
    """
    setting = reference.Setting.of_seed(bytes(32), 5, 7, threshold=2)
    inputs, lost = reference.inputs_of(5, rounds.LENGTH, LEVELS), 3
    right = reference.run(setting, inputs, {lost: "upload", 5: "unmask"})
    answers = {pair: share for pair, share in right.revealed.items() if pair != (4, lost)}
    right = right._replace(revealed=answers)
    assert len(shares_of(right, lost)) == setting.threshold
    total, suspects = recover_five(right)
    assert total.ok
    assert total.words.tolist() == right.total
    assert suspects == []

    wrong = changed_share(right, 2, lost, by)
    secret = reference.rebuild(shares_of(wrong, lost), setting.threshold)
    assert secret is not None
    total, suspects = recover_five(wrong)
    assert not total.ok
    assert not total.words.any()
    assert suspects == []
    # The control: it is by that key alone. Had the client advertised another, the sum is garbage.
    channel, _ = wrong.advertised[lost]
    advertised = wrong.advertised | {lost: (channel, reference.public_key(secret))}
    total, _ = recover_five(wrong._replace(advertised=advertised))
    assert total.ok
    assert not opened(total.words.tolist(), right.total)


def test_one_client_destroys_the_sum_unnoticed():
    """Uniform words are as good as any: no one can tell, and nothing says so."""
    right = round_of_five(2)
    rng = np.random.default_rng(0)
    wrong = rng.integers(2**32, size=rounds.LENGTH, dtype=np.uint32).tolist()
    uploads = right.uploads | {VICTIM: reference.add(right.uploads[VICTIM], 1, wrong)}
    total, suspects = recover_five(right._replace(uploads=uploads))
    assert total.ok
    assert suspects == []
    assert total.words.tolist() == reference.add(right.total, 1, wrong)


# ---- models that differ -------------------------------------------------------------------------


def test_a_model_of_dead_units_for_all_others_shows_the_victims_update():
    """The attack of Pasquini, Francati and Ateniese, where no model is bound to the masks."""
    kept, _, truth = kept_round("inconsistent, not bound")
    assert kept.total.ok
    assert opened(kept.total.words.tolist(), truth)


def test_masks_of_different_models_do_not_cancel():
    """The sum is uniform: chi-square of its bytes, with a false alarm in a million."""
    sums = []
    for i in range(8):
        kept, _, truth = kept_round(f"inconsistent {i}")
        assert kept.total.ok
        assert not opened(kept.total.words.tolist(), truth)
        sums.append(rounds.octets(kept.total.words))
    limit = scipy.stats.chi2.isf(1e-6, 255)

    def statistic(data):
        counts = np.bincount(np.frombuffer(data, np.uint8), minlength=256)
        return np.sum((counts - counts.mean()) ** 2) / counts.mean()

    assert statistic(b"".join(sums)) < limit
    # The control: the same update, where masks cancel.
    kept, _, _ = kept_round("inconsistent, not bound")
    assert statistic(rounds.octets(kept.total.words) * 8) > limit
