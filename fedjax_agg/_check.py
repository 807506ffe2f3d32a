"""Eager validators.

Every static mistake raises before anything is traced, and its message has one form::

    argument=value must be requirement; remedy [tag]

The tag is stable: documentation and tests refer to it. Values that are traced pass; what they do
when they are out of range is part of the docstring of whoever takes them.
"""

from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_agg._remedies import REMEDIES

# The normal numbers of float32, in which a round computes.
_SMALLEST, _LARGEST = (float(limit) for limit in (np.finfo("f4").tiny, np.finfo("f4").max))


def error(
    tag: str, subject: str, requirement: str, kind: type[Exception] = ValueError
) -> Exception:
    """The exception ``subject must be requirement; remedy [tag]``, to be raised by the caller."""
    return kind(f"{subject} must be {requirement}; {REMEDIES[tag]} [{tag}]")


def concrete(value: Any) -> np.ndarray | None:
    """``value`` as a NumPy array, or None where it is traced and has no value yet."""
    try:
        return np.asarray(value)
    except jax.errors.TracerArrayConversionError:
        return None
    except (TypeError, ValueError):  # Keys and ragged sequences are no arrays of numbers.
        return np.array(None)


def shown(value: Any) -> str:
    """A value as a message may show it: numbers and names, never what could hold a key."""
    shape = getattr(value, "shape", None)
    if isinstance(value, type):
        return f"type[{value.__name__}]"
    if shape is not None:
        numbers = concrete(value)
        if numbers is not None and shape == () and numbers.dtype != object:
            return repr(numbers.item())
        return f"{'traced ' if numbers is None else ''}{shown_type(value)}"
    if isinstance(value, int) and value.bit_length() > 64:
        return f"an integer of {value.bit_length()} bits"
    if value is None or isinstance(value, (bool, int, float, complex, str)):
        return repr(value)
    return f"type {type(value).__name__}"


def shown_type(value: Any) -> str:
    """The dtype and shape of an array, or the type of anything else: the value may be a key."""
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    return type(value).__name__ if shape is None else f"{dtype}{[*shape]}"


def _named(argument: dict[str, Any]) -> tuple[str, Any]:
    ((name, value),) = argument.items()
    return name, value


def integer_in(tag: str, low: int, high: int, /, **argument: Any) -> int:
    """Requires a Python or NumPy integer in [low, high] and returns it."""
    name, value = _named(argument)
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or not low <= value <= high:
        wanted = "a static integer" if concrete(value) is None else "an integer"
        raise error(tag, f"{name}={shown(value)}", f"{wanted} from {low} to {high}")
    # NumPy's integers have a width, in which a proof about products would itself wrap.
    return int(value)


def number(tag: str, low: int, high: int, /, **argument: Any) -> jax.Array:
    """Requires an integer scalar from ``low`` to ``high``, which may be traced, as uint32[]."""
    name, value = _named(argument)
    known = concrete(value)
    if known is not None:
        scalar = value if known.dtype == object else known[()]
        return jnp.uint32(np.uint32(integer_in(tag, low, high, **{name: scalar})))
    if jnp.shape(value) or not jnp.issubdtype(jnp.result_type(value), jnp.integer):
        raise error(tag, f"{name}={shown(value)}", "an integer scalar")
    return jnp.asarray(value).astype(jnp.uint32)


def round_number(round_id: Any) -> jax.Array:
    """Requires the number of a round, as uint32[]."""
    return number("round-id", 0, 2**32 - 1, round_id=round_id)


def fraction(tag: str, /, **argument: Any) -> None:
    """Requires a number from 0 to 1; a traced one passes."""
    name, value = _named(argument)
    known = concrete(value)
    if known is not None and not (
        known.dtype.kind in "fiu" and known.ndim == 0 and 0 <= known <= 1
    ):
        raise error(tag, f"{name}={shown(value)}", "a number from 0 to 1")


def positive(tag: str, /, **argument: Any) -> None:
    """Requires numbers that are finite and positive in float32; traced ones pass."""
    name, value = _named(argument)
    numbers = concrete(value)
    if numbers is None or (
        isinstance(value, (int, float, np.generic, np.ndarray, jax.Array))
        and np.issubdtype(numbers.dtype, np.number)
        and np.isrealobj(numbers)
        and (numbers >= _SMALLEST).all()
        and (numbers <= _LARGEST).all()
    ):
        return
    raise error(tag, f"{name}={shown(value)}", "a positive number, finite in float32")


def boolean(tag: str, /, **argument: Any) -> None:
    """Requires True or False."""
    name, value = _named(argument)
    if not isinstance(value, bool):
        raise error(tag, f"{name}={shown(value)}", "a bool")


def one_of(tag: str, options: Collection[str], /, **argument: Any) -> None:
    """Requires one of a few strings."""
    name, value = _named(argument)
    if not isinstance(value, str) or value not in options:
        listed = " or ".join(repr(option) for option in options)
        raise error(tag, f"{name}={shown(value)}", listed)


def instance(tag: str, types: type | tuple[type, ...], /, **argument: Any) -> None:
    """Requires an instance of a type; the message shows the type, never the value."""
    name, value = _named(argument)
    if not isinstance(value, types):
        listed = types if isinstance(types, tuple) else (types,)
        wanted = " or ".join(t.__name__ for t in listed)
        found = shown(value) if isinstance(value, type) else type(value).__name__
        raise error(tag, f"{name} of type {found}", f"a {wanted}", TypeError)


def array(tag: str, dtype: Any, shape: tuple[int | None, ...], /, **argument: Any) -> None:
    """Requires an array of a dtype and of a shape in which None stands for any length."""
    name, value = _named(argument)
    found_shape, found_dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if (
        found_shape is None
        or found_dtype != dtype
        or len(found_shape) != len(shape)
        or any(want is not None and want != got for want, got in zip(shape, found_shape))
    ):
        wanted = ",".join("n" if size is None else str(size) for size in shape)
        raise error(tag, f"{name} of type {shown_type(value)}", f"{np.dtype(dtype).name}[{wanted}]")


def words(tag: str, shape: tuple[int | None, ...], /, **argument: Any) -> None:
    """Requires a uint32 array of a shape in which None stands for any length."""
    array(tag, np.uint32, shape, **argument)


def shape(tag: str, wanted: tuple[int, ...], /, **argument: Any) -> None:
    """Requires an array of exactly this shape."""
    name, value = _named(argument)
    found = getattr(value, "shape", None)
    if found is None:
        raise error(tag, f"{name} of type {type(value).__name__}", f"an array of shape {wanted}")
    if found != wanted:
        raise error(tag, f"the shape {found} of {name}", f"{wanted}")


def first_leaf(name: str, tree: Any, wrong: Callable[[Any], bool]) -> tuple[str, Any] | None:
    """The path, from the argument's name on, and value of the first ``wrong`` leaf, or None."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if wrong(leaf):
            return name + jax.tree_util.keystr(path), leaf
    return None
