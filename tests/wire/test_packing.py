"""Frames: there and back, their length, and everything that is refused in their place."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fedjax_agg as fa
from fedjax_agg import wire
from fedjax_agg.arithmetic import M31, Ring
from fedjax_agg.arithmetic.m31 import PRIME
from fedjax_agg.wire import (
    Header,
    KeyList,
    Survivors,
    Upload,
    frame_bytes,
    layout_of,
    pack,
    round_layouts,
    sender_of,
    unpack,
)
from fedjax_agg.wire import packing as wire_packing
from tests.wire import frames, reference
from tests.wire.frames import DOWN, KEY, SESSION, UP, any_message, header_of, same

VECTORS = json.loads(reference.PATH.read_text())
SMALL = round_layouts(frames.secagg(k=2, length=5), num_clients=3, group=Ring(20))
CODED = round_layouts(frames.light_secagg(n=3, piece=3, length=5), num_clients=3, group=M31())
OVERHEAD = reference.HEADER_BYTES + reference.TAG_BYTES


def frame_of(kind, layouts=SMALL, key=KEY, **header):
    """A message of a kind, and its frame."""
    message = any_message(layouts[kind], np.random.default_rng(len(kind)))
    return message, pack(message, layouts[kind], header_of(kind, **header), key)


def refusal(frame, kind, layouts=SMALL, key=KEY, **header):
    """The message of the error of a frame that is refused; None of one that is taken."""
    try:
        unpack(frame, layouts[kind], header_of(kind, **header), key)
    except ValueError as error:
        text = str(error)
        assert text.endswith("[frame]")
        assert "\n" not in text
        return text
    return None


# ---- there and back -----------------------------------------------------------------------------


@given(
    st.sampled_from(["plain", "secagg", "light-secagg"]),
    st.integers(2, 9),
    st.integers(1, 70),
    st.integers(1, 32),
    st.integers(0, 2**32 - 1),
)
def test_every_message_of_a_round_comes_back(protocol, n, length, bits, number):
    rng = np.random.default_rng(number)
    k, group = int(rng.integers(1, n)), M31() if protocol == "light-secagg" else Ring(bits)
    outboxes = {
        "plain": {"upload": Upload(frames.words(length))},
        "secagg": frames.secagg(k, length),
        "light-secagg": frames.light_secagg(n, 1 + length // k, length),
    }[protocol]
    layouts = round_layouts(outboxes, num_clients=n, group=group)
    server = set() if protocol == "plain" else {"key-list", "survivors"}
    assert set(layouts) == {"hello", *outboxes} | server
    for kind, layout in layouts.items():
        message = any_message(layout, rng)
        for up in {True} & {kind in UP} | {False} & {kind not in DOWN}:
            header = header_of(kind, up, client=1 + int(rng.integers(n)), round_id=number)
            frame = pack(message, layout, header, KEY)
            assert len(frame) == frame_bytes(layout)
            assert same(unpack(frame, layout, header, KEY), message)
            fields = [
                {"elements": leaf.ravel().tolist(), "bits": field.bits}
                for leaf, field in zip(jax.tree.leaves(message), jax.tree.leaves(layout))
            ]
            row = {"kind": kind, "session": SESSION.hex(), "round": number, "key": KEY.hex()}
            row |= {"sender": header.sender, "receiver": header.receiver, "fields": fields}
            assert frame == reference.frame(row)


def test_arrays_of_jax_and_of_numpy_have_one_frame():
    for kind, layout in SMALL.items():
        message, frame = frame_of(kind)
        assert pack(jax.tree.map(jnp.asarray, message), layout, header_of(kind), KEY) == frame


def test_a_session_by_words_or_bytes_and_numbers_of_either_library():
    message, frame = frame_of("upload")
    words = np.frombuffer(SESSION, np.uint32)
    for session in (words, jnp.asarray(words)):
        for number in (np.uint32, np.int64, jnp.uint32, jnp.int32):
            header = Header("upload", session, number(7), number(2), number(0))
            assert pack(message, SMALL["upload"], header, KEY) == frame
            assert same(unpack(frame, SMALL["upload"], header, KEY), message)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_frame_may_be_any_bytes_and_is_not_changed_by_what_comes_of_it(kind):
    message, right = frame_of("attest")
    frame = kind(right)
    found = unpack(frame, SMALL["attest"], header_of("attest"), KEY)
    if kind is bytearray:
        frame[:] = bytes(len(frame))
    assert same(found, message)
    found.tags[:] = 0
    assert kind is bytearray or frame == right


def test_empty_fields():
    upload = Upload(np.zeros(0, np.uint32))
    layout = layout_of(upload, Ring(20))
    frame = pack(upload, layout, header_of("upload"), KEY)
    assert len(frame) == frame_bytes(layout) == OVERHEAD
    assert same(unpack(frame, layout, header_of("upload"), KEY), upload)


def test_who_a_frame_claims_to_be_from():
    for kind in SMALL:
        for up, sender in ((True, 2), (False, 0)):
            _, frame = frame_of(kind, up=up)
            for form in (bytes, bytearray, memoryview):
                assert sender_of(form(frame)) == sender
    for wrong in (b"", bytes(OVERHEAD - 1), None):
        with pytest.raises(ValueError, match=r"\[frame\]$"):
            sender_of(wrong)


# ---- layouts and lengths ------------------------------------------------------------------------


def body_bytes(layout):
    return frame_bytes(layout) - OVERHEAD


def bitmap(count):
    return -(-count // 8)


@pytest.mark.parametrize("consistency", [True, False])
@pytest.mark.parametrize(("n", "degree", "length", "bits"), [(6, 4, 10, 20), (30, None, 1001, 17)])
def test_secagg_bytes_are_the_cost_and_stated_extras(n, degree, length, bits, consistency):
    group, k = Ring(bits), degree or n - 1
    cost = fa.SecAgg(2, degree, consistency, group=group).cost(length, n)
    layouts = round_layouts(frames.secagg(k, length), num_clients=n, group=group)
    body = {kind: body_bytes(layout) for kind, layout in layouts.items()}
    survivors = cost.bytes_down["attest" if consistency else "unmask"]
    attested = cost.bytes_down["unmask"] if consistency else 32 * k
    extras = {
        ("hello", 0): 0,
        ("advertise", cost.bytes_up["advertise"]): 64,  # the signature
        # Its own two keys back, who is present, and all signatures.
        ("key-list", cost.bytes_down["advertise"]): 64 + bitmap(n) + 64 * n,
        ("share", cost.bytes_up["share"]): bitmap(k),
        ("share", cost.bytes_down["share"]): bitmap(k),
        ("upload", cost.bytes_up["upload"]): 0,
        ("survivors", survivors): 0,
        ("attest", attested): bitmap(k),
        ("unmask", cost.bytes_up["unmask"]): bitmap(k),
    }
    for (kind, counted), extra in extras.items():
        assert body[kind] == counted + extra, kind
    assert {kind for kind, _ in extras} == set(body)


@pytest.mark.parametrize(("n", "privacy", "survivors", "length"), [(6, 1, 4, 10), (30, 9, 20, 777)])
def test_light_secagg_bytes_are_the_cost_and_stated_extras(n, privacy, survivors, length):
    cost = fa.LightSecAgg(privacy, survivors).cost(length, n)
    piece = -(-length // (survivors - privacy))
    layouts = round_layouts(frames.light_secagg(n, piece, length), num_clients=n, group=M31())
    body = {kind: body_bytes(layout) for kind, layout in layouts.items()}
    # A sealed word has 32 bits, where the cost counts elements of 31; and the row of oneself.
    sealed = (n - 1) * (4 * piece - -(-31 * piece // 8)) + 4 * piece + 32
    extras = {
        ("hello", 0): 0,
        ("advertise", cost.bytes_up["advertise"]): 64,
        ("key-list", cost.bytes_down["advertise"]): bitmap(n) + 64 * n + 32,
        ("share", cost.bytes_up["share"]): bitmap(n) + sealed,
        ("share", cost.bytes_down["share"]): bitmap(n) + sealed,
        ("upload", cost.bytes_up["upload"]): 0,
        ("survivors", cost.bytes_down["attest"]): 0,
        ("attest", cost.bytes_up["attest"]): bitmap(n) + 32,
        ("attest", cost.bytes_down["unmask"]): bitmap(n) + 32,
        ("unmask", cost.bytes_up["unmask"]): 1,
    }
    for (kind, counted), extra in extras.items():
        assert body[kind] == counted + extra, kind
    assert {kind for kind, _ in extras} == set(body)


@pytest.mark.parametrize("group", [Ring(1), Ring(20), Ring(32), M31()], ids=str)
def test_an_upload_in_the_clear_is_the_cost(group):
    layouts = round_layouts({"upload": Upload(frames.words(99))}, num_clients=3, group=group)
    assert body_bytes(layouts["upload"]) == fa.Plain(group).cost(99, 3).bytes_up["upload"]
    assert list(layouts) == ["hello", "upload"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("protocol", "sent"),
    [
        (fa.Plain(Ring(20)), {"upload": Upload(frames.words(10))}),
        (fa.SecAgg(3, 4, group=Ring(20)), frames.secagg(4, 10)),
        (fa.SecAgg(3), frames.secagg(5, 10)),
        # Three blocks of a mask of 11 words, one of them for a weight.
        (fa.LightSecAgg(1, 4), frames.light_secagg(6, 4, 10)),
    ],
    ids=["plain", "secagg-plus", "secagg", "light-secagg"],
)
def test_the_messages_here_are_those_of_the_protocols(protocol, sent):
    assert frames.sent_by(protocol, 6, 10) == sent


def test_a_layout_prints_compares_and_hashes_as_what_it_is():
    again = round_layouts(frames.secagg(k=2, length=5), num_clients=3, group=Ring(20))
    assert again == SMALL
    assert hash(SMALL["upload"]) == hash(again["upload"])
    assert SMALL["upload"] != layout_of(Upload(frames.words(5)))
    assert eval(repr(SMALL["survivors"]), {**vars(wire), "dtype": np.dtype}) == SMALL["survivors"]


# ---- refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(SMALL))
def test_every_flipped_bit(kind):
    _, frame = frame_of(kind)
    assert refusal(frame, kind) is None
    for bit in range(8 * len(frame)):
        changed = bytearray(frame)
        changed[bit // 8] ^= 1 << (bit % 8)
        text = refusal(changed, kind)
        part = [name for name, place in reference.OFFSETS.items() if place <= bit // 8][-1]
        part = "tag" if bit // 8 >= reference.HEADER_BYTES else part
        assert text.startswith(f"the {part} "), bit


@pytest.mark.parametrize("kind", sorted(SMALL))
def test_every_other_length(kind):
    _, frame = frame_of(kind)
    lengths = [*range(len(frame)), *range(len(frame) + 1, len(frame) + 40)]
    for length in lengths:
        text = refusal((frame + bytes(40))[:length], kind)
        assert text.startswith(f"the length {length} of frame must be {len(frame)};")


@pytest.mark.parametrize(
    ("expected", "name"),
    [
        ({"session": bytes(32)}, "session"),
        ({"round_id": 8}, "round"),
        ({"client": 1}, "sender"),
        ({"up": False}, "sender"),
        ({"key": bytes(32)}, "tag"),
    ],
)
def test_a_right_frame_of_another_place(expected, name):
    """Replayed in another session or round, of another client, back at its sender, other links."""
    for kind in ("share", "attest"):
        _, frame = frame_of(kind)
        assert refusal(frame, kind) is None
        assert refusal(frame, kind, **expected).startswith(f"the {name} ")


def test_a_frame_of_another_stage():
    """Of the same length, and of every other."""
    same_length = {"share": SMALL["attest"], "attest": SMALL["attest"]}
    _, frame = frame_of("attest", same_length)
    assert refusal(frame, "share", same_length).startswith("the kind 6 of frame must be 3;")
    for kind in SMALL:
        _, frame = frame_of(kind)
        for other in set(SMALL) - {kind}:
            assert refusal(frame, other) is not None


def test_another_version(monkeypatch):
    _, frame = frame_of("upload")
    monkeypatch.setattr(wire_packing, "WIRE_VERSION", 2)
    assert refusal(frame, "upload").startswith("the version 1 of frame must be 2;")
    _, newer = frame_of("upload")
    assert refusal(newer, "upload") is None
    monkeypatch.undo()
    assert refusal(newer, "upload").startswith("the version 2 of frame must be 1;")


@pytest.mark.parametrize("frame", [None, "text", 5, np.zeros(200, np.uint8), [1, 2]])
def test_what_is_no_frame(frame):
    assert "must be bytes" in refusal(frame, "upload")


def retagged(frame, place, value):
    """An authentic frame with another byte in its body, as only a holder of the key makes it."""
    content = bytearray(frame[: -reference.TAG_BYTES])
    content[place] |= value
    return reference.tagged(bytes(content), KEY.hex())


@pytest.mark.parametrize(
    ("kind", "layouts", "value"),
    [
        ("attest", SMALL, 0b100),
        ("share", SMALL, 0x80),
        ("unmask", SMALL, 0b1000),
        ("survivors", SMALL, 0b1000),
        ("upload", SMALL, 0x10),
        ("upload", CODED, 0x08),
        ("upload", CODED, 0x80),
        ("unmask", CODED, 0b10),
    ],
)
def test_an_authentic_frame_with_a_padding_bit(kind, layouts, value):
    _, frame = frame_of(kind, layouts)
    last = len(frame) - reference.TAG_BYTES - 1
    assert refusal(retagged(frame, last, 0), kind, layouts) is None
    text = refusal(retagged(frame, last, value), kind, layouts)
    assert re.match(r"the bits of frame\.\w+ after its elements must be zero;", text)


@pytest.mark.parametrize(
    ("kind", "layouts", "element"),
    [
        ("unmask", SMALL, PRIME),
        ("unmask", SMALL, 2**31),
        ("unmask", SMALL, 2**32 - 1),
        ("unmask", CODED, PRIME),
        ("upload", CODED, PRIME),
    ],
)
def test_an_authentic_frame_with_an_element_that_there_is_not(kind, layouts, element):
    message, _ = frame_of(kind, layouts)
    field, *_ = jax.tree.leaves(layouts[kind])
    first, *others = [leaf.ravel().tolist() for leaf in jax.tree.leaves(message)]
    widths = [field.bits for field in jax.tree.leaves(layouts[kind])]
    first[-1] = element
    rows = [{"elements": e, "bits": b} for e, b in zip([first, *others], widths)]
    row = {"kind": kind, "session": SESSION.hex(), "round": 7, "sender": 2, "receiver": 0}
    frame = reference.frame(row | {"fields": rows, "key": KEY.hex()})
    text = refusal(frame, kind, layouts)
    assert text.startswith("an element of frame.")
    assert f"must be below {PRIME};" in text
    # And nobody packs it.
    wrong = np.array(first, np.uint32).reshape(field.shape)
    (name, *_) = message._fields
    with pytest.raises(ValueError, match=r"\[packed-elements\]$"):
        pack(message._replace(**{name: wrong}), layouts[kind], header_of(kind), KEY)


def test_errors_show_neither_keys_nor_contents():
    """Nor the session, whatever is wrong."""
    secret = bytes(range(200, 232))
    layout = layout_of(Survivors(np.ones(256, bool)))
    message = Survivors(np.unpackbits(np.frombuffer(secret, np.uint8)).astype(bool))
    header = header_of("survivors", session=secret)
    frame = pack(message, layout, header, secret)
    texts = []
    for place in range(len(frame)):
        changed = bytearray(frame)
        changed[place] ^= 0x55
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            unpack(changed, layout, header, secret)
        texts.append(str(caught.value))
    for key in (secret[:31], secret.hex(), bytearray(secret), np.frombuffer(secret, np.uint8)):
        with pytest.raises(ValueError, match=r"\[frame-key\]$") as caught:
            pack(message, layout, header, key)
        texts.append(str(caught.value))
    with pytest.raises(ValueError, match=r"\[frame-session\]$") as caught:
        pack(message, layout, header._replace(session=secret[:31]), secret)
    texts.append(str(caught.value))
    shown = " ".join(texts)
    assert not any(text in shown for text in (secret.hex()[:8], repr(secret[:4])[2:-1], "200"))


# ---- what cannot be packed ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [
        None,
        np.zeros(5, np.uint32),
        (np.zeros(5, np.uint32),),
        Survivors(np.zeros(5, np.uint32)),
        Upload([1, 2, 3, 4, 5]),
        Upload(np.zeros(4, np.uint32)),
        Upload(np.zeros((5, 1), np.uint32)),
        Upload(np.zeros(5, np.int32)),
        Upload(np.zeros(5, bool)),
        Upload("words"),
    ],
    ids=repr,
)
def test_a_message_of_another_form(message):
    with pytest.raises(ValueError, match=r"\[frame-message\]$"):
        pack(message, SMALL["upload"], header_of("upload"), KEY)


def test_an_array_without_a_field():
    for dtype in (np.int32, np.float32, np.uint16, np.uint64):
        with pytest.raises(ValueError, match=r"^message\.flags of type .*\[field-dtype\]$"):
            layout_of(Survivors(jax.ShapeDtypeStruct((3,), dtype)))
    with pytest.raises(ValueError, match=r"\[field-dtype\]$"):
        layout_of(KeyList(np.ones(2, bool), [1, 2], np.zeros((2, 64), np.uint8)))


@pytest.mark.parametrize(
    ("change", "tag"),
    [
        ({"kind": "answer"}, "frame-kind"),
        ({"kind": 4}, "frame-kind"),
        ({"session": bytes(31)}, "frame-session"),
        ({"session": np.zeros(8, np.int32)}, "frame-session"),
        ({"session": None}, "frame-session"),
        ({"round_id": -1}, "round-id"),
        ({"round_id": 2**32}, "round-id"),
        ({"round_id": 0.5}, "round-id"),
        ({"sender": None}, "identifier"),
        ({"receiver": 2**32}, "identifier"),
        ({"receiver": np.ones(2, np.uint32)}, "identifier"),
    ],
)
def test_a_wrong_header(change, tag):
    message, frame = frame_of("upload")
    header = header_of("upload")._replace(**change)
    for call in (
        lambda: pack(message, SMALL["upload"], header, KEY),
        lambda: unpack(frame, SMALL["upload"], header, KEY),
    ):
        with pytest.raises(ValueError, match=rf"^header\..*\[{tag}\]$"):
            call()


# ---- the vectors --------------------------------------------------------------------------------


def layout_of_row(row):
    """The library's layout of a row of the vectors."""
    n, k, d = reference.NUM_CLIENTS, reference.DEGREE, reference.LENGTH
    outboxes, group = {
        "plain": ({"upload": Upload(frames.words(d))}, Ring(32)),
        "secagg": (frames.secagg(k, d), Ring(reference.BITS)),
        "light-secagg": (frames.light_secagg(n, reference.PIECE, d), M31()),
    }[row["protocol"]]
    return round_layouts(outboxes, num_clients=n, group=group)[row["kind"]]


def expected_of_row(row):
    names = ("round", "sender", "receiver")
    header = Header(row["kind"], bytes.fromhex(row["session"]), *(row[name] for name in names))
    return layout_of_row(row), header, bytes.fromhex(row["key"])


def test_the_file_of_vectors_is_the_reference():
    assert reference.vectors() == VECTORS
    assert {row["kind"] for row in VECTORS["frames"]} == set(wire_packing.KINDS)


@pytest.mark.parametrize("row", VECTORS["frames"], ids=lambda row: row["name"])
def test_vectors(row):
    layout, header, key = expected_of_row(row)
    assert type(layout).__name__ == row["message"]
    named = jax.tree_util.tree_leaves_with_path(layout)
    described = [
        {
            "name": jax.tree_util.keystr(path),
            "shape": list(field.shape),
            "bits": field.bits,
            "below": field.below,
        }
        for path, field in named
    ]
    fields = row["fields"]
    assert described == [{name: one[name] for name in described[0]} for one in fields]
    leaves = [
        np.array(one["elements"], field.dtype).reshape(field.shape)
        for one, (_, field) in zip(fields, named)
    ]
    message = jax.tree.unflatten(jax.tree.structure(layout), leaves)
    frame = bytes.fromhex(row["frame"])
    assert pack(message, layout, header, key) == frame
    assert same(unpack(frame, layout, header, key), message)


@pytest.mark.parametrize("row", VECTORS["refused"], ids=lambda row: f"{row['of']}-{row['reason']}")
def test_negative_vectors(row):
    (right,) = [one for one in VECTORS["frames"] if one["name"] == row["of"]]
    text = {
        "bits": r"the bits of frame\.\w+ after its elements must be zero",
        "element": r"an element of frame\.\w+ must be below 2147483647",
    }.get(row["reason"], rf"the {row['reason']} .*of frame must be ")
    with pytest.raises(ValueError, match=rf"^{text}.*\[frame\]$"):
        unpack(bytes.fromhex(row["frame"]), *expected_of_row(right))
