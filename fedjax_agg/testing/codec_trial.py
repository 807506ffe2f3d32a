"""One codec and updates of one structure: many updates through it at once, as flat vectors."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

import fedjax_agg as fa
from fedjax_agg.structure import Structure, flatten
from fedjax_agg.testing.programs import fail

# The size of the cohort.
N = 4
# Updates that run at once.
ROWS = 16
# The step of finite differences, in parts of a direction.
STEP = 2.0**-7


class Measured(NamedTuple):
    """Updates through a codec, float64[rows, D] but for ``clipped`` and ``sides``.

    Attributes:
        units: the grid units of each update.
        back: their inverse.
        twice: the same once more, from there.
        clipped: float64[rows], what ``clipped`` says, as 0 or 1.
        pushed: the derivative along the direction, by jvp.
        pulled: the derivative of the sum of all units, by vjp.
        sides: float64[rows, 4, D], units at 1, -1, 1/2 and -1/2 ``STEP`` along the direction.

    Example:
        >>> Measured._fields[:3]
        ('units', 'back', 'twice')
    """

    units: Any
    back: Any
    twice: Any
    clipped: Any
    pushed: Any
    pulled: Any
    sides: Any


class CodecTrial:
    """A codec, the structure of updates, and its compiled functions of flat updates.

    Attributes:
        codec: the codec.
        structure: that of one update, with float32 leaves.
        size: its number of coordinates, D.
        rng: what updates are drawn from.
        ctx: the public context.
        traces: how often ``measured`` was traced.

    Example:
        >>> codec, rng = fa.FixedPoint(clip=1.0), np.random.default_rng(0)
        >>> trial = CodecTrial(codec, {"w": jnp.zeros(2)}, rng)
        >>> trial.measured(np.array([[3.0, 4.0]])).back.round(2).tolist()
        [[0.6, 0.8]]
    """

    def __init__(self, codec: fa.Codec, update: Any, rng: np.random.Generator):
        """Compiles nothing yet."""
        self.codec, self.rng = codec, rng
        given = Structure.of(update)
        floats = tuple(np.dtype(np.float32) for _ in given.dtypes)
        self.structure = Structure(given.treedef, given.shapes, floats)
        self.size = self.structure.size
        self.traces = 0
        words = jnp.asarray(rng.integers(2**32, size=8, dtype=np.uint32))
        self.ctx = fa.RoundContext(
            round_id=jnp.uint32(1),
            public_seed=words,
            client=jnp.uint32(1),
            structure=self.structure,
            survivors=jnp.ones(N, bool),
            total_weight=jnp.float32(N),
        )
        self._measure = jax.jit(self._measured)

    def fail(self, law: str, found: str, cause: Exception | None = None) -> NoReturn:
        """Raises the one message."""
        fail(self.codec, law, found, cause)

    @contextlib.contextmanager
    def traced(self) -> Iterator[None]:
        """Turns what a codec raises where its values are traced into the one message."""
        try:
            yield
        except TypeError as error:
            text = f"where values are traced, {type(error).__name__}: {error}".splitlines()[0]
            self.fail("compilation and differentiation", text[:200], error)

    def forward(self, codec: fa.Codec, flat: jax.Array) -> jax.Array:
        """One flat update -> grid units, float32[D] both."""
        return codec.forward(self.structure.unflatten(flat), self.ctx)

    def inverse(self, codec: fa.Codec, total: jax.Array) -> jax.Array:
        """A total -> the flat sum of updates, float32[D] both."""
        return flatten(codec.inverse(total, self.ctx))

    def _measured(self, codec: fa.Codec, updates: jax.Array, directions: jax.Array) -> Measured:
        self.traces += 1
        steps = jnp.array([STEP, -STEP, STEP / 2, -STEP / 2], jnp.float32)

        def one(x, v):
            forward = functools.partial(self.forward, codec)
            units, push = jax.linearize(forward, x)
            back = self.inverse(codec, units)
            (pulled,) = jax.linear_transpose(push, x)(jnp.ones_like(units))
            return Measured(
                units=units,
                back=back,
                twice=self.inverse(codec, forward(back)),
                clipped=codec.clipped(self.structure.unflatten(x)),
                pushed=push(v),
                pulled=pulled,
                sides=jax.vmap(lambda step: forward(x + step * v))(steps),
            )

        return jax.vmap(one)(updates, directions)

    def measured(self, updates: np.ndarray, directions: Any = None, codec: Any = None) -> Measured:
        """What becomes of updates, float[rows, D], in blocks of one size."""
        found: list[Any] = []
        directions = np.zeros_like(updates) if directions is None else directions
        codec = as_arrays(self.codec if codec is None else codec)
        for begin in range(0, len(updates), ROWS):
            index = np.arange(begin, begin + ROWS) % len(updates)
            rows = (jnp.asarray(x[index], jnp.float32) for x in (updates, directions))
            with self.traced():
                found.append(self._measure(codec, *rows))
        return jax.tree.map(
            lambda *blocks: np.concatenate(blocks).astype(np.float64)[: len(updates)], *found
        )

    def check_close(self, law: str, what: str, found: Any, wanted: Any, tolerance: float) -> None:
        """Asserts that two arrays differ by at most a part of the largest value."""
        found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
        if not wanted.size:
            return
        largest = float(np.max(np.abs(wanted)))
        gap = float(np.max(np.abs(found - wanted)))
        if not gap <= tolerance * largest:
            self.fail(law, f"{what} is off by {gap:.2g}, where the largest value is {largest:.2g}")


def as_arrays(codec: fa.Codec) -> fa.Codec:
    """The codec with float32 arrays as its ranges.

    Example:
        >>> as_arrays(fa.FixedPoint(clip=1.0)).clip.dtype.name
        'float32'
    """
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), codec)
