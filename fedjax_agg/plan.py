"""Planning a round: from the numbers of an experiment to a ring in which no sum can wrap."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from fedjax_agg import _check
from fedjax_agg.arithmetic import Ring
from fedjax_agg.codecs import FixedPoint
from fedjax_agg.rounding import MAX_UNITS
from fedjax_agg.session import MAX_CLIENTS
from fedjax_agg.structure import Structure

# float32 rounds about ten times between an update and its mean (clip, scale, weight, lift,
# divide), and the norm of a long update adds as much again: 2^-24 each, with room to spare.
_ROUND_OFF = 2.0**-19


@dataclasses.dataclass(frozen=True)
class Plan:
    """The numbers of a round that fit together, and the proof that they do.

    ``print(plan)`` shows the proof.

    Attributes:
        size: coordinates of one update.
        num_clients: clients in a cohort.
        clip: the bound on the norm of one update, in its own units.
        bits: the resolution of one client's word.
        max_weight: the largest integer weight.
        levels: grid steps in one clip, 2^(bits-1) - 1.
        ring_bits: the width of the smallest ring that holds the weighted sum.
        step: clip / levels, in the units of the update.
        error_bound: the largest error of a coordinate of the mean of clipped updates: one step,
            and float32 round-off of at most 2^-19 clips.

    Example:
        >>> plan = plan_round(1000, num_clients=100, clip=1.0, bits=16)
        >>> isinstance(plan, Plan), plan.ring_bits, plan.levels, plan.codec().levels, plan.group
        (True, 23, 32767, 32767, Ring(bits=23))
    """

    size: int
    num_clients: int
    clip: float
    bits: int
    max_weight: int
    levels: int
    ring_bits: int
    step: float
    error_bound: float

    @property
    def group(self) -> Ring:
        """The ring, for ``SecAgg(group=plan.group)``."""
        return Ring(self.ring_bits)

    def codec(self, *, norm: str = "l2", rounding: str = "stochastic") -> FixedPoint:
        """The codec of the plan."""
        return FixedPoint(
            self.clip, self.levels, max_levels=self.levels, norm=norm, rounding=rounding
        )

    def __str__(self) -> str:
        largest = self.num_clients * self.max_weight * self.levels
        return (
            f"{self.num_clients} clients x weight {self.max_weight} x {self.levels} levels"
            f" = {largest} <= 2**{self.ring_bits - 1} - 1 = {self.group.largest}: no sum wraps\n"
            f"step {self.step:.6g}, error of the mean at most {self.error_bound:.6g},"
            f" {self.ring_bits} bits a coordinate,\n"
            f"{-(-self.size * self.ring_bits // 8)} bytes an upload"
        )


def plan_round(
    params_or_size: Any, *, num_clients: int, clip: float, bits: int, max_weight: int = 1
) -> Plan:
    """The smallest ring in which the weighted sum of all clients cannot wrap.

    Args:
        params_or_size: the parameters, any pytree of floats, or their number.
        num_clients: clients in a cohort, 2 to 65535.
        clip: the bound on the norm of one update, in its own units.
        bits: the resolution of one client's word, 2 to 24: levels = 2^(bits-1) - 1.
        max_weight: the largest integer weight.

    Returns:
        The ``Plan``; ``plan.codec()`` and ``plan.group`` are what a round needs.

    Raises:
        ValueError: the numbers do not fit into a 32-bit ring, or into float32; the message
            shows them, and which one to change to what.

    Example:
        >>> print(plan_round(1_000_000, num_clients=100, clip=1.0, bits=16, max_weight=20))
        100 clients x weight 20 x 32767 levels = 65534000 <= 2**26 - 1 = 67108863: no sum wraps
        step 3.05185e-05, error of the mean at most 3.24259e-05, 27 bits a coordinate,
        3375000 bytes an upload
    """
    if isinstance(params_or_size, (int, float, np.integer, str)):
        whole = isinstance(params_or_size, float) and params_or_size.is_integer()
        size = int(params_or_size) if whole else params_or_size
        size = _check.integer_in("plan-size", 1, 2**36, params_or_size=size)
    else:
        size = Structure.of(params_or_size, "params_or_size").size
        if size == 0:
            raise _check.error("plan-size", "params_or_size of 0 coordinates", "a tree of arrays")
    num_clients = _check.integer_in("num-clients", 2, MAX_CLIENTS, num_clients=num_clients)
    _check.positive("clip", clip=clip)
    if _check.concrete(clip) is None or jnp.ndim(clip):
        raise _check.error("clip", f"clip={_check.shown(clip)}", "one number that is not traced")
    bits = _check.integer_in("plan-bits", 2, MAX_UNITS.bit_length() + 1, bits=bits)
    max_weight = _check.integer_in("max-weight", 1, MAX_UNITS, max_weight=max_weight)
    levels = 2 ** (bits - 1) - 1
    for limit, product, numbers in (
        (MAX_UNITS, max_weight * levels, f"max_weight * levels = {max_weight} * {levels}"),
        (
            Ring(32).largest,
            num_clients * max_weight * levels,
            f"num_clients * max_weight * levels = {num_clients} * {max_weight} * {levels}",
        ),
    ):
        if product > limit:
            raise _check.error(
                "plan-ring",
                f"{numbers} = {product}",
                f"at most {limit} ({_fitting(num_clients, levels, max_weight)})",
            )
    largest = num_clients * max_weight * levels
    step = float(clip) / levels
    return Plan(
        size=size,
        num_clients=num_clients,
        clip=float(clip),
        bits=bits,
        max_weight=max_weight,
        levels=levels,
        ring_bits=largest.bit_length() + 1,
        step=step,
        error_bound=step + float(clip) * _ROUND_OFF,
    )


def _fitting(num_clients: int, levels: int, max_weight: int) -> str:
    """Which single number to change, and to what, for both limits to hold."""
    largest = Ring(32).largest
    fitting = []
    most_levels = min(MAX_UNITS // max_weight, largest // (num_clients * max_weight))
    if most_levels >= 1:
        fitting.append(f"bits={(most_levels + 1).bit_length()}")
    most_weight = min(MAX_UNITS // levels, largest // (num_clients * levels))
    if most_weight >= 1:
        fitting.append(f"max_weight={most_weight}")
    if max_weight * levels <= MAX_UNITS and largest // (max_weight * levels) >= 2:
        fitting.append(f"num_clients={largest // (max_weight * levels)}")
    return " or ".join(fitting) + " would fit" if fitting else "no single change fits"
