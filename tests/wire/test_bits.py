"""Streams of elements of b bits, against Python's integers."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedjax_agg.wire import bits as wire_bits
from fedjax_agg.wire.bits import pack_bits, packed_size, unpack_bits
from tests.wire import reference


def elements_of(bits, count, number=0):
    rng = np.random.default_rng([number, bits, count])
    return rng.integers(0, 2**bits, count, np.uint64).astype(np.uint32)


@pytest.mark.parametrize("bits", range(1, 33))
def test_a_stream_is_one_large_integer(bits):
    """Of every length around whole groups of 32 elements."""
    for count in (*range(35), 63, 64, 65, 100):
        elements = elements_of(bits, count)
        packed = pack_bits(elements, bits)
        assert packed.dtype == np.uint8
        assert packed.tobytes() == reference.stream(elements, bits)
        assert packed.size == packed_size(count, bits)
        back = unpack_bits(packed.tobytes(), bits, count)
        assert back.dtype == np.uint32
        np.testing.assert_array_equal(back, elements)


@pytest.mark.parametrize("bits", [1, 7, 20, 31])
def test_a_stream_of_several_blocks(bits):
    count = 32 * wire_bits._BLOCK * 2 + 77
    elements = elements_of(bits, count)
    packed = pack_bits(elements, bits).tobytes()
    flags = (elements[:, None] >> np.arange(bits, dtype=np.uint32)) & np.uint32(1)
    assert packed == np.packbits(flags.astype(bool), bitorder="little").tobytes()
    np.testing.assert_array_equal(unpack_bits(packed, bits, count), elements)


@given(st.integers(1, 32), st.data())
def test_there_and_back(bits, data):
    elements = np.array(data.draw(st.lists(st.integers(0, 2**bits - 1), max_size=70)), np.uint32)
    packed = pack_bits(elements, bits).tobytes()
    assert packed == reference.stream(elements, bits)
    np.testing.assert_array_equal(unpack_bits(packed, bits, elements.size), elements)


def test_any_shape_and_either_library_in_row_major_order():
    elements = elements_of(20, 24).reshape(2, 3, 4)
    expected = pack_bits(elements.ravel(), 20).tobytes()
    assert pack_bits(elements, 20).tobytes() == expected
    assert pack_bits(jnp.asarray(elements), 20).tobytes() == expected
    assert pack_bits(np.asfortranarray(elements), 20).tobytes() == expected
    assert pack_bits(elements[:, ::2], 20).tobytes() == pack_bits(elements[:, [0, 2]], 20).tobytes()


def test_what_is_unpacked_can_be_written_and_is_no_view():
    for bits in (8, 20, 32):
        data = bytearray(pack_bits(elements_of(bits, 40), bits).tobytes())
        elements = unpack_bits(data, bits, 40)
        elements[0] ^= np.uint32(1)
        assert bytes(data) == pack_bits(elements_of(bits, 40), bits).tobytes()


@pytest.mark.parametrize("bits", range(1, 32))
def test_an_element_that_is_too_large(bits):
    elements = np.array([0, 2**bits, 0], np.uint32)
    with pytest.raises(ValueError, match=rf"must be below {2**bits};.*\[packed-elements\]$"):
        pack_bits(elements, bits)
    with pytest.raises(ValueError, match=r"must be below 1;.*\[packed-elements\]$"):
        pack_bits(np.ones(1, np.uint32), bits, below=1)
    assert pack_bits(elements - np.uint32(elements > 0), bits).size


@pytest.mark.parametrize("bits", range(1, 33))
def test_a_bit_after_the_last_element(bits):
    """One stream for some elements: every padding bit must be zero."""
    for count in (1, 3, 33):
        packed = pack_bits(elements_of(bits, count), bits)
        for bit in range(bits * count, 8 * packed.size):
            wrong = packed.copy()
            wrong[bit // 8] |= np.uint8(1 << (bit % 8))
            with pytest.raises(ValueError, match=r"zero;.*\[packed-data\]$"):
                unpack_bits(wrong, bits, count)


@pytest.mark.parametrize("length", [0, 6, 8])
def test_another_number_of_bytes(length):
    with pytest.raises(ValueError, match=rf"length {length} of data must be 7;.*\[packed-data\]$"):
        unpack_bits(bytes(length), 17, 3)


@pytest.mark.parametrize("bits", [0, 33, 8.0, True, None])
def test_a_width_out_of_range(bits):
    for call in (lambda: pack_bits(elements_of(1, 3), bits), lambda: unpack_bits(b"", bits, 0)):
        with pytest.raises(ValueError, match=r"\[packed-bits\]$"):
            call()


@pytest.mark.parametrize("elements", [[1, 2], np.ones(3), np.ones(3, np.int32), np.ones(3, bool)])
def test_elements_of_another_type(elements):
    with pytest.raises(ValueError, match=r"\[packed-elements\]$"):
        pack_bits(elements, 8)
