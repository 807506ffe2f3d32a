"""The integers modulo 2^31 - 1 as a group of words, for masks that are shared by polynomials."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fedjax_agg.arithmetic import m31


@dataclasses.dataclass(frozen=True)
class M31:
    """The additive group of GF(2^31 - 1), each element a uint32 below p = 2^31 - 1.

    What ``Ring`` is for masks that are keystreams: the operations are those of
    ``fedjax_agg.arithmetic.m31``, and every word has 31 bits.

    Example:
        >>> import jax.numpy as jnp
        >>> group = M31()
        >>> words = group.wrap(jnp.array([-1, 2**30 - 1], jnp.int32))
        >>> words
        Array([2147483646, 1073741823], dtype=uint32)
        >>> group.centre_lift(group.add(words, words))
        Array([-2, -1], dtype=int32)
    """

    @property
    def bits(self) -> int:
        """The width of an element."""
        return 31

    @property
    def largest(self) -> int:
        """The largest magnitude whose both signs the group tells apart: (p - 1) / 2."""
        return 2**30 - 1

    def wrap(self, integers: jax.Array) -> jax.Array:
        """int32[...] between -p and p -> uint32[...]: each integer modulo p."""
        words = lax.bitcast_convert_type(integers, jnp.uint32)
        return jnp.where(integers < 0, words + np.uint32(m31.PRIME), words)

    def add(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """The sum of two uint32[...] arrays of elements."""
        return m31.add(a, b)

    def negate(self, a: jax.Array) -> jax.Array:
        """The negative of every element of a uint32[...] array."""
        return m31.negate(a)

    def scale(self, a: jax.Array, factor: jax.Array) -> jax.Array:
        """uint32[...] elements times uint32[...] integers."""
        return m31.multiply(a, m31.reduce(jnp.asarray(factor)))

    def sum(self, a: jax.Array, axis: int = 0) -> jax.Array:
        """The sum over one axis of a uint32[...] array."""
        return m31.sum(a, axis)

    def limbs(self, a: jax.Array) -> tuple[jax.Array, ...]:
        """Elements as arrays of uint32[...] of which 2^16 may be added as words: 16 bits each."""
        return a & np.uint32(0xFFFF), a >> np.uint32(16)

    def from_limbs(self, limbs: tuple[jax.Array, ...]) -> jax.Array:
        """The elements whose limbs these are, or the sums of whose limbs: uint32[...]."""
        low, high = (m31.reduce(limb) for limb in limbs)
        return m31.add(low, m31.multiply(high, lax.full_like(high, 2**16)))

    def centre_lift(self, words: jax.Array) -> jax.Array:
        """uint32[...] elements -> their representatives in [-(p-1)/2, (p-1)/2], int32[...]."""
        negative = words > np.uint32(self.largest)
        lifted = jnp.where(negative, words - np.uint32(m31.PRIME), words)
        return lax.bitcast_convert_type(lifted, jnp.int32)
