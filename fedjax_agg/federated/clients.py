"""The data of all clients as one padded array, and who takes part in a round."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_agg import _check
from fedjax_agg.sharing import graph
from fedjax_agg.symmetric import key_schedule


class ClientData(NamedTuple):
    """The examples of N clients, padded to the same number m.

    Attributes:
        examples: a pytree of arrays [N, m, ...], a row of m examples for each client. What lies
            beyond a client's count is never read, so it may be anything.
        counts: int32[N], how many examples each client has, 0 to m.

    Example:
        >>> import jax.numpy as jnp
        >>> data = ClientData(jnp.zeros((5, 3, 2)), jnp.array([3, 1, 0, 2, 3], jnp.int32))
        >>> data.num_clients, data.max_examples
        (5, 3)
        >>> data.take(jnp.array([1, 3])).counts
        Array([1, 2], dtype=int32)
    """

    examples: Any
    counts: jax.Array

    @property
    def num_clients(self) -> int:
        """The number of clients, N."""
        return jnp.shape(self.counts)[0]

    @property
    def max_examples(self) -> int:
        """The length that examples are padded to, m."""
        return jnp.shape(jax.tree.leaves(self.examples)[0])[1]

    def take(self, clients: jax.Array) -> "ClientData":
        """The data of a cohort, int32[n] counted from 0, in its order."""
        return jax.tree.map(lambda leaf: jnp.asarray(leaf)[clients], self)

    def check(self) -> None:
        """Raises ValueError unless every leaf is [N, m, ...] and counts are int32[N], 0 to m."""
        leaves = jax.tree_util.tree_leaves_with_path(self.examples)
        if not leaves:
            raise _check.error("client-data", "examples without a leaf", "a pytree of arrays")
        shapes = [jnp.shape(leaf) for _, leaf in leaves]
        for (path, _), shape in zip(leaves, shapes):
            if len(shape) < 2 or shape[:2] != shapes[0][:2] or shape[1] == 0:
                name = "examples" + jax.tree_util.keystr(path)
                wanted = "[N, m, ...] with the N and m >= 1 of every leaf"
                raise _check.error("client-data", f"the shape {shape} of {name}", wanted)
        _check.array("client-data", np.int32, shapes[0][:1], counts=self.counts)
        counts = _check.concrete(self.counts)
        if counts is not None and ((counts < 0) | (counts > shapes[0][1])).any():
            client = int(np.argmax((counts < 0) | (counts > shapes[0][1])))
            raise _check.error(
                "client-data", f"counts[{client}]={counts[client]}", f"from 0 to m = {shapes[0][1]}"
            )


def pad_clients(examples: Sequence[Any]) -> ClientData:
    """The data of clients with different numbers of examples, padded with zeros.

    Args:
        examples: one pytree for each client, every leaf [count, ...] with the client's own count,
            which may be 0.

    Returns:
        The ``ClientData``, padded to the largest count.

    Raises:
        ValueError: leaves of one client with different counts; clients whose leaves differ in more
            than their number of examples; nobody with an example.

    Example:
        >>> import numpy as np
        >>> pad_clients([np.ones((2, 3)), np.ones((1, 3))]).counts
        Array([2, 1], dtype=int32)
    """
    counts = []
    for client, tree in enumerate(examples):
        lengths = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(tree)}
        if len(lengths) != 1 or () in lengths:
            raise _check.error(
                "client-data",
                f"examples[{client}] with leaves of lengths {sorted(lengths)}",
                "leaves of one length",
            )
        counts.append(lengths.pop()[0])
    size = max(counts, default=0)
    if size == 0:
        raise _check.error("client-data", "examples of nobody", "of one client at least")
    kinds = [_kind_of_example(tree) for tree in examples]
    for client, kind in enumerate(kinds):
        if kind != kinds[0]:
            raise _check.error("pad-clients", f"examples[{client}] of {kind}", f"of {kinds[0]}")

    def pad(*leaves):
        rows = np.zeros((len(leaves), size, *np.shape(leaves[0])[1:]), np.asarray(leaves[0]).dtype)
        for row, leaf in zip(rows, leaves):
            row[: len(leaf)] = leaf
        return jnp.asarray(rows)

    return ClientData(jax.tree.map(pad, *examples), jnp.asarray(counts, jnp.int32))


def _kind_of_example(tree: Any) -> str:
    """The structure, shapes and dtypes of one client's leaves without the number of examples."""
    kinds = jax.tree.map(lambda x: f"{np.asarray(x).dtype}{[*np.shape(x)[1:]]}", tree)
    return str(kinds).replace("'", "")


def sample_clients(
    seed: jax.Array, population: int, cohort: int, *, round_id: jax.Array | int = 0
) -> jax.Array:
    """The cohort of a round: uniform, without replacement, and in random order.

    Args:
        seed: uint32[8], from ``root_seed`` or ``fixed_seed``.
        population: the number of clients, N, 2 to 2^31 - 1.
        cohort: how many take part, 2 to N.
        round_id: which round, 0 to 2^32 - 1; every round draws anew. May be traced.

    Returns:
        int32[cohort], different clients, counted from 0.

    Raises:
        ValueError: a seed of another form, a number out of range.

    Example:
        >>> import fedjax_agg as fa
        >>> sample_clients(fa.fixed_seed(0), 10, 4, round_id=7)
        Array([2, 8, 1, 6], dtype=int32)
    """
    _check.words("seed", (8,), seed=seed)
    population = _check.integer_in("population", 2, 2**31 - 1, population=population)
    cohort = _check.integer_in("cohort", 2, population, cohort=cohort)
    return _sampled(seed, _check.round_number(round_id), population, cohort)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _sampled(seed, round_id, population, cohort):
    key = key_schedule.derive_key(
        seed, key_schedule.COHORT, salt=jnp.zeros(8, jnp.uint32), round_id=round_id
    )
    return graph.permutation(key, population)[:cohort]
