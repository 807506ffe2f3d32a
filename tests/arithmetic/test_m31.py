"""The field of 2^31 - 1 elements against Python's integers."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_agg.arithmetic import m31

P = 2**31 - 1
RNG = np.random.default_rng(0)
# Around every edge of a limb, of a shift and of the field.
CORNERS = sorted(
    {
        (edge + off) % P
        for edge in (0, 2**8, 2**15, 2**16, 2**17, 2**24, 2**30, P // 2, 2**31 - 2**16, P)
        for off in (-2, -1, 0, 1, 2)
    }
    | {0x7FFF0000, 0x7FFEFFFF, 0x00FFFFFF, 0x7F00FFFF}
)
BINARY = {
    "add": (m31.add, lambda x, y: (x + y) % P),
    "subtract": (m31.subtract, lambda x, y: (x - y) % P),
    "multiply": (m31.multiply, lambda x, y: x * y % P),
}
UNARY = {
    "negate": (m31.negate, lambda x: -x % P),
    "inverse": (m31.inverse, lambda x: pow(x, -1, P) if x else 0),
}


def words(integers):
    return jnp.asarray(np.array(integers, np.uint32))


def elements(*shape):
    return RNG.integers(0, P, shape, dtype=np.uint32)


def product(a, b):
    """The matrix product in Python's integers."""
    return (np.asarray(a, object) @ np.asarray(b, object) % P).tolist()


def assert_same(found, integers):
    assert found.dtype == jnp.uint32
    assert np.asarray(found).tolist() == integers


@pytest.mark.parametrize("name", BINARY)
def test_pairs_of_corners_equal_python(name, jit_or_not):
    function, python = BINARY[name]
    a, b = zip(*itertools.product(CORNERS, CORNERS))
    found = jit_or_not(function)(words(a), words(b))
    assert_same(found, [python(x, y) for x, y in zip(a, b)])


@pytest.mark.parametrize("name", BINARY)
def test_a_million_random_pairs_equal_exact_integers(name):
    """NumPy's int64, in which a product of two elements is exact."""
    function, exact = BINARY[name]
    a, b = elements(2, 10**6)
    found = jax.jit(function)(a, b)
    np.testing.assert_array_equal(found, exact(a.astype(np.int64), b.astype(np.int64)))


@pytest.mark.parametrize("name", UNARY)
def test_negatives_and_inverses_equal_python(name, jit_or_not):
    function, python = UNARY[name]
    a = [*CORNERS, *range(300), *elements(1000).tolist()]
    assert_same(jit_or_not(function)(words(a)), [python(x) for x in a])


def test_every_word_is_reduced_and_multiplied_by_short_factors():
    """Also words beyond the field, up to the largest."""
    edges = [0, P, 2 * P, 2**32 - 1, 2**31, 3 * 2**30, *CORNERS]
    every = sorted({edge + off for edge in edges for off in (-2, -1, 0, 1, 2)})
    every = [w for w in every if 0 <= w < 2**32]
    every += RNG.integers(0, 2**32, 1000, dtype=np.uint32).tolist()
    assert_same(m31.reduce(words(every)), [w % P for w in every])
    factors = [0, 1, 2, 255, 256, 32767, 32768, 65534, 65535]
    a, b = zip(*itertools.product(every, factors))
    assert_same(m31.multiply_short(words(a), words(b)), [x * y % P for x, y in zip(a, b)])


def test_sums_are_reduced_at_every_term():
    """A plain sum of two elements already wraps."""
    largest = np.full((10**5, 2), P - 1, np.uint32)
    assert_same(jax.jit(m31.sum)(largest), [-(10**5) % P] * 2)
    table = elements(3, 4, 5)
    for axis in (0, 1, 2, -1, -3):
        expected = table.astype(object).sum(axis=axis) % P
        assert_same(m31.sum(jnp.asarray(table), axis), expected.tolist())
    assert_same(m31.sum(jnp.zeros((0, 2), jnp.uint32)), [0, 0])


@pytest.mark.parametrize("k", [1, 1000])
def test_products_of_the_largest_elements_and_the_largest_limbs(k):
    for value in (P - 1, 0x7FFE0000, 0x7FFEFFFF, 0x0000FFFF):
        total = value * value * k % P
        column = jnp.full((k, 1), value, jnp.uint32)
        assert_same(m31.dot(column, column), [total])
        assert_same(m31.matmul(jnp.full((3, k), value, jnp.uint32), column), [[total]] * 3)


@pytest.mark.parametrize("shape", [(2, 3, 4), (7, 300, 5)])
def test_products_of_random_matrices_equal_python(shape, jit_or_not):
    m, k, n = shape
    a, b = elements(m, k), elements(k, n)
    assert_same(jit_or_not(m31.matmul)(a, b), product(a, b))
    assert_same(jit_or_not(m31.dot)(a.T[:, :, None], b[:, None]), product(a, b))


def test_dot_takes_any_axis():
    a, b = elements(3, 20), elements(3, 20)
    expected = ((a.astype(object) * b.astype(object)).sum(axis=1) % P).tolist()
    assert_same(m31.dot(jnp.asarray(a), jnp.asarray(b), axis=1), expected)
    assert_same(m31.dot(jnp.asarray(a), jnp.asarray(b), axis=-1), expected)


def test_two_draws_are_exact_on_a_toy_field(monkeypatch):
    """All pairs of words of 4 bits, with 2^3 - 1 for the prime: of 64 pairs of draws each element
    is made by 9, and 0 by one more. With n bits that is 2^-n + 2^-2n, and 2^-2n."""
    monkeypatch.setattr(m31, "PRIME", 7)
    first, second = np.divmod(np.arange(256, dtype=np.uint32), np.uint32(16))
    found = np.bincount(m31.from_keystream(jnp.asarray(first), jnp.asarray(second)))
    assert found.tolist() == [4 * 10, *[4 * 9] * 6]
    # The distance from uniform, which is below 2^-2n; of a single draw it is near 2^-n.
    distance = sum(abs(count / 256 - 1 / 7) for count in found) / 2
    assert distance < 2**-6


def test_two_draws_at_the_edges_of_the_field():
    """The second word matters where 31 bits of the first are ones, and only there."""
    first = [0, 2**31, P - 1, 2**32 - 2, P, P, 2**32 - 1, P, 2**32 - 1]
    second = [5, 5, 5, 5, 6, 2**31, 2**31 + 7, P, 2**32 - 1]
    found = m31.from_keystream(words(first), words(second))
    assert_same(found, [0, 0, P - 1, P - 1, 6, 0, 7, 0, 0])


def everything(a, b):
    """Each function, of a: uint32[3, 4] and b: uint32[4, 2]."""
    rows = jnp.flip(a, axis=0)
    return (
        m31.add(a, rows),
        m31.subtract(a, rows),
        m31.negate(a),
        m31.multiply(a, rows),
        m31.multiply_short(a, rows & np.uint32(0xFFFF)),
        m31.inverse(a),
        m31.sum(a),
        m31.dot(a, rows, axis=1),
        m31.matmul(a, b),
        m31.reduce(a),
        m31.from_keystream(a, rows),
    )


def test_same_bits_compiled_and_batched_with_and_without_x64():
    a, b = elements(5, 3, 4), elements(5, 4, 2)
    expected = jax.jit(jax.vmap(everything))(a, b)
    with jax.enable_x64(True):
        found = jax.jit(everything)(a[0], b[0])
    for one, many in zip(found, expected):
        np.testing.assert_array_equal(one, many[0])
        assert one.dtype == many.dtype == jnp.uint32


@pytest.mark.parametrize("x64", [False, True])
def test_no_64_bit_type_in_the_program(x64):
    """With x64 on, loop counters and positions have: int64, unlike any word."""
    shapes = (jax.ShapeDtypeStruct((3, 4), jnp.uint32), jax.ShapeDtypeStruct((4, 2), jnp.uint32))
    with jax.enable_x64(x64):
        text = str(jax.make_jaxpr(everything)(*shapes))
    assert "u32" in text
    assert set(re.findall(r"\w64\[", text)) <= ({"i64["} if x64 else set())
