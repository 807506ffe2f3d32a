"""What the XLA compiler has to be told, all in one place.

Two facts about compilers, neither of which changes a result:

* LLVM prefers 256-bit vectors even where the processor has 512-bit ones. ``compiler_options``
  hands the user the flag; JAX accepts it on the outermost ``jax.jit`` only.
* After JAX 0.10, XLA runs a CPU loop on one thread when its body holds nothing but elementwise
  work and reductions. A live 4x4 matrix product in the carry keeps the loop on all threads.
  ``benchmarks/round.py`` times both forms: when they agree, the product can go.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

GUARDED = jax.__version_info__ >= (0, 11)


def compiler_options() -> dict[str, str]:
    """The flags that make masks fast, for the outermost ``jax.jit`` of a program.

    ``jax.jit(step, compiler_options=fa.compiler_options())``. On a CPU with AVX-512 they raise
    the rate of the keystream by a third to a half; elsewhere the dictionary is empty. Results
    are bit-identical with and without.

    Returns:
        A dictionary for the ``compiler_options`` argument of ``jax.jit``.

    Example:
        >>> import jax, fedjax_agg as fa
        >>> double = jax.jit(lambda x: 2 * x, compiler_options=fa.compiler_options())
        >>> int(double(21))
        42
    """
    if jax.default_backend() != "cpu":
        return {}
    return {"xla_cpu_prefer_vector_width": "512"}


def client_loop(count: int | jax.Array, body: Callable[[Any, Any], Any], init: Any) -> Any:
    """``lax.fori_loop(0, count, body, init)``, kept on all threads of a CPU.

    Args:
        count: the number of iterations, static or traced.
        body: ``(index int32[], carry) -> carry``.
        init: the first carry, any pytree of arrays.

    Returns:
        The last carry.
    """
    if not GUARDED or jax.default_backend() != "cpu":
        return lax.fori_loop(0, count, body, init)

    def guarded_body(index, guarded_carry):
        guard, carry = guarded_carry
        # 0.5 * I squares to ever smaller multiples of I, so this is never true; but the
        # compiler cannot know, and has to keep the product.
        never = (guard[0, 0] > 1.0).astype(jnp.int32)
        return guard @ guard, body(index + never, carry)

    guard = 0.5 * jnp.eye(4, dtype=jnp.float32)
    return lax.fori_loop(0, count, guarded_body, (guard, init))[1]


def varying_with(x: jax.Array, *others: jax.Array) -> jax.Array:
    """``x``, uint32, with a zero that is made of the others added to it.

    Inside a ``shard_map`` the first carry of a loop must be known to vary over the mesh as all
    later ones do, which are made of these others.
    """
    some = [jnp.sum(jnp.ravel(other)[:1], dtype=jnp.uint32) for other in others]
    return x + sum(some) * np.uint32(0)
