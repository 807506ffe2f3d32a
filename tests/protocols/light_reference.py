"""A round of LightSecAgg in plain Python, from its documented formats, as ``reference`` has SecAgg.

``python -m tests.protocols.light_reference`` writes ``tests/vectors/light_secagg_v1.json`` anew.
"""

import dataclasses
import hmac
import json
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

from tests.protocols import reference
from tests.protocols.reference import PRIME, STAGES, Roots, Sealed, to_bytes, to_words

PATH = reference.PATH.with_name("light_secagg_v1.json")
BITS = 31


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting(Roots):
    """The public configuration of a round of LightSecAgg beside its roots."""

    privacy: int
    survivors: int

    @property
    def parts(self):
        return self.survivors - self.privacy

    def advertised(self, keys: Mapping[int, bytes]) -> "Setting":
        return self.seen(keys, 32, self.privacy, self.survivors, BITS, True)

    def alpha(self, block: int) -> int:
        """The point of a block, counted from 0; that of a client is its id."""
        return self.n + 1 + block


class Keys(NamedTuple):
    """The three secrets of a client."""

    channel: bytes
    mask: bytes
    noise: bytes


class Round(NamedTuple):
    """All messages of a round, and at its end the sum; None where the server failed."""

    setting: Setting
    advertised: dict[int, bytes]
    entries: dict[tuple[int, int], bytes]
    sealed: dict[tuple[int, int], Sealed]
    uploads: dict[int, list[int]]
    attested: dict[tuple[int, int], bytes]
    answered: dict[int, list[int]]
    total: list[int] | None


def join(setting: Setting, client: int) -> Keys:
    salt, number = setting.public_seed, setting.round_id
    secret = setting.secrets[client - 1]
    labels = ("exchange", "one-mask", "one-code")
    return Keys(*(reference.derive(secret, label, salt, number, client) for label in labels))


def elements(key: bytes, count: int) -> list[int]:
    """Field elements: 31 bits of a word, or where these are all ones of another stream's word."""
    first = to_words(reference.chacha20(key, 4 * count, struct.pack(">I8x", 0)))
    second = to_words(reference.chacha20(key, 4 * count, struct.pack(">I8x", 1)))
    drawn = zip((word & PRIME for word in first), (word & PRIME for word in second))
    return [a if a != PRIME else b % PRIME for a, b in drawn]


def blocks_of(setting: Setting, keys: Keys, length: int) -> list[list[int]]:
    """The parts of a mask and then its noise; a mask has a word more than the update."""
    size = -(-(length + 1) // setting.parts)
    mask = elements(keys.mask, setting.parts * size)
    noise = elements(keys.noise, setting.privacy * size)
    everything = mask + noise
    return [everything[i : i + size] for i in range(0, len(everything), size)]


def code(setting: Setting, blocks: list[list[int]], client: int) -> list[int]:
    """One client's value of the polynomials that have these blocks as values."""
    at = {setting.alpha(k): block for k, block in enumerate(blocks)}
    return reference.interpolate(at, client)


def add(*vectors: list[int]) -> list[int]:
    return [sum(elements) % PRIME for elements in zip(*vectors, strict=True)]


def channel(setting: Setting, entries, secret: bytes, own: int, sender: int, receiver: int):
    """The keys of one direction, as one of its two ends derives them."""
    peer = receiver if own == sender else sender
    agreed = reference.xor(entries[own, peer], reference.pad(secret, peer - 1))
    return reference.channel_keys(setting, agreed, sender, receiver)


def run(setting: Setting, inputs: Mapping[int, list[int]], lost: Mapping[int, str]) -> Round:
    """A round in which ``lost`` names the first stage that a client misses.

    Nobody refuses: that enough clients are left is the caller's to see to.
    """

    def alive(stage):
        ends = {client: STAGES.index(lost[client]) for client in lost}
        return [c for c in setting.clients if ends.get(c, len(STAGES)) > STAGES.index(stage)]

    keys = {client: join(setting, client) for client in setting.clients}
    advertised = {u: reference.public_key(keys[u].channel) for u in alive("advertise")}
    setting = setting.advertised(advertised)

    # The dealer, whom X25519 replaces: a client's slot of a peer is the peer's place in the list.
    entries = {}
    for u in setting.clients:
        for v in setting.clients:
            edge = reference.edge(setting.agreement[0], u, v)
            entries[u, v] = reference.xor(edge, reference.pad(keys[u].channel, v - 1))

    # Every client codes its mask for all who have keys, and seals what it sends.
    length = len(next(iter(inputs.values())))
    blocks = {u: blocks_of(setting, keys[u], length) for u in setting.clients}
    sealed = {}
    for u in alive("share"):
        for v in advertised:
            if u != v:
                keys_uv = channel(setting, entries, keys[u].channel, u, u, v)
                coded = code(setting, blocks[u], v)
                sealed[u, v] = reference.seal(setting, keys_uv, coded, u, v)

    # Receivers open what they are sent.
    held = {}
    shared = alive("share")
    for v in shared:
        held[v, v] = code(setting, blocks[v], v)
        for u in shared:
            if u != v:
                keys_uv = channel(setting, entries, keys[v].channel, v, u, v)
                held[u, v] = reference.unseal(setting, keys_uv, sealed[u, v], u, v)
                assert held[u, v] is not None

    uploads = {}
    for u in alive("upload"):
        mask = [element for part in blocks[u][: setting.parts] for element in part]
        uploads[u] = add(inputs[u], mask[:length])

    digest, attested, answered = reference.survivors_digest(setting, uploads), {}, {}
    for u in alive("attest"):
        for v in uploads:
            if u != v:
                key = channel(setting, entries, keys[u].channel, u, u, v).attestation
                attested[u, v] = hmac.digest(key, digest, "sha256")
    for v in alive("unmask"):
        answered[v] = add(*(held[u, v] for u in uploads))

    result = Round(setting, advertised, entries, sealed, uploads, attested, answered, None)
    return result._replace(total=recover(result))


def recover(view: Round) -> list[int] | None:
    """What the server computes from messages alone, taking the first answers that are enough."""
    some = dict(list(view.answered.items())[: view.setting.survivors])
    if len(some) < view.setting.survivors:
        return None
    parts = (reference.interpolate(some, view.setting.alpha(k)) for k in range(view.setting.parts))
    length = len(next(iter(view.uploads.values())))
    mask = [element for part in parts for element in part][:length]
    return [(y - z) % PRIME for y, z in zip(add(*view.uploads.values()), mask, strict=True)]


# ---- the vectors --------------------------------------------------------------------------------

COMMENT = (
    "A round of LightSecAgg by tests/protocols/light_reference.py: hashlib, hmac and OpenSSL's "
    "ChaCha20. Keys, ciphertexts, tags and elements of GF(2^31 - 1) in hexadecimal, elements as "
    "four bytes, little-endian. Clients count from 1, messages are by sender and receiver. An "
    "update is ten coordinates and a mask has one more, for a weight, in two parts of six."
)
SEED = to_bytes([3, 0, 0, 0, 0, 0, 0, 0])
LENGTH = 10


def inputs_of(n: int) -> dict[int, list[int]]:
    """Arbitrary integers of both signs, as elements."""
    integers = reference.inputs_of(n, LENGTH, 2**15)
    return {client: [x % PRIME for x in row] for client, row in integers.items()}


def coded_round(round_id: int = 7, lost: Mapping[int, str] | None = None) -> Round:
    """Four clients, of which the third is lost before it uploads; one may collude."""
    setting = Setting.of_seed(SEED, 4, round_id, privacy=1, survivors=3)
    return run(setting, inputs_of(4), {3: "upload"} if lost is None else lost)


def shown(round_: Round, inputs: Mapping[int, list[int]]) -> dict[str, Any]:
    """The whole of a round as JSON holds it."""
    setting = round_.setting

    def by_pair(messages, show):
        rows: dict[str, Any] = {}
        for (u, v), message in messages.items():
            rows.setdefault(str(u), {})[str(v)] = show(message)
        return rows

    def by_client(values, show):
        return {str(client): show(value) for client, value in values.items()}

    def elements(words):
        return to_bytes(words).hex()

    return {
        "privacy": setting.privacy,
        "survivors": setting.survivors,
        "round_id": setting.round_id,
        "public_seed": setting.public_seed.hex(),
        "session_id": setting.session_id.hex(),
        "secrets": [secret.hex() for secret in setting.secrets],
        "agreement": [handle.hex() for handle in setting.agreement],
        "inputs": by_client(inputs, elements),
        "advertise": by_client(round_.advertised, bytes.hex),
        "entries": by_pair(round_.entries, bytes.hex),
        "share": by_pair(round_.sealed, lambda message: [part.hex() for part in message]),
        "upload": by_client(round_.uploads, elements),
        "attest": by_pair(round_.attested, bytes.hex),
        "unmask": by_client(round_.answered, elements),
        "total": elements(round_.total or []),
    }


def negatives() -> list[dict[str, Any]]:
    """What must not be accepted, and by which rule; at the end, what nobody can notice."""
    right, other, nobody_lost = coded_round(), coded_round(8), coded_round(lost={})
    ciphertext, tag = right.sealed[2, 1]
    flipped = reference.flipped

    def sealed(what, message):
        row = {"what": what, "stage": "share", "sender": 2, "receiver": 1}
        return row | {"message": [part.hex() for part in message], "refused_by": "sealed-share"}

    def named(what, survivors, rule):
        row = {"what": what, "stage": "attest", "sender": "server", "receiver": 1}
        return row | {"message": survivors, "refused_by": rule}

    answer = right.answered[4]
    wrong = [(answer[0] + 1) % PRIME, *answer[1:]]
    total = recover(right._replace(answered=right.answered | {4: wrong}))
    to_server = {"stage": "unmask", "sender": 4, "receiver": "server"}
    return [
        sealed("a bit of the tag is flipped", (ciphertext, flipped(tag))),
        sealed("a bit of the ciphertext is flipped", (flipped(ciphertext), tag)),
        sealed("sent by 3", right.sealed[3, 1]),
        sealed("reflected: sent by 1 to 2", right.sealed[1, 2]),
        sealed("replayed from round 8", other.sealed[2, 1]),
        named("two survivors", [1, 2], "few-survivors"),
        named("client 1 is named as lost", [2, 3, 4], "declared-lost"),
        {
            "what": "a word on another set of survivors",
            "stage": "attest",
            "sender": 2,
            "receiver": 1,
            "message": nobody_lost.attested[2, 1].hex(),
            "refused_by": "few-attestations",
        },
        {"what": "no answer", **to_server, "message": None, "refused_by": "the server"},
        {
            "what": "an element of the answer is off by one",
            **to_server,
            "message": to_bytes(wrong).hex(),
            "refused_by": None,
            "total": to_bytes(total or []).hex(),
        },
    ]


def vectors() -> dict[str, Any]:
    return {
        "comment": COMMENT,
        "round": {"seed": SEED.hex()} | shown(coded_round(), inputs_of(4)),
        "negative": negatives(),
    }


if __name__ == "__main__":
    PATH.write_text(json.dumps(vectors(), indent=1) + "\n")
