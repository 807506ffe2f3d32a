"""Shamir's t-of-n sharing of secrets of 256 bits, over the field of 2^31 - 1 elements.

An owner's secret becomes chunks of 30 bits, each the constant term of a random polynomial of
degree t - 1. The holder in slot s, from 0, receives the values at the point x = s + 1: any t of
them determine the polynomials, and t - 1 tell nothing (Shamir, "How to share a secret", 1979).

Everything here is of one owner. ``jax.vmap`` takes many, as fast as the arithmetic allows.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fedjax_agg import _check, _xla
from fedjax_agg.arithmetic import m31
from fedjax_agg.sharing.chunks import CHUNKS as CHUNKS
from fedjax_agg.sharing.chunks import from_chunks as from_chunks
from fedjax_agg.sharing.chunks import to_chunks as to_chunks
from fedjax_agg.symmetric.chacha20_block import short_keystream

# The points are factors of 16 bits, which makes their products cheap.
MAX_HOLDERS = 2**16 - 1


def draw_coefficients(key: jax.Array, threshold: int, num_chunks: int) -> jax.Array:
    """The random coefficients of one owner's polynomials, without the constant terms.

    Of 2 (t-1) c words of ChaCha20 keystream, in order, the first half and the second half are
    the two draws of ``m31.from_keystream``.

    Args:
        key: uint32[8], used for nothing else, and for one call of ``share`` only.
        threshold: t, 1 to 65535; static.
        num_chunks: c, 1 to 65535: ``CHUNKS`` for each secret; static.

    Returns:
        uint32[t - 1, c], field elements.

    Raises:
        ValueError: an argument of another shape, type or range.

    Formal Guarantees:
        To whoever does not know the key, within total variation (t-1) c 2^-62 of uniform, as far
        as ChaCha20 is a pseudorandom function.

    Example:
        >>> import jax.numpy as jnp
        >>> draw_coefficients(jnp.zeros(8, jnp.uint32), threshold=3, num_chunks=2).tolist()
        [[769702006, 272495008], [1701469504, 683509331]]
    """
    _check.words("key-shape", (8,), key=key)
    degree = _check.integer_in("threshold", 1, MAX_HOLDERS, threshold=threshold) - 1
    count = _check.integer_in("num-chunks", 1, MAX_HOLDERS, num_chunks=num_chunks)
    # The nonce can be constant because the key is used for nothing else.
    words = short_keystream(key, np.zeros(3, np.uint32), 2 * degree * count)
    first, second = words.reshape(2, degree, count)
    return m31.from_keystream(first, second)


def share(chunks: jax.Array, coefficients: jax.Array, num_holders: int) -> jax.Array:
    """The shares of all holders: f(s + 1) for slot s, where f(x) = chunk + sum_i a_i x^i.

    Args:
        chunks: uint32[c], field elements: one or several secrets' ``to_chunks``.
        coefficients: uint32[t - 1, c], field elements: ``draw_coefficients``.
        num_holders: n, t to 65535; static.

    Returns:
        uint32[n, c], field elements; row s is for the holder in slot s.

    Raises:
        ValueError: an argument of another shape or type; more than 65535 holders, or fewer than
            the threshold.

    Formal Guarantees:
        Any t - 1 shares are independent of the secrets where the coefficients are uniform, no
        matter what their holders can compute (Shamir 1979). Any t reveal them. Not given:
        integrity. A holder can hand in another share, see ``check_shares``; and an owner can
        deal shares that no polynomial of degree t - 1 has.

    Example:
        A line through 5 with slope 2:

        >>> import jax.numpy as jnp
        >>> share(jnp.array([5], jnp.uint32), jnp.array([[2]], jnp.uint32), 3).tolist()
        [[7], [9], [11]]
    """
    _check.words("chunks-shape", (None,), chunks=chunks)
    _check.words("polynomial-shape", (None, *chunks.shape), coefficients=coefficients)
    n = _check.integer_in("num-holders", 1, MAX_HOLDERS, num_holders=num_holders)
    _check.integer_in("threshold", 1, n, threshold=coefficients.shape[0] + 1)
    return _evaluate(jnp.concatenate([chunks[None], coefficients]), n)


@functools.partial(jax.jit, static_argnums=1)
def _evaluate(polynomials: jax.Array, n: int) -> jax.Array:
    """The values at 1 to n of polynomials uint32[t, c], from the lowest coefficient."""
    t, c = polynomials.shape
    # The holders are the last axis, so that they fill the vector lanes whatever c is.
    points = lax.broadcasted_iota(jnp.uint32, (c, n), 1) + np.uint32(1)

    def horner(index, values):
        coefficients = lax.dynamic_index_in_dim(polynomials, t - 1 - index, keepdims=False)
        # Below 2 p, which is as good as an element to the next product.
        return m31.multiply_short(values, points) + coefficients[:, None]

    return m31.reduce(_xla.client_loop(t, horner, jnp.zeros((c, n), jnp.uint32))).T


def lagrange_at_zero(present: jax.Array) -> jax.Array:
    """The weights with which the shares of all present holders add up to the secret.

    For every polynomial g of smaller degree than there are holders present,

        sum_i lambda_i g(x_i) = g(0),    lambda_i = prod_{j != i} x_j / (x_j - x_i).

    All present holders are used, not a choice of t: any number from t on gives the same secret.

    Args:
        present: bool[k], the slots whose shares arrived, k from 1 to 65535.

    Returns:
        uint32[k], field elements; 0 where absent.

    Raises:
        ValueError: another shape or type.

    Example:
        The points 2 and 3: f(0) = 3 f(2) - 2 f(3).

        >>> import jax.numpy as jnp
        >>> lagrange_at_zero(jnp.array([False, True, True])).tolist() == [0, 3, m31.PRIME - 2]
        True
    """
    _check.array("present-shape", np.bool_, (None,), present=present)
    _check.integer_in("num-holders", 1, MAX_HOLDERS, **{"len(present)": present.shape[0]})
    return _weights(present)


@jax.jit
def _weights(present: jax.Array) -> jax.Array:
    k = present.shape[0]
    # prod_j (x_j - x), over the present x_j != x, at every point x and at 0: as a magnitude, whose
    # factors are short, and a sign.
    x = jnp.arange(k + 1, dtype=jnp.uint32)

    def times(index, product):
        magnitude, negative = product
        x_j = lax.convert_element_type(index, jnp.uint32) + np.uint32(1)
        here = lax.dynamic_index_in_dim(present, index, keepdims=False)
        distance = lax.max(x_j, x) - lax.min(x_j, x)
        factor = jnp.where(here & (x_j != x), distance, np.uint32(1))
        return m31.multiply_short(magnitude, factor), negative ^ (here & (x_j < x))

    one = jnp.ones(k + 1, jnp.uint32), jnp.zeros(k + 1, bool)
    magnitude, negative = _xla.client_loop(k, times, one)
    weights = m31.multiply(m31.inverse(m31.multiply_short(magnitude[1:], x[1:])), magnitude[0])
    signed = jnp.where(negative[1:], m31.negate(weights), weights)
    return jnp.where(present, signed, np.uint32(0))


def reconstruct(shares: jax.Array, present: jax.Array) -> jax.Array:
    """The secrets from the shares of at least t holders.

    Args:
        shares: uint32[k, c], row s from the holder in slot s; words beyond the field are taken
            modulo p, and absent rows are ignored, whatever they hold.
        present: bool[k], the slots whose shares arrived.

    Returns:
        uint32[c], field elements. Of fewer than t shares, elements that tell nothing about the
        secrets: whoever calls has to count. Of none, zeros.

    Raises:
        ValueError: an argument of another shape or type.

    Example:
        >>> import jax.numpy as jnp
        >>> shares = jnp.array([[7], [0], [11]], jnp.uint32)
        >>> reconstruct(shares, jnp.array([True, False, True]))
        Array([5], dtype=uint32)
    """
    _require_shares(shares, present)
    return _interpolate(shares, present)


@jax.jit
def _interpolate(shares: jax.Array, present: jax.Array) -> jax.Array:
    return m31.matmul(_weights(present)[None], m31.reduce(shares))[0]


def _require_shares(shares: jax.Array, present: jax.Array) -> int:
    """How many slots there are."""
    _check.words("shares-shape", (None, None), shares=shares)
    _check.array("present-shape", np.bool_, shares.shape[:1], present=present)
    return _check.integer_in("num-holders", 1, MAX_HOLDERS, **{"len(shares)": shares.shape[0]})


class ShareCheck(NamedTuple):
    """Whether shares fit together, and whose does not.

    Attributes:
        consistent: bool[], False where a share was changed.
        culprit: int32[], the slot of the one holder whose change explains what was found; -1
            where there is none, or no telling.

    Example:
        >>> import jax.numpy as jnp
        >>> ShareCheck(jnp.array(False), jnp.int32(-1)).culprit
        Array(-1, dtype=int32)
    """

    consistent: jax.Array
    culprit: jax.Array


def check_shares(shares: jax.Array, present: jax.Array, threshold: int) -> ShareCheck:
    """Whether the shares of the present holders fit together, and if one does not, whose.

    Shares are a Reed-Solomon code, and this computes two of its syndromes. With m present:

        m <= t        nothing can be checked, and all shares are consistent.
        m  = t + 1    the change of one holder is detected; no holder is named.
        m >= t + 2    the changes of one holder or two are detected, and a single one is named.

    **What it does not do.** Three holders or more who collude (two where m = t + 1) can change
    the secret without being detected. Two who collude can make it name an honest third: a name is
    right only if a single holder cheated. That the owner dealt values of polynomials of degree
    t - 1 is not verified: an owner's deal is not a holder's change, and may pass.

    Args:
        shares: uint32[k, c], as in ``reconstruct``. A holder's change is one of any of its c
            elements, modulo p.
        present: bool[k].
        threshold: t, 1 to k; static.

    Returns:
        The check.

    Raises:
        ValueError: an argument of another shape or type; a threshold out of range.

    Example:
        Values of 5 + 2 x at 1, 2, 3 and 4, but for one:

        >>> import jax.numpy as jnp
        >>> shares = jnp.array([[7], [10], [11], [13]], jnp.uint32)
        >>> check = check_shares(shares, jnp.ones(4, bool), threshold=2)
        >>> bool(check.consistent), int(check.culprit)
        (False, 1)
    """
    return recover_secret(shares, present, threshold)[1]


def recover_secret(
    shares: jax.Array, present: jax.Array, threshold: int
) -> tuple[jax.Array, ShareCheck]:
    """``reconstruct`` and ``check_shares`` at once, which share most of their work.

    Args:
        shares: uint32[k, c], as in ``reconstruct``.
        present: bool[k].
        threshold: t, 1 to k; static.

    Returns:
        The secrets, uint32[c], and the check. Where shares are not consistent, the secrets are
        wrong or worthless: where a holder is named, try again without its share.

    Raises:
        ValueError: an argument of another shape or type; a threshold out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> shares = jnp.array([[7], [9], [11], [13]], jnp.uint32)
        >>> secrets, check = recover_secret(shares, jnp.ones(4, bool), threshold=2)
        >>> secrets, bool(check.consistent)
        (Array([5], dtype=uint32), True)
    """
    k = _require_shares(shares, present)
    t = _check.integer_in("threshold", 1, k, threshold=threshold)
    return _recover(shares, present, np.int32(t))


@jax.jit
def _recover(
    shares: jax.Array, present: jax.Array, threshold: jax.Array
) -> tuple[jax.Array, ShareCheck]:
    # With the weights of all m present points, sum_i lambda_i g(x_i) = g(0) if deg g < m. For
    # g = x f and x^2 f, of degree at most t and t + 1, that is 0. If slot s adds e, the sums are
    # lambda_s x_s e and lambda_s x_s^2 e: not 0, and their ratio is x_s, in every chunk. Any two
    # columns (lambda_i x_i, lambda_i x_i^2) are independent, so two slots cannot cancel.
    k = shares.shape[0]
    weights, points = _weights(present), jnp.arange(1, k + 1, dtype=jnp.uint32)
    once = m31.multiply_short(weights, points)
    rows = jnp.stack([weights, once, m31.multiply_short(once, points)])
    secrets, first, second = m31.matmul(rows, m31.reduce(shares))
    spare = jnp.sum(present, dtype=jnp.int32) - threshold
    first = jnp.where(spare >= np.int32(1), first, np.uint32(0))
    second = jnp.where(spare >= np.int32(2), second, np.uint32(0))
    consistent = ~jnp.any((first | second) != np.uint32(0))
    explains = jnp.all(m31.multiply_short(first[None], points[:, None]) == second[None], axis=1)
    slots = np.arange(k, dtype=np.int32)
    culprit = jnp.max(jnp.where(present & explains & ~consistent, slots, np.int32(-1)))
    return secrets, ShareCheck(consistent, culprit)
