"""Messages of any shape for the tests of the wire, their headers, and mutations of frames."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import fedjax_agg as fa
from fedjax_agg.symmetric.seal import Sealed
from fedjax_agg.wire import (
    Attestations,
    CodedShares,
    CodedSum,
    Header,
    PublicKeys,
    RevealedShares,
    SealedShares,
    Upload,
)

SESSION, KEY = bytes(range(32)), bytes(range(100, 132))
# Kinds by what goes up, and down.
UP = {"hello", "advertise", "share", "upload", "attest", "unmask"}
DOWN = {"key-list", "share", "survivors", "attest"}


def words(*shape):
    return jax.ShapeDtypeStruct(shape, np.uint32)


def flags(*shape):
    return jax.ShapeDtypeStruct(shape, np.bool_)


def secagg(k, length):
    """By stage what one client with k neighbours sends."""
    return {
        "advertise": PublicKeys(words(8), words(8)),
        "share": SealedShares(Sealed(words(k, 18), words(k, 8)), flags(k)),
        "upload": Upload(words(length)),
        "attest": Attestations(words(k, 8), flags(k)),
        "unmask": RevealedShares(words(k, 9), flags(k)),
    }


def light_secagg(n, piece, length):
    """By stage what one of n clients sends whose coded vectors have so many elements."""
    return {
        "advertise": words(8),
        "share": CodedShares(Sealed(words(n, piece), words(n, 8)), flags(n)),
        "upload": Upload(words(length)),
        "attest": Attestations(words(n, 8), flags(n)),
        "unmask": CodedSum(words(piece), flags()),
    }


def sent_by(protocol, num_clients, length):
    """By stage what one client sends, from the protocol itself: traced, not run."""

    def play(updates):
        session = fa.simulated_session(fa.fixed_seed(0), num_clients=num_clients)
        codec = fa.FixedPoint(clip=1.0, levels=1, max_levels=1)
        return fa.transcript(updates, session, codec=codec, protocol=protocol).stages

    def row(x):
        return jax.ShapeDtypeStruct(x.shape[1:], x.dtype)

    updates = jax.ShapeDtypeStruct((num_clients, length), jnp.float32)
    stages = jax.eval_shape(play, updates)
    return {name: jax.tree.map(row, mail.outboxes) for name, mail in stages.items()}


def any_message(layout, rng):
    """A message with arbitrary elements, the smallest and the largest among them."""

    def array(field):
        elements = rng.integers(0, field.below, field.shape, np.uint64)
        ends = elements.reshape(-1)[:2]
        ends[:] = [field.below - 1, 0][: ends.size]
        return elements.astype(field.dtype)

    return jax.tree.map(array, layout)


def header_of(kind, up=True, client=2, round_id=7, session=SESSION):
    sender, receiver = (client, 0) if up else (0, client)
    return Header(kind, session, round_id, sender, receiver)


def same(one, other):
    """Whether two messages are the same, in structure, types, shapes and elements."""
    if jax.tree.structure(one) != jax.tree.structure(other):
        return False
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other))
    return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs)


class Target(NamedTuple):
    """A right frame, and what its receiver knows before it comes."""

    frame: bytes
    layout: Any
    header: Header
    key: bytes


@dataclasses.dataclass
class Outcome:
    """What became of mutated frames."""

    frames: int = 0
    accepted: int = 0
    crashed: int = 0


def try_frame(unpack, target, frame, outcome):
    """Counts what ``unpack`` makes of a frame that is not that of its target."""
    outcome.frames += 1
    try:
        unpack(frame, *target[1:])
    except ValueError:
        return
    except Exception:
        outcome.crashed += 1
        return
    outcome.accepted += 1


# Mutations: (random, frame, another frame) -> frame.


def flip_bits(rng, frame, other):
    data = bytearray(frame)
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return data


def set_bytes(rng, frame, other):
    data = bytearray(frame)
    for _ in range(rng.randint(1, 4)):
        data[rng.randrange(len(data))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    return data


def delete(rng, frame, other):
    begin = rng.randrange(len(frame))
    return frame[:begin] + frame[begin + rng.randint(1, 40) :]


def insert(rng, frame, other):
    begin = rng.randint(0, len(frame))
    return frame[:begin] + rng.randbytes(rng.randint(1, 40)) + frame[begin:]


def move(rng, frame, other):
    """A slice of the frame to another place, over what is there."""
    begin, place, size = rng.randrange(len(frame)), rng.randrange(len(frame)), rng.randint(1, 40)
    piece = frame[begin : begin + size][: len(frame) - place]
    return frame[:place] + piece + frame[place + len(piece) :]


def splice(rng, frame, other):
    """The beginning of one frame and the end of another, often of the first one's length."""
    cut = rng.randint(0, len(frame))
    end = other[len(other) - (len(frame) - cut) :] if rng.random() < 0.5 else other[cut:]
    return frame[:cut] + end


def replace(rng, frame, other):
    """Another right frame."""
    return other


def resize(rng, frame, other):
    size = rng.randint(0, 2 * len(frame))
    return (frame + bytes(len(frame)))[:size]


def random_bytes(rng, frame, other):
    """Nothing but noise, or noise after the header, of the right length."""
    kept = min(rng.choice((0, 8, 64, len(frame) // 2)), len(frame))
    return frame[:kept] + rng.randbytes(len(frame) - kept)


def swap_ids(rng, frame, other):
    """Sender and receiver the other way round."""
    return frame[:48] + frame[52:56] + frame[48:52] + frame[56:]


MUTATIONS = (
    flip_bits,
    set_bytes,
    delete,
    insert,
    move,
    splice,
    replace,
    resize,
    random_bytes,
    swap_ids,
)


def mutated(rng, targets, count):
    """So many targets, each with a frame that is not the right one."""
    while count:
        target, other = rng.choice(targets), rng.choice(targets)
        frame = rng.choice(MUTATIONS)(rng, target.frame, other.frame)
        if rng.random() < 0.1:
            frame = rng.choice(MUTATIONS)(rng, bytes(frame) or b"\0", other.frame)
        if frame != target.frame:
            count -= 1
            yield target, frame
