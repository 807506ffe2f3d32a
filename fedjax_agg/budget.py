"""The no-wrap proof of a round, and the grid that weights live on."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fedjax_agg import _check
from fedjax_agg.codecs import Codec
from fedjax_agg.protocols import Protocol
from fedjax_agg.rounding import MAX_UNITS


def largest_weight(
    num_clients: int,
    codec: Codec,
    protocol: Protocol,
    weights: Any = None,
    max_weight: int | None = None,
    *,
    shift: int = 0,
) -> int:
    """The largest weight of a round, after the proof that no sum can wrap.

    ``num_clients * max_weight * max_levels <= 2^(bits-1) - 1`` keeps the sum inside the ring,
    and ``max_weight * max_levels < 2^23`` keeps one client's coordinates inside float32.

    Args:
        num_clients: the size of the cohort.
        codec: what bounds one coordinate.
        protocol: whose group the sum is in.
        weights: None where every client counts once.
        max_weight: the user's choice; None takes the largest that fits.
        shift: low bits of the ring that words leave empty, as those of a blind round do.

    Returns:
        The largest integer weight, 1 where ``weights`` is None.

    Raises:
        ValueError: the numbers do not fit; the message shows the product.

    Example:
        >>> import jax.numpy as jnp
        >>> from fedjax_agg.arithmetic import Ring
        >>> from fedjax_agg.codecs import FixedPoint
        >>> from fedjax_agg.protocols import Plain
        >>> codec = FixedPoint(clip=1.0, levels=2**10, max_levels=2**10)
        >>> largest_weight(100, codec, Plain(Ring(24)), weights=jnp.ones(100))
        81
    """
    levels, largest = codec.bound(), protocol.group.largest >> shift
    if max_weight is not None:
        max_weight = _check.integer_in("max-weight", 1, MAX_UNITS, max_weight=max_weight)
    if weights is None:
        wanted = 1
    elif max_weight is None:
        wanted = max(1, min(largest // (num_clients * levels), MAX_UNITS // levels))
    else:
        wanted = max_weight
    if num_clients * wanted * levels > largest:
        raise _check.error(
            "blind-budget" if shift else "weight-budget",
            f"num_clients * max_weight * max_levels = {num_clients} * {wanted} * {levels} "
            f"= {num_clients * wanted * levels}",
            f"at most 2**{protocol.group.bits - 1 - shift} - 1 = {largest}",
        )
    if wanted * levels > MAX_UNITS:
        raise _check.error(
            "float-budget",
            f"max_weight * max_levels = {wanted} * {levels} = {wanted * levels}",
            "below 2**23",
        )
    return wanted


def blind_shift(num_clients: int) -> int:
    """v, the low bits that words of a blind round leave empty: floor(log2 num_clients).

    No number of survivors is divided by a larger power of two than 2^v.

    Example:
        >>> blind_shift(7), blind_shift(8)
        (2, 3)
    """
    return num_clients.bit_length() - 1


def require_planned_fit(
    num_clients: int, levels: int, max_weight: int, largest: int, *, shift: int = 0
) -> int:
    """The proof of a plan, as in ``largest_weight``, for a group that is still to be chosen.

    Args:
        num_clients: the size of the cohort.
        levels: the largest magnitude of a coordinate.
        max_weight: the largest integer weight.
        largest: the largest magnitude that the widest group holds.
        shift: low bits of the ring that words leave empty.

    Returns:
        The largest magnitude of a sum of words.

    Raises:
        ValueError: the numbers do not fit; the message says which one to change to what.

    Example:
        >>> require_planned_fit(100, 32767, 20, 2**31 - 1)
        65534000
    """
    for limit, product, numbers in (
        (MAX_UNITS, max_weight * levels, f"max_weight * levels = {max_weight} * {levels}"),
        (
            largest >> shift,
            num_clients * max_weight * levels,
            f"num_clients * max_weight * levels = {num_clients} * {max_weight} * {levels}",
        ),
    ):
        if product > limit:
            raise _check.error(
                "plan-ring",
                f"{numbers} = {product}",
                f"at most {limit} ({_fitting(num_clients, levels, max_weight, largest >> shift)})",
            )
    return num_clients * max_weight * levels << shift


def _fitting(num_clients: int, levels: int, max_weight: int, largest: int) -> str:
    """Which single number to change, and to what, for both limits to hold."""
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


def weights_on_grid(weights: Any, max_weight: int) -> tuple[jax.Array, int]:
    """Weights as whole numbers from 0 to ``max_weight``, and how many of them make one.

    Rounding w and w * x separately would be wrong for a fractional w, so the weight is moved to
    its grid first and the moved weight multiplies the update.

    Args:
        weights: [n], integers from 0 to ``max_weight`` or floats in [0, 1].
        max_weight: the largest integer weight, and the number of grid steps in [0, 1].

    Returns:
        float32[n] of whole numbers, differentiable in float weights as if not rounded, and the
        divisor, 1 for integers and ``max_weight`` for floats.

    Raises:
        ValueError: another dtype; static weights out of range. Traced ones are moved to the
            nearer end, NaN to zero.

    Example:
        >>> import jax.numpy as jnp
        >>> weights_on_grid(jnp.array([0.0, 0.26, 1.0]), 4)
        (Array([0., 1., 4.], dtype=float32), 4)
    """
    dtype = weights.dtype
    integers = jnp.issubdtype(dtype, jnp.integer)
    if not integers and not jnp.issubdtype(dtype, jnp.floating):
        raise _check.error(
            "weights-dtype", f"the dtype {dtype.name} of weights", "an integer or float type"
        )
    limit, grid = (max_weight, 1) if integers else (1, max_weight)
    numbers = _check.concrete(weights)
    if numbers is not None and not ((numbers >= 0) & (numbers <= limit)).all():
        first = int(np.argmin((numbers >= 0) & (numbers <= limit)))
        raise _check.error(
            "weights-range",
            f"weights[{first}]={numbers[first]}",
            f"from 0 to max_weight={limit}" if integers else "from 0 to 1",
        )
    scaled = jnp.asarray(weights).astype(jnp.float32) * grid
    inside = jnp.where(jnp.isnan(scaled), 0.0, jnp.clip(scaled, 0.0, max_weight))
    # Straight through: the derivative of the moved weight is that of the weight.
    return inside + lax.stop_gradient(jnp.round(inside) - inside), grid
