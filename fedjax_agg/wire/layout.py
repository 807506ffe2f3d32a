"""What a message looks like as bytes: a *layout* is the message with a ``Field`` for each array.

Both ends of a link know the layout of what comes next before it comes, from the configuration of
the round. So fields have fixed lengths, and nothing in a message says how long it is.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from fedjax_agg import _check
from fedjax_agg.arithmetic import M31, Group, Ring, m31
from fedjax_agg.wire.bits import packed_size
from fedjax_agg.wire.messages import (
    CodedSum,
    KeyList,
    RevealedShares,
    SignedKeys,
    Survivors,
    Upload,
)

SIGNATURE_BYTES = 64
_BITS = {np.dtype(np.bool_): 1, np.dtype(np.uint8): 8, np.dtype(np.uint32): 32}


@dataclasses.dataclass(frozen=True)
class Field:
    """One array of a message: its elements in row-major order, ``pack_bits`` of them.

    Attributes:
        shape: of the array.
        dtype: bool, uint8 or uint32.
        bits: the width of an element.
        below: every element is smaller.

    Example:
        >>> Field((10,), np.dtype(np.uint32), bits=20, below=2**20).num_bytes
        25
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    bits: int
    below: int

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """The length when packed."""
        return packed_size(self.size, self.bits)


def layout_of(message: Any, group: Group = Ring(32)) -> Any:
    """The layout of all messages like this one.

    Flags become bitmaps, uint8 bytes, uint32 words of 32 bits. The words of ``Upload`` and
    ``CodedSum`` are elements of the group, each of the group's bits. Revealed shares are words of
    32 bits below 2^31 - 1.

    Args:
        message: a pytree of arrays, or of ``jax.ShapeDtypeStruct``.
        group: that of the protocol.

    Returns:
        The message with a ``Field`` in the place of each array.

    Raises:
        ValueError: an array of another type.

    Example:
        >>> upload = Upload(jax.ShapeDtypeStruct((10,), np.uint32))
        >>> layout_of(upload, Ring(20)).words.num_bytes
        25
    """
    wrong = _check.first_leaf("message", message, lambda x: getattr(x, "dtype", None) not in _BITS)
    if wrong is not None:
        name, leaf = wrong
        raise _check.error(
            "field-dtype", f"{name} of type {_check.shown_type(leaf)}", "bool, uint8 or uint32"
        )
    layout: Any = jax.tree.map(_field, message)
    if isinstance(message, (Upload, CodedSum)):
        below = m31.PRIME if isinstance(group, M31) else 2**group.bits
        words = Field(layout.words.shape, layout.words.dtype, group.bits, below)
        return layout._replace(words=words)
    if isinstance(message, RevealedShares):
        return layout._replace(shares=dataclasses.replace(layout.shares, below=m31.PRIME))
    return layout


def _field(array: Any) -> Field:
    dtype = np.dtype(array.dtype)
    return Field(tuple(array.shape), dtype, _BITS[dtype], 2 ** _BITS[dtype])


def round_layouts(
    outboxes: Mapping[str, Any], *, num_clients: int, group: Group = Ring(32)
) -> dict[str, Any]:
    """The layouts of all messages of a round, by the kind of their frames.

    A client's first frame is ``hello``, with nothing in it: it says whose link this is. What a
    client advertises goes up with a signature. ``share`` and ``attest`` look the same on their way
    up and down. ``key-list`` and ``survivors`` are the server's to all.

    Args:
        outboxes: by stage, what one client sends: arrays, or their shapes and types.
        num_clients: the size of the cohort.
        group: that of the protocol.

    Returns:
        Layouts: of ``hello``, of the stages, and of ``key-list`` and ``survivors`` where clients
        have messages for each other.

    Raises:
        ValueError: an array of a type that has no field.

    Example:
        >>> key = jax.ShapeDtypeStruct((8,), np.uint32)
        >>> upload = Upload(jax.ShapeDtypeStruct((10,), np.uint32))
        >>> layouts = round_layouts({"advertise": key, "upload": upload}, num_clients=3)
        >>> list(layouts), layouts["key-list"].signatures.shape
        (['hello', 'advertise', 'upload', 'key-list'], (3, 64))
    """
    layouts: dict[str, Any] = {"hello": ()}
    layouts |= {stage: layout_of(outbox, group) for stage, outbox in outboxes.items()}
    flags: Any = _field(jax.ShapeDtypeStruct((num_clients,), np.bool_))
    if "advertise" in layouts:
        signature: Any = _field(jax.ShapeDtypeStruct((SIGNATURE_BYTES,), np.uint8))
        signed: Any = SignedKeys(layouts["advertise"], signature)
        of_all = jax.tree.map(
            lambda field: dataclasses.replace(field, shape=(num_clients, *field.shape)), signed
        )
        layouts |= {"advertise": signed, "key-list": KeyList(flags, *of_all)}
    if "unmask" in layouts:
        layouts["survivors"] = Survivors(flags)
    return layouts
