"""Rounds between processes: the sum, the bytes on the sockets, losses, time limits."""

import socket
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_agg as fa
from fedjax_agg.host.client import Link, take_part
from fedjax_agg.host.keys import Identity, link_key, real_session, sign_keys
from fedjax_agg.host.runner import run_round
from fedjax_agg.host.server import serve
from fedjax_agg.host.setting import Setting
from fedjax_agg.participation import STAGES
from fedjax_agg.wire import KeyList, SignedKeys, Survivors, Upload, pack
from fedjax_agg.wire.packing import SERVER
from tests.compiler import QUICK_COMPILER

CODEC = fa.FixedPoint(clip=1.0)


def seeds(n):
    return [bytes([i + 1]) * 32 for i in range(n + 1)]


def simulated(n):
    return fa.simulated_session(fa.fixed_seed(5), num_clients=n, round_id=9)


def parties(n, protocol=fa.Plain(), time_limit=20.0):
    """Everything that a round of n clients begins with."""
    session = real_session(simulated(n))
    updates = jnp.asarray(np.random.default_rng(n).normal(size=(n, 37)) / 9, jnp.float32)
    people = [Identity.from_seed(seed) for seed in seeds(n)]
    directory = {party: who.public for party, who in enumerate(people)}
    setting = Setting.of(updates, session, CODEC, protocol, time_limit)
    return setting, session, updates, people, directory


class Served(threading.Thread):
    """A server of this process, whose outcome ``result`` waits for."""

    def __init__(self, setting, people, directory):
        super().__init__(daemon=True)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.arguments = setting, people[SERVER], directory, self.listener
        self.start()

    def run(self):
        self.outcome = serve(*self.arguments)

    def result(self):
        self.join(60)
        assert not self.is_alive()
        return self.outcome

    @property
    def address(self):
        return self.listener.getsockname()


def connect(setting, people, directory, client, address):
    """A client's link to the server, from which a test sends what it likes."""
    key = link_key(people[client], directory[SERVER], setting.session, setting.round_id, client)
    return Link(setting, client, key, socket.create_connection(address, timeout=20))


def test_clients_that_say_nothing_or_nonsense_cost_no_more_than_the_time_limit():
    setting, session, updates, people, directory = parties(5, time_limit=3.0)
    server = Served(setting, people, directory)

    def play(client):
        own = session.rows(client - 1, 1)
        take_part(setting, own, updates[client - 1], people[client], directory, server.address)

    def link(client):
        return connect(setting, people, directory, client, server.address)

    # 1 and 2 take part, 3 is silent after it came, 4 sends bytes of nobody, 5 hangs up.
    players = [threading.Thread(target=play, args=(client,)) for client in (1, 2)]
    for player in players:
        player.start()
    silent, forger, leaver = link(3), link(4), link(5)
    stranger = socket.create_connection(server.address)
    stranger.sendall(b"GET / HTTP/1.1\r\n" * 9)
    for one in (silent, forger, leaver):
        one.send("hello", ())
    forger.connection.sendall(bytes(5000))
    leaver.connection.close()
    outcome = server.result()
    assert outcome.ok
    assert outcome.survivors.tolist() == [True, True, False, False, False]
    assert outcome.lost[3] == "upload: silent for 3.0 s"
    assert outcome.lost[4].startswith("upload: ")
    assert "[frame]" in outcome.lost[4]
    assert outcome.lost[5] == "upload: closed its connection"
    expected, _ = fa.secure_mean(
        updates, session, codec=CODEC, participation=jnp.asarray(outcome.survivors)
    )
    np.testing.assert_array_equal(outcome.mean, expected)


def test_who_does_not_come_is_waited_for_once():
    setting, _, _, people, directory = parties(3, time_limit=0.5)
    outcome = Served(setting, people, directory).result()
    assert not outcome.ok
    assert not outcome.survivors.any()
    assert outcome.lost == {client: "not here within 0.5 s" for client in (1, 2, 3)}
    assert not np.any(outcome.mean)


@pytest.mark.parametrize("lie", ["replayed", "of another round", "of another client"])
def test_a_frame_in_another_place_costs_its_sender_the_round(lie):
    setting, session, updates, people, directory = parties(3, time_limit=10.0)
    server = Served(setting, people, directory)
    links = {c: connect(setting, people, directory, c, server.address) for c in (1, 2, 3)}
    words = fa.transcript(updates, session, codec=CODEC).stages["upload"].outboxes.words
    for link in links.values():
        link.send("hello", ())
    for client, link in links.items():
        message, layout = Upload(words[client - 1]), setting.layouts["upload"]
        header = setting.header("upload", client, SERVER)
        if client == 2:
            header = header._replace(
                **{
                    "replayed": {"kind": "unmask"},
                    "of another round": {"round_id": 8},
                    "of another client": {"sender": 1},
                }[lie]
            )
        link.connection.sendall(pack(message, layout, header, link.key))
    outcome = server.result()
    assert outcome.survivors.tolist() == [True, False, True]
    assert list(outcome.lost) == [2]
    assert "[frame]" in outcome.lost[2]


def played_by_a_server(protocol, answers):
    """What the first of three clients says to a server that answers so, by kind."""
    setting, session, updates, people, directory = parties(3, protocol, time_limit=60.0)
    listener = socket.create_server(("127.0.0.1", 0))
    failures = []

    def play():
        own = session.rows(0, 1)
        try:
            take_part(setting, own, updates[0], people[1], directory, listener.getsockname())
        except (ValueError, OSError) as why:
            failures.append(str(why))

    client = threading.Thread(target=play, daemon=True)
    client.start()
    connection, _ = listener.accept()
    key = link_key(people[SERVER], directory[1], setting.session, setting.round_id, 1)
    with connection:
        for kind, message in answers(setting, people).items():
            header = setting.header(kind, SERVER, 1)
            connection.sendall(pack(message, setting.layouts[kind], header, key))
        # What the client has sent is read, as a server does before it is gone.
        connection.recv(2**16)
        if not answers(setting, people):
            connection.close()
        client.join(60)
    return failures


@pytest.mark.parametrize("rule", ["refuse-signature", "refuse-own-keys"])
def test_a_client_ends_with_the_rule_that_the_server_broke(rule):
    protocol = fa.LightSecAgg(privacy=1, survivors=2)

    def answers(setting, people):
        n = setting.num_clients
        # Signed by their owners, but the client has advertised another.
        keys = np.arange(1, 8 * n + 1, dtype=np.uint32).reshape(n, 8)
        signatures = np.stack(
            [
                sign_keys(people[c], keys[c - 1], setting.session, setting.round_id, c)
                for c in range(1, n + 1)
            ]
        )
        if rule == "refuse-signature":
            keys[1, 0] ^= 1
        return {"key-list": KeyList(np.ones(n, bool), keys, signatures)}

    (failure,) = played_by_a_server(protocol, answers)
    assert f"[{rule}]" in failure


def test_a_client_whose_server_is_gone_ends():
    (failure,) = played_by_a_server(fa.LightSecAgg(privacy=1, survivors=2), lambda *_: {})
    assert failure == "the server is gone before key-list"


def test_a_client_waits_for_a_message_no_longer_than_the_time_limit():
    """A server that sends a byte now and then does not hold it, and would for a minute."""
    setting, *_ = parties(3, time_limit=1.0)
    ours, theirs = socket.socketpair()
    given_up = threading.Event()

    def drip():
        while not given_up.wait(0.2):
            theirs.send(b"x")

    server = threading.Thread(target=drip, daemon=True)
    server.start()
    with pytest.raises(TimeoutError, match=r"the server sent no upload within 1.0 s"):
        Link(setting, 1, bytes(32), ours).receive("upload")
    given_up.set()
    server.join()


def test_a_round_between_processes_needs_real_keys():
    session = fa.simulated_session(fa.fixed_seed(0), num_clients=3)
    with pytest.raises(ValueError, match="real-session"):
        run_round(jnp.ones((3, 2)), session, codec=CODEC, protocol=fa.Plain())
    with pytest.raises(ValueError, match=r"lost=4.*client-id"):
        run_round(
            jnp.ones((3, 2)),
            real_session(session),
            codec=CODEC,
            protocol=fa.Plain(),
            lost={4: "upload"},
        )


# A client is killed at each stage; those who are left are enough.
ROUNDS = {
    "SecAgg": (fa.SecAgg(2), 8, dict(zip((2, 3, 5, 6, 8), STAGES, strict=True))),
    "LightSecAgg": (fa.LightSecAgg(1, 3), 5, {2: "upload", 4: "unmask"}),
}


@pytest.fixture(scope="module", params=ROUNDS)
def played(request):
    """A round between processes, and the same round as one compiled program."""
    protocol, n, lost = ROUNDS[request.param]
    setting, session, updates, *_ = parties(n, protocol)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_FLAGS", QUICK_COMPILER)
        outcome = run_round(
            updates,
            session,
            codec=CODEC,
            protocol=protocol,
            lost=lost,
            time_limit=150.0,
            identity_seeds=seeds(n),
        )
    alive = np.ones((len(STAGES), n), bool)
    for client, stage in lost.items():
        alive[STAGES.index(stage) :, client - 1] = False
    kept = jax.jit(
        lambda updates, session, alive: fa.transcript(
            updates,
            session,
            codec=CODEC,
            protocol=protocol,
            participation=fa.Participation(alive),
        )
    )(updates, session, alive)
    return setting, lost, outcome, jax.tree.map(np.asarray, kept)


def frames_of(setting, kept):
    """The frames of a jitted round, by kind, sender and receiver."""
    n = setting.num_clients
    people = [Identity.from_seed(seed) for seed in seeds(n)]
    keys = [
        link_key(people[SERVER], who.public, setting.session, setting.round_id, client)
        for client, who in enumerate(people)
    ]
    found = {}

    def add(kind, sender, receiver, message):
        header, key = setting.header(kind, sender, receiver), keys[sender or receiver]
        frame = pack(message, setting.layouts[kind], header, key)
        found[kind, sender, receiver] = frame

    def row(tree, client):
        return jax.tree.map(lambda x: x[client - 1], tree)

    for stage, mail in kept.stages.items():
        there = [client for client in range(1, n + 1) if mail.sent[client - 1]]
        if stage == "advertise":
            signed = {
                client: sign_keys(
                    people[client],
                    row(mail.outboxes, client),
                    setting.session,
                    setting.round_id,
                    client,
                )
                for client in there
            }
            nobody = np.zeros(64, np.uint8)
            signatures = np.stack([signed.get(client, nobody) for client in range(1, n + 1)])
        for client in there:
            outbox = row(mail.outboxes, client)
            if stage == "advertise":
                outbox = SignedKeys(outbox, signed[client])
                key_list = KeyList(mail.sent, mail.outboxes, signatures)
                add("key-list", SERVER, client, key_list)
            if stage == "upload" and len(kept.stages) > 1:
                add("survivors", SERVER, client, Survivors(kept.public.survivors))
            add(stage, client, SERVER, outbox)
            if mail.inboxes is not None:
                add(stage, SERVER, client, row(mail.inboxes, client))
    return found


@pytest.mark.slow
def test_the_bytes_on_the_sockets_are_the_messages_of_the_jitted_round(played):
    setting, lost, outcome, kept = played
    assert outcome.ok
    assert bool(kept.report.ok)
    np.testing.assert_array_equal(outcome.mean, kept.mean)
    np.testing.assert_array_equal(outcome.survivors, kept.report.survivors)
    # And the sum is that of the round without masks.
    plain = fa.secure_mean(
        kept.updates,
        simulated(setting.num_clients),
        codec=CODEC,
        participation=kept.report.survivors,
    )
    np.testing.assert_array_equal(outcome.mean, plain[0])
    sent = {(frame.kind, frame.sender, frame.receiver): frame.data for frame in outcome.frames}
    expected = frames_of(setting, kept)
    assert len(sent) == len(outcome.frames)
    assert set(sent) == set(expected)
    assert [place for place in expected if expected[place] != sent[place]] == []
    assert outcome.lost == {
        client: f"{stage}: closed its connection" for client, stage in lost.items()
    }


def windows(data):
    return {data[i : i + 8] for i in range(len(data) - 7)}


@pytest.mark.slow
def test_no_window_of_a_share_is_in_what_a_non_holder_receives(played):
    setting, _, outcome, kept = played
    private = kept.private
    held = private.shares if hasattr(private, "shares") else private.coded
    held = held[kept.stages["share"].sent]
    holders = np.flatnonzero(kept.stages["share"].sent) + 1
    shares = [windows(np.asarray(rows, "<u4").tobytes()) - {bytes(8)} for rows in held]
    assert all(len(found) > 200 for found in shares)
    received = {party: set() for party in range(setting.num_clients + 1)}
    revealed = set()
    for frame in outcome.frames:
        if frame.kind == "unmask":
            revealed |= windows(frame.data)
        else:
            received[frame.receiver] |= windows(frame.data)
    for holder, of_holder in zip(holders, shares):
        for party, seen in received.items():
            assert not of_holder & seen, (holder, party)
    if hasattr(private, "shares"):
        # The control: a share that is revealed is in the frame that reveals it, and of the
        # two shares of one neighbour only one is.
        assert any(of_holder & revealed for of_holder in shares)
        for rows in held:
            for of_neighbour in rows:
                halves = np.split(of_neighbour.astype("<u4"), 2)
                found = [windows(half.tobytes()) - {bytes(8)} for half in halves]
                assert not all(half & revealed for half in found)
