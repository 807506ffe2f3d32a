"""The field of 2^31 - 1 elements, in 32-bit machine words: what Shamir shares are made of.

An element is a uint32 in [0, p), p = 2^31 - 1, and every function returns such elements. Because
2^31 = 1 modulo p, a number is reduced by adding its bits from the 31st on to the bits below: no
division, and no type wider than 32 bits.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fedjax_agg import _xla

PRIME = 2**31 - 1


def _fold(a: jax.Array) -> jax.Array:
    """Words below 2 p -> elements: without a borrow ``a - p`` is the smaller of the two."""
    return lax.min(a, a - np.uint32(PRIME))


def reduce(words: jax.Array) -> jax.Array:
    """Any 32-bit words modulo p.

    Args:
        words: uint32[...].

    Returns:
        uint32[...].

    Example:
        >>> import jax.numpy as jnp
        >>> reduce(jnp.array([5, PRIME, 2**32 - 1], jnp.uint32))
        Array([5, 0, 1], dtype=uint32)
    """
    return _fold((words & np.uint32(PRIME)) + (words >> np.uint32(31)))


def add(a: jax.Array, b: jax.Array) -> jax.Array:
    """The sum of elements.

    Args:
        a: uint32[...].
        b: uint32[...].

    Returns:
        uint32[...].

    Example:
        >>> import jax.numpy as jnp
        >>> add(jnp.uint32(PRIME - 1), jnp.uint32(3))
        Array(2, dtype=uint32)
    """
    return _fold(a + b)


def subtract(a: jax.Array, b: jax.Array) -> jax.Array:
    """The difference of elements.

    Args:
        a: uint32[...].
        b: uint32[...].

    Returns:
        uint32[...].

    Example:
        >>> import jax.numpy as jnp
        >>> subtract(jnp.uint32(2), jnp.uint32(3)) == PRIME - 1
        Array(True, dtype=bool)
    """
    difference = a - b
    # A negative difference has wrapped to the top of the range, and adding p wraps it back.
    return lax.min(difference, difference + np.uint32(PRIME))


def negate(a: jax.Array) -> jax.Array:
    """The negative of every element.

    Args:
        a: uint32[...].

    Returns:
        uint32[...].

    Example:
        >>> import jax.numpy as jnp
        >>> negate(jnp.array([0, 1, PRIME - 1], jnp.uint32)).tolist()
        [0, 2147483646, 1]
    """
    return subtract(lax.full_like(a, 0), a)


def multiply(a: jax.Array, b: jax.Array) -> jax.Array:
    """The product of elements.

    Args:
        a: uint32[...].
        b: uint32[...].

    Returns:
        uint32[...].

    Example:
        >>> import jax.numpy as jnp
        >>> minus_two = jnp.uint32(PRIME - 2)
        >>> multiply(minus_two, minus_two)
        Array(4, dtype=uint32)
    """
    # a = a1 2^16 + a0 and b likewise, with a1, b1 < 2^15:
    #
    #     a b = high 2^32 + middle 2^16 + low,    2^32 = 2 and 2^31 = 1 modulo p.
    #
    # middle <= 2 (2^15-1)(2^16-1) + 2^16-1 and the total <= 2 p - 1: neither wraps.
    a1, a0 = a >> np.uint32(16), a & np.uint32(0xFFFF)
    b1, b0 = b >> np.uint32(16), b & np.uint32(0xFFFF)
    low = a0 * b0
    middle = a0 * b1 + a1 * b0 + (low >> np.uint32(16))
    return _fold((a1 * b1 << np.uint32(1)) + _join(middle, low))


def multiply_short(words: jax.Array, factors: jax.Array) -> jax.Array:
    """The product with factors of 16 bits, at half the price of ``multiply``.

    Args:
        words: uint32[...], any words.
        factors: uint32[...], below 2^16.

    Returns:
        uint32[...], modulo p.

    Example:
        >>> import jax.numpy as jnp
        >>> multiply_short(jnp.uint32(PRIME - 2), jnp.uint32(65535)) == PRIME - 2 * 65535
        Array(True, dtype=bool)
    """
    low = (words & np.uint32(0xFFFF)) * factors
    # (2^16-1)^2 + 2^16-1 < 2^32.
    return _fold(_join((words >> np.uint32(16)) * factors + (low >> np.uint32(16)), low))


def _join(middle: jax.Array, low: jax.Array) -> jax.Array:
    """``middle`` 2^16 + (``low`` mod 2^16), up to multiples of p; below 2^31 + 2^17."""
    below = (middle << np.uint32(16)) | (low & np.uint32(0xFFFF))
    return (middle >> np.uint32(15)) + (below & np.uint32(PRIME))


@jax.jit
def inverse(a: jax.Array) -> jax.Array:
    """The inverse of every element, and 0 for 0: a^(p-2), by Fermat.

    The same 59 multiplications for every element.

    Args:
        a: uint32[...].

    Returns:
        uint32[...].

    Example:
        >>> import jax.numpy as jnp
        >>> inverse(jnp.array([0, 1, 2, PRIME - 1], jnp.uint32)).tolist()
        [0, 1, 1073741824, 2147483646]
    """

    def square(x):
        return multiply(x, x)

    # p - 2 = 4 (2^29 - 1) + 1, and 29 ones are 28 times a square and a factor. A scan, because
    # the counter of a fori_loop has 64 bits under x64.
    ones, _ = lax.scan(lambda x, _: (multiply(square(x), a), None), a, length=28)
    return multiply(square(square(ones)), a)


def sum(a: jax.Array, axis: int = 0) -> jax.Array:
    """The sum over one axis, reduced at every term.

    Args:
        a: uint32[...].
        axis: the axis that is summed over.

    Returns:
        uint32[...], without that axis; zeros where it has length 0.

    Example:
        >>> import jax.numpy as jnp
        >>> sum(jnp.array([PRIME - 1, 3, 4], jnp.uint32))
        Array(6, dtype=uint32)
    """
    return lax.reduce(jnp.asarray(a), np.uint32(0), add, (range(a.ndim)[axis],))


def dot(a: jax.Array, b: jax.Array, axis: int = 0) -> jax.Array:
    """The sum over one axis of the products of elements.

    Args:
        a: uint32[...].
        b: uint32[...], of the same rank; an axis of length 1 stands for any.
        axis: the axis that is summed over.

    Returns:
        uint32[...], without that axis.

    Example:
        >>> import jax.numpy as jnp
        >>> dot(jnp.array([1, PRIME - 2], jnp.uint32), jnp.array([7, 2], jnp.uint32))
        Array(3, dtype=uint32)
    """
    return sum(multiply(a, b), axis)


@jax.jit
def matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    """The product of two matrices.

    Args:
        a: uint32[m, k], k >= 1.
        b: uint32[k, n].

    Returns:
        uint32[m, n].

    Example:
        >>> import jax.numpy as jnp
        >>> matrix = jnp.array([[PRIME - 1, 2], [3, 4]], jnp.uint32)
        >>> matmul(matrix, jnp.array([[1, 0], [5, 1]], jnp.uint32)).tolist()
        [[9, 2], [23, 4]]
    """

    # One outer product after the other, of which none is stored. On a CPU that is never slower
    # than exact float32 products of 8-bit limbs, and four times faster than ``dot``.
    def body(index, total):
        column = lax.dynamic_index_in_dim(a, index, axis=1)
        return add(total, multiply(column, lax.dynamic_index_in_dim(b, index)))

    nothing = jnp.zeros((a.shape[0], b.shape[1]), jnp.uint32)
    return _xla.client_loop(a.shape[1], body, _xla.varying_with(nothing, a, b))


def from_keystream(first: jax.Array, second: jax.Array) -> jax.Array:
    """Two words of keystream -> one element: the first, or where that fails the second.

    31 bits of ``first`` are an element unless all are ones; then 31 bits of ``second`` are, or 0.
    Each element but 0 has probability 2^-31 + 2^-62, so the total variation distance from a
    uniform element is below 2^-62, where a single word would leave 2^-31. As there is no loop,
    whoever has the words makes the same elements.

    Args:
        first: uint32[...], uniform words.
        second: uint32[...], further ones.

    Returns:
        uint32[...].

    Example:
        >>> import jax.numpy as jnp
        >>> words = jnp.array([7, PRIME, 2**32 - 1], jnp.uint32)
        >>> from_keystream(words, jnp.array([8, 9, PRIME], jnp.uint32))
        Array([7, 9, 0], dtype=uint32)
    """
    first, second = first & np.uint32(PRIME), second & np.uint32(PRIME)
    # All ones are p, which is 0.
    return _fold(jnp.where(first == np.uint32(PRIME), second, first))
