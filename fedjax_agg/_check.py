"""Eager validators and the table of what to do about each mistake.

Every static mistake raises before anything is traced, and its message has one form::

    argument=value must be requirement; remedy [tag]

The tag is stable: documentation and tests refer to it. Values that are traced pass; what they do
when they are out of range is part of the docstring of whoever takes them.
"""

import operator
from collections.abc import Callable, Collection
from typing import Any

import jax
import numpy as np

REMEDIES = {
    "group-type": "pass Ring(32), or the ring of a plan: plan_round(...).group",
    "ring-bits": "a word is a uint32, so choose at most 32 bits; plan_round(...) finds the "
    "smallest ring that holds the sum",
    "key-shape": "a key is 256 bits as uint32[8]: root_seed(), fixed_seed(0) or a key derived "
    "from one",
    "nonce-shape": "a nonce is 96 bits as uint32[3]",
    "coefficients-shape": "give one uint32 coefficient for every key, such as 1 and 2**32 - 1",
    "keystream-length": "ask for a positive number of 32-bit words, or 0 for none",
    "keystream-start": "begin at a multiple of 16 words, the length of a ChaCha20 block",
    "keystream-counter": "RFC 8439 counts blocks in 32 bits: use another nonce for what lies "
    "beyond 2**36 words",
    "seed": "an integer or a jax.random key holds at most 64 bits; pass root_seed(), or "
    "fixed_seed(0) where a predictable seed is meant",
    "fixed-seed": "use a small non-negative integer such as fixed_seed(0)",
    "num-clients": "the sum over one client is that client's update; take at least two and at "
    "most 65535",
    "round-id": "count rounds from 0; after 2**32 - 1 rounds start again from a new seed",
    "session-type": "make one with simulated_session(root_seed(), num_clients=n, round_id=r)",
    "codec-type": "pass an instance such as FixedPoint(clip=1.0)",
    "protocol-type": "pass an instance such as Plain() or SecAgg()",
    "update-dtype": "only floating-point leaves can be averaged; cast it, or take it out of the "
    "tree (jax.tree.map, flax.nnx.split)",
    "client-axis": "stack the clients' updates along axis 0 of every leaf, one row for each "
    "client of the session",
    "update-structure": "give every client's update the structure and shapes of the parameters",
    "weights-shape": "give one weight for every client, in the order of the updates",
    "weights-dtype": "weights are integers from 0 to max_weight, or fractions in [0, 1] as floats",
    "weights-range": "divide the weights by their public maximum, or raise max_weight",
    "max-weight": "choose a positive integer; plan_round(..., max_weight=w) shows what fits",
    "weight-budget": "raise the ring's bits, or lower max_weight, max_levels or the number of "
    "clients; plan_round(...) shows what fits",
    "float-budget": "float32 cannot round a larger number to the grid: lower max_levels "
    "(fewer bits) or max_weight",
    "participation-shape": "give bool[num_clients]: True where the client's upload arrived",
    "participation-dtype": "give booleans, for example jnp.arange(n) != 3",
    "clip": "choose the largest norm that an update may keep, for example clip=1.0",
    "levels": "choose the number of grid steps in one clip, for example levels=2**15",
    "levels-budget": "raise max_levels to at least levels, or lower levels: coordinates beyond "
    "max_levels saturate",
    "max-levels": "a client's word must stay below 2**23 to be rounded in float32; choose for "
    "example max_levels=2**15",
    "norm": "use 'l2' to clip the norm of the whole update, 'linf' to clip each coordinate",
    "rounding": "use 'stochastic' (unbiased) or 'nearest' (half the worst-case error)",
    "plan-size": "pass a pytree of parameters or a positive number of them",
    "plan-bits": "choose the resolution of one client's word, for example bits=16",
    "plan-ring": "change one of them",
    "update-session": "call update(grads, state, params, session=simulated_session(...))",
    "optax-order": "accumulate inside the client or after aggregation: "
    "optax.chain(secure_aggregate(...), optax.MultiSteps(...)), never MultiSteps around it",
    "optax-privacy": "per-example clipping and noise belong inside the client, before "
    "aggregation: apply differentially_private_aggregate to each client's own gradients",
    "inner-type": "pass an optax.GradientTransformation such as optax.adam(1e-3)",
    "aggregate-type": "pass secure_aggregate(codec, protocol, num_clients=n)",
}


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


def _named(argument: dict[str, Any]) -> tuple[str, Any]:
    ((name, value),) = argument.items()
    return name, value


def integer_in(tag: str, low: int, high: int, **argument: Any) -> int:
    """Requires a Python or NumPy integer in [low, high] and returns it."""
    name, value = _named(argument)
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except (TypeError, jax.errors.TracerIntegerConversionError):
        number = low - 1
    if not low <= number <= high:
        raise error(tag, f"{name}={value!r}", f"an integer from {low} to {high}")
    return number


def positive(tag: str, **argument: Any) -> None:
    """Requires finite positive numbers; traced ones pass."""
    name, value = _named(argument)
    numbers = concrete(value)
    if numbers is None or (
        np.issubdtype(numbers.dtype, np.number)
        and np.isrealobj(numbers)
        and (numbers > 0).all()
        and (numbers < np.inf).all()
    ):
        return
    raise error(tag, f"{name}={value!r}", "a finite positive number")


def one_of(tag: str, options: Collection[str], **argument: Any) -> None:
    """Requires one of a few strings."""
    name, value = _named(argument)
    if value not in options:
        listed = " or ".join(repr(option) for option in options)
        raise error(tag, f"{name}={value!r}", listed)


def instance(tag: str, types: type | tuple[type, ...], **argument: Any) -> None:
    """Requires an instance of a type; the message shows the type, never the value."""
    name, value = _named(argument)
    if not isinstance(value, types):
        listed = types if isinstance(types, tuple) else (types,)
        wanted = " or ".join(t.__name__ for t in listed)
        raise error(tag, f"{name} of type {type(value).__name__}", f"a {wanted}", TypeError)


def words(tag: str, shape: tuple[int | None, ...], **argument: Any) -> None:
    """Requires a uint32 array of a shape in which None stands for any length."""
    name, value = _named(argument)
    wanted = ",".join("n" if size is None else str(size) for size in shape)
    found_shape = getattr(value, "shape", None)
    found_dtype = getattr(value, "dtype", None)
    if (
        found_shape is None
        or found_dtype != np.uint32
        or len(found_shape) != len(shape)
        or any(want is not None and want != got for want, got in zip(shape, found_shape))
    ):
        # The shape and the type only: the value may be a key.
        found = type(value).__name__ if found_shape is None else f"{found_dtype}{[*found_shape]}"
        raise error(tag, f"{name} of type {found}", f"uint32[{wanted}]")


def shape(tag: str, wanted: tuple[int, ...], **argument: Any) -> None:
    """Requires an array of exactly this shape."""
    name, value = _named(argument)
    found = np.shape(value)
    if found != wanted:
        raise error(tag, f"the shape {found} of {name}", f"{wanted}")


def first_leaf(tree: Any, wrong: Callable[[Any], bool]) -> tuple[str, Any] | None:
    """The path and value of the first leaf that is ``wrong``, or None."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if wrong(leaf):
            return jax.tree_util.keystr(path) or "the update itself", leaf
    return None
