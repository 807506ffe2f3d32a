"""Beside: several codecs side by side, each for one part of an update."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_agg import _check
from fedjax_agg.codecs.codec import Codec, register_codec, saturate
from fedjax_agg.session import RoundContext
from fedjax_agg.structure import Structure


@register_codec
@dataclasses.dataclass(frozen=True)
class Beside(Codec):
    """One codec for each part of an update, all in one vector and one budget.

    The update is a tuple with one tree for each codec. Each tree is clipped and scaled by its own
    codec alone, so a model's change and its metrics keep ranges of their own and still travel in
    one masked vector.

    Attributes:
        codecs: the codecs, in the order of the trees; at least one. Their ranges are the leaves.
        max_levels: the largest of theirs; each part still saturates at its own.
        rounding: theirs, which is the same for all.

    Raises:
        TypeError: one of ``codecs`` is no codec.
        ValueError: no codec, or codecs that round in different ways; in a round, an update that
            is no tuple of as many trees.

    Example:
        >>> import jax.numpy as jnp
        >>> import fedjax_agg as fa
        >>> from fedjax_agg.structure import Structure
        >>> codec = Beside((fa.FixedPoint(clip=1.0, levels=8), fa.FixedPoint(clip=100.0, levels=4)))
        >>> update = ({"w": jnp.array([0.5, -0.25])}, jnp.array(50.0))
        >>> ctx = fa.RoundContext(structure=Structure.of(update))
        >>> codec.forward(update, ctx)
        Array([ 4., -2.,  2.], dtype=float32)
        >>> codec.inverse(jnp.array([4.0, -2.0, 2.0]), ctx)
        ({'w': Array([ 0.5 , -0.25], dtype=float32)}, Array(50., dtype=float32))
    """

    codecs: tuple[Codec, ...]
    max_levels: int = dataclasses.field(init=False, repr=False, metadata={"static": True})
    rounding: str = dataclasses.field(init=False, repr=False, metadata={"static": True})

    def __post_init__(self):
        codecs = tuple(self.codecs)
        for i, codec in enumerate(codecs):
            _check.instance("codec-type", Codec, **{f"codecs[{i}]": codec})
        modes = sorted({codec.rounding for codec in codecs})
        if len(modes) != 1:
            raise _check.error(
                "beside-codecs",
                f"codecs with rounding {modes}",
                "one or more, all with the same rounding",
            )
        object.__setattr__(self, "codecs", codecs)
        object.__setattr__(self, "max_levels", max(codec.max_levels for codec in codecs))
        object.__setattr__(self, "rounding", modes[0])

    def forward(self, update: Any, ctx: RoundContext) -> jax.Array:
        """One client's update -> float32[D], the units of one part after those of another."""
        units = []
        for codec, tree, part in zip(self.codecs, update, self._parts(ctx.structure)):
            own = codec.forward(tree, ctx._replace(structure=part))
            units.append(saturate(own, jnp.float32(codec.max_levels)))
        return jnp.concatenate(units)

    def inverse(self, total: jax.Array, ctx: RoundContext) -> Any:
        """A sum of grid units, float32[D] -> the sum of updates."""
        trees, begin = [], 0
        for codec, part in zip(self.codecs, self._parts(ctx.structure)):
            end = begin + part.size
            trees.append(codec.inverse(total[begin:end], ctx._replace(structure=part)))
            begin = end
        return tuple(trees)

    def clipped(self, update: Any) -> jax.Array:
        """Whether any codec shortens its part: bool[]."""
        return jnp.any(jnp.stack([c.clipped(tree) for c, tree in zip(self.codecs, update)]))

    def bound(self) -> int:
        """The largest bound of a part."""
        return max(codec.bound() for codec in self.codecs)

    def _parts(self, structure: Structure) -> list[Structure]:
        """The structures of the trees."""
        count = len(structure.shapes)
        trees = jax.tree.unflatten(structure.treedef, range(count))
        if not isinstance(trees, (tuple, list)) or len(trees) != len(self.codecs):
            raise _check.error(
                "beside-update", f"update {structure.treedef}", f"a tuple of {len(self.codecs)}"
            )
        parts = []
        for tree in trees:
            places, treedef = jax.tree.flatten(tree)
            shapes = tuple(structure.shapes[i] for i in places)
            parts.append(Structure(treedef, shapes, tuple(structure.dtypes[i] for i in places)))
        return parts
