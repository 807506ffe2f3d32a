"""Real sessions: every pair of clients agrees by X25519 (RFC 7748), through the server.

A simulated session has an ideal key agreement. Here the same protocol code runs over a real one:
under ``jit`` the curve is a callback to the package ``cryptography``. Whose keys are whose is the
matter of ``host.identity``.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from fedjax_agg import _check
from fedjax_agg.session import Session, root_seed
from fedjax_agg.sharing.agreement import KeyExchange

_KEY_BYTES = 32
# The order of the field of Curve25519.
_PRIME = 2**255 - 19


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class X25519(KeyExchange):
    """The key exchange of RFC 7748: a secret is a private key, an entry the peer's public key.

    The recovery secret that clients share is then the private key of the mask exchange, as in the
    paper (Bonawitz et al., CCS'17, figure 4), and the server that rebuilds it agrees in the lost
    client's place. Traced, both functions are callbacks to the host.

    Formal Guarantees:
        The secret of a pair is known to who holds one of the two private keys, and to nobody
        else, as far as the gap Diffie-Hellman problem is hard on Curve25519 and HKDF-SHA256,
        through which every key of a pair passes, is a random oracle. A public key of low order
        gives the shared secret zero whatever the private key is: ``agree`` returns zeros, and
        clients refuse them by the rule ``invalid-key``. So it does for a key of another form than
        numbers below 2^255 - 19, which RFC 7748 would take for the same as one of that form.
        **Not given**: whose a public key is, which is what ``host.identity`` is for;
        that two keys of different bytes have different secrets, since points of low order may be
        added to one. That is of no use: the ids of both ends, and the list, are in every key.

    Example:
        >>> import jax.numpy as jnp
        >>> one, two = jnp.ones(8, jnp.uint32), jnp.full(8, 2, jnp.uint32)
        >>> exchange, slots = X25519(), jnp.zeros(1, jnp.uint32)
        >>> of_one, of_two = exchange.public_key(one), exchange.public_key(two)
        >>> ours = exchange.agree(one, of_two[None], slots)
        >>> bool((ours == exchange.agree(two, of_one[None], slots)).all())
        True
        >>> exchange.agree(one, jnp.zeros((1, 8), jnp.uint32), slots).any().item()
        False
    """

    def public_key(self, secret: jax.Array) -> jax.Array:
        """The public key of a private one: uint32[8] -> uint32[8], little-endian words."""
        return _on_host(_public_keys, secret)

    def agree(self, secret: jax.Array, entries: jax.Array, slots: jax.Array) -> jax.Array:
        """X25519 of a private key with each of k public ones; zeros where one is of low order."""
        del slots
        return _on_host(_shared_secrets, jnp.broadcast_to(secret, entries.shape), entries)


def real_session(session: Session) -> Session:
    """The same session with X25519 in the place of the ideal key agreement.

    Roots of randomness stay, so that rounding does, and totals are equal bit for bit.

    Args:
        session: from ``simulated_session``, of one round.

    Returns:
        A session without a dealer. It still holds the secrets of all its clients: a client of a
        deployment has one row, from ``client_session``.

    Example:
        >>> import fedjax_agg as fa
        >>> real_session(fa.simulated_session(fa.fixed_seed(0), num_clients=3)).key_exchange
        X25519()
    """
    _check.instance("session-type", Session, session=session)
    return dataclasses.replace(session, agreement=None, key_exchange=X25519())


def client_session(client: int, *, public_seed: jax.Array, round_id: int = 0) -> Session:
    """What one client of a deployment holds at the start of a round: one row, fresh from the OS.

    Args:
        client: its id, counted from 1.
        public_seed: uint32[8], the public randomness of the round, the same for all clients.
        round_id: the number of the round, 0 to 2^32 - 1.

    Raises:
        ValueError: an argument of another shape, type or range.

    Example:
        >>> import jax.numpy as jnp
        >>> client_session(4, public_seed=jnp.zeros(8, jnp.uint32)).client_ids
        Array([4], dtype=uint32)
    """
    client = _check.integer_in("first-client", 1, 2**31 - 1, client=client)
    _check.words("seed", (8,), public_seed=public_seed)
    return Session(
        _check.round_number(round_id),
        public_seed,
        jnp.asarray([client], jnp.uint32),
        root_seed()[None],
        None,
        key_exchange=X25519(),
    )


def _on_host(function, *arrays):
    """A function of keys, uint32[..., 8] each -> uint32[..., 8], wherever it is called."""
    result = jax.ShapeDtypeStruct(arrays[0].shape, jnp.uint32)
    return jax.pure_callback(function, result, *arrays, vmap_method="expand_dims")


def _public_keys(secret) -> np.ndarray:
    return _each_row(
        lambda own: X25519PrivateKey.from_private_bytes(own).public_key().public_bytes_raw(), secret
    )


def _shared_secrets(secret, entries) -> np.ndarray:
    def shared(own: bytes, peer: bytes) -> bytes:
        if int.from_bytes(peer, "little") >= _PRIME:
            return bytes(_KEY_BYTES)
        try:
            return X25519PrivateKey.from_private_bytes(own).exchange(
                X25519PublicKey.from_public_bytes(peer)
            )
        except ValueError:  # An output of zeros.
            return bytes(_KEY_BYTES)

    return _each_row(shared, secret, entries)


def _each_row(function, *arrays) -> np.ndarray:
    rows = np.broadcast_arrays(*(np.asarray(array, "<u4") for array in arrays))
    shape, columns = rows[0].shape, [x.reshape(-1, 8) for x in rows]
    keys = [function(*(x.tobytes() for x in row)) for row in zip(*columns)]
    return np.frombuffer(b"".join(keys), "<u4").astype(np.uint32).reshape(shape)
