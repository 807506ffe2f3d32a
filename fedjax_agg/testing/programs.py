"""What the program of a round may hold: no 64-bit type."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax
import numpy as np


def fail(subject: Any, law: str, found: str, cause: Exception | None = None) -> NoReturn:
    """Raises the one message about a broken law; ``found`` holds counts and places, no secrets.

    Example:
        >>> fail(0, "law 1", "2 words differ")
        Traceback (most recent call last):
        AssertionError: int breaks law 1: 2 words differ
    """
    raise AssertionError(f"{type(subject).__name__} breaks {law}: {found}") from cause


@contextlib.contextmanager
def only_messages(protocol: Any) -> Iterator[None]:
    """Turns what a protocol raises when it reaches for what it is not given into the one message.

    Example:
        >>> with only_messages(0):
        ...     {}["upload"]
        Traceback (most recent call last):
        AssertionError: int breaks law 1 (exactness): it uses what no message brings it (KeyError)
    """
    try:
        yield
    except (jax.errors.UnexpectedTracerError, KeyError) as error:
        what = f"it uses what no message brings it ({type(error).__name__})"
        fail(protocol, "law 1 (exactness)", what, error)


def wide_types(function: Callable[..., Any], *arguments: Any, length: int) -> list[str]:
    """The 64-bit values of a function that is traced while JAX has 64-bit types switched on.

    Where they are off, as by default, every value has 32 bits whatever it was asked to have, and
    what would no longer wrap at 2^32 goes unseen.

    Args:
        function: a function of 32-bit arrays.
        arguments: its arguments.
        length: the length of a vector of words. Counters and indices of clients may be int64,
            words and anything along them may not; floats of 64 bits are never right.

    Returns:
        What makes each of them, and its type.

    Example:
        >>> import jax.numpy as jnp
        >>> wide_types(jnp.sum, jnp.zeros(7, jnp.uint32), length=7)
        ['convert_element_type -> uint64[7]']
    """
    with jax.enable_x64(True):
        jaxpr = jax.make_jaxpr(function)(*arguments)
    found = []
    for equation in _equations(jaxpr.jaxpr):
        for variable in equation.outvars:
            value = variable.aval
            dtype = getattr(value, "dtype", None)
            if not isinstance(dtype, np.dtype) or dtype.itemsize < 8 or value.weak_type:
                continue
            if dtype.kind not in "iu" or length in value.shape:
                found.append(f"{equation.primitive.name} -> {dtype}{[*value.shape]}")
    return sorted(set(found))


def _equations(jaxpr: Any) -> Iterator[Any]:
    """Every equation of a jaxpr and of those inside it."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in _sub_jaxprs(equation.params.values()):
            yield from _equations(inner)


def _sub_jaxprs(values: Any) -> Iterator[Any]:
    for value in values:
        if hasattr(value, "eqns"):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _sub_jaxprs(value)
