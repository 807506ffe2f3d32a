"""The type of a key exchange, and the ideal one of a simulation.

A dealer gives the two ends of an edge one uniform secret. What is public of it, for each client
and each slot, is an *entry*: the secret of the edge, sealed under the client's own secret. So
whoever holds that one secret, the client or a server that has rebuilt it from shares, opens
exactly this client's edges of this round and no others, as with a secret key of X25519. Of a real
exchange an entry is the peer's public key, and there is no dealer.
"""

import abc
import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_agg.symmetric.chacha20_block import chacha20_block

_KEY_WORDS = 8
# The nonces under a client's secret.
_PAD, _PUBLIC = np.array([[0, 0, 0], [1, 0, 0]], np.uint32)


class KeyExchange(abc.ABC):
    """How two clients come to one secret: from the secret of one, and what is public of the other.

    A static node of a pytree: it holds no array. ``dealt`` says whether a dealer makes the entries
    on the board; where none does they are the public keys of peers.

    Example:
        >>> isinstance(IdealKeyExchange(), KeyExchange)
        True
    """

    dealt: ClassVar[bool] = False

    @abc.abstractmethod
    def public_key(self, secret: jax.Array) -> jax.Array:
        """What a client advertises of its secret: uint32[8] -> uint32[8]."""

    @abc.abstractmethod
    def agree(self, secret: jax.Array, entries: jax.Array, slots: jax.Array) -> jax.Array:
        """The shared secrets of edges, from one end's own secret and its public entries.

        Args:
            secret: uint32[8], or uint32[k, 8] for edges of several clients.
            entries: uint32[k, 8], from the board.
            slots: uint32[k], the slot of each entry.

        Returns:
            uint32[k, 8]; zeros where an entry is no valid key.
        """


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class IdealKeyExchange(KeyExchange):
    """The key exchange of a simulation, in the place of X25519: entries are ``deal``'s.

    Example:
        >>> import jax.numpy as jnp
        >>> exchange, secret = IdealKeyExchange(), jnp.ones(8, jnp.uint32)
        >>> exchange.public_key(secret).shape
        (8,)
        >>> exchange.agree(secret, jnp.zeros((1, 8), jnp.uint32), jnp.zeros(1, jnp.uint32)).shape
        (1, 8)
    """

    dealt = True

    def public_key(self, secret: jax.Array) -> jax.Array:
        """As unique as the secret, and as silent about it as a hash."""
        return chacha20_block(secret, np.uint32(0), _PUBLIC)[:_KEY_WORDS]

    def agree(self, secret: jax.Array, entries: jax.Array, slots: jax.Array) -> jax.Array:
        """Takes the seal off entries."""
        return entries ^ _pads(secret, slots)


def deal(
    handle: jax.Array, secret: jax.Array, own: jax.Array, peers: jax.Array, slots: jax.Array
) -> jax.Array:
    """The dealer: one client's entries on the board. **Simulation only.**

    Args:
        handle: uint32[8], the dealer's root, which no client and no server holds.
        secret: uint32[8], the client's own secret of this key exchange and round.
        own: uint32[], the client's id.
        peers: uint32[k], the id of the peer in each slot.
        slots: uint32[k], the numbers of the slots, 0 to k - 1.

    Returns:
        uint32[k, 8].

    Formal Guarantees:
        To anyone without ``handle`` and without either end's secret, the secret of an edge is
        uniform, as far as ChaCha20 is a pseudorandom function. It is an **ideal** functionality:
        the dealer is trusted, and no public key is verified.

    Example:
        Both ends of the edge between clients 1 and 2 get one secret:

        >>> import jax.numpy as jnp
        >>> handle, slots = jnp.arange(8, dtype=jnp.uint32), jnp.zeros(1, jnp.uint32)
        >>> one, two = jnp.ones(8, jnp.uint32), jnp.full(8, 2, jnp.uint32)
        >>> ids = jnp.array([1, 2], jnp.uint32)
        >>> entry_1 = deal(handle, one, ids[0], ids[1:], slots)
        >>> entry_2 = deal(handle, two, ids[1], ids[:1], slots)
        >>> agree = IdealKeyExchange().agree
        >>> bool((agree(one, entry_1, slots) == agree(two, entry_2, slots)).all())
        True
    """

    def edge(peer):
        nonce = jnp.stack([jnp.maximum(own, peer), *jnp.zeros(2, jnp.uint32)])
        return chacha20_block(handle, jnp.minimum(own, peer), nonce)[:_KEY_WORDS]

    return jax.vmap(edge)(peers) ^ _pads(secret, slots)


def _pads(secret: jax.Array, slots: jax.Array) -> jax.Array:
    """One pad for each slot: the first half of the block that the slot numbers."""

    def pad(secret, slot):
        return chacha20_block(secret, slot, _PAD)[:_KEY_WORDS]

    return jax.vmap(pad, (None if secret.ndim == 1 else 0, 0))(secret, slots)
