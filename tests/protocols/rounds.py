"""Rounds of SecAgg with every message kept, and those messages as the reference has them.

One compiled program plays the rounds of all quick tests: four clients on the complete graph, a
threshold of two, a context bound. It plays ``ROUNDS`` of them at a time, one after the other.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

import fedjax_agg as fa
from fedjax_agg.participation import STAGES
from fedjax_agg.wire import Board, Mail, PublicKeys, RevealedShares, Transcript
from tests.protocols import reference

N, THRESHOLD, LENGTH, ROUNDS = 4, 2, 70, 16
PROTOCOL = fa.SecAgg(THRESHOLD)
LEVELS = 2**15
# A coordinate of i / LEVELS becomes the word i.
CODEC = fa.FixedPoint(clip=1.0, levels=LEVELS, norm="linf", rounding="nearest")
# Half the time to compile. Integers do not depend on it; the slow tests use the default.
QUICKLY = {"xla_backend_optimization_level": 0}


@dataclasses.dataclass(frozen=True)
class Case:
    """What goes into a round."""

    session: fa.Session
    integers: np.ndarray  # [n, D], up to LEVELS in magnitude
    alive: np.ndarray  # bool[5, n]

    @property
    def words(self):
        return np.asarray(self.integers).astype(np.int64).astype(np.uint32)

    def plain_sum(self, survivors):
        return np.sum(self.words[np.asarray(survivors)], axis=0, dtype=np.uint32)


@functools.cache
def program(protocol, quickly=True):
    def play_one(case):
        session, updates, alive = case
        return fa.transcript(
            updates,
            session,
            codec=CODEC,
            protocol=protocol,
            participation=fa.Participation(alive),
        )

    options = QUICKLY if quickly else {}
    return jax.jit(lambda cases: jax.lax.map(play_one, cases), compiler_options=options)


def play(*cases, protocol=PROTOCOL, quickly=True) -> list[Transcript]:
    """The transcripts of rounds, as NumPy arrays."""
    run, found = program(protocol, quickly), []
    for first in range(0, len(cases), ROUNDS):
        some = cases[first : first + ROUNDS]
        padded = [*some, *[some[0]] * (ROUNDS - len(some))]
        rows = [
            (case.session, np.float32(case.integers / LEVELS), np.asarray(case.alive))
            for case in padded
        ]
        stacked = jax.tree.map(lambda *leaves: np.stack([np.asarray(x) for x in leaves]), *rows)
        kept = jax.tree.map(np.asarray, run(stacked))
        found += [jax.tree.map(lambda x: x[i], kept) for i in range(len(some))]  # noqa: B023
    return found


@functools.cache
def client_stage(stage, protocol=PROTOCOL):
    """One client's part of a stage, compiled; of *share*, broken rules and to whom it sends."""
    run = eager_stage(stage, protocol)
    # Without the messages, the program of this stage is no more than its checks.
    checks = stage == "share"

    def checked(*arguments):
        state, outbox = run(*arguments)
        return state.refusals, outbox.sent

    called = checked if checks else run
    return jax.jit(called, compiler_options=QUICKLY)


def eager_stage(stage, protocol=PROTOCOL):
    """The same as a host calls it: ``(private, inbox, ctx)``, or a protocol's own function."""
    stages = {s.name: s.client for s in (*protocol.prepare(N), *protocol.respond(N))}
    return stages[stage] if stage in stages else getattr(protocol, stage)


@functools.cache
def recover(protocol=PROTOCOL):
    """The server's part at the end, compiled: ``(uploads, mail, ctx)``."""
    return jax.jit(
        lambda uploads, mail, ctx: protocol.recover(uploads, mail, ctx), compiler_options=QUICKLY
    )


def alive_until(lost=(), num_clients=N):
    """bool[5, n] where ``lost`` says which client misses which stage first."""
    alive = np.ones((len(STAGES), num_clients), bool)
    for client, stage in dict(lost).items():
        alive[STAGES.index(stage) :, client - 1] = False
    return alive


def integers(number=0, num_clients=N, length=LENGTH):
    """Arbitrary integers of both signs."""
    rng = np.random.default_rng([number, num_clients])
    return rng.integers(-LEVELS, LEVELS + 1, (num_clients, length))


def session(number=0, num_clients=N, round_id=7, contexts=b"one model"):
    """A session of arbitrary words, whose clients were all given one model, or one each."""
    rng = np.random.default_rng([number, num_clients, 1])

    def words(*shape):
        return jnp.asarray(rng.integers(2**32, size=shape, dtype=np.uint32))

    made = fa.Session(
        round_id=jnp.uint32(round_id),
        public_seed=words(8),
        client_ids=jnp.arange(1, num_clients + 1, dtype=jnp.uint32),
        secrets=words(num_clients, 8),
        agreement=jnp.broadcast_to(words(2, 8), (num_clients, 2, 8)),
    )
    return made if contexts is None else bind(made, contexts)


def bind(session, contexts):
    """With the digest of a model, the same for all clients, or of one for each."""
    if isinstance(contexts, bytes):
        contexts = [contexts] * session.num_clients
    digests = [reference.hashlib.sha256(model).digest() for model in contexts]
    return session.bind(jnp.asarray(np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)))


# ---- as the reference has it --------------------------------------------------------------------


def octets(words):
    """Words as the bytes that travel."""
    return np.asarray(words).astype("<u4").tobytes()


def words_of(data):
    return np.frombuffer(data, "<u4").astype(np.uint32)


def setting_of(session, threshold=THRESHOLD, **configuration):
    """The roots of a session, which the reference starts from."""
    contexts = session.context
    return reference.Setting(
        threshold=threshold,
        round_id=int(session.round_id),
        public_seed=octets(session.public_seed),
        secrets=tuple(map(octets, session.secrets)),
        agreement=tuple(map(octets, session.agreement[0])),
        contexts=None if contexts is None else tuple(bytes(np.asarray(c)) for c in contexts),
        **configuration,
    )


def session_of(setting):
    """The session with these roots."""
    made = fa.Session(
        round_id=jnp.uint32(setting.round_id),
        public_seed=jnp.asarray(words_of(setting.public_seed)),
        client_ids=jnp.arange(1, setting.n + 1, dtype=jnp.uint32),
        secrets=jnp.stack([words_of(secret) for secret in setting.secrets]),
        agreement=jnp.asarray(
            np.stack([[words_of(handle) for handle in setting.agreement]] * setting.n)
        ),
    )
    if setting.contexts is None:
        return made
    contexts = [np.frombuffer(context, np.uint8) for context in setting.contexts]
    return made.bind(jnp.asarray(np.stack(contexts)))


def server_view(kept, threshold=THRESHOLD, **configuration):
    """What the server of a transcript holds, as the reference has it: no secret but by message."""
    view = kept.view(server=True)
    public, mail = view.public, view.server
    n = len(public.survivors)
    contexts = public.context_hash
    setting = reference.Setting(
        threshold=threshold,
        round_id=int(public.round_id),
        public_seed=octets(public.public_seed),
        secrets=(b"",) * n,
        agreement=(b"", b""),
        contexts=None if contexts is None else tuple(bytes(c) for c in contexts),
        session_id=octets(public.board.session_id),
        **configuration,
    )
    neighbours = public.board.neighbours + 1

    def by_client(stage, show):
        mails = mail[stage]
        return {
            i + 1: show(jax.tree.map(lambda x: x[i], mails.outboxes))  # noqa: B023
            for i in range(n)
            if mails.sent[i]
        }

    def by_pair(stage, show):
        found = {}
        for u, message in by_client(stage, lambda outbox: outbox).items():
            for slot in np.flatnonzero(message.sent):
                one = jax.tree.map(lambda x: x[slot], message)  # noqa: B023
                found[u, int(neighbours[u - 1, slot])] = show(one)
        return found

    return reference.Round(
        setting=setting,
        advertised=by_client("advertise", lambda keys: tuple(map(octets, keys))),
        neighbours={u: [int(v) for v in neighbours[u - 1]] for u in range(1, n + 1)},
        entries={
            (u, int(v)): tuple(map(octets, public.board.entries[u - 1, slot]))
            for u in range(1, n + 1)
            for slot, v in enumerate(neighbours[u - 1])
        },
        sealed=by_pair("share", lambda m: reference.Sealed(*map(octets, m.sealed))),
        uploads=by_client("upload", lambda m: [int(word) for word in m.words]),
        attested=by_pair("attest", lambda m: octets(m.tags)) if "attest" in mail else {},
        revealed=by_pair("unmask", lambda m: [int(x) for x in m.shares]),
        total=[int(word) for word in view.total.words] if view.total.ok else None,
    )


def server_inputs(played):
    """A round of the reference as the library's server holds it: what ``recover`` takes."""
    setting, n, k = played.setting, played.setting.n, played.setting.k
    board = Board(
        present=flags(played.advertised, n),
        keys=PublicKeys(*np.zeros((2, n, 8), np.uint32)),
        neighbours=np.array(list(played.neighbours.values()), np.int32) - np.int32(1),
        entries=np.zeros((n, k, 2, 8), np.uint32),
        session_id=words_of(setting.session_id),
    )
    revealed = RevealedShares(np.zeros((n, k, 9), np.uint32), np.zeros((n, k), bool))
    for u, posted in played.advertised.items():
        for keys, key in zip(board.keys, posted):
            keys[u - 1] = words_of(key)
    for (u, v), entries in played.entries.items():
        slot = played.neighbours[u].index(v)
        board.entries[u - 1, slot] = [words_of(entry) for entry in entries]
    for (u, v), share in played.revealed.items():
        slot = played.neighbours[u].index(v)
        revealed.shares[u - 1, slot], revealed.sent[u - 1, slot] = share, True
    contexts = setting.contexts
    ctx = fa.RoundContext(
        round_id=np.uint32(setting.round_id),
        public_seed=words_of(setting.public_seed),
        context_hash=contexts and np.stack([np.frombuffer(c, np.uint8) for c in contexts]),
        board=board,
        survivors=flags(played.survivors, n),
    )
    mail = {
        "share": Mail(None, flags(played.shared, n)),
        "unmask": Mail(revealed, flags({u for u, _ in played.revealed}, n)),
    }
    uploads = np.sum(np.array(list(played.uploads.values()), np.uint32), axis=0, dtype=np.uint32)
    return uploads, mail, ctx


def flags(clients, n):
    return np.isin(np.arange(1, n + 1), list(clients))
