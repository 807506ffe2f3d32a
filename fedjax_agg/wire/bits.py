"""Elements of b bits as a stream without gaps: bit j of element i is bit ``i b + j`` of the stream.

Bit k of the stream is bit k mod 8, counted from the lowest, of byte floor(k / 8). The last byte is
filled up with zero bits. Where b is 8, 16 or 32, elements are little-endian integers; where it is
1, a bitmap.
"""

import functools
from typing import Any

import numpy as np

from fedjax_agg import _check

# So many elements of b bits are b words of 32.
_GROUP = 32
# Groups at a time: 130 KiB, so that what is computed with stays in the cache, and no power of two,
# at which rows would share few of its lines.
_BLOCK = 2**10 + 16
# The widths that are integers of NumPy.
_INTEGERS = {8: "<u1", 16: "<u2", 32: "<u4"}


def packed_size(count: int, bits: int) -> int:
    """The bytes of ``count`` elements of ``bits`` bits.

    Example:
        >>> packed_size(3, 20)
        8
    """
    return -(-count * bits // 8)


def pack_bits(elements: Any, bits: int, below: int | None = None) -> np.ndarray:
    """Elements as a stream of bits.

    Args:
        elements: uint32[...].
        bits: the width of an element, 1 to 32.
        below: every element must be smaller; None is 2^bits, and so is more than that.

    Returns:
        uint8[ceil(size * bits / 8)]. With 32 bits it may share the memory of the elements.

    Raises:
        ValueError: another type, a width out of range, or an element that is too large.

    Example:
        >>> pack_bits(np.array([0xABC, 0x123], np.uint32), 12).tobytes().hex(" ")
        'bc 3a 12'
    """
    bits = _check.integer_in("packed-bits", 1, 32, bits=bits)
    words = np.asarray(elements)
    if words.dtype != np.uint32:
        raise _check.error(
            "packed-elements", f"elements of type {_check.shown_type(words)}", "uint32[...]"
        )
    words = words.ravel()
    below = min(2**bits, 2**bits if below is None else below)
    if below < 2**32 and words.size and words.max() >= below:
        raise _check.error("packed-elements", "the largest of elements", f"below {below}")
    if bits in _INTEGERS:
        return words.astype(_INTEGERS[bits], copy=False).view(np.uint8)
    groups, rest = divmod(words.size, _GROUP)
    packed = np.empty((groups + (rest > 0), bits), "<u4")
    _recut(words[: _GROUP * groups].reshape(groups, _GROUP), bits, packed[:groups], 32)
    if rest:
        last = np.zeros((1, _GROUP), np.uint32)
        last[0, :rest] = words[_GROUP * groups :]
        _recut(last, bits, packed[groups:], 32)
    return packed.reshape(-1).view(np.uint8)[: packed_size(words.size, bits)]


def unpack_bits(data: Any, bits: int, count: int) -> np.ndarray:
    """The inverse of ``pack_bits``, which takes nothing that ``pack_bits`` does not make.

    Args:
        data: bytes, or what has the memory of bytes.
        bits: the width of an element, 1 to 32.
        count: how many elements there are.

    Returns:
        uint32[count], of its own memory.

    Raises:
        ValueError: a width out of range, another number of bytes, or a bit after the last element
            that is not zero.

    Example:
        >>> unpack_bits(bytes.fromhex("bc3a12"), 12, 2).tolist() == [0xABC, 0x123]
        True
    """
    bits = _check.integer_in("packed-bits", 1, 32, bits=bits)
    stream = np.frombuffer(data, np.uint8)
    if stream.size != packed_size(count, bits):
        raise _check.error(
            "packed-data", f"the length {stream.size} of data", f"{packed_size(count, bits)}"
        )
    used = count * bits % 8
    if used and stream[-1] >> np.uint8(used):
        raise _check.error("packed-data", "the bits of data after the last element", "zero")
    if bits in _INTEGERS:
        return stream.view(_INTEGERS[bits]).astype(np.uint32)
    groups, rest = divmod(count, _GROUP)
    words = np.empty((groups + (rest > 0), _GROUP), np.uint32)
    whole = 4 * groups * bits
    _recut(stream[:whole].view("<u4").reshape(groups, bits), 32, words[:groups], bits)
    if rest:
        last = np.zeros(4 * bits, np.uint8)
        last[: stream.size - whole] = stream[whole:]
        _recut(last.view("<u4").reshape(1, bits), 32, words[groups:], bits)
    return words.reshape(-1)[:count]


def _recut(sources: np.ndarray, source_bits: int, pieces: np.ndarray, bits: int) -> None:
    """Streams that are cut into sources of one width, cut into pieces of another.

    Args:
        sources: uint32[m, bits], m streams of ``source_bits`` times ``bits`` bits.
        source_bits: of each source.
        pieces: uint32[m, source_bits], the result.
        bits: of each piece.
    """
    (row, shift), *others = _overlaps(source_bits, bits)
    for first in range(0, len(sources), _BLOCK):
        block = slice(first, first + _BLOCK)
        # One stream below the other, so that every operation is on long rows.
        columns = np.ascontiguousarray(sources[block].T)
        cut = columns[row]
        cut >>= shift
        for further_row, up in others:
            part = columns[further_row]
            part <<= up
            cut |= part
        if bits < 32:
            cut &= np.uint32(2**bits - 1)
        pieces[block] = cut.T


@functools.cache
def _overlaps(source_bits: int, bits: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """For every piece the source in which it begins, the one after it, and so on.

    Returns:
        Of each of them the index, int[pieces], and by how many bits it is shifted,
        uint32[pieces, 1]: the first down, the others up.
    """
    begin = bits * np.arange(source_bits)
    first = begin // source_bits
    overlaps = [(first, begin - source_bits * first)]
    for further in range(1, -(-(bits - 1) // source_bits) + 1):
        # A source that begins after the piece, and one that there is not, is shifted by ``bits``
        # or more: out of the word, where NumPy gives zero, or out of the mask.
        source = first + further
        shift = source_bits * source - begin
        if shift.min() < bits:
            overlaps.append((np.minimum(source, bits - 1), shift))
    return [(source, shift.astype(np.uint32)[:, None]) for source, shift in overlaps]
