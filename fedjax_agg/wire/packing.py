"""A message as a frame and back: a header, the packed fields, and a tag over both.

A frame is taken only if it is the frame of some message under the header that the receiver
expects: nothing in it is trusted, and no field is parsed before all of it is authentic.
``docs/wire.md`` specifies every byte.
"""

import hashlib
import hmac
import struct
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_agg import _check
from fedjax_agg.symmetric.key_schedule import WIRE_VERSION
from fedjax_agg.wire.bits import pack_bits, unpack_bits
from fedjax_agg.wire.layout import Field

MAGIC = b"fjag"
# What a frame holds, and its number in the header.
KINDS = {
    "hello": 0,
    "advertise": 1,
    "key-list": 2,
    "share": 3,
    "upload": 4,
    "survivors": 5,
    "attest": 6,
    "unmask": 7,
}
# The id of the server; clients count from 1.
SERVER = 0
KEY_BYTES = TAG_BYTES = 32
_SESSION_BYTES = 32
# Magic, version, kind, session, round, sender, receiver, length of the body.
_HEADER = struct.Struct(f">4sHH{_SESSION_BYTES}sQIIQ")
_HEADER_NAMES = (
    "magic",
    "version",
    "kind",
    "session",
    "round",
    "sender",
    "receiver",
    "body length",
)
# What every frame has besides its body.
OVERHEAD_BYTES = _HEADER.size + TAG_BYTES


class Header(NamedTuple):
    """Which message of which round a frame is.

    Attributes:
        kind: one of ``KINDS``.
        session: the public seed of the session: uint32[8], or the same as 32 bytes, little-endian.
        round_id: the number of the round.
        sender: the id of a client, or ``SERVER``.
        receiver: likewise.

    Example:
        >>> Header("upload", bytes(32), round_id=7, sender=3, receiver=SERVER).sender
        3
    """

    kind: str
    session: Any
    round_id: Any
    sender: Any
    receiver: Any


def frame_bytes(layout: Any) -> int:
    """The length of a frame: what a receiver reads from a link before it calls ``unpack``.

    Args:
        layout: that of its message.

    Example:
        >>> from fedjax_agg.wire import Survivors, layout_of
        >>> frame_bytes(layout_of(Survivors(np.ones(10, bool))))
        98
    """
    return OVERHEAD_BYTES + sum(field.num_bytes for field in jax.tree.leaves(layout))


def pack(message: Any, layout: Any, header: Header, key: bytes) -> bytes:
    """The frame of a message.

    Args:
        message: arrays of JAX or NumPy.
        layout: the same with a ``Field`` in the place of each, from ``layout_of``.
        header: which message it is.
        key: 32 bytes, the secret of the link that the frame travels.

    Returns:
        ``frame_bytes(layout)`` bytes.

    Raises:
        ValueError: a message of another form, an element that its field does not hold, a wrong
            header or key.

    Formal Guarantees:
        Who does not hold the key finds no frame that ``unpack`` takes but those that a holder has
        made, as far as HMAC-SHA256 cannot be forged: about 2^-256 a try. A frame is bound to its
        version, kind, session, round, sender and receiver, so it is refused in every other place,
        and back at its sender. A message has one frame, and no two messages of a layout share one.
        **Not given**: secrecy: what must be hidden is masked or sealed before. The same frame
        twice in its own place: a receiver takes one of each kind. Evidence for others: both ends
        hold the key. Who of several holds it: a key is for **one link**, and the ids in a header
        are what its holders claim.

    Example:
        >>> from fedjax_agg.wire import Survivors, layout_of
        >>> survivors = Survivors(np.array([True, False, True]))
        >>> header = Header("survivors", bytes(32), round_id=7, sender=SERVER, receiver=1)
        >>> frame = pack(survivors, layout_of(survivors), header, key=bytes(32))
        >>> len(frame), frame[:8].hex(" ")
        (97, '66 6a 61 67 00 01 00 05')
    """
    _require_key(key)
    leaves, found = jax.tree.flatten(message)
    structure: Any = jax.tree.structure(layout)
    if found != structure:
        raise _check.error(
            "frame-message",
            f"message of type {type(message).__name__}",
            f"of type {type(layout).__name__} with the arrays of its layout",
        )
    body = [
        _encode(f"message{path}", leaf, field)
        for (path, field), leaf in zip(_named_fields(layout), leaves)
    ]
    parts = [_header_bytes(header, sum(len(part) for part in body)), *body]
    tag = hmac.new(key, digestmod=hashlib.sha256)
    for part in parts:
        tag.update(part)
    return b"".join([*parts, tag.digest()])


def unpack(frame: Any, layout: Any, header: Header, key: bytes) -> Any:
    """The message of a frame, or an error.

    Length, header and tag are compared, in this order, with what the receiver expects; only then
    are fields parsed. What passes is what ``pack`` gives for the message that is returned, byte
    for byte.

    Args:
        frame: what arrived: bytes, a bytearray or a memoryview.
        layout: of the message that the receiver waits for.
        header: of that message, as the receiver knows it from the state of its round.
        key: 32 bytes, the secret of the link that the frame came by.

    Returns:
        The message, of NumPy arrays.

    Raises:
        ValueError: any other frame. The text names what was wrong, and shows neither keys nor
            contents.

    Formal Guarantees:
        Those of ``pack``. The tag is compared without an early exit.

    Example:
        >>> from fedjax_agg.wire import Survivors, layout_of
        >>> survivors = Survivors(np.array([True, False, True]))
        >>> layout, key = layout_of(survivors), bytes(32)
        >>> header = Header("survivors", bytes(32), round_id=7, sender=SERVER, receiver=1)
        >>> unpack(pack(survivors, layout, header, key), layout, header, key).flags.tolist()
        [True, False, True]
    """
    _require_key(key)
    frame = _bytes(frame)
    length = frame_bytes(layout)
    expected = _header_bytes(header, length - OVERHEAD_BYTES)
    if len(frame) != length:
        raise _check.error("frame", f"the length {len(frame)} of frame", f"{length}")
    if frame[: _HEADER.size] != expected:
        raise _wrong_header(frame[: _HEADER.size], expected)
    signed, tag = memoryview(frame)[:-TAG_BYTES], frame[-TAG_BYTES:]
    if not hmac.compare_digest(tag, hmac.digest(key, signed, "sha256")):
        raise _check.error(
            "frame", "the tag of frame", "that of its header and body under the key of this link"
        )
    leaves, rest = [], signed[_HEADER.size :]
    for path, field in _named_fields(layout):
        leaves.append(_decode(f"frame{path}", rest[: field.num_bytes], field))
        rest = rest[field.num_bytes :]
    return jax.tree.unflatten(jax.tree.structure(layout), leaves)


def sender_of(frame: Any) -> int:
    """Who a frame claims to be from, of which nothing is authentic yet: whose key may open it.

    Args:
        frame: what arrived on a link of which nothing is known: bytes, a bytearray or a memoryview.

    Raises:
        ValueError: less than a header.

    Example:
        >>> header = Header("hello", bytes(32), round_id=7, sender=3, receiver=SERVER)
        >>> sender_of(pack((), (), header, key=bytes(32)))
        3
    """
    frame = _bytes(frame)
    if len(frame) < OVERHEAD_BYTES:
        raise _check.error(
            "frame", f"the length {len(frame)} of frame", f"{OVERHEAD_BYTES} or more"
        )
    return _HEADER.unpack_from(frame)[_HEADER_NAMES.index("sender")]


def _bytes(frame: Any) -> bytes:
    """A frame in memory of its own, so that what is parsed is what was authenticated."""
    if not isinstance(frame, (bytes, bytearray, memoryview)):
        raise _check.error("frame", f"frame of type {_check.shown_type(frame)}", "bytes")
    return bytes(frame)


def _named_fields(layout: Any) -> list[tuple[str, Field]]:
    """The fields, and how each is reached from the message."""
    named = jax.tree_util.tree_leaves_with_path(layout)
    return [(jax.tree_util.keystr(path), field) for path, field in named]


def _encode(name: str, leaf: Any, field: Field) -> bytes | memoryview:
    _check.array("frame-message", field.dtype, field.shape, **{name: leaf})
    elements = np.asarray(leaf).astype(np.uint32, copy=False)
    return pack_bits(elements, field.bits, field.below).data


def _decode(name: str, data: memoryview, field: Field) -> np.ndarray:
    try:
        elements = unpack_bits(data, field.bits, field.size)
    except ValueError as error:
        # The length is that of the field.
        raise _check.error("frame", f"the bits of {name} after its elements", "zero") from error
    if field.below < 2**field.bits and elements.size and elements.max() >= field.below:
        raise _check.error("frame", f"an element of {name}", f"below {field.below}")
    return elements.astype(field.dtype, copy=False).reshape(field.shape)


def _require_key(key: Any) -> None:
    if not isinstance(key, bytes) or len(key) != KEY_BYTES:
        raise _check.error(
            "frame-key", f"key of type {_check.shown_type(key)}", f"{KEY_BYTES} bytes"
        )


def _header_bytes(header: Header, body: int) -> bytes:
    _check.one_of("frame-kind", KINDS, **{"header.kind": header.kind})
    session = header.session
    if not isinstance(session, bytes) or len(session) != _SESSION_BYTES:
        _check.words("frame-session", (8,), **{"header.session": session})
        session = np.asarray(session).astype("<u4").tobytes()
    round_id = _integer("round-id", "header.round_id", header.round_id)
    sender = _integer("identifier", "header.sender", header.sender)
    receiver = _integer("identifier", "header.receiver", header.receiver)
    kind = KINDS[header.kind]
    return _HEADER.pack(MAGIC, WIRE_VERSION, kind, session, round_id, sender, receiver, body)


def _integer(tag: str, name: str, value: Any) -> int:
    """An integer, or an array of one."""
    value = np.asarray(value)[()] if getattr(value, "shape", None) == () else value
    return _check.integer_in(tag, 0, 2**32 - 1, **{name: value})


def _wrong_header(found: bytes, expected: bytes) -> Exception:
    """The error about the first of the header's fields that differs."""
    pairs = zip(_HEADER_NAMES, _HEADER.unpack(found), _HEADER.unpack(expected))
    name, got, wanted = next(pair for pair in pairs if pair[1] != pair[2])
    if name in ("magic", "session"):
        return _check.error("frame", f"the {name} of frame", "the one that is expected")
    return _check.error("frame", f"the {name} {got} of frame", f"{wanted}")
