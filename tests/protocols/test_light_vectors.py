"""Known answers of LightSecAgg: every message of a round, and what must be refused."""

import collections
import functools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_agg as fa
from fedjax_agg.arithmetic import M31
from fedjax_agg.protocols.light_secagg import RULES
from fedjax_agg.symmetric.seal import Sealed
from tests.protocols import light_reference, reference, rounds
from tests.protocols.rounds import Case, flags, octets, words_of

VECTORS = json.loads(light_reference.PATH.read_text())
VECTOR = VECTORS["round"]
N, PROTOCOL = 4, fa.LightSecAgg(VECTOR["privacy"], VECTOR["survivors"])


def of_hex(text):
    return words_of(bytes.fromhex(text))


def case():
    """A round with the inputs of the vector."""
    words = jnp.asarray(np.stack([of_hex(text) for text in VECTOR["inputs"].values()]))
    alive = rounds.alive_until({3: "upload"}, N)
    session = fa.simulated_session(of_hex(VECTOR["seed"]), num_clients=N, round_id=7)
    return Case(session, np.asarray(M31().centre_lift(words)), alive)


@functools.cache
def kept_round():
    (kept,) = rounds.play(case(), protocol=PROTOCOL)
    return kept


def as_reference(kept):
    """What the server of a transcript holds, and the file's roots, which it does not hold."""
    view = kept.view(server=True)
    public, mail = view.public, view.server

    def by_client(stage, show):
        boxes, sent = mail[stage].outboxes, mail[stage].sent
        return {
            i + 1: show(jax.tree.map(lambda x: x[i], boxes))  # noqa: B023
            for i in np.flatnonzero(sent).tolist()
        }

    def by_pair(stage, show):
        return {
            (u, v + 1): show(jax.tree.map(lambda x: x[v], message))  # noqa: B023
            for u, message in by_client(stage, lambda box: box).items()
            for v in np.flatnonzero(message.sent).tolist()
            if v + 1 != u
        }

    return light_reference.Round(
        setting=light_reference.Setting(
            privacy=PROTOCOL.privacy,
            survivors=PROTOCOL.survivors,
            round_id=int(public.round_id),
            public_seed=octets(public.public_seed),
            secrets=tuple(map(bytes.fromhex, VECTOR["secrets"])),
            agreement=tuple(map(bytes.fromhex, VECTOR["agreement"])),
            session_id=octets(public.board.session_id),
        ),
        advertised=by_client("advertise", octets),
        entries={
            (u + 1, v + 1): octets(public.board.entries[u, v]) for u in range(N) for v in range(N)
        },
        sealed=by_pair("share", lambda m: reference.Sealed(*map(octets, m.sealed))),
        uploads=by_client("upload", lambda m: m.words.tolist()),
        attested=by_pair("attest", lambda m: octets(m.tags)),
        answered=by_client("unmask", lambda m: m.words.tolist()),
        total=view.total.words.tolist(),
    )


def test_the_file_of_vectors_is_the_reference():
    assert json.loads(json.dumps(light_reference.vectors())) == VECTORS


def test_the_sum_of_the_vector_is_that_of_the_inputs():
    inputs = [of_hex(VECTOR["inputs"][u]).tolist() for u in VECTOR["upload"]]
    assert list(VECTOR["upload"]) == ["1", "2", "4"]
    assert of_hex(VECTOR["total"]).tolist() == light_reference.add(*inputs)


def test_the_roots_of_the_vector_are_those_of_a_simulated_session():
    session = case().session
    assert octets(session.public_seed).hex() == VECTOR["public_seed"]
    assert [octets(secret).hex() for secret in session.secrets] == VECTOR["secrets"]
    assert [octets(handle).hex() for handle in session.agreement[0]] == VECTOR["agreement"]


@pytest.mark.slow
def test_all_messages_of_a_round_are_the_vector():
    """Public keys, board, sealed vectors, uploads, attestations, answers and the sum."""
    found = light_reference.shown(as_reference(kept_round()), light_reference.inputs_of(N))
    assert {"seed": VECTOR["seed"], **found} == VECTOR
    assert bool(kept_round().total.ok)


@functools.cache
def compiled(stage):
    """One client's part of a stage, or the server's ``recover``."""
    stages = {s.name: s.client for s in (*PROTOCOL.prepare(N), *PROTOCOL.respond(N))}
    return jax.jit(stages.get(stage) or getattr(PROTOCOL, stage), compiler_options=rounds.QUICKLY)


def first(tree):
    """The row of client 1."""
    return jax.tree.map(lambda x: x[0], tree)


def broken(private):
    return {rule for rule, flag in zip(RULES, private.refusals.broken) if flag}


def context(survivors=None):
    ctx = kept_round().public._replace(client=jnp.uint32(1))
    return ctx if survivors is None else ctx._replace(survivors=flags(survivors, N))


def recovered(answers):
    """What the server makes of the vector's uploads and of these answers."""
    uploads = [of_hex(VECTOR["upload"][u]).tolist() for u in VECTOR["upload"]]
    mail = kept_round().stages
    words, sent = np.zeros_like(mail["unmask"].outboxes.words), flags(answers, N)
    for client, answer in answers.items():
        words[client - 1] = answer
    box = mail["unmask"].outboxes._replace(words=words, sent=sent)
    mail = {**mail, "unmask": mail["unmask"]._replace(outboxes=box, sent=sent)}
    total = np.uint32(light_reference.add(*uploads))
    return compiled("recover")(total, mail, kept_round().public)


@pytest.mark.slow
@pytest.mark.parametrize("vector", VECTORS["negative"], ids=lambda vector: vector["what"])
def test_what_must_be_refused(vector):
    """By the library's client or server, in the round of the vector; and by the reference."""
    kept, true = kept_round(), light_reference.coded_round()
    stage, sender, message = vector["stage"], vector["sender"], vector["message"]
    if stage == "share":
        inbox = first(kept.stages["share"].inboxes)
        changed = reference.Sealed(*map(bytes.fromhex, message))
        rows = Sealed(*(x.copy() for x in inbox.sealed))
        for row, part in zip(rows, changed):
            row[sender - 1] = words_of(part)
        found = compiled("receive")(first(kept.private), inbox._replace(sealed=rows), context())
        assert broken(found) == {vector["refused_by"]}
        secret = light_reference.join(true.setting, 1).channel
        keys = light_reference.channel(true.setting, true.entries, secret, 1, sender, 1)
        right = true.sealed[sender, 1]
        assert reference.unseal(true.setting, keys, right, sender, 1) is not None
        assert reference.unseal(true.setting, keys, changed, sender, 1) is None
    elif sender == "server":
        state, _ = compiled("attest")(first(kept.private), None, context(message))
        assert broken(state) == {vector["refused_by"]}
    elif stage == "attest":
        attested, _ = compiled("attest")(first(kept.private), None, context())
        inbox = first(kept.stages["attest"].inboxes)
        tags = inbox.tags.copy()
        tags[sender - 1] = of_hex(message)
        state, outbox = compiled("unmask")(attested, inbox._replace(tags=tags), context())
        assert broken(state) == {vector["refused_by"]}
        assert not bool(outbox.sent)
        assert bytes.fromhex(message) != true.attested[sender, 1]
    else:
        answers = {u: words for u, words in true.answered.items() if u != sender}
        if message is not None:
            answers[sender] = of_hex(message).tolist()
        expected = light_reference.recover(true._replace(answered=answers))
        total = recovered(answers)
        assert bool(total.ok) == (expected is not None) == (vector["refused_by"] is None)
        assert total.words.tolist() == (expected or [0] * light_reference.LENGTH)
        assert recovered(true.answered).words.tolist() == true.total != expected
        assert expected is None or of_hex(vector["total"]).tolist() == expected


def test_no_block_of_keystream_serves_two_purposes(monkeypatch):
    """In two rounds of one seed: no (key, nonce, counter) twice.

    But whoever opens a message generates its pad again.
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
    played = [light_reference.coded_round(7), light_reference.coded_round(8)]
    alone = {"public_key", "pad", "edge", "elements", "inputs_of"}
    assert {frozenset(names) for names in purposes.values()} == {
        *(frozenset([name]) for name in alone),
        frozenset(["seal", "unseal"]),
    }
    assert collections.Counter(sealed.values())[1] == sum(len(one.sealed) for one in played) == 24
    assert max(sealed.values()) == 1
