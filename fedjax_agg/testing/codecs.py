"""check_codec: the laws of a codec, forward beside inverse."""

import copy
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fedjax_agg as fa
from fedjax_agg import _check, rounding
from fedjax_agg.codecs.codec import saturate
from fedjax_agg.structure import flatten
from fedjax_agg.testing.codec_trial import ROWS, STEP, CodecTrial, N, as_arrays
from fedjax_agg.testing.programs import wide_types
from fedjax_agg.testing.rounds import draw_sessions

_SCALES = 2.0 ** np.arange(-24, 25)
_BOUND = "the bound"
_LINEAR = "linearity of the inverse"
_INVERSE = "inverse of forward"
_SLOPE = "the derivative"
_TYPES = "32-bit types"
_PROGRAM = "one program for all ranges"


def check_codec(codec: fa.Codec, update: Any = None, *, seed: int = 0) -> None:
    """Asserts that a codec keeps the laws, for updates like a given one.

    In this order: it is a pytree of float ranges with static, hashable budget; ``forward`` gives
    float32[D] and ``inverse`` float32 leaves, for half-precision updates too; no float has 64
    bits; one trace for all ranges; saturated coordinates stay within ``bound()`` whatever the
    update and the ranges, each 2^-10 to 2^10 of its own value; ``inverse`` is linear in the
    total; of an update that is not ``clipped``, ``inverse(forward(x))`` is x, and clipping twice
    is clipping once, up to 10^-4; derivatives are finite everywhere, those in reverse are those
    forward, and both agree with finite differences of ``forward`` away from kinks; ``vmap`` over
    clients and over ranges gives what single calls give; and a round of ``Plain`` has the mean
    and the Jacobian of the clipped updates.

    Args:
        codec: the codec.
        update: a pytree of floats with the shapes of one update; None is a small tree of two
            leaves. Its values are not used: updates are drawn around the scale at which the
            codec begins to clip.
        seed: of those draws.

    Raises:
        AssertionError: a law is broken. The message says which one, where and by how much.
        TypeError: ``codec`` is none, or an update leaf is no float.

    Example:
        >>> import jax.numpy as jnp
        >>> import fedjax_agg as fa
        >>> codec = fa.FixedPoint(clip=1.0, norm="linf", rounding="nearest")
        >>> check_codec(codec, {"w": jnp.zeros((2, 3))}) is None
        True
    """
    _check.instance("codec-type", fa.Codec, codec=codec)
    update = {"w": jnp.zeros((3, 2)), "b": jnp.zeros(3)} if update is None else update
    trial = _Laws(codec, update, np.random.default_rng(seed))
    trial.check_tree()
    trial.check_types()
    trial.check_program_and_bound()
    trial.check_inverse()
    scale = trial.check_clipping()
    trial.check_derivative(scale)
    trial.check_vmap(scale)
    trial.check_round(scale)


class _Laws(CodecTrial):
    """The laws, one by one."""

    # ---- form ----------------------------------------------------------------------------------

    def check_tree(self) -> None:
        leaves = jax.tree.leaves(self.codec)
        treedef: Any = jax.tree.structure(self.codec)
        twin = copy.deepcopy(self.codec)
        fields = ()
        if dataclasses.is_dataclass(self.codec):
            fields = dataclasses.fields(self.codec)
        field: Any
        for field in fields:
            if field.metadata.get("static"):
                try:
                    hash(getattr(self.codec, field.name))
                except TypeError as error:
                    self.fail(_PROGRAM, f"its {field.name} cannot be hashed: {error}", error)
        if treedef != jax.tree.structure(twin):
            self.fail(_PROGRAM, "the static fields of a copy are not equal to its own")
        if any(leaf is self.codec for leaf in leaves):
            self.fail(_PROGRAM, "its class is not registered: decorate it with register_codec")
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.codec):
            if not np.issubdtype(np.asarray(leaf).dtype, np.number):
                name = jax.tree_util.keystr(path)
                self.fail(_PROGRAM, f"the range {name} is no number: make it a static field")
        if self.codec.rounding not in rounding.MODES:
            self.fail("the budget", f"rounding is not one of {list(rounding.MODES)}")
        bound = self.codec.bound()
        if not isinstance(bound, int) or not 1 <= bound <= rounding.MAX_UNITS:
            self.fail(_BOUND, f"bound() is not an integer from 1 to 2^23 - 1 but {bound}")

    def check_types(self) -> None:
        half = self.structure.cast(self.structure.unflatten(jnp.ones(self.size, jnp.float32)))
        half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), half)
        for what, update in (("float32", None), ("bfloat16", half)):
            if update is None:
                update = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), half)
            units = jax.eval_shape(lambda u: self.codec.forward(u, self.ctx), update)
            if units.shape != (self.size,) or units.dtype != jnp.float32:
                text = f"forward of {what} gives {units.dtype}{[*units.shape]}"
                self.fail(_TYPES, f"{text}, where it must be float32[{self.size}]")
        total = jax.ShapeDtypeStruct((self.size,), jnp.float32)
        sums = jax.eval_shape(lambda t: self.codec.inverse(t, self.ctx), total)
        wanted = jax.eval_shape(self.structure.unflatten, total)
        found_tree: Any = jax.tree.structure(sums)
        if found_tree != jax.tree.structure(wanted):
            self.fail(_INVERSE, "inverse gives another tree than that of an update")
        for found, leaf in zip(jax.tree.leaves(sums), jax.tree.leaves(wanted)):
            if (found.shape, found.dtype) != (leaf.shape, leaf.dtype):
                text = f"inverse gives a leaf {found.dtype}{[*found.shape]}"
                self.fail(_TYPES, f"{text}, where it must be float32{[*leaf.shape]}")

        def there_and_back(codec, flat):
            return self.inverse(codec, self.forward(codec, flat))

        arguments = (as_arrays(self.codec), jnp.ones(self.size, jnp.float32))
        with self.traced():
            wide = wide_types(there_and_back, *arguments, length=-1)
        if wide:
            self.fail(_TYPES, f"{len(wide)} kinds of 64-bit floats where JAX has them: {wide[0]}")

    # ---- values --------------------------------------------------------------------------------

    def check_program_and_bound(self) -> None:
        """Extreme updates, with every range as it is and each one much smaller and larger."""
        limit, bound = self.codec.max_levels, self.codec.bound()
        leaves, treedef = jax.tree.flatten(as_arrays(copy.deepcopy(self.codec)))
        rows = np.concatenate([np.ones((1, self.size)), np.eye(self.size)[:2]])
        signs = self.rng.choice([-1.0, 1.0], size=(3, self.size))
        updates = np.concatenate([rows, signs])[:, None] * _SCALES[None, ::4, None]
        for changed in range(-1, len(leaves)):
            for factor in (2.0**-10, 2.0**10) if changed >= 0 else (1.0,):
                scaled = [x * factor if i == changed else x for i, x in enumerate(leaves)]
                ranges = jax.tree.unflatten(treedef, scaled)
                units = self.measured(updates.reshape(-1, self.size), codec=ranges).units
                if not np.all(np.isfinite(units)):
                    self.fail(_BOUND, "forward of a finite update is not finite")
                largest = np.max(np.abs(saturate(units, limit)))
                if largest > bound:
                    text = f"a saturated coordinate reaches {largest:.0f}, bound() says {bound}"
                    self.fail(_BOUND, f"{text}: a sum could wrap")
        if self.traces > 1:
            text = f"{self.traces} traces, where only the values of ranges change"
            self.fail(_PROGRAM, text)

    def check_inverse(self) -> None:
        codec, bound = as_arrays(self.codec), self.codec.bound()
        basis = np.concatenate([np.eye(self.size), np.zeros((1, self.size))])
        inverse = jax.jit(jax.vmap(self.inverse, (None, 0)))
        columns = np.asarray(inverse(codec, jnp.asarray(basis, jnp.float32)), np.float64)
        if np.any(columns[-1]):
            self.fail(_LINEAR, f"inverse of zeros is off zero by {np.max(np.abs(columns[-1])):.1e}")
        totals = self.rng.integers(-bound, bound, size=(ROWS, self.size), endpoint=True)
        found = np.asarray(inverse(codec, jnp.asarray(totals, jnp.float32)), np.float64)
        self.check_close(_LINEAR, "inverse of a total", found, totals @ columns[:-1], 1e-5)
        self.columns = columns[:-1]

    def check_clipping(self) -> float:
        """The scale at which clipping begins, and what is and what is not clipped."""
        rows = self.rng.normal(size=(4, self.size))
        found = self.measured((rows * _SCALES[:, None, None]).reshape(-1, self.size))
        clipped = np.any(found.clipped.reshape(len(_SCALES), 4), axis=1)
        if clipped[0]:
            self.fail(_INVERSE, f"clipped is True even of updates of size {_SCALES[0]:.0e}")
        scale = float(_SCALES[np.argmax(clipped)]) if np.any(clipped) else 1.0
        factors = scale * 2.0 ** np.resize(np.arange(-4, 4), (ROWS, 1))
        some = factors * self.rng.normal(size=(ROWS, self.size))
        found = self.measured(some)
        kept = found.clipped == 0
        # Measured in the largest coordinate of each update, which is 1.
        sizes = np.max(np.abs(some), axis=1, keepdims=True)
        some, back, twice = some / sizes, found.back / sizes, found.twice / sizes
        what = "of what is not clipped, inverse(forward(x))"
        self.check_close(_INVERSE, what, back[kept], some[kept], 1e-4)
        self.check_close(_INVERSE, "what was clipped once and is clipped again", twice, back, 1e-4)
        same = ~kept & (np.max(np.abs(back - some), axis=1) <= 1e-6)
        if np.any(same):
            text = f"clipped is True of {np.sum(same)} updates that come back as they were"
            self.fail(_INVERSE, text)
        return scale

    def check_derivative(self, scale: float) -> None:
        extremes = np.concatenate(
            [np.zeros((1, self.size)), np.ones((2, self.size)) * [[1e-30], [1e30]]]
        )
        found = self.measured(extremes, np.ones_like(extremes))
        if not np.all(np.isfinite(found.pushed) & np.isfinite(found.pulled)):
            self.fail(_SLOPE, "at an update of 0, 1e-30 or 1e30 it is not finite")
        updates, directions = scale * self.rng.normal(size=(2, ROWS, self.size))
        # Some inside the clip, some beyond it.
        factors = 2.0 ** np.resize(np.arange(-5, 3), (ROWS, 1))
        updates, directions = updates * factors, directions * factors
        found = self.measured(updates, directions)
        ahead, behind, near, back = np.moveaxis(found.sides, 1, 0)
        slope, coarse = (near - back) / STEP, (ahead - behind) / (2 * STEP)
        bend = np.abs(ahead - 2 * found.units + behind) / STEP
        size = np.max(np.abs(slope), axis=1, keepdims=True)
        noise = 2.0**-20 * np.max(np.abs(found.units), axis=1, keepdims=True) / STEP
        smooth = (np.abs(slope - coarse) < 0.01 * size + noise) & (bend < 0.1 * size + noise)
        if np.mean(smooth) < 0.5 or not np.any(size > 8 * noise):
            text = f"finite differences settle for {np.mean(smooth):.0%} of the coordinates"
            self.fail(_SLOPE, f"{text}: forward is flat, or not differentiable almost everywhere")
        gap = np.where(smooth, np.abs(found.pushed - slope), 0.0)
        if np.any(gap > 0.03 * size + 2 * noise):
            row, place = np.unravel_index(np.argmax(gap / (size + noise)), gap.shape)
            text = f"by jvp it is {found.pushed[row, place]:.3g} in one coordinate"
            self.fail(_SLOPE, f"{text}, by finite differences {slope[row, place]:.3g}")
        forward, reverse = np.sum(found.pushed, 1), np.sum(found.pulled * directions, 1)
        span = np.sum(np.abs(found.pulled * directions), 1) + np.sum(np.abs(found.pushed), 1)
        if np.any(np.abs(forward - reverse) > 1e-4 * span):
            self.fail(_SLOPE, "by jvp and by vjp it is not the same")

    def check_vmap(self, scale: float) -> None:
        updates = jnp.asarray(scale * self.rng.normal(size=(3, self.size)), jnp.float32)
        codec = as_arrays(self.codec)
        one = jax.jit(self.forward)
        found = jax.jit(jax.vmap(self.forward, (None, 0)))(codec, updates)
        alone = np.stack([one(codec, row) for row in updates])
        self.check_close("vmap over clients", "forward of many", found, alone, 1e-5)
        ranges = [jax.tree.map(lambda x, f=f: x * jnp.float32(f), codec) for f in (1.0, 0.5)]
        both = jax.tree.map(lambda *leaves: jnp.stack(leaves), *ranges)
        if jax.tree.leaves(codec):
            found = jax.jit(jax.vmap(self.forward, (0, None)))(both, updates[0])
            alone = np.stack([one(each, updates[0]) for each in ranges])
            self.check_close("vmap over ranges", "forward of many", found, alone, 1e-5)

    def check_round(self, scale: float) -> None:
        """A round of ``Plain``: at most a step for each client, and the Jacobian of the mean."""
        scales = scale * 2.0 ** -np.arange(N)[:, None]
        updates = jnp.asarray(scales * self.rng.normal(size=(N, self.size)), jnp.float32)
        sessions = draw_sessions(self.rng, 1, N)
        session = jax.tree.map(lambda x: jnp.asarray(x[0]), sessions)
        ctx = self.ctx._replace(round_id=session.round_id, public_seed=session.public_seed)

        def secure(updates):
            rows = jax.vmap(self.structure.unflatten)(updates)
            return flatten(fa.secure_mean(rows, session, codec=self.codec)[0])

        def plain(updates):
            def there_and_back(flat, client):
                own = ctx._replace(client=client)
                units = self.codec.forward(self.structure.unflatten(flat), own)
                units = saturate(units, jnp.float32(self.codec.max_levels))
                return flatten(self.codec.inverse(units, ctx))

            return jnp.mean(jax.vmap(there_and_back)(updates, session.client_ids), axis=0)

        @jax.jit
        def both(updates):
            def with_value(function):
                value = function(updates)
                return value, jax.jacrev(function)(updates)

            return with_value(secure), with_value(plain)

        (mean, jacobian), (expected, plain_jacobian) = both(updates)
        # What one step in every coordinate can move.
        step = np.sum(np.abs(self.columns), axis=0) + 1e-5 * np.max(np.abs(expected))
        off = np.max(np.abs(np.asarray(mean) - expected) / step)
        if not off <= 1:
            self.fail("law 1 (exactness)", f"the mean of a round is {off:.1f} steps off")
        self.check_close(
            "law 2 (the derivative)", "the Jacobian of a round", jacobian, plain_jacobian, 1e-4
        )
