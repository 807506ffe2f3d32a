"""Who shares with whom: a k-regular graph of n clients, as k slots with static shapes.

The clients stand on a ring in a random order, and each is joined to those at fixed distances
around it: the Harary graph H(n, k) after a random permutation (Bell et al., CCS'20, section 3).
Slot m of every client is the neighbour at the m-th distance, so an array [n, k] holds one thing
for every end of every edge. The complete graph is k = n - 1.

Clients are counted from 0 here; their ids are one more.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fedjax_agg import _check
from fedjax_agg.symmetric.chacha20_block import short_keystream
from fedjax_agg.symmetric.key_schedule import WIRE_VERSION, segment_nonce
from fedjax_agg.symmetric.octets import bytes_from_words, words_from_bytes
from fedjax_agg.symmetric.sha256 import sha256

_ORDER_SEGMENT = 0
_SEED_LABEL = f"fedjax_agg/v{WIRE_VERSION}/neighbours\0".encode()


def offsets(num_clients: int, degree: int) -> np.ndarray:
    """The distances along the ring from a client to the neighbour in each of its slots.

    1 to k/2 in both directions, and for an odd degree also the client opposite.

    Args:
        num_clients: n, 2 to 2^31 - 1.
        degree: k, 1 to n - 1; even where n is odd.

    Returns:
        int32[k], sorted; all in 1 to n - 1, and n minus one of them is one of them.

    Raises:
        ValueError: a degree out of range, or odd with odd n.

    Example:
        >>> offsets(10, 4), offsets(10, 3)
        (array([1, 2, 8, 9], dtype=int32), array([1, 5, 9], dtype=int32))
    """
    n, k = _checked(num_clients, degree)
    near = np.arange(1, k // 2 + 1)
    opposite = [n // 2] if k % 2 else []
    return np.concatenate([near, opposite, n - near[::-1]]).astype(np.int32)


def reverse_slots(num_clients: int, degree: int) -> np.ndarray:
    """In which slot of its neighbour a client stands.

    If slot m of a points to b, then slot ``reverse_slots(n, k)[m]`` of b points to a.

    Args:
        num_clients: n, 2 to 2^31 - 1.
        degree: k, 1 to n - 1; even where n is odd.

    Returns:
        int32[k].

    Raises:
        ValueError: a degree out of range, or odd with odd n.

    Example:
        >>> reverse_slots(10, 4)
        array([3, 2, 1, 0], dtype=int32)
    """
    # The way back from distance d is n - d, and distances are sorted.
    _, k = _checked(num_clients, degree)
    return np.arange(k - 1, -1, -1, dtype=np.int32)


def permutation(seed: jax.Array, num_clients: int) -> jax.Array:
    """A random order of the clients, from 64 bits of ChaCha20 keystream for each.

    Args:
        seed: uint32[8], public; used for nothing else, such as from ``permutation_seed``.
        num_clients: n, 2 to 2^31 - 1; static.

    Returns:
        int32[n], the client at each position of the ring. Uniform but for ties between the
        words, which move it from uniform by at most n^2 / 2^65 in total variation.

    Raises:
        ValueError: a seed of another shape or type, a number out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> permutation(jnp.zeros(8, jnp.uint32), 5)
        Array([4, 0, 2, 3, 1], dtype=int32)
    """
    _check.words("key-shape", (8,), seed=seed)
    n = _check.integer_in("graph-clients", 2, 2**31 - 1, num_clients=num_clients)
    return _permutation(seed, n)


@functools.partial(jax.jit, static_argnums=1)
def _permutation(seed, n):
    words = short_keystream(seed, segment_nonce(_ORDER_SEGMENT), 2 * n).reshape(n, 2)
    clients = jnp.arange(n, dtype=jnp.int32)
    return lax.sort((words[:, 0], words[:, 1], clients), num_keys=2)[2]


def neighbours(order: jax.Array, degree: int) -> jax.Array:
    """The neighbour in each slot of every client.

    Args:
        order: int32[n], the client at each position of the ring: a ``permutation``, or
            ``jnp.arange(n)`` for the complete graph, which is the same in any order.
        degree: k, 1 to n - 1; even where n is odd. Static.

    Returns:
        int32[n, k], a row for each client, counted from 0.

    Raises:
        ValueError: a degree out of range, or odd with odd n; an order of another shape or type.

    Example:
        >>> import jax.numpy as jnp
        >>> neighbours(jnp.array([2, 0, 3, 1], jnp.int32), 2).tolist()  # the ring 2-0-3-1-2
        [[3, 2], [2, 3], [0, 1], [1, 0]]
    """
    _check.array("graph-order", np.int32, (None,), order=order)
    return _neighbours(order, _checked(order.shape[0], degree)[1])


@functools.partial(jax.jit, static_argnums=1)
def _neighbours(order, degree):
    n = order.shape[0]
    distances = offsets(n, degree)
    positions = jnp.arange(n, dtype=jnp.int32)
    # Before adding, so that no position leaves int32.
    steps = jnp.where(positions[:, None] >= np.int32(n) - distances[None], np.int32(n), 0)
    by_position = order[positions[:, None] - steps.astype(jnp.int32) + distances[None]]
    return jnp.zeros_like(by_position).at[order].set(by_position)


def permutation_seed(
    public_seed: jax.Array, key_list: jax.Array, numbers: Sequence[int] = ()
) -> jax.Array:
    """The seed of a graph: a digest of a beacon and of the list of public keys.

    A server that chooses the permutation, or that knows it when it may still enter clients of
    its own, surrounds a victim with corrupt clients, who then hold enough of its shares. So the
    permutation is public randomness that is fixed only after the list of public keys is.

    A hash of many bytes is computed one block after the other, so each row is hashed by itself
    and SHA-256 of their digests, after a label, n, the bytes of a row and the beacon, is the
    seed: about 15 ms on a core for n = 1000. ``SecAgg`` also derives every key after the list
    from it, so that clients who are shown different lists have no key in common.

    Args:
        public_seed: uint32[8], a beacon that nobody chooses.
        key_list: uint32[n, ...], a row with the public keys of each client.
        numbers: what else all have to agree on, integers from 0 to 2^32 - 1; static.

    Returns:
        uint32[8], a seed for ``permutation``, as little-endian words.

    Raises:
        ValueError: a seed of another shape or type, a list of another type or without rows.

    Formal Guarantees:
        As far as SHA-256 is a random function, the seed is uniform and independent of who is
        corrupt, if the beacon is published after the list is fixed. Not given: anything if it
        is known before, as it is where one seed makes beacon and keys. Whoever is last to enter
        a key, or a server that decides whose key is on the list, can then try 2^b lists and take
        b bits from the security of the graph; a few bits surround a client of low degree.

    Example:
        >>> import jax.numpy as jnp
        >>> beacon, keys = jnp.zeros(8, jnp.uint32), jnp.zeros((3, 8), jnp.uint32)
        >>> hex(permutation_seed(beacon, keys)[0])
        '0x651dab8c'
    """
    _check.words("key-shape", (8,), public_seed=public_seed)
    shape, dtype = getattr(key_list, "shape", ()), getattr(key_list, "dtype", None)
    if dtype != np.uint32 or len(shape) < 2 or 0 in shape:
        raise _check.error(
            "graph-keys", f"key_list of type {_check.shown_type(key_list)}", "uint32[n, ...]"
        )
    return _permutation_seed(public_seed, key_list, tuple(numbers))


@functools.partial(jax.jit, static_argnums=2)
def _permutation_seed(public_seed, key_list, numbers):
    n = key_list.shape[0]
    rows = bytes_from_words(key_list.reshape(n, -1))
    digests = jax.vmap(sha256)(rows)
    numbers = b"".join(x.to_bytes(4, "big") for x in (n, rows.shape[1], *numbers))
    head = jnp.asarray(np.frombuffer(_SEED_LABEL + numbers, np.uint8))
    listed = [head, bytes_from_words(public_seed), digests.reshape(-1)]
    return words_from_bytes(sha256(jnp.concatenate(listed)))


def _checked(num_clients: int, degree: int) -> tuple[int, int]:
    n = _check.integer_in("graph-clients", 2, 2**31 - 1, num_clients=num_clients)
    k = _check.integer_in("degree", 1, n - 1, degree=degree)
    if n % 2 and k % 2:
        raise _check.error("degree", f"degree={k}", f"even for num_clients={n}, which is odd")
    return n, k
