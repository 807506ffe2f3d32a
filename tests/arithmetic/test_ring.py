"""The ring of words against Python's integers, for every width."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_agg.arithmetic import Ring

WIDTHS = range(1, 33)
LENGTH = 4

every_width = pytest.mark.parametrize("bits", WIDTHS)
widths = st.integers(1, 32)
signed_words = st.integers(-(2**31), 2**31 - 1)
rows = st.lists(st.integers(0, 2**32 - 1), min_size=LENGTH, max_size=LENGTH)


def corners(bits):
    """Integers of 32 bits around every edge of the ring, and random ones."""
    edges = [0, 2 ** (bits - 1), 2**bits, 2**31, 2**24, 3 * 2 ** (bits - 1)]
    near = {sign * edge + off for edge in edges for sign in (1, -1) for off in (-2, -1, 0, 1, 2)}
    random = np.random.default_rng(bits).integers(-(2**31), 2**31, 100).tolist()
    return [i for i in [*sorted(near), *random] if -(2**31) <= i < 2**31]


def elements(bits):
    """Some elements of the ring, its edges among them, as Python integers."""
    return sorted({i % 2**bits for i in corners(bits)})


def as_words(integers):
    return jnp.asarray(np.array(integers, np.uint32))


def centred(integer, bits):
    """The representative in [-2^(bits-1), 2^(bits-1)), in Python."""
    return (integer + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1)


def assert_same(found, integers, dtype=jnp.uint32):
    assert found.dtype == dtype
    assert np.asarray(found).tolist() == list(integers)


@every_width
def test_wrap_and_lift_equal_python(bits):
    """Every integer modulo 2^bits, and its centred representative."""
    ring, integers = Ring(bits), corners(bits)
    wrapped = ring.wrap(jnp.asarray(np.array(integers, np.int32)))
    assert_same(wrapped, [i % 2**bits for i in integers])
    assert_same(ring.centre_lift(wrapped), [centred(i, bits) for i in integers], jnp.int32)


@every_width
def test_lift_inverts_wrap_exactly_on_its_range(bits):
    """Beyond the range it does not: an integer one past either end comes back at the other."""
    ring, half = Ring(bits), 2 ** (bits - 1)
    inside = [i for i in corners(bits) if -half <= i < half]
    lifted = ring.centre_lift(ring.wrap(jnp.asarray(np.array(inside, np.int32))))
    assert_same(lifted, inside, jnp.int32)
    assert ring.largest == half - 1
    if bits < 32:
        beyond = ring.wrap(jnp.asarray(np.array([half, -half - 1], np.int32)))
        assert_same(ring.centre_lift(beyond), [-half, half - 1], jnp.int32)


@every_width
def test_wrap_inverts_lift(bits):
    ring, integers = Ring(bits), elements(bits)
    assert_same(ring.wrap(ring.centre_lift(as_words(integers))), integers)


@every_width
def test_arithmetic_equals_python(bits):
    """Add, negate, scale and sum over elements; the factor is any 32-bit word."""
    ring, modulus = Ring(bits), 2**bits
    integers = elements(bits)
    a, b = integers, integers[::-1]
    factors = np.random.default_rng(bits).integers(0, 2**32, len(a), dtype=np.uint32).tolist()
    assert_same(ring.add(as_words(a), as_words(b)), [(x + y) % modulus for x, y in zip(a, b)])
    assert_same(ring.negate(as_words(a)), [-x % modulus for x in a])
    scaled = ring.scale(as_words(a), as_words(factors))
    assert_same(scaled, [x * f % modulus for x, f in zip(a, factors)])
    table = as_words([a, b, factors])
    columns = [sum(column) % modulus for column in zip(a, b, factors)]
    assert_same(ring.sum(table), columns)
    assert_same(ring.sum(table, axis=1), [sum(row) % modulus for row in (a, b, factors)])


@every_width
def test_keystream_words_become_elements_by_their_low_bits(bits):
    words = np.random.default_rng(bits).integers(0, 2**32, 100, dtype=np.uint32)
    assert_same(
        Ring(bits).from_keystream(jnp.asarray(words)), [w % 2**bits for w in words.tolist()]
    )


@pytest.mark.parametrize("bits", [3, 8])
def test_truncation_keeps_uniform_words_uniform(bits):
    """Each element has exactly as many preimages among all words of bits + 4 bits."""
    words = jnp.arange(2 ** (bits + 4), dtype=jnp.uint32)
    found = np.bincount(np.asarray(Ring(bits).from_keystream(words)))
    assert found.tolist() == [16] * 2**bits


def test_lifted_totals_are_correctly_rounded_to_float32():
    """Beyond 2^24 as well: the float is that of NumPy's exact float64, so within half an ulp."""
    edges = [2**24 + i for i in range(-3, 8)] + [2**25 + i for i in range(-5, 12)]
    edges += [2**31 - i for i in range(1, 200)] + [3 * 2**24 + 2, 3 * 2**24 + 6]
    random = np.random.default_rng(0).integers(-(2**31), 2**31, 5000)
    integers = np.array([*edges, *(-i for i in edges), -(2**31), *random], np.int64)
    ring = Ring(32)
    found = np.asarray(
        ring.centre_lift(ring.wrap(jnp.asarray(integers.astype(np.int32)))).astype(jnp.float32)
    )
    np.testing.assert_array_equal(found, integers.astype(np.float64).astype(np.float32))
    half_ulp = np.spacing(np.abs(found)).astype(np.float64) / 2
    error = np.abs(found.astype(np.float64) - integers)
    assert (error <= half_ulp).all()
    assert (error[np.abs(integers) <= 2**24] == 0).all()
    assert error.max() > 0


@pytest.mark.parametrize("bits", [32, 20])
@pytest.mark.parametrize("x64", [False, True])
def test_sum_wraps_whether_or_not_x64_is_enabled(bits, x64, jit_or_not):
    """A plain sum of uint32 becomes uint64 under x64 and would not wrap: shown beside it."""
    ring, words = Ring(bits), np.full((3, 2), 2**bits - 1, np.uint32)
    with jax.enable_x64(x64):
        total = jit_or_not(ring.sum)(jnp.asarray(words))
        assert_same(total, [2**bits - 3] * 2)
        assert_same(ring.centre_lift(total), [centred(-3, bits)] * 2, jnp.int32)
        assert_same(ring.wrap(jnp.asarray(np.array([-1], np.int32))), [2**bits - 1])
        assert_same(ring.negate(jnp.asarray(words[0])), [1, 1])
        if x64:
            assert int(jnp.sum(jnp.asarray(words), axis=0)[0]) == 3 * (2**bits - 1)


def test_same_bits_under_jit_and_vmap():
    ring = Ring(19)
    words = np.random.default_rng(1).integers(0, 2**19, (5, 7), dtype=np.uint32)

    def mixed(a):
        return ring.centre_lift(ring.add(ring.scale(a, jnp.flip(a)), ring.negate(a)))

    expected = [[centred(x * y - x, 19) for x, y in zip(r, r[::-1])] for r in words.tolist()]
    assert jax.jit(jax.vmap(mixed))(words).tolist() == expected
    assert [mixed(jnp.asarray(row)).tolist() for row in words] == expected


@settings(max_examples=60, deadline=None, derandomize=True)
@given(bits=widths, a=rows, b=rows, c=rows, f=rows, g=rows)
def test_algebraic_laws(bits, a, b, c, f, g):
    """An abelian group, on which 32-bit words act as integers; a sum in any order is the same."""
    ring = Ring(bits)
    a, b, c = (ring.from_keystream(as_words(row)) for row in (a, b, c))
    f, g, zero = as_words(f), as_words(g), as_words([0] * LENGTH)
    add, negate, scale = ring.add, ring.negate, ring.scale
    for left, right in (
        (add(a, b), add(b, a)),
        (add(add(a, b), c), add(a, add(b, c))),
        (add(a, zero), a),
        (add(a, negate(a)), zero),
        (negate(negate(a)), a),
        (scale(add(a, b), f), add(scale(a, f), scale(b, f))),
        (scale(a, f + g), add(scale(a, f), scale(a, g))),
        (scale(scale(a, f), g), scale(a, f * g)),
        (scale(a, as_words([2**32 - 1] * LENGTH)), negate(a)),
        (ring.sum(jnp.stack([a, b, c])), add(add(c, a), b)),
    ):
        np.testing.assert_array_equal(left, right)
        assert int(jnp.max(left)) < 2**bits


@settings(max_examples=60, deadline=None, derandomize=True)
@given(bits=widths, x=signed_words, y=signed_words)
def test_wrap_is_a_homomorphism(bits, x, y):
    """Words of x and y add up to the word of x + y, and lift to it where it fits."""
    ring = Ring(bits)
    total = ring.add(*(ring.wrap(jnp.asarray(np.array([i], np.int32))) for i in (x, y)))
    assert_same(total, [(x + y) % 2**bits])
    assert_same(ring.centre_lift(total), [centred(x + y, bits)], jnp.int32)


@pytest.mark.parametrize("bits", [0, -1, 33, 64, 8.0, "8", None, True, np.float32(8)])
def test_other_widths_are_refused(bits):
    with pytest.raises(ValueError, match=r"bits=.* \[ring-bits\]"):
        Ring(bits)


def test_compares_hashes_and_prints_as_its_width():
    assert Ring(20) == Ring(20)
    assert Ring(20) != Ring(21)
    assert Ring() == Ring(32)
    assert len({Ring(20), Ring(20), Ring(21)}) == 2
    assert repr(Ring(20)) == "Ring(bits=20)"
    assert Ring(np.int64(20)) == Ring(20)
