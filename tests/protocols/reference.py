"""A round of SecAgg in plain Python, from its documented formats: no JAX, nothing of the library.

Hashes are hashlib's, ChaCha20 is OpenSSL's, field and ring elements are Python's integers. Keys,
seeds and vectors of words are bytes, words little-endian. Clients have ids from 1, and
``messages[u, v]`` goes from u to v.

``python -m tests.protocols.reference`` writes ``tests/vectors/secagg_v1.json`` anew.
"""

import dataclasses
import hashlib
import hmac
import json
import pathlib
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

PATH = pathlib.Path(__file__).parents[1] / "vectors" / "secagg_v1.json"
STAGES = ("advertise", "share", "upload", "attest", "unmask")
VERSION = 1
PRIME = 2**31 - 1
CHUNK_BITS, CHUNKS = 30, 9
NO_NONCE = bytes(12)
PUBLIC_NONCE = struct.pack("<3I", 1, 0, 0)


# ---- bytes, words, keys -------------------------------------------------------------------------


def to_words(data: bytes) -> list[int]:
    return list(struct.unpack(f"<{len(data) // 4}I", data))


def to_bytes(words) -> bytes:
    words = [int(word) for word in words]
    return struct.pack(f"<{len(words)}I", *words)


def xor(a: bytes, b: bytes) -> bytes:
    return bytes(x ^ y for x, y in zip(a, b, strict=True))


def chacha20(key: bytes, length: int, nonce: bytes = NO_NONCE, counter: int = 0) -> bytes:
    """RFC 8439, section 2.4: ``length`` bytes of keystream from a block on."""
    cipher = Cipher(algorithms.ChaCha20(key, struct.pack("<I", counter) + nonce), mode=None)
    return cipher.encryptor().update(bytes(length))


def derive(secret, label, salt, round_id, first=0, second=0, context=b"") -> bytes:
    """HKDF-SHA256 (RFC 5869) for one block."""
    parties = struct.pack(">QII", round_id, first, second)
    info = f"fedjax_agg/v{VERSION}/{label}\0".encode() + parties + context
    pseudorandom_key = hmac.digest(salt, secret, "sha256")
    return hmac.digest(pseudorandom_key, info + b"\1", "sha256")


# ---- Shamir -------------------------------------------------------------------------------------


def to_chunks(secret: bytes) -> list[int]:
    number = int.from_bytes(secret, "little")
    return [number >> CHUNK_BITS * i & 2**CHUNK_BITS - 1 for i in range(CHUNKS)]


def from_chunks(chunks: list[int]) -> bytes | None:
    """The secret, or None where these are the chunks of none."""
    number = sum(chunk << CHUNK_BITS * i for i, chunk in enumerate(chunks))
    if any(chunk >> CHUNK_BITS for chunk in chunks) or number >> 256:
        return None
    return number.to_bytes(32, "little")


def coefficients(key: bytes, threshold: int, count: int) -> list[list[int]]:
    """The coefficients of x, x^2, ... of ``count`` polynomials: 31 bits of a word or another."""
    size = (threshold - 1) * count
    words = [word & PRIME for word in to_words(chacha20(key, 8 * size))]
    drawn = [a if a != PRIME else b % PRIME for a, b in zip(words[:size], words[size:])]
    return [drawn[i : i + count] for i in range(0, size, count)]


def evaluate(constants: list[int], rows: list[list[int]], point: int) -> list[int]:
    polynomials = zip(constants, *rows)
    return [sum(a * point**i for i, a in enumerate(p)) % PRIME for p in polynomials]


def interpolate(shares: Mapping[int, list[int]], at: int = 0) -> list[int]:
    """The values at a point of the polynomials that go through these shares, by point."""
    total = [0] * len(next(iter(shares.values())))
    for x, values in shares.items():
        weight = 1
        for other in shares:
            if other != x:
                weight = weight * (other - at) * pow(other - x, -1, PRIME) % PRIME
        total = [(a + weight * b) % PRIME for a, b in zip(total, values)]
    return total


def rebuild(shares: Mapping[int, list[int]], threshold: int) -> bytes | None:
    """The secret that these shares, by point, are of; None where they are too few or do not fit."""
    some = dict(list(shares.items())[:threshold])
    if len(some) < threshold or any(interpolate(some, x) != shares[x] for x in shares):
        return None
    return from_chunks(interpolate(some))


# ---- the setting of a round ---------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Roots:
    """What is public of a round of any protocol, and the roots of all that is secret in it."""

    round_id: int
    public_seed: bytes
    secrets: tuple[bytes, ...]
    agreement: tuple[bytes, bytes]  # of the channels, of the masks
    session_id: bytes = b""  # once the keys are advertised

    @property
    def n(self):
        return len(self.secrets)

    @property
    def clients(self):
        return range(1, self.n + 1)

    def derive(self, secret, label, first=0, second=0, context=b""):
        return derive(secret, label, self.session_id, self.round_id, first, second, context)

    def seen(self, keys: Mapping[int, bytes], size: int, *numbers: int):
        """The same, once all have seen the keys: a digest of everything that is public."""
        rows = [keys.get(client, bytes(size)) for client in self.clients]
        packed = struct.pack(f">{2 + len(numbers)}I", self.n, size, *numbers)
        head = f"fedjax_agg/v{VERSION}/neighbours\0".encode() + packed
        digests = b"".join(hashlib.sha256(row).digest() for row in rows)
        digest = hashlib.sha256(head + self.public_seed + digests).digest()
        return dataclasses.replace(self, session_id=digest)

    @classmethod
    def of_seed(cls, seed: bytes, n: int, round_id: int, **configuration):
        """The roots that ``simulated_session`` derives from a seed."""

        def root(label, first=0, second=0):
            return derive(seed, label, bytes(32), round_id, first, second)

        return cls(
            round_id=round_id,
            public_seed=root("public"),
            secrets=tuple(root("client", client) for client in range(1, n + 1)),
            agreement=(root("agreement", 0, 0), root("agreement", 0, 1)),
            **configuration,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting(Roots):
    """The public configuration of a round of SecAgg beside its roots."""

    threshold: int
    contexts: tuple[bytes, ...] | None = None
    degree: int | None = None
    bits: int = 32
    consistency: bool = True

    @property
    def k(self):
        return self.n - 1 if self.degree is None else self.degree

    def advertised(self, keys: Mapping[int, tuple[bytes, bytes]]) -> "Setting":
        """The same, once all have seen both keys of all."""
        both = {client: b"".join(pair) for client, pair in keys.items()}
        numbers = self.k, self.threshold, self.bits, self.threshold + 1, self.consistency
        return self.seen(both, 64, *numbers)


class Keys(NamedTuple):
    """The four secrets of a client."""

    channel: bytes
    recovery: bytes
    self_seed: bytes
    sharing: bytes


class ChannelKeys(NamedTuple):
    """Of one direction between two clients."""

    encryption: bytes
    authentication: bytes
    attestation: bytes


class Sealed(NamedTuple):
    ciphertext: bytes
    tag: bytes


def join(setting: Setting, client: int) -> Keys:
    secret = setting.secrets[client - 1]
    labels = ("exchange", "recovery", "own-seed", "sharings")
    salt, number = setting.public_seed, setting.round_id
    return Keys(*(derive(secret, label, salt, number, client, 0) for label in labels))


def public_key(secret: bytes) -> bytes:
    return chacha20(secret, 32, PUBLIC_NONCE)


def pad(secret: bytes, slot: int) -> bytes:
    """Under which an entry of the board is sealed."""
    return chacha20(secret, 32, counter=slot)


def edge(handle: bytes, u: int, v: int) -> bytes:
    """The secret that the dealer of the ideal agreement gives to two clients."""
    return chacha20(handle, 32, struct.pack("<3I", max(u, v), 0, 0), min(u, v))


def channel_keys(setting: Setting, secret: bytes, sender: int, receiver: int) -> ChannelKeys:
    labels = ("seal-enc", "seal-mac", "attested")
    return ChannelKeys(*(setting.derive(secret, label, sender, receiver) for label in labels))


def pair_key(setting: Setting, secret: bytes, u: int, v: int, context: bytes = b"") -> bytes:
    return setting.derive(secret, "pair-mask", min(u, v), max(u, v), context)


def self_key(setting: Setting, seed: bytes, client: int) -> bytes:
    return setting.derive(seed, "self-mask", client)


def mask(key: bytes, length: int) -> list[int]:
    """Words of the mask of an update, which is segment 0."""
    return to_words(chacha20(key, 4 * length))


def add(total: list[int], sign: int, words: list[int], bits: int = 32) -> list[int]:
    return [(a + sign * b) % 2**bits for a, b in zip(total, words, strict=True)]


# ---- the graph ----------------------------------------------------------------------------------


def offsets(n: int, k: int) -> list[int]:
    near = list(range(1, k // 2 + 1))
    return near + [n // 2] * (k % 2) + [n - distance for distance in reversed(near)]


def ring_order(setting: Setting) -> list[int]:
    """The clients in the order in which they stand on the ring."""
    n = setting.n
    if setting.k == n - 1:
        return list(setting.clients)
    words = to_words(chacha20(setting.session_id, 8 * n))
    return sorted(setting.clients, key=lambda client: words[2 * client - 2 : 2 * client])


def neighbours_on(order: list[int], k: int) -> dict[int, list[int]]:
    """By client, the neighbour in each of its slots."""
    n = len(order)
    found = {}
    for position, client in enumerate(order):
        found[client] = [order[(position + distance) % n] for distance in offsets(n, k)]
    return dict(sorted(found.items()))


# ---- messages -----------------------------------------------------------------------------------


def header(setting: Setting, sender: int, receiver: int) -> bytes:
    return struct.pack(">IQII", VERSION, setting.round_id, sender, receiver)


def seal(setting, keys: ChannelKeys, plaintext: list[int], sender: int, receiver: int) -> Sealed:
    ciphertext = xor(to_bytes(plaintext), chacha20(keys.encryption, 4 * len(plaintext)))
    signed = header(setting, sender, receiver) + ciphertext
    return Sealed(ciphertext, hmac.digest(keys.authentication, signed, "sha256"))


def unseal(setting, keys: ChannelKeys, sealed: Sealed, sender: int, receiver: int):
    """The plaintext, or None where the tag is wrong."""
    signed = header(setting, sender, receiver) + sealed.ciphertext
    if not hmac.compare_digest(hmac.digest(keys.authentication, signed, "sha256"), sealed.tag):
        return None
    stream = chacha20(keys.encryption, len(sealed.ciphertext))
    return to_words(xor(sealed.ciphertext, stream))


def survivors_digest(setting: Setting, survivors) -> bytes:
    flags = "".join("1" if client in survivors else "0" for client in setting.clients)
    flags = flags.ljust(-(-setting.n // 8) * 8, "0")
    packed = int(flags, 2).to_bytes(len(flags) // 8, "big")
    return hashlib.sha256(setting.session_id + packed).digest()


class Round(NamedTuple):
    """All messages of a round, and at its end the sum; None where the server failed."""

    setting: Setting
    advertised: dict[int, tuple[bytes, bytes]]
    neighbours: dict[int, list[int]]
    entries: dict[tuple[int, int], tuple[bytes, bytes]]
    sealed: dict[tuple[int, int], Sealed]
    uploads: dict[int, list[int]]
    attested: dict[tuple[int, int], bytes]
    revealed: dict[tuple[int, int], list[int]]
    total: list[int] | None

    @property
    def survivors(self):
        return set(self.uploads)

    @property
    def shared(self):
        return {sender for sender, _ in self.sealed}


def run(setting: Setting, inputs: Mapping[int, list[int]], lost: Mapping[int, str]) -> Round:
    """A round in which ``lost`` names the first stage that a client misses.

    Nobody refuses: that enough clients are left is the caller's to see to.
    """

    def alive(stage):
        ends = {client: STAGES.index(lost[client]) for client in lost}
        return [c for c in setting.clients if ends.get(c, len(STAGES)) > STAGES.index(stage)]

    context = setting.contexts or (b"",) * setting.n
    keys = {client: join(setting, client) for client in setting.clients}
    advertised = {
        u: (public_key(keys[u].channel), public_key(keys[u].recovery)) for u in alive("advertise")
    }
    setting = setting.advertised(advertised)
    neighbours = neighbours_on(ring_order(setting), setting.k)

    # The dealer, whom X25519 replaces. Entries of whoever is gone are of no use to anybody.
    entries = {}
    for u, peers in neighbours.items():
        for slot, v in enumerate(peers):
            secrets = (keys[u].channel, keys[u].recovery)
            entries[u, v] = tuple(
                xor(edge(handle, u, v), pad(secret, slot))
                for handle, secret in zip(setting.agreement, secrets)
            )

    # Every client opens its own entries, deals its shares and seals them.
    def agreed(u, v, kind):
        secret = keys[u].channel if kind == 0 else keys[u].recovery
        return xor(entries[u, v][kind], pad(secret, neighbours[u].index(v)))

    def channel(own, sender, receiver):
        peer = receiver if own == sender else sender
        return channel_keys(setting, agreed(own, peer, 0), sender, receiver)

    sealed = {}
    for u in alive("share"):
        constants = to_chunks(keys[u].self_seed) + to_chunks(keys[u].recovery)
        rows = coefficients(keys[u].sharing, setting.threshold, len(constants))
        for slot, v in enumerate(neighbours[u]):
            if v in advertised:
                share = evaluate(constants, rows, slot + 1)
                sealed[u, v] = seal(setting, channel(u, u, v), share, u, v)
    shared = {u for u, _ in sealed}

    # Receivers open them, and mask.
    held, uploads = {}, {}
    for (u, v), message in sealed.items():
        if v in shared:
            held[u, v] = unseal(setting, channel(v, u, v), message, u, v)
            assert held[u, v] is not None
    for u in alive("upload"):
        words = add(inputs[u], 1, mask(self_key(setting, keys[u].self_seed, u), len(inputs[u])))
        for v in neighbours[u]:
            if v in shared:
                key = pair_key(setting, agreed(u, v, 1), u, v, context[u - 1])
                words = add(words, 1 if v < u else -1, mask(key, len(words)))
        uploads[u] = [word % 2**setting.bits for word in words]

    # Attestations to all neighbours that survived, then one share of each neighbour.
    digest = survivors_digest(setting, uploads)
    attested, revealed = {}, {}
    if setting.consistency:
        for u in alive("attest"):
            for v in neighbours[u]:
                if v in uploads:
                    key = channel(u, u, v).attestation
                    attested[u, v] = hmac.digest(key, digest, "sha256")
    for u in alive("unmask"):
        for v in neighbours[u]:
            if v in shared:
                half = held[v, u][:CHUNKS] if v in uploads else held[v, u][CHUNKS:]
                revealed[u, v] = half

    result = Round(
        setting, advertised, neighbours, entries, sealed, uploads, attested, revealed, None
    )
    return result._replace(total=recover(result))


def recover(view: Round) -> list[int] | None:
    """What the server computes from messages alone."""
    setting, context = view.setting, view.setting.contexts or (b"",) * view.setting.n
    length = len(next(iter(view.uploads.values())))
    total = [0] * length
    for words in view.uploads.values():
        total = add(total, 1, words)

    def rebuilt(owner):
        points = {v: slot + 1 for slot, v in enumerate(view.neighbours[owner])}
        shares = {points[u]: s for (u, v), s in view.revealed.items() if v == owner}
        return rebuild(shares, setting.threshold)

    for owner in view.shared:
        exposed = [v for v in view.neighbours[owner] if v in view.survivors]
        if owner in view.survivors:
            seed = rebuilt(owner)
            if seed is None:
                return None
            total = add(total, -1, mask(self_key(setting, seed, owner), length))
        elif exposed:
            secret = rebuilt(owner)
            if secret is None:
                return None
            for v in exposed:
                slot = view.neighbours[owner].index(v)
                shared = xor(view.entries[owner, v][1], pad(secret, slot))
                key = pair_key(setting, shared, owner, v, context[v - 1])
                total = add(total, -1 if owner < v else 1, mask(key, length))
    return [word % 2**setting.bits for word in total]


# ---- the vectors --------------------------------------------------------------------------------

COMMENT = (
    "Rounds of SecAgg by tests/protocols/reference.py: hashlib, hmac and OpenSSL's ChaCha20. Keys, "
    "seeds, ciphertexts, tags and words in hexadecimal, words and elements of GF(2^31 - 1) as "
    "four bytes, little-endian. Clients count from 1, messages are by sender and receiver. The "
    "context of a client is the digest of its model."
)
LENGTH = 70


def inputs_of(n: int, length: int, limit: int) -> dict[int, list[int]]:
    """Arbitrary integers of both signs, up to a limit."""
    found = {}
    for client in range(1, n + 1):
        words = to_words(chacha20(bytes([client]) * 32, 4 * length))
        found[client] = [word % (2 * limit + 1) - limit for word in words]
    return found


def complete_round(round_id: int = 7) -> Round:
    """Four clients, of which the third is lost before it uploads; all have one model."""
    model = hashlib.sha256(b"a model").digest()
    setting = Setting.of_seed(
        to_bytes([1, 0, 0, 0, 0, 0, 0, 0]), 4, round_id, threshold=2, contexts=(model,) * 4
    )
    return run(setting, inputs_of(4, LENGTH, 2**15), {3: "upload"})


def sparse_round() -> Round:
    """Six clients on a graph of degree four, in a ring of 20 bits; the second is lost."""
    seed = to_bytes([2, 0, 0, 0, 0, 0, 0, 0])
    setting = Setting.of_seed(seed, 6, 2**32 - 1, threshold=3, degree=4, bits=20)
    return run(setting, inputs_of(6, LENGTH, 2**15), {2: "upload"})


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

    def hexes(values):
        return [value.hex() for value in values]

    return {
        "threshold": setting.threshold,
        "degree": setting.degree,
        "ring_bits": setting.bits,
        "consistency": setting.consistency,
        "round_id": setting.round_id,
        "public_seed": setting.public_seed.hex(),
        "session_id": setting.session_id.hex(),
        "secrets": hexes(setting.secrets),
        "agreement": hexes(setting.agreement),
        "contexts": setting.contexts and hexes(setting.contexts),
        "inputs": by_client(inputs, lambda x: to_bytes(i % 2**setting.bits for i in x).hex()),
        "advertise": by_client(round_.advertised, hexes),
        "neighbours": by_client(round_.neighbours, list),
        "entries": by_pair(round_.entries, hexes),
        "share": by_pair(round_.sealed, hexes),
        "upload": by_client(round_.uploads, lambda words: to_bytes(words).hex()),
        "attest": by_pair(round_.attested, bytes.hex),
        "unmask": by_pair(round_.revealed, lambda share: to_bytes(share).hex()),
        "total": to_bytes(round_.total or []).hex(),
    }


def flipped(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]


def negatives() -> list[dict[str, Any]]:
    """Messages of the complete round that must not be accepted, and by which rule."""
    right, other = complete_round(), complete_round(8)
    ciphertext, tag = right.sealed[2, 1]

    def sealed(what, message):
        row = {"what": what, "stage": "share", "sender": 2, "receiver": 1}
        return row | {"message": [part.hex() for part in message], "refused_by": "sealed-share"}

    other_set = run(
        right.setting, inputs_of(4, LENGTH, 2**15), {}
    )  # the same round, had nobody been lost
    share = right.revealed[2, 3]
    return [
        sealed("a bit of the tag is flipped", (ciphertext, flipped(tag))),
        sealed("a bit of the ciphertext is flipped", (flipped(ciphertext), tag)),
        sealed("sent by 3", right.sealed[3, 1]),
        sealed("reflected: sent by 1 to 2", right.sealed[1, 2]),
        sealed("replayed from round 8", other.sealed[2, 1]),
        {
            "what": "a word on another set of survivors",
            "stage": "attest",
            "sender": 2,
            "receiver": 1,
            "message": other_set.attested[2, 1].hex(),
            "refused_by": "few-attestations",
        },
        {
            "what": "the recovery secret's share of 3, off by one",
            "stage": "unmask",
            "sender": 2,
            "receiver": "server",
            "owner": 3,
            "message": to_bytes([(share[0] + 1) % PRIME, *share[1:]]).hex(),
            "refused_by": "the server",
        },
    ]


def vectors() -> dict[str, Any]:
    return {
        "comment": COMMENT,
        "complete": {"seed": to_bytes([1] + [0] * 7).hex()}
        | shown(complete_round(), inputs_of(4, LENGTH, 2**15)),
        "sparse": {"seed": to_bytes([2] + [0] * 7).hex()}
        | shown(sparse_round(), inputs_of(6, LENGTH, 2**15)),
        "negative": negatives(),
    }


if __name__ == "__main__":
    PATH.write_text(json.dumps(vectors(), indent=1) + "\n")
