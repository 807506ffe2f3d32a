"""Mutated frames: whatever comes, a ValueError or the message of a right frame."""

import pathlib
import random
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_agg.arithmetic import M31, Ring
from fedjax_agg.wire import bits, pack, packing, round_layouts, unpack
from tests.wire import frames, reference
from tests.wire.frames import DOWN, KEY, UP, Outcome, Target, any_message, header_of, mutated

QUICK, SLOW = 20_000, 10**6


def make_targets():
    """Small frames of every kind and direction, of several rounds and clients, on two links."""
    rng = np.random.default_rng(0)
    layouts = [
        round_layouts(frames.secagg(k=2, length=5), num_clients=3, group=Ring(20)),
        round_layouts(frames.light_secagg(n=2, piece=2, length=5), num_clients=2, group=M31()),
    ]
    found = []
    for of_round, key in zip(layouts, (KEY, bytes(32))):
        for kind, layout in of_round.items():
            for up in (True, False):
                if kind in (UP if up else DOWN):
                    for client, number in ((1, 7), (1, 8), (2, 7)):
                        header = header_of(kind, up, client, number)
                        frame = pack(any_message(layout, rng), layout, header, key)
                        found.append(Target(frame, layout, header, key))
    return found


TARGETS = make_targets()
WITH_BODIES = [target for target in TARGETS if target.header.kind != "hello"]


def attack(unpack, count, seed=0):
    """So many mutated frames: some of right length, some not, some right ones elsewhere."""
    outcome = Outcome()
    for target, frame in mutated(random.Random(seed), TARGETS, count):
        frames.try_frame(unpack, target, frame, outcome)
    return outcome


def attack_with_the_key(unpack, count, seed=0):
    """Authentic frames of arbitrary bodies; what is accepted must be the frame of a message."""
    rng, outcome = random.Random(seed), Outcome()
    for _ in range(count):
        target = rng.choice(WITH_BODIES)
        size = len(target.frame) - reference.TAG_BYTES
        content = bytearray(target.frame[:size])
        for _ in range(rng.randint(1, 3)):
            # The end of a body has padding, and elements of ones are out of the field.
            place = rng.choice((size - 1, rng.randrange(reference.HEADER_BYTES, size)))
            width = rng.randint(1, 5)
            content[place : place + width] = rng.choice((b"\xff", rng.randbytes(1))) * width
        # Overwriting the end makes a body longer, and a few of them stay so.
        content = content if rng.random() < 0.1 else content[:size]
        frame = reference.tagged(bytes(content), target.key.hex())
        outcome.frames += 1
        try:
            message = unpack(frame, *target[1:])
        except ValueError:
            continue
        except Exception:
            outcome.crashed += 1
            continue
        try:
            outcome.accepted += pack(message, *target[1:]) != frame
        except ValueError:
            outcome.accepted += 1
    return outcome


def test_right_frames_pass():
    """The control: what is mutated is taken where it belongs, and nowhere else."""
    outcome = Outcome()
    for target in TARGETS:
        assert pack(unpack(*target), *target[1:]) == target.frame
        for other in TARGETS:
            if other is not target:
                frames.try_frame(unpack, target, other.frame, outcome)
    assert outcome == Outcome(frames=len(TARGETS) * (len(TARGETS) - 1))


def test_mutated_frames():
    assert attack(unpack, QUICK) == Outcome(frames=QUICK)


def test_authentic_frames_of_arbitrary_bodies():
    assert attack_with_the_key(unpack, QUICK // 4) == Outcome(frames=QUICK // 4)


@pytest.mark.slow
def test_a_million_mutated_frames():
    assert attack(unpack, SLOW, seed=1) == Outcome(frames=SLOW)


@pytest.mark.slow
def test_many_authentic_frames_of_arbitrary_bodies():
    assert attack_with_the_key(unpack, SLOW // 20, seed=1) == Outcome(frames=SLOW // 20)


def drawn_frames():
    """Any bytes; or a right frame of which any slice is replaced by any bytes."""
    number = st.integers(0, len(TARGETS) - 1)
    edit = st.tuples(st.integers(0, 600), st.integers(0, 40), st.binary(max_size=40))
    return st.tuples(number, st.one_of(st.binary(max_size=700), st.lists(edit, max_size=4)))


def check_drawn(drawn):
    number, change = drawn
    target = TARGETS[number]
    frame = target.frame if isinstance(change, list) else change
    for begin, size, inserted in change if isinstance(change, list) else ():
        frame = frame[:begin] + inserted + frame[begin + size :]
    outcome = Outcome()
    if frame != target.frame:
        frames.try_frame(unpack, target, frame, outcome)
    assert outcome.accepted == outcome.crashed == 0


@given(drawn_frames())
def test_drawn_frames(drawn):
    check_drawn(drawn)


@pytest.mark.slow
@settings(max_examples=5_000)
@given(drawn_frames())
def test_many_drawn_frames(drawn):
    check_drawn(drawn)


# ---- the controls: what is weaker is found out --------------------------------------------------

COMPARISON = 'if not hmac.compare_digest(tag, hmac.digest(key, signed, "sha256")):'
HALF = COMPARISON.replace("tag, ", "tag[:16], ").replace('"sha256")', '"sha256")[:16]')
ELEMENT = 'raise _check.error("frame", f"an element of {name}", f"below {field.below}")'
MUTANTS = {
    "no tag": (COMPARISON, "if False:", attack),
    "half a tag": (COMPARISON, HALF, attack),
    "no header": ("if frame[: _HEADER.size] != expected:", "if False:", attack),
    "no length": ("if len(frame) != length:", "if False:", attack_with_the_key),
    "no padding": ("if used and stream[-1] >> np.uint8(used):", "if False:", attack_with_the_key),
    "no elements": (ELEMENT, "pass", attack_with_the_key),
}


def mutant(old, new):
    """``unpack`` with one check changed in the source of its two modules."""
    built, found = [], 0
    for module in (bits, packing):
        source = pathlib.Path(module.__file__).read_text()
        found += source.count(old)
        copy = types.ModuleType(module.__name__)
        exec(compile(source.replace(old, new), module.__file__, "exec"), vars(copy))
        built.append(copy)
    assert found == 1
    built[1].unpack_bits = built[0].unpack_bits
    return built[1].unpack


@pytest.mark.parametrize("name", MUTANTS)
def test_an_unpack_that_checks_less_is_found_out(name):
    old, new, attack = MUTANTS[name]
    assert attack(mutant(old, new), 1000).accepted > 0
    assert attack(mutant(old, old), 1000) == Outcome(frames=1000)
