"""The type of a codec: a differentiable map from updates to grid units, and its inverse."""

import abc
import dataclasses
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from fedjax_agg.session import RoundContext

CodecClass = TypeVar("CodecClass", bound=type)


class Codec(abc.ABC):
    """How one client's update becomes coordinates on a grid, and how a sum of them comes back.

    A codec is a frozen dataclass under ``register_codec``: its *ranges* (a clip, a scale) are
    pytree leaves, so they may be traced, swept by ``vmap`` and learned by ``grad``; its *budget*
    (``max_levels``, ``rounding``, modes) is static. Rounding itself is not part of a codec: it
    is the one step from float to integer and comes after all codecs.

    Laws: ``forward`` is differentiable almost everywhere, ``inverse`` is linear in the total,
    and for exact arithmetic ``inverse(sum of forward(x_i))`` is the sum of the clipped x_i.

    Attributes:
        max_levels: the largest magnitude, in grid units, that a coordinate keeps. What lies
            beyond saturates, so no traced range can make a sum wrap.
        rounding: how coordinates become integers, "stochastic" or "nearest".

    Example:
        >>> import jax.numpy as jnp
        >>> from fedjax_agg.codecs import FixedPoint
        >>> from fedjax_agg.session import RoundContext
        >>> from fedjax_agg.structure import Structure
        >>> codec, update = FixedPoint(clip=1.0, levels=4), jnp.array([0.5, -0.25])
        >>> isinstance(codec, Codec), codec.bound()
        (True, 32768)
        >>> ctx = RoundContext(structure=Structure.of(update))
        >>> codec.forward(update, ctx)
        Array([ 2., -1.], dtype=float32)
        >>> codec.inverse(jnp.array([2.0, -1.0]), ctx)
        Array([ 0.5 , -0.25], dtype=float32)
    """

    max_levels: int
    rounding: str

    @abc.abstractmethod
    def forward(self, update: Any, ctx: RoundContext) -> jax.Array:
        """One client's update -> float32[D] in grid units."""

    @abc.abstractmethod
    def inverse(self, total: jax.Array, ctx: RoundContext) -> Any:
        """A sum of rounded ``forward`` values, float32[D] -> the sum of updates, float32 leaves."""

    @abc.abstractmethod
    def clipped(self, update: Any) -> jax.Array:
        """Whether ``forward`` shortens this update: bool[]. A plaintext measurement."""

    def bound(self) -> int:
        """The largest magnitude of one unweighted coordinate, for the no-wrap proof."""
        return self.max_levels


def saturate(values: jax.Array, limit: Any) -> jax.Array:
    """The values moved into [-limit, limit], with derivative zero where one was moved.

    ``jnp.clip`` would make it a half or zero at the limit itself, where no value is moved.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> jax.jvp(lambda x: saturate(x, 2.0), (jnp.array([2.0, -5.0]),), (jnp.ones(2),))
        (Array([ 2., -2.], dtype=float32), Array([1., 0.], dtype=float32))
    """
    values = jnp.where(values > limit, limit, values)
    return jnp.where(values < -limit, -limit, values)


def register_codec(cls: CodecClass) -> CodecClass:
    """Registers a frozen dataclass as a pytree whose leaves are its non-static fields.

    ``jax.tree_util.register_dataclass`` calls the constructor whenever a tree is rebuilt, also
    around placeholders that are no numbers; here only the user's own call validates.

    Example:
        >>> import dataclasses, jax
        >>> @register_codec
        ... @dataclasses.dataclass(frozen=True)
        ... class Scale:
        ...     factor: float
        ...     mode: str = dataclasses.field(metadata={"static": True})
        >>> jax.tree.map(lambda leaf: 2 * leaf, Scale(1.5, "up"))
        Scale(factor=3.0, mode='up')
    """
    fields = dataclasses.fields(cls)
    leaves = [field.name for field in fields if not field.metadata.get("static")]
    static = [field.name for field in fields if field.metadata.get("static")]

    def flatten(codec):
        children = [(jax.tree_util.GetAttrKey(name), getattr(codec, name)) for name in leaves]
        return children, tuple(getattr(codec, name) for name in static)

    def unflatten(values, children):
        codec: Any = object.__new__(cls)
        for name, value in zip(leaves + static, (*children, *values)):
            object.__setattr__(codec, name, value)
        return codec

    jax.tree_util.register_pytree_with_keys(cls, flatten, unflatten)
    return cls
