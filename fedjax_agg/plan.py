"""Planning a round: from the numbers of an experiment to a ring in which no sum can wrap."""

import dataclasses
from typing import Any

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
        >>> plan.ring_bits, plan.levels, plan.codec().levels, plan.group
        (23, 32767, 32767, Ring(bits=23))
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
    if isinstance(params_or_size, (int, float)):
        size = int(params_or_size)
        if size != params_or_size or size < 1:
            raise _check.error(
                "plan-size", f"params_or_size={params_or_size!r}", "a positive whole number"
            )
    else:
        size = Structure.of(params_or_size).size
    _check.integer_in("num-clients", 2, MAX_CLIENTS, num_clients=num_clients)
    _check.positive("clip", clip=clip)
    _check.integer_in("plan-bits", 2, MAX_UNITS.bit_length() + 1, bits=bits)
    _check.integer_in("max-weight", 1, MAX_UNITS, max_weight=max_weight)
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
                f"at most {limit}: {_remedies(limit, product, levels, max_weight, num_clients)}",
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


def _remedies(limit, product, levels, max_weight, num_clients) -> str:
    """Which single number to change, and to what."""
    others = product // levels
    fitting = [f"bits={(limit // others + 1).bit_length()}"] if limit // others >= 1 else []
    if max_weight > 1 and limit // (product // max_weight) >= 1:
        fitting.append(f"max_weight={limit // (product // max_weight)}")
    if limit == Ring(32).largest and limit // (product // num_clients) >= 2:
        fitting.append(f"num_clients={limit // (product // num_clients)}")
    return " or ".join(fitting) + " would fit" if fitting else "no single change fits"
