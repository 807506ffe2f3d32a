"""The integers modulo a power of two, in 32-bit machine words."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_agg import _check


@dataclasses.dataclass(frozen=True)
class Ring:
    """The group Z / 2^bits, each element a uint32 in [0, 2^bits).

    XLA's uint32 wraps modulo 2^32 by definition, so every operation is the machine's own
    followed by keeping the low ``bits``. Uniform words stay uniform under that truncation, so a
    keystream becomes a mask without sampling bias.

    Attributes:
        bits: the width of an element, 1 to 32.

    Raises:
        ValueError: ``bits`` is not an integer from 1 to 32.

    Example:
        >>> import jax.numpy as jnp
        >>> ring = Ring(8)
        >>> words = ring.wrap(jnp.array([-1, 127, -128], jnp.int32))
        >>> words
        Array([255, 127, 128], dtype=uint32)
        >>> ring.centre_lift(ring.add(words, words))
        Array([-2, -2,  0], dtype=int32)
    """

    bits: int = 32

    def __post_init__(self):
        object.__setattr__(self, "bits", _check.integer_in("ring-bits", 1, 32, bits=self.bits))

    @property
    def largest(self) -> int:
        """The largest magnitude whose both signs the ring tells apart: 2^(bits-1) - 1."""
        return 2 ** (self.bits - 1) - 1

    def _keep(self, words: jax.Array) -> jax.Array:
        return words if self.bits == 32 else words & jnp.uint32(2**self.bits - 1)

    def wrap(self, integers: jax.Array) -> jax.Array:
        """int32[...] -> uint32[...]: each integer modulo 2^bits."""
        # float -> uint32 differs between platforms for negative values; int32 -> uint32 as a
        # bitcast is two's complement everywhere.
        return self._keep(lax.bitcast_convert_type(integers, jnp.uint32))

    def from_keystream(self, words: jax.Array) -> jax.Array:
        """uint32[...] of keystream -> uniform elements, uint32[...]."""
        return self._keep(words)

    def add(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """The sum of two uint32[...] arrays of elements."""
        return self._keep(a + b)

    def negate(self, a: jax.Array) -> jax.Array:
        """The negative of every element of a uint32[...] array."""
        return self._keep(jnp.uint32(0) - a)

    def scale(self, a: jax.Array, factor: jax.Array) -> jax.Array:
        """uint32[...] elements times uint32[...] integers."""
        return self._keep(a * factor)

    def sum(self, a: jax.Array, axis: int = 0) -> jax.Array:
        """The sum over one axis of a uint32[...] array."""
        # Without the dtype a sum of uint32 becomes uint64 under x64 and would not wrap.
        return self._keep(jnp.sum(a, axis=axis, dtype=jnp.uint32))

    def limbs(self, a: jax.Array) -> tuple[jax.Array, ...]:
        """Elements as arrays of uint32[...] that may be added as words: they are such."""
        return (a,)

    def from_limbs(self, limbs: tuple[jax.Array, ...]) -> jax.Array:
        """The elements whose limbs these are, or the sums of whose limbs: uint32[...]."""
        return self._keep(limbs[0])

    def centre_lift(self, words: jax.Array) -> jax.Array:
        """uint32[...] elements -> their representatives in [-2^(bits-1), 2^(bits-1)), int32[...].

        The inverse of ``wrap`` on that range. ``.astype(float32)`` of the result is correctly
        rounded, hence exact up to 2^24 and within half a unit in the last place beyond.
        """
        unused = jnp.int32(32 - self.bits)
        # Shift the sign bit of the element into the sign bit of the word, and back: the
        # arithmetic shift copies it.
        return (lax.bitcast_convert_type(words, jnp.int32) << unused) >> unused
