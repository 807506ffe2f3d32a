"""Rounds between processes: the sum, the bytes on the sockets, losses, time limits."""

import socket
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_agg as fa
from fedjax_agg.host.client import Link, take_part
from fedjax_agg.host.identity import Identity, link_key, sign_keys
from fedjax_agg.host.keys import X25519, real_session
from fedjax_agg.host.runner import run_round
from fedjax_agg.host.server import serve
from fedjax_agg.host.setting import Setting
from fedjax_agg.participation import STAGES
from fedjax_agg.protocols import Exchange
from fedjax_agg.session import context_hash
from fedjax_agg.wire import (
    ChannelBoard,
    CodedSum,
    KeyList,
    SignedKeys,
    Survivors,
    Upload,
    frame_bytes,
    pack,
)
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
    setting = Setting.of(
        updates[0],
        n,
        CODEC,
        protocol,
        public_seed=session.public_seed,
        round_id=9,
        time_limit=time_limit,
    )
    return setting, session, updates, people, directory


class Listed(fa.Plain):
    """``Plain`` with a list of keys before it and an answer after it, both for nothing."""

    def join(self, secret, ctx):
        return ctx.key_exchange.public_key(secret)

    def prepare(self, num_clients):
        def publish(keys, sent, ctx):
            return ChannelBoard(sent, keys, None, None)

        return (Exchange("advertise", lambda key, inbox, ctx: (key, key), keep, publish),)

    def respond(self, num_clients):
        def answer(key, inbox, ctx):
            return key, CodedSum(key, jnp.bool_(True))

        return (Exchange("unmask", answer, keep),)


def keep(outboxes, sent, ctx):
    return None


def play(setting, session, updates, people, directory, address, client):
    """One client that takes part in a thread, and how it ends."""
    ends = []

    def run():
        own = session.rows(client - 1, 1)
        try:
            take_part(setting, own, updates[client - 1], people[client], directory, address)
        except (ValueError, OSError) as why:
            ends.append(str(why))
        else:
            ends.append("done")

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def end():
        thread.join(60)
        return ends[0]

    return end


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
    setting, session, updates, people, directory = parties(5, time_limit=6.0)
    server = Served(setting, people, directory)

    def link(client):
        return connect(setting, people, directory, client, server.address)

    # 1 and 2 take part, 3 is silent after it came, 4 sends bytes of nobody, 5 hangs up.
    world = setting, session, updates, people, directory, server.address
    players = [play(*world, client) for client in (1, 2)]
    silent, forger, leaver = link(3), link(4), link(5)
    stranger = socket.create_connection(server.address)
    stranger.sendall(b"GET / HTTP/1.1\r\n" * 9)
    for one in (silent, forger, leaver):
        one.send("hello", ())
    forger.connection.sendall(bytes(5000))
    leaver.connection.close()
    outcome = server.result()
    assert [end() for end in players] == ["done", "done"]
    assert outcome.ok
    assert outcome.survivors.tolist() == [True, True, False, False, False]
    assert outcome.lost[3] == "upload: silent for 6.0 s"
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


@pytest.mark.slow
def test_clients_wait_for_a_server_that_waits_for_others():
    """The server waits for who never comes, then for who says nothing; the others do not end."""
    setting, session, updates, people, directory = parties(4, Listed(), time_limit=9.0)
    server = Served(setting, people, directory)
    world = setting, session, updates, people, directory, server.address
    players = [play(*world, client) for client in (1, 2)]
    silent = connect(setting, people, directory, 3, server.address)
    silent.send("hello", ())
    outcome = server.result()
    assert [end() for end in players] == ["done", "done"]
    assert outcome.survivors.tolist() == [True, True, False, False]
    assert outcome.lost == {3: "advertise: silent for 9.0 s", 4: "not here within 9.0 s"}


def advertise(link, setting, identity, key, signature=None):
    """A client's first two messages, with any key and signature."""
    if signature is None:
        signature = sign_keys(identity, key, setting.session, setting.round_id, link.own)
    link.send("hello", ())
    link.send("advertise", SignedKeys(key, signature))


def test_bad_keys_cost_only_those_who_advertise_them():
    setting, session, updates, people, directory = parties(5, Listed(), time_limit=10.0)
    server = Served(setting, people, directory)
    world = setting, session, updates, people, directory, server.address
    first = play(*world, 1)
    zero, low = np.zeros(8, np.uint32), np.zeros(8, np.uint32)
    low[0] = 1
    own = np.asarray(X25519().public_key(session.secrets[0]))
    links = [connect(setting, people, directory, client, server.address) for client in (2, 3, 4, 5)]
    advertise(links[0], setting, people[2], zero)
    advertise(links[1], setting, people[3], low)
    advertise(links[2], setting, people[4], own)
    advertise(links[3], setting, people[5], own ^ np.uint32(2), np.zeros(64, np.uint8))
    outcome = server.result()
    assert first() == "done"
    assert outcome.survivors.tolist() == [True, False, False, False, False]
    assert set(outcome.lost) == {2, 3, 4, 5}
    assert all(
        why.startswith("advertise: keys that are not valid") for why in outcome.lost.values()
    )


@pytest.mark.slow
def test_who_comes_late_is_not_let_in():
    setting, session, updates, people, directory = parties(3, Listed(), time_limit=9.0)
    server = Served(setting, people, directory)
    world = setting, session, updates, people, directory, server.address
    first = play(*world, 1)
    late = connect(setting, people, directory, 2, server.address)
    silent = connect(setting, people, directory, 3, server.address)
    silent.send("hello", ())
    assert first() == "done"
    # By now the server waits for nobody's hello; client 2 has been connected all the time.
    late.send("hello", ())
    outcome = server.result()
    assert outcome.survivors.tolist() == [True, False, False]
    assert outcome.lost[2] == "not here within 9.0 s"


def upload_of(setting, updates, session, client):
    words = fa.transcript(updates, session, codec=CODEC).stages["upload"].outboxes.words
    return Upload(words[client - 1])


@pytest.mark.parametrize("lie", ["replayed", "of another round", "of another client"])
def test_a_frame_in_another_place_costs_its_sender_the_round(lie):
    setting, session, updates, people, directory = parties(3, Listed(), time_limit=10.0)
    server = Served(setting, people, directory)
    world = setting, session, updates, people, directory, server.address
    players = [play(*world, client) for client in (1, 3)]
    link = connect(setting, people, directory, 2, server.address)
    advertise(link, setting, people[2], np.asarray(X25519().public_key(session.secrets[1])))
    link.receive("key-list")
    message, layout = upload_of(setting, updates, session, 2), setting.layouts["upload"]
    header = setting.header("upload", 2, SERVER)
    others = {"of another round": {"round_id": 8}, "of another client": {"sender": 1}}
    frame = pack(message, layout, header._replace(**others.get(lie, {})), link.key)
    link.connection.sendall(frame)
    if lie == "replayed":
        # Where its answer is due. In the sum it is once.
        link.receive("survivors")
        link.connection.sendall(frame)
    outcome = server.result()
    assert [end() for end in players] == ["done", "done"]
    assert outcome.survivors.tolist() == [True, lie == "replayed", True]
    assert list(outcome.lost) == [2]
    assert outcome.lost[2].startswith("unmask" if lie == "replayed" else "upload")
    assert "[frame]" in outcome.lost[2]
    expected, _ = fa.secure_mean(
        updates, session, codec=CODEC, participation=jnp.asarray(outcome.survivors)
    )
    np.testing.assert_array_equal(outcome.mean, expected)


def test_a_second_connection_of_one_client_is_closed():
    setting, session, updates, people, directory = parties(2, time_limit=3.0)
    server = Served(setting, people, directory)
    link = connect(setting, people, directory, 1, server.address)
    link.send("hello", ())
    again = connect(setting, people, directory, 1, server.address)
    again.send("hello", ())
    assert again.connection.recv(1) == b""
    link.send("upload", upload_of(setting, updates, session, 1))
    assert server.result().survivors.tolist() == [True, False]


def played_by_a_server(protocol, answers):
    """How the first of three clients ends with a server that answers so, and all that it sent."""
    setting, session, updates, people, directory = parties(3, protocol, time_limit=60.0)
    listener = socket.create_server(("127.0.0.1", 0))
    end = play(setting, session, updates, people, directory, listener.getsockname(), 1)
    connection, _ = listener.accept()
    connection.settimeout(60)
    key = link_key(people[SERVER], directory[1], setting.session, setting.round_id, 1)
    received = connection.recv(2**16)
    due = sum(frame_bytes(setting.layouts[kind]) for kind in ("hello", "advertise"))
    while len(received) < due:
        received += connection.recv(2**16)
    for kind, message in answers(setting, people).items():
        header = setting.header(kind, SERVER, 1)
        connection.sendall(pack(message, setting.layouts[kind], header, key))
    connection.shutdown(socket.SHUT_WR)
    how = end()
    while more := connection.recv(2**16):
        received += more
    assert len(received) == due  # Nothing more is sent.
    return how


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("rule", ["refuse-signature", "refuse-own-keys"])
def test_a_client_ends_with_the_rule_that_the_server_broke(rule):
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

    # The signatures are seen to before the protocol is.
    quick = rule == "refuse-signature"
    protocol = Listed() if quick else fa.LightSecAgg(privacy=1, survivors=2)
    assert f"[{rule}]" in played_by_a_server(protocol, answers)


def test_a_client_whose_server_is_gone_ends():
    how = played_by_a_server(Listed(), lambda *_: {})
    assert how == "the server is gone before key-list"


def test_a_client_waits_for_a_message_no_longer_than_the_time_limit():
    """A server that sends a byte now and then does not hold it, and would for a minute."""
    setting, *_ = parties(3, time_limit=0.4)
    ours, theirs = socket.socketpair()
    given_up = threading.Event()

    def drip():
        while not given_up.wait(0.2):
            theirs.send(b"x")

    server = threading.Thread(target=drip, daemon=True)
    server.start()
    with pytest.raises(TimeoutError, match=r"the server sent no upload within 1.2\d* s"):
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
    "LightSecAgg": (fa.LightSecAgg(1, 3), 8, dict(zip((2, 3, 5, 6, 8), STAGES, strict=True))),
}


@pytest.fixture(scope="module", params=ROUNDS)
def played(request):
    """A round between processes, and the same round as one compiled program."""
    protocol, n, lost = ROUNDS[request.param]
    setting, session, updates, *_ = parties(n, protocol)
    session = session.bind(context_hash({"w": jnp.ones(3)}))
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
    # Of an absent neighbour a client holds zeros.
    shares = [
        set().union(*(windows(row.astype("<u4").tobytes()) for row in rows if row.any()))
        for rows in held
    ]
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
