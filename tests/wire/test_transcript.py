"""What a coalition is shown of a round, and how many bytes travelled."""

import functools

import jax
import numpy as np
import pytest

import fedjax_agg as fa
from fedjax_agg.participation import STAGES
from fedjax_agg.wire import transcript
from tests.protocols import reference, rounds
from tests.protocols.rounds import LENGTH, PROTOCOL, Case, N


@functools.cache
def kept():
    """Everybody stays, and the third is lost before it uploads."""
    cases = [
        Case(rounds.session(), rounds.integers(), rounds.alive_until(lost))
        for lost in ({}, {3: "upload"})
    ]
    return rounds.play(*cases)


def rows(tree):
    """Every eight words in succession of every leaf, which is what a key looks like."""
    found = set()
    for leaf in jax.tree.leaves(tree):
        if leaf.dtype == np.uint32 and leaf.ndim and leaf.shape[-1] >= 8:
            windows = np.lib.stride_tricks.sliding_window_view(leaf, 8, axis=-1).reshape(-1, 8)
            found |= {row.tobytes() for row in windows}
    return found


def secrets_of(one):
    """All keys that only clients may hold, by what they are."""
    private = one.private
    return {
        "roots": one.secrets,
        "channel secrets": one.keys.channel_secret,
        "recovery secrets": one.keys.recovery_secret,
        "self seeds": one.keys.self_seed,
        "sharing keys": one.keys.sharing_key,
        "mask keys": private.mask_keys,
        "channel keys": private.channel_keys,
        "agreement": rounds.session().agreement,
    }


@pytest.mark.parametrize("number", [0, 1])
def test_the_server_holds_no_key(number):
    one = kept()[number]
    held = rows(one.view(server=True)._replace(clients={}))
    for what, keys in secrets_of(one).items():
        assert not rows(keys) & held, what
    # The control: the public keys, which it does hold.
    assert rows(one.keys.public) <= held


def test_the_server_holds_one_kind_of_share_of_each_client():
    """Of a survivor's self seed, of a lost client's recovery secret, and never of the other."""
    one = kept()[1]
    revealed = one.view(server=True).server["unmask"].outboxes
    neighbours = one.public.board.neighbours
    for holder in range(N):
        if holder == 2:
            assert not revealed.sent[holder].any()
            continue
        for slot, owner in enumerate(neighbours[holder]):
            of_seed, of_recovery = np.split(one.private.shares[holder, slot], 2)
            right, wrong = (of_recovery, of_seed) if owner == 2 else (of_seed, of_recovery)
            np.testing.assert_array_equal(revealed.shares[holder, slot], right)
            assert not rows(wrong) & rows(one.view(server=True))


def test_without_the_server_no_message_to_it_is_shown():
    view = kept()[0].view(clients=(2,))
    assert view.server is None
    assert view.total is None
    assert list(view.clients) == [2]
    everybody = kept()[0].view(server=True, clients=range(1, N + 1))
    assert sorted(everybody.clients) == [1, 2, 3, 4]
    assert everybody.total is kept()[0].total


@pytest.mark.parametrize("number", [0, 1])
def test_a_client_is_shown_its_own(number):
    """Its secret, state, update and messages, and of nobody else's keys but those it shares."""
    one = kept()[number]
    for client in range(1, N + 1):
        mine = one.view(clients=(client,)).clients[client]
        index = client - 1
        np.testing.assert_array_equal(mine.secret, one.secrets[index])
        np.testing.assert_array_equal(mine.update, one.updates[index])
        for name, mail in one.stages.items():
            expected = jax.tree.map(lambda x: x[index], (mail.outboxes, mail.inboxes))  # noqa: B023
            found = mine.sent[name], mine.received[name]
            jax.tree.map(np.testing.assert_array_equal, found, expected)
        held = rows(mine)
        for what in ("roots", "channel secrets", "recovery secrets", "self seeds", "sharing keys"):
            keys = secrets_of(one)[what]
            assert rows(keys[index]) <= held
            assert not rows(np.delete(keys, index, axis=0)) & held, what
        # Of pair keys those with its own name: one with each neighbour, and its self mask.
        shared = rows(one.private.mask_keys) & held
        assert shared == rows(one.private.mask_keys[index])


@pytest.mark.parametrize("clients", [(0,), (5,), (1, 5), (-1,)])
def test_ids_out_of_range(clients):
    with pytest.raises(ValueError, match=rf"clients={clients[-1]} must be an integer from 1 to 4"):
        kept()[0].view(clients=clients)


def test_who_sent_something():
    lost = [[int((~one.stages[name].sent).sum()) for name in STAGES] for one in kept()]
    assert lost == [[0] * 5, [0, 0, 1, 1, 1]]


# ---- bytes --------------------------------------------------------------------------------------


def size(tree):
    """Bytes of the words of a message, without the flags that stand for absent messages."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree) if leaf.dtype == np.uint32)


def test_bytes_are_those_of_the_messages():
    """Every array that one client sends and receives, as it travels."""
    cost = PROTOCOL.cost(LENGTH, N)
    mine = kept()[0].view(clients=(1,)).clients[1]
    assert {stage: size(message) for stage, message in mine.sent.items()} == cost.bytes_up
    board, survivors = kept()[0].public.board, kept()[0].public.survivors
    neighbours = board.neighbours[0]
    received = {
        # Of every neighbour what a deployment has: its two public keys.
        "advertise": size(jax.tree.map(lambda x: x[neighbours], board.keys))
        # And of everybody else the digest of them, for the graph.
        + 32 * (N - 1 - neighbours.shape[0]),
        "share": size(mine.received["share"]),
        "upload": 0,
        "attest": np.packbits(survivors).nbytes,
        # What neighbours attested comes with the request to unmask.
        "unmask": size(mine.received["attest"]),
    }
    assert received == cost.bytes_down
    # An entry of the ideal agreement stands for a public key, and is as long.
    assert size(board.entries[0]) == size(jax.tree.map(lambda x: x[neighbours], board.keys))


@pytest.mark.parametrize("bits", [1, 20, 32])
@pytest.mark.parametrize("degree", [None, 4])
def test_bytes_of_the_reference_are_the_cost(bits, degree):
    """Messages of plain bytes, words packed without gaps."""
    true = reference.sparse_round()
    setting = reference.dataclasses.replace(true.setting, degree=degree, bits=bits)
    played = reference.run(setting, reference.inputs_of(6, LENGTH, 2**15), {})
    protocol = fa.SecAgg(3, degree=degree, group=fa.arithmetic.Ring(bits))
    cost = protocol.cost(LENGTH, 6)
    sealed = [sum(map(len, message)) for (u, _), message in played.sealed.items() if u == 1]
    assert cost.bytes_up == {
        "advertise": sum(map(len, played.advertised[1])),
        "share": sum(sealed),
        "upload": -(-LENGTH * bits // 8),
        "attest": sum(len(tag) for (u, _), tag in played.attested.items() if u == 1),
        "unmask": sum(4 * len(share) for (u, _), share in played.revealed.items() if u == 1),
    }
    assert cost.bytes_down["share"] == sum(sealed)
    assert cost.bytes_down["unmask"] == cost.bytes_up["attest"]
    plain = fa.Plain(group=fa.arithmetic.Ring(bits)).cost(LENGTH, 6)
    assert plain.bytes_up["upload"] == cost.bytes_up["upload"]


def test_without_attestations_the_survivors_come_with_the_request():
    with_them, without = (fa.SecAgg(2, consistency=c).cost(LENGTH, 9) for c in (True, False))
    assert "attest" not in {**without.bytes_up, **without.bytes_down}
    assert without.bytes_down["unmask"] == with_them.bytes_down["attest"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("protocol", [fa.Plain(), PROTOCOL], ids=["plain", "secagg"])
def test_a_transcript_counts_as_the_report_of_its_round(protocol):
    """And its report is that of ``secure_mean``, as is everything else."""
    arguments = np.float32(rounds.integers() / rounds.LEVELS), rounds.session()
    options = {"codec": rounds.CODEC, "protocol": protocol}
    one = fa.transcript(*arguments, **options)
    mean, report = fa.secure_mean(*arguments, **options)
    jax.tree.map(np.testing.assert_array_equal, (one.mean, one.report), (mean, report))
    assert list(one.stages) == [stage for stage in STAGES if stage in protocol.cost(1, N).bytes_up]
    cost = protocol.cost(LENGTH, N)
    assert one.bytes() == {"up": dict(cost.bytes_up), "down": dict(cost.bytes_down)}
    expected = Case(arguments[1], rounds.integers(), None).plain_sum(np.ones(N, bool))
    np.testing.assert_array_equal(one.total.words, expected)


@pytest.mark.parametrize(
    ("n", "d", "factor"),
    [
        (2**10, 2**20, 1.7344),
        (2**14, 2**24, 1.9844),
        (2**14, 2**20, 3.6259),
        (500, 10**5, 2.122),
        (1000, 10**5, 2.745),
    ],
)
def test_the_factors_of_the_paper(n, d, factor):
    """Bonawitz et al., CCS'17: what travels over what 16 bits a coordinate would take."""
    places = len(str(factor).partition(".")[2])
    assert round(transcript.paper_bytes(n, d) / (2 * d), places) == factor


def test_the_paper_counts_a_word_that_holds_the_sum():
    """R = n (2^16 - 1) + 1 values: one client needs 16 bits, two need 17."""
    words = [8 * (transcript.paper_bytes(n, 10**6) - transcript.paper_bytes(n, 0)) for n in (1, 2)]
    assert words == [16 * 10**6, 17 * 10**6]
    assert 8 * transcript.paper_bytes(3, 0) == (2 * 3 + 5 * 3 - 4) * 256 + 3
