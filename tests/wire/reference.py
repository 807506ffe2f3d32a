"""The wire format once more, from ``docs/wire.md``: integers, bytes and ``hmac`` alone.

``python -m tests.wire.reference`` writes ``tests/vectors/wire_v1.json`` anew.
"""

import hashlib
import hmac
import json
import pathlib

PATH = pathlib.Path(__file__).parents[1] / "vectors" / "wire_v1.json"
PRIME = 2**31 - 1
KINDS = ("hello", "advertise", "key-list", "share", "upload", "survivors", "attest", "unmask")
# Where each field of the header begins.
OFFSETS = {
    "magic": 0,
    "version": 4,
    "kind": 6,
    "session": 8,
    "round": 40,
    "sender": 48,
    "receiver": 52,
    "body": 56,
}
HEADER_BYTES, TAG_BYTES = 64, 32


def stream(elements, bits):
    """Elements of so many bits as one large little-endian integer."""
    number = sum(int(element) << (index * bits) for index, element in enumerate(elements))
    return number.to_bytes((len(elements) * bits + 7) // 8, "little")


def body(fields):
    return b"".join(stream(field["elements"], field["bits"]) for field in fields)


def header(one, body_bytes):
    return (
        b"fjag"
        + (1).to_bytes(2, "big")
        + KINDS.index(one["kind"]).to_bytes(2, "big")
        + bytes.fromhex(one["session"])
        + one["round"].to_bytes(8, "big")
        + one["sender"].to_bytes(4, "big")
        + one["receiver"].to_bytes(4, "big")
        + body_bytes.to_bytes(8, "big")
    )


def tagged(content, key):
    return content + hmac.new(bytes.fromhex(key), content, hashlib.sha256).digest()


def frame(one):
    """The frame of a row of the vectors."""
    content = body(one["fields"])
    return tagged(header(one, len(content)) + content, one["key"])


# ---- the vectors --------------------------------------------------------------------------------

NUM_CLIENTS, DEGREE, LENGTH, PIECE, BITS = 3, 2, 5, 3, 20


def field(name, shape, bits=32, below=None):
    return {"name": name, "shape": list(shape), "bits": bits, "below": below or 2**bits}


def messages():
    """By protocol and kind the type of the message, its fields, and which ways it goes."""
    n, k, d = NUM_CLIENTS, DEGREE, LENGTH
    key_list = [field(".present", [n], 1), field(".signatures", [n, 64], 8)]
    signature = field(".signature", [64], 8)
    survivors = ("Survivors", [field(".flags", [n], 1)], "down")
    yield from [
        ("plain", "hello", "tuple", [], "up"),
        ("plain", "upload", "Upload", [field(".words", [d])], "up"),
        (
            "secagg",
            "advertise",
            "SignedKeys",
            [field(".keys.channel", [8]), field(".keys.mask", [8]), signature],
            "up",
        ),
        (
            "secagg",
            "key-list",
            "KeyList",
            [
                key_list[0],
                field(".keys.channel", [n, 8]),
                field(".keys.mask", [n, 8]),
                key_list[1],
            ],
            "down",
        ),
        (
            "secagg",
            "share",
            "SealedShares",
            [
                field(".sealed.ciphertext", [k, 18]),
                field(".sealed.tag", [k, 8]),
                field(".sent", [k], 1),
            ],
            "both",
        ),
        ("secagg", "upload", "Upload", [field(".words", [d], BITS)], "up"),
        ("secagg", "survivors", *survivors),
        (
            "secagg",
            "attest",
            "Attestations",
            [field(".tags", [k, 8]), field(".sent", [k], 1)],
            "both",
        ),
        (
            "secagg",
            "unmask",
            "RevealedShares",
            [field(".shares", [k, 9], 32, PRIME), field(".sent", [k], 1)],
            "up",
        ),
        ("light-secagg", "advertise", "SignedKeys", [field(".keys", [8]), signature], "up"),
        (
            "light-secagg",
            "key-list",
            "KeyList",
            [key_list[0], field(".keys", [n, 8]), key_list[1]],
            "down",
        ),
        (
            "light-secagg",
            "share",
            "CodedShares",
            [
                field(".sealed.ciphertext", [n, PIECE]),
                field(".sealed.tag", [n, 8]),
                field(".sent", [n], 1),
            ],
            "both",
        ),
        ("light-secagg", "upload", "Upload", [field(".words", [d], 31, PRIME)], "up"),
        ("light-secagg", "survivors", *survivors),
        (
            "light-secagg",
            "unmask",
            "CodedSum",
            [field(".words", [PIECE], 31, PRIME), field(".sent", [], 1)],
            "up",
        ),
    ]


def elements(one, label):
    """Arbitrary elements of a field; the first is the largest that there is."""
    count = 1
    for size in one["shape"]:
        count *= size
    digests = [hashlib.sha256(f"{label} {i}".encode()).digest() for i in range(count)]
    drawn = [int.from_bytes(digest[:8], "big") % one["below"] for digest in digests]
    return [one["below"] - 1, *drawn[1:]]


def positive():
    for protocol, kind, message, fields, ways in messages():
        for way in ("up", "down") if ways == "both" else (ways,):
            name = f"{protocol} {kind} {way}"
            filled = [one | {"elements": elements(one, name + one["name"])} for one in fields]
            row = {
                "name": name,
                "protocol": protocol,
                "message": message,
                "kind": kind,
                "session": hashlib.sha256(b"session").hexdigest(),
                "round": 2**32 - 1 if kind == "upload" else 7,
                "sender": 2 if way == "up" else 0,
                "receiver": 0 if way == "up" else 2,
                "key": hashlib.sha256(f"link {protocol}".encode()).hexdigest(),
                "fields": filled,
            }
            yield row | {"frame": frame(row).hex()}


def negative(rows):
    """Frames that are refused in the place of a right one, and why."""
    rows = {row["name"]: row for row in rows}

    def refused(of, reason, data):
        return {"of": of, "reason": reason, "frame": data.hex()}

    def with_header(row, name, value):
        """Authentic, with another value in one field of the header."""
        data = bytearray.fromhex(row["frame"])[:-TAG_BYTES]
        data[OFFSETS[name] : OFFSETS[name] + len(value)] = value
        return tagged(bytes(data), row["key"])

    up, down = rows["secagg attest up"], rows["secagg attest down"]
    right = bytes.fromhex(up["frame"])
    yield refused(up["name"], "length", b"")
    yield refused(up["name"], "length", right[:-1])
    yield refused(up["name"], "length", right + b"\0")
    yield refused(up["name"], "length", bytes.fromhex(rows["secagg share up"]["frame"]))
    for name, value in {
        "magic": b"fjah",
        "version": (2).to_bytes(2, "big"),
        "kind": (7).to_bytes(2, "big"),
        "session": bytes(32),
        "round": (8).to_bytes(8, "big"),
        "sender": (3).to_bytes(4, "big"),
        "receiver": (1).to_bytes(4, "big"),
        "body": (1).to_bytes(8, "big"),
    }.items():
        yield refused(up["name"], name, with_header(up, name, value))
    # Its own frame back, and that of the other direction.
    yield refused(down["name"], "sender", right)
    for place in (HEADER_BYTES, len(right) - TAG_BYTES - 1, len(right) - TAG_BYTES, len(right) - 1):
        flipped = bytearray(right)
        flipped[place] ^= 1
        yield refused(up["name"], "tag", bytes(flipped))
    yield refused(up["name"], "tag", tagged(right[:-TAG_BYTES], "00" * 32))
    # Authentic, but nothing that a field holds.
    for name, place, value, reason in [
        ("secagg attest up", -1, 0b100, "bits"),
        ("secagg survivors down", 0, 0b1000, "bits"),
        ("secagg upload up", -1, 0x10, "bits"),
        ("light-secagg upload up", -1, 0x80, "bits"),
        ("light-secagg unmask up", -1, 0b10, "bits"),
    ]:
        row = rows[name]
        content = bytearray(body(row["fields"]))
        content[place] |= value
        data = tagged(header(row, len(content)) + content, row["key"])
        yield refused(name, reason, data)
    for name, value in [
        ("secagg unmask up", PRIME),
        ("secagg unmask up", 2**32 - 1),
        ("light-secagg upload up", PRIME),
        ("light-secagg unmask up", PRIME),
    ]:
        row = rows[name]
        first, *others = row["fields"]
        wrong = first | {"elements": [*first["elements"][:-1], value]}
        yield refused(name, "element", frame(row | {"fields": [wrong, *others]}))


def vectors():
    rows = list(positive())
    return {
        "comment": "Frames by tests/wire/reference.py, as docs/wire.md specifies them. Keys, "
        "sessions and frames in hexadecimal; the elements of a field in row-major order. Of the "
        f"round of {NUM_CLIENTS} clients, {DEGREE} neighbours, {LENGTH} words of {BITS} bits "
        f"under SecAgg, and coded vectors of {PIECE}. Each of the frames in refused is refused in "
        "the place of the one that it names; reason is what is wrong with it.",
        "frames": rows,
        "refused": list(negative(rows)),
    }


if __name__ == "__main__":
    PATH.write_text(json.dumps(vectors(), indent=1) + "\n")
