"""Who a client is for longer than a round: it signs its keys, and authenticates its frames.

A client signs the keys that it advertises (Ed25519, RFC 8032), so that the server cannot put its
own in their place. With the server it agrees on the key that authenticates every frame between the
two. Who has which identity says a directory, which an authority vouches for, and not the server.
"""

import dataclasses
import secrets
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedjax_agg import _check
from fedjax_agg.host.keys import X25519
from fedjax_agg.symmetric.key_schedule import WIRE_VERSION

_KEY_BYTES = 32
_PURPOSE = f"fedjax_agg/v{WIRE_VERSION}/"


class PublicIdentity(NamedTuple):
    """What others have of an identity, from an authority that all trust; public.

    Attributes:
        signing: 32 bytes, an Ed25519 public key.
        link: 32 bytes, an X25519 public key.

    Example:
        >>> public = Identity.from_seed(bytes(32)).public
        >>> isinstance(public, PublicIdentity), [len(key) for key in public]
        (True, [32, 32])
    """

    signing: bytes
    link: bytes


@dataclasses.dataclass(frozen=True, repr=False)
class Identity:
    """Who a client, or the server, is for longer than a round; its ``repr`` shows no key.

    Attributes:
        signing: the Ed25519 private key.
        link: the X25519 private key of the link between a client and the server.

    Example:
        >>> isinstance(Identity.fresh(), Identity), Identity.fresh()
        (True, Identity(<redacted>))
    """

    signing: Ed25519PrivateKey
    link: X25519PrivateKey

    @classmethod
    def fresh(cls) -> "Identity":
        """A new identity from the randomness of the operating system."""
        return cls.from_seed(secrets.token_bytes(_KEY_BYTES))

    @classmethod
    def from_seed(cls, seed: bytes) -> "Identity":
        """The identity of 32 secret bytes, always the same.

        Raises:
            ValueError: another type or length.
        """
        if not isinstance(seed, bytes) or len(seed) != _KEY_BYTES:
            shown = f"{len(seed)} bytes" if isinstance(seed, bytes) else type(seed).__name__
            raise _check.error("identity-seed", f"seed={shown}", f"{_KEY_BYTES} bytes")
        signing, link = (
            _hkdf(seed, bytes(32), name) for name in ("identity-sign", "identity-link")
        )
        return cls(
            Ed25519PrivateKey.from_private_bytes(signing), X25519PrivateKey.from_private_bytes(link)
        )

    @property
    def public(self) -> PublicIdentity:
        """What others may have."""
        return PublicIdentity(
            self.signing.public_key().public_bytes_raw(), self.link.public_key().public_bytes_raw()
        )

    def __repr__(self) -> str:
        return "Identity(<redacted>)"


def sign_keys(
    identity: Identity, keys: Any, session: bytes, round_id: int, client: int
) -> np.ndarray:
    """A client's signature on the keys that it advertises in one round: uint8[64].

    Args:
        identity: the client's.
        keys: what it advertises, a pytree of uint32.
        session: 32 bytes, the public seed of the round.
        round_id: the number of the round.
        client: its id.

    Formal Guarantees:
        Ed25519 is unforgeable under chosen messages, and what is signed names session, round and
        client, so a signature is good for these keys in this round only.

    Example:
        >>> import numpy as np
        >>> keys = np.arange(8, dtype=np.uint32)
        >>> sign_keys(Identity.from_seed(bytes(32)), keys, bytes(32), 0, 1).shape
        (64,)
    """
    message = _signed(keys, session, round_id, client)
    return np.frombuffer(identity.signing.sign(message), np.uint8)


def valid_keys(
    directory: Mapping[int, PublicIdentity],
    keys: Any,
    signatures: Any,
    present: Any,
    session: bytes,
    round_id: int,
) -> np.ndarray:
    """Whose advertised keys are to be used: the server's check before it lists them.

    Args:
        directory: by id, the identities of all clients, from an authority and not the server.
        keys: what all have advertised, a pytree of uint32[n, 8].
        signatures: uint8[n, 64].
        present: bool[n], who has advertised keys.
        session: 32 bytes, the public seed of the round.
        round_id: the number of the round.

    Returns:
        bool[n], who is present with keys that it has signed, that are valid, and that nobody with a
        smaller id has too.

    Example:
        >>> import numpy as np
        >>> one = Identity.from_seed(bytes(32))
        >>> keys, present = np.full((1, 8), 9, np.uint32), np.ones(1, bool)
        >>> signature = sign_keys(one, keys[0], bytes(32), 0, 1)
        >>> valid_keys({1: one.public}, keys, signature[None], present, bytes(32), 0)
        array([ True])
    """
    valid = np.zeros(len(present), np.bool_)
    seen: set[tuple[int, bytes]] = set()
    for row in np.flatnonzero(present):
        own = [np.asarray(leaf[row]) for leaf in jax.tree.leaves(keys)]
        signed = _is_signed(directory, own, signatures[row], session, round_id, int(row) + 1)
        # With any private key.
        agreed = X25519().agree(jnp.ones(8, jnp.uint32), jnp.stack(own), jnp.arange(len(own)))
        usable = jnp.any(agreed != 0, axis=1).all()
        mine = {(exchange, key.tobytes()) for exchange, key in enumerate(own)}
        valid[row] = signed and usable and not mine & seen
        seen |= mine
    return valid


def check_signatures(
    directory: Mapping[int, PublicIdentity],
    keys: Any,
    signatures: Any,
    present: Any,
    session: bytes,
    round_id: int,
) -> None:
    """A client's check of the list of keys, before it has anything to do with them.

    Whether keys are valid, no key is on the list twice, and its own is, the protocol checks.

    Args:
        directory: as of ``valid_keys``.
        keys: as of ``valid_keys``.
        signatures: as of ``valid_keys``.
        present: as of ``valid_keys``.
        session: as of ``valid_keys``.
        round_id: as of ``valid_keys``.

    Raises:
        ValueError: a key that is not signed by the client in whose row it stands, or of somebody
            who is not in the directory. It names the client, and no key.

    Example:
        >>> import numpy as np
        >>> one = Identity.from_seed(bytes(32))
        >>> keys, present = np.zeros((1, 8), np.uint32), np.ones(1, bool)
        >>> signature = sign_keys(one, keys[0], bytes(32), 0, 1)
        >>> check_signatures({1: one.public}, keys, signature[None], present, bytes(32), 0) is None
        True
    """
    for row in np.flatnonzero(present):
        own = [leaf[row] for leaf in jax.tree.leaves(keys)]
        client = int(row) + 1
        if not _is_signed(directory, own, signatures[row], session, round_id, client):
            raise _check.error(
                "refuse-signature", f"the keys of client {client}", "signed by that client"
            )


def link_key(
    own: Identity, other: PublicIdentity, session: bytes, round_id: int, client: int
) -> bytes:
    """The key that authenticates the frames between one client and the server in a round.

    Args:
        own: the identity of the one, client or server.
        other: the public identity of the other.
        session: 32 bytes, the public seed of the round.
        round_id: the number of the round.
        client: the client's id, at both ends.

    Returns:
        32 bytes: HKDF-SHA256 of the X25519 secret of the two.

    Raises:
        ValueError: the other's key is of low order.

    Example:
        >>> client, server = Identity.fresh(), Identity.fresh()
        >>> ours = link_key(client, server.public, bytes(32), 7, 1)
        >>> ours == link_key(server, client.public, bytes(32), 7, 1)
        True
    """
    try:
        agreed = own.link.exchange(X25519PublicKey.from_public_bytes(other.link))
    except ValueError:
        raise _check.error("identity-key", "the link key of a peer", "of full order") from None
    return _hkdf(agreed, session, "link", _numbers(round_id, client))


def _hkdf(secret: bytes, salt: bytes, label: str, rest: bytes = b"") -> bytes:
    info = f"{_PURPOSE}{label}\0".encode() + rest
    return HKDF(hashes.SHA256(), _KEY_BYTES, salt, info).derive(secret)


def _numbers(round_id: int, client: int) -> bytes:
    return int(round_id).to_bytes(8, "big") + int(client).to_bytes(4, "big")


def _signed(keys: Any, session: bytes, round_id: int, client: int) -> bytes:
    """What a signature is of: its purpose, session, round and client, and the keys."""
    if len(session) != _KEY_BYTES:
        raise _check.error(
            "frame-session", f"session of {len(session)} bytes", f"{_KEY_BYTES} bytes"
        )
    body = b"".join(np.asarray(leaf, "<u4").tobytes() for leaf in jax.tree.leaves(keys))
    header = f"{_PURPOSE}advertise\0".encode() + session + _numbers(round_id, client)
    return header + len(body).to_bytes(4, "big") + body


def _is_signed(directory, keys, signature, session: bytes, round_id: int, client: int) -> bool:
    if client not in directory:
        return False
    known = Ed25519PublicKey.from_public_bytes(directory[client].signing)
    try:
        known.verify(np.asarray(signature).tobytes(), _signed(keys, session, round_id, client))
    except InvalidSignature:
        return False
    return True
