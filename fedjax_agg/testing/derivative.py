"""Law 2 of a protocol, and the types in its program."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fedjax_agg as fa
from fedjax_agg.testing.programs import fail, only_messages, wide_types
from fedjax_agg.testing.rounds import Rounds, Setting


def check_types(setting: Setting) -> None:
    """Asserts that no word and no float has 64 bits, in the round and in its derivative.

    Example:
        >>> check_types(Setting(fa.Plain(), 3, 8, np.random.default_rng(0))) is None
        True
    """
    rounds = setting.draw(np.full((1, setting.n), len(setting.stages)))
    program, arguments = _derivatives(setting), _one_round(rounds, 0)
    try:
        with only_messages(setting.protocol):
            wide = wide_types(program, *arguments, length=setting.length + 1)
    except (TypeError, ValueError) as error:
        # What has nothing to do with wide types is raised here once more, as it is.
        jax.eval_shape(program, *arguments)
        text = f"where JAX has 64-bit ones, {type(error).__name__}: {str(error).splitlines()[0]}"
        fail(setting.protocol, "32-bit types", text[:200], error)
    if wide:
        text = f"{len(wide)} kinds of 64-bit values where JAX has them, such as {wide[0]}"
        fail(setting.protocol, "32-bit types", text)


def check_law_2(setting: Setting) -> None:
    """Asserts law 2 with nobody lost, with one client lost before its upload, and with all lost.

    Example:
        >>> check_law_2(Setting(fa.Plain(), 3, 8, np.random.default_rng(0))) is None
        True
    """
    protocol, levels = setting.protocol, setting.levels
    lost = np.full((3, setting.n), len(setting.stages))
    lost[1, 0] = lost[2] = setting.stages.index("upload")
    rounds = setting.draw(lost)
    # Every other row is clipped, and none is near the kink.
    rows = rounds.updates[2] / np.linalg.norm(rounds.updates[2], axis=1, keepdims=True)
    updates = rows * np.resize([0.6, 1.7], (setting.n, 1)).astype(np.float32)
    clipped, slopes = _clipped(updates.astype(np.float64))
    program = jax.jit(_derivatives(setting))
    for row in range(3):
        _, weights, session, alive = _one_round(rounds, row)
        found = program(jnp.asarray(updates), weights, session, alive)
        value, ok, survivors, forward, reverse = jax.tree.map(np.asarray, found)
        counted = np.where(ok & survivors, rounds.weights[row], 0)
        counted = counted / max(counted.sum(), 1)
        off = np.max(np.abs(value - counted @ clipped))
        where = setting.lost(rounds.alive[row])
        if not off <= 0.5 / levels + 1e-5:
            text = f"{where}, the mean is {off:.1e} off for steps of {1 / levels:.1e}"
            fail(protocol, "law 1 (exactness)", text)
        jacobian = np.moveaxis(counted[:, None, None] * slopes, 0, 1)
        for mode, found in (("jvp", forward), ("vjp", reverse)):
            gap = np.max(np.abs(found - jacobian))
            if not gap <= 1e-5:
                text = f"{where}, the Jacobian by {mode} is {gap:.1e} off that of the plain mean"
                fail(protocol, "law 2 (the derivative)", text)


def _clipped(updates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows clipped to norm 1, and the Jacobian of each: (I - u u^T) / norm, u its direction."""
    norms = np.linalg.norm(updates, axis=1)[:, None, None]
    directions = updates[:, :, None] / norms
    across = np.eye(updates.shape[1]) - directions * np.swapaxes(directions, 1, 2)
    slopes = np.where(norms > 1, across / norms, np.eye(updates.shape[1]))
    return updates / np.maximum(norms[:, 0], 1), slopes


def _derivatives(setting: Setting) -> Any:
    """One round: the mean, whether it is one, survivors, and the Jacobian in both modes."""
    n, length = setting.n, setting.length

    def program(updates, weights, session, alive):
        arguments = setting.arguments("l2", weights, alive)

        def mean(updates):
            return fa.secure_mean(updates, session, protocol=setting.protocol, **arguments)

        value, push, report = jax.linearize(mean, updates, has_aux=True)
        directions = jnp.eye(n * length, dtype=jnp.float32).reshape(-1, n, length)
        forward = jax.vmap(push, out_axes=-1)(directions).reshape(length, n, length)
        pull = jax.linear_transpose(push, updates)
        (reverse,) = jax.vmap(pull)(jnp.eye(length, dtype=jnp.float32))
        return value, report.ok, report.survivors, forward, reverse

    return program


def _one_round(rounds: Rounds, row: int) -> tuple[Any, ...]:
    return jax.tree.map(lambda x: jnp.asarray(x[row]), tuple(rounds))
