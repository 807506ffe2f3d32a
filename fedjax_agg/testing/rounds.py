"""Many rounds at once: how they are drawn, and what the server sees of them."""

import copy
import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import fedjax_agg as fa
from fedjax_agg.participation import STAGES
from fedjax_agg.testing.programs import fail, only_messages

# Rounds that run at once.
BLOCK = 128
_LARGEST_WEIGHT = 3


class Rounds(NamedTuple):
    """The inputs of many rounds, along axis 0.

    Attributes:
        updates: float32[rounds, n, length].
        weights: int32[rounds, n].
        session: the sessions.
        alive: bool[rounds, 5, n].

    Example:
        >>> Rounds._fields
        ('updates', 'weights', 'session', 'alive')
    """

    updates: np.ndarray
    weights: np.ndarray
    session: fa.Session
    alive: np.ndarray


def draw_sessions(rng: np.random.Generator, count: int, n: int) -> fa.Session:
    """Sessions of arbitrary words, along axis 0: the laws hold however keys were derived.

    Example:
        >>> draw_sessions(np.random.default_rng(0), count=2, n=3).secrets.shape
        (2, 3, 8)
    """

    def words(*shape: int) -> Any:
        return rng.integers(2**32, size=(count, *shape), dtype=np.uint32)

    client_ids: Any = np.tile(np.arange(1, n + 1, dtype=np.uint32), (count, 1))
    agreement: Any = np.repeat(words(1, 2, 8), n, axis=1)
    return fa.Session(words(), words(8), client_ids, words(n, 8), agreement)


class Setting:
    """A protocol and the rounds that it is checked in.

    Attributes:
        protocol: the protocol.
        n: the number of clients.
        length: coordinates of an update; the weight is one more word.
        stages: the names of its stages.
        levels: steps of the grid in 1, a power of two.
        max_weight: the largest weight.

    Example:
        >>> setting = Setting(fa.Plain(), 3, 8, np.random.default_rng(0))
        >>> setting.stages, setting.levels, setting.max_weight
        (['upload'], 32768, 3)
        >>> setting.draw([[1, 1, 0]]).alive.sum(axis=1).tolist()  # the third is lost at *upload*
        [[5, 5, 2]]
    """

    def __init__(self, protocol: fa.Protocol, n: int, length: int, rng: np.random.Generator):
        """Runs nothing yet."""
        self.protocol, self.n, self.length, self._rng = protocol, n, length, rng
        before, after = ([e.name for e in es] for es in (protocol.prepare(n), protocol.respond(n)))
        self.stages = [*before, "upload", *after]
        room = max(protocol.group.largest // n, 1)
        self.max_weight = min(_LARGEST_WEIGHT, room)
        self.levels = min(2**15, 2 ** ((room // self.max_weight).bit_length() - 1))

    def patterns(self, most: int) -> tuple[np.ndarray, int]:
        """int[patterns, n], the number of the stage at which each client is lost, and how many
        patterns there are: the first is that of nobody lost.
        """
        n, never = self.n, len(self.stages)
        of = (never + 1) ** n
        if of <= most:
            return np.indices((never + 1,) * n).reshape(n, -1).T[::-1], of
        rows = np.arange(n * never)
        alone = np.full((n * never, n), never)
        alone[rows, rows // never] = rows % never
        everybody = np.repeat(np.arange(never)[:, None], n, axis=1)
        known = np.concatenate([np.full((1, n), never), alone, everybody])[:most]
        sample = self._rng.integers(never + 1, size=(most - len(known), n))
        return np.concatenate([known, sample]), of

    def draw(self, lost: Any) -> Rounds:
        """Rounds with these losses, each with a session, updates and weights of its own."""
        rng, n, lost = self._rng, self.n, np.asarray(lost)
        count = len(lost)

        first_missing = np.array([*map(STAGES.index, self.stages), len(STAGES)])[lost]
        # Most coordinates are small, so that they show where masks are missing or narrow; those
        # of the first rounds are as large as they come.
        scales = 2.0 ** -rng.integers(8, size=self.length)
        updates = rng.uniform(-1, 1, (count, n, self.length)) * scales
        updates[:2] = np.array([[[1]], [[-1]]])[:count]
        return Rounds(
            updates.astype(np.float32),
            rng.integers(1, self.max_weight, size=(count, n), endpoint=True).astype(np.int32),
            draw_sessions(rng, count, n),
            first_missing[:, None] > np.arange(len(STAGES))[:, None],
        )

    def arguments(self, norm: str, weights: Any, alive: Any) -> dict[str, Any]:
        """How a round is called, but for its protocol."""
        codec = fa.FixedPoint(
            1.0, self.levels, max_levels=self.levels, norm=norm, rounding="nearest"
        )
        participation = fa.Participation(alive)
        return {
            "codec": codec,
            "weights": weights,
            "max_weight": self.max_weight,
            "participation": participation,
        }

    def integers(self, rounds: Rounds) -> np.ndarray:
        """int64[rounds, n, length + 1]: what updates and weights are on the grid."""
        weights = rounds.weights.astype(np.float32)[..., None]
        units = weights * (rounds.updates * np.float32(self.levels))
        return np.rint(np.concatenate([units, weights], axis=2)).astype(np.int64)

    def words(self, integers: np.ndarray) -> np.ndarray:
        """int64[...] as elements of the group."""
        return np.asarray(self.protocol.group.wrap(jnp.asarray(integers.astype(np.int32))))

    def difference(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """``a - b`` in the group."""
        group = self.protocol.group
        return np.asarray(group.add(jnp.asarray(a), group.negate(jnp.asarray(b))))

    def lost(self, alive: np.ndarray) -> str:
        """Who is lost at which stage, in words."""
        lost: dict[str, list[str]] = {}
        for client, column in enumerate(alive.T, start=1):
            stage = next((s for s in self.stages if not column[STAGES.index(s)]), None)
            if stage is not None:
                lost.setdefault(stage, []).append(str(client))
        named = [
            f"client{'s' * (len(clients) > 1)} {', '.join(clients)} lost at {stage}"
            for stage, clients in lost.items()
        ]
        return f"with {' and '.join(named) or 'nobody lost'}"


class ServerView:
    """Runs rounds and keeps what the server sees: one program, and one for ``recover``.

    Example:
        >>> setting = Setting(fa.Plain(), 3, 8, np.random.default_rng(0))
        >>> server, public = ServerView(setting).of(setting.draw([[1, 1, 0]]))
        >>> list(server), public.survivors.tolist()
        (['upload'], [[True, True, False]])
    """

    def __init__(self, setting: Setting):
        """Compiles nothing yet."""
        self._setting, self._traces = setting, 0
        self._copies = itertools.cycle([setting.protocol, copy.deepcopy(setting.protocol)])

        def view(protocol, updates, weights, session, alive):
            self._traces += 1
            arguments = setting.arguments("linf", weights, alive)
            kept = fa.transcript(updates, session, protocol=protocol, **arguments)
            seen = kept.view(server=True)
            return seen.server, seen.public

        def recover(protocol, server, public):
            upload = server["upload"].outboxes.words
            counted = jnp.where(public.survivors[:, None], upload, jnp.uint32(0))
            mail = {stage: mail for stage, mail in server.items() if stage != "upload"}
            total = protocol.recover(protocol.group.sum(counted), mail, public)
            return total.words, total.ok

        self._view, self._recover = _over_rounds(view), _over_rounds(recover)

    def of(self, rounds: Rounds) -> tuple[Any, Any]:
        """The server's ``Mail`` by stage and the public context, of every round."""
        seen = self._in_blocks(self._view, rounds)
        if self._traces > 1:
            found = f"traced {self._traces} times for copies, sessions, weights, participations"
            fail(self._setting.protocol, "one program for all rounds", found)
        return seen

    def recover(self, server: Any, public: Any) -> tuple[np.ndarray, np.ndarray]:
        """What ``recover`` makes of messages alone: words and ok of every round."""
        return self._in_blocks(self._recover, (server, public))

    def _in_blocks(self, program: Callable, rows: Any) -> Any:
        count, found = len(jax.tree.leaves(rows)[0]), []
        with only_messages(self._setting.protocol):
            for begin in range(0, count, BLOCK):
                index = np.arange(begin, begin + BLOCK) % count
                block = jax.tree.map(lambda x, index=index: x[index], rows)
                found.append(jax.tree.map(np.asarray, program(next(self._copies), *block)))
        return jax.tree.map(lambda *blocks: np.concatenate(blocks)[:count], *found)


def _over_rounds(function: Callable) -> Callable:
    """The function of a protocol and one round's arrays, compiled for many rounds at once."""

    @functools.partial(jax.jit, static_argnums=0)
    def program(protocol, *rows):
        return jax.vmap(functools.partial(function, protocol))(*rows)

    return program
