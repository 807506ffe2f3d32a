"""Fixed point: clip, then measure every coordinate in steps of clip / levels."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_agg import _check, rounding
from fedjax_agg.codecs.codec import Codec, register_codec, saturate
from fedjax_agg.session import RoundContext
from fedjax_agg.structure import flatten

NORMS = ("l2", "linf")
_LARGEST = np.finfo(np.float32).max


@register_codec
@dataclasses.dataclass(frozen=True)
class FixedPoint(Codec):
    """The fixed-point codec with a public clip: step = clip / levels.

    Attributes:
        clip: the bound on the norm of one update, a positive number in the units of the update.
            A pytree leaf: it may be traced, swept and differentiated.
        levels: the number of grid steps in one clip, a positive number; a pytree leaf.
        max_levels: the magnitude in steps at which a coordinate saturates, 1 to 2^23 - 1. It
            bounds what a client can send whatever the traced clip and levels.
        norm: "l2" scales the whole update down to norm ``clip``; "linf" clips each coordinate.
        rounding: "stochastic" is unbiased, at most one step off; "nearest" is at most half a
            step off, with a bias that does not average out over clients.

    Raises:
        ValueError: a clip or levels that is not finite and positive, levels above max_levels,
            max_levels out of range, an unknown norm or rounding.

    | input | static | traced |
    | --- | --- | --- |
    | clip or levels <= 0 | ``ValueError`` | finite, meaningless |
    | levels > max_levels | ``ValueError`` | coordinates saturate at max_levels |
    | coordinate NaN or infinite | - | zero |
    | norm beyond float32 (about 2^64 clips) | - | the whole update is zero |
    | update zero, norm equal to clip | - | unchanged |

    Example:
        >>> import jax.numpy as jnp
        >>> codec = FixedPoint(clip=1.0, levels=100)
        >>> codec.forward({"w": jnp.array([3.0, 4.0])}, None).astype(int)  # norm 5 becomes 1
        Array([60, 80], dtype=int32)
        >>> FixedPoint(clip=1.0, levels=100, norm="linf").forward(jnp.array([3.0, -0.5]), None)
        Array([100., -50.], dtype=float32)
    """

    clip: Any
    levels: Any = 2**15
    _: dataclasses.KW_ONLY
    max_levels: int = dataclasses.field(default=2**15, metadata={"static": True})
    norm: str = dataclasses.field(default="l2", metadata={"static": True})
    rounding: str = dataclasses.field(default="stochastic", metadata={"static": True})

    def __post_init__(self):
        _check.positive("clip", clip=self.clip)
        _check.positive("levels", levels=self.levels)
        max_levels = _check.integer_in(
            "max-levels", 1, rounding.MAX_UNITS, max_levels=self.max_levels
        )
        object.__setattr__(self, "max_levels", max_levels)
        _check.one_of("norm", NORMS, norm=self.norm)
        _check.one_of("rounding", rounding.MODES, rounding=self.rounding)
        levels = _check.concrete(self.levels)
        if levels is not None and (levels > self.max_levels).any():
            raise _check.error(
                "levels-budget", f"levels={levels}", f"at most max_levels={self.max_levels}"
            )

    def forward(self, update: Any, ctx: RoundContext) -> jax.Array:
        """One client's update -> float32[D], |coordinate| <= levels."""
        del ctx
        _check.shape("clip", (), clip=jnp.asarray(self.clip))
        _check.shape("levels", (), levels=jnp.asarray(self.levels))
        clips, levels = self._in_clips(update), jnp.asarray(self.levels, jnp.float32)
        if self.norm == "linf":
            return saturate(clips, 1.0) * levels
        return clips * (_shrink(clips) * levels)

    def inverse(self, total: jax.Array, ctx: RoundContext) -> Any:
        """A sum of grid units, float32[D] -> the sum of updates."""
        return ctx.structure.unflatten(total * _ratio(self.clip, self.levels))

    def clipped(self, update: Any) -> jax.Array:
        """Whether the norm of the update exceeds the clip: bool[]."""
        clips = self._in_clips(update)
        if self.norm == "linf":
            return jnp.any(jnp.abs(clips) > 1.0)
        return _shrink(clips) < 1.0

    def _in_clips(self, update: Any) -> jax.Array:
        flat = flatten(update)
        # A NaN would spread through the norm to the whole update, and an infinity, before or
        # after the division, would make derivatives NaN.
        scale = saturate(_ratio(1.0, self.clip), _LARGEST)
        return saturate(jnp.where(jnp.isfinite(flat), flat, 0.0) * scale, _LARGEST)


def _ratio(numerator: Any, denominator: Any) -> jax.Array:
    """The quotient, and 0 where a traced denominator is 0."""
    numerator, denominator = (jnp.asarray(x, jnp.float32) for x in (numerator, denominator))
    nonzero = denominator != 0
    return jnp.where(nonzero, numerator / jnp.where(nonzero, denominator, 1.0), 0.0)


def _shrink(clips: jax.Array) -> jax.Array:
    """The factor that brings an update, measured in clips, to norm 1 at most: float32[].

    Half-precision leaves are float32 by now, so their squares do not underflow. Where the norm
    overflows float32 the update becomes zero. Each branch that is not taken is fed a harmless
    number, so derivatives stay finite at 0, at the clip and at infinity.
    """
    square = jnp.sum(clips * clips)
    fits = jnp.isfinite(square)
    root = jnp.sqrt(jnp.where((square > 1.0) & fits, square, 1.0))
    return jnp.where(fits, 1.0 / root, 0.0)
