"""The messages of a round; the docstring of each says who may hold it.

A message type is written for one party; a round stacks those of all clients along axis 0.
"""

from typing import Any, NamedTuple

import jax

from fedjax_agg.symmetric.seal import Sealed as Sealed


class PublicKeys(NamedTuple):
    """Stage *advertise*: one client's public keys, from that client to everybody.

    Attributes:
        channel: uint32[8], of the key exchange that seals shares.
        mask: uint32[8], of the key exchange that masks come from; its secret, the recovery
            secret, is fresh in every round.

    Example:
        >>> import jax.numpy as jnp
        >>> PublicKeys(jnp.zeros(8, jnp.uint32), jnp.ones(8, jnp.uint32)).mask.shape
        (8,)
    """

    channel: jax.Array
    mask: jax.Array


class SignedKeys(NamedTuple):
    """Stage *advertise* between processes: one client's public keys, signed, for everybody.

    Attributes:
        keys: what the client advertises: ``PublicKeys``, or uint32[8] under LightSecAgg.
        signature: uint8[64], Ed25519.

    Example:
        >>> import jax.numpy as jnp
        >>> SignedKeys(jnp.zeros(8, jnp.uint32), jnp.zeros(64, jnp.uint8)).signature.shape
        (64,)
    """

    keys: Any
    signature: jax.Array


class KeyList(NamedTuple):
    """What the server sends every client after stage *advertise*; everybody may hold it.

    A client makes its ``Board`` of it: the graph and the session follow from the list.

    Attributes:
        present: bool[n], who advertised keys.
        keys: those of all clients along axis 0, zeros where there are none.
        signatures: uint8[n, 64].

    Example:
        >>> import jax.numpy as jnp
        >>> keys, signatures = jnp.zeros((2, 8), jnp.uint32), jnp.zeros((2, 64), jnp.uint8)
        >>> KeyList(jnp.array([True, False]), keys, signatures).present.tolist()
        [True, False]
    """

    present: jax.Array
    keys: Any
    signatures: jax.Array


class Board(NamedTuple):
    """What the server publishes after stage *advertise*; everybody may hold it.

    Attributes:
        present: bool[n], who advertised keys.
        keys: ``PublicKeys`` of all clients, uint32[n, 8] each.
        neighbours: int32[n, k], the index of the peer in each slot of each client.
        entries: uint32[n, k, 2, 8], for each client, slot and key exchange what the client
            combines with its own secret. Of the ideal agreement: the secret of the edge, sealed
            under the client's secret. A deployment has the peer's public key in its place.
        session_id: uint32[8], the digest of the keys and of the configuration, from which all
            later keys are derived; every client computes it itself.

    Example:
        >>> import jax.numpy as jnp
        >>> Board(jnp.ones(2, bool), None, jnp.array([[1], [0]]), None, None).neighbours.tolist()
        [[1], [0]]
    """

    present: jax.Array
    keys: PublicKeys
    neighbours: jax.Array
    entries: Any
    session_id: jax.Array


class SealedShares(NamedTuple):
    """Stage *share*: for each neighbour one share of each of a client's two secrets, sealed.

    The server relays it; only the neighbour in whose slot a share lies can open it.

    Attributes:
        sealed: ``Sealed`` of uint32[k, 18] and uint32[k, 8].
        sent: bool[k], the slots that hold a message.

    Example:
        >>> import jax.numpy as jnp
        >>> sealed = Sealed(jnp.zeros((2, 18), jnp.uint32), jnp.zeros((2, 8), jnp.uint32))
        >>> SealedShares(sealed, jnp.array([True, False])).sealed.ciphertext.shape
        (2, 18)
    """

    sealed: Sealed
    sent: jax.Array


class Upload(NamedTuple):
    """Stage *upload*: one client's protected words, from that client to the server.

    Under a masking protocol, anyone may see it: it is uniform. Under ``Plain`` it is the
    client's update.

    Attributes:
        words: uint32[D], elements of the protocol's group.

    Example:
        >>> import jax.numpy as jnp
        >>> Upload(jnp.arange(3, dtype=jnp.uint32)).words.shape
        (3,)
    """

    words: jax.Array


class Survivors(NamedTuple):
    """Whose uploads the server has, which it tells every client after stage *upload*.

    Attributes:
        flags: bool[n].

    Example:
        >>> import jax.numpy as jnp
        >>> Survivors(jnp.array([True, False])).flags.tolist()
        [True, False]
    """

    flags: jax.Array


class Attestations(NamedTuple):
    """Stage *attest*: a client's word to each neighbour that the server showed it this set.

    Everybody may hold it; only the neighbour can check its tag.

    Attributes:
        tags: uint32[k, 8], HMAC-SHA256 over the digest of the set of survivors.
        sent: bool[k], the slots that hold a tag.

    Example:
        >>> import jax.numpy as jnp
        >>> Attestations(jnp.zeros((2, 8), jnp.uint32), jnp.ones(2, bool)).tags.shape
        (2, 8)
    """

    tags: jax.Array
    sent: jax.Array


class RevealedShares(NamedTuple):
    """Stage *unmask*: for each neighbour one share, from a surviving client to the server.

    A slot has room for one share: of the self seed of a neighbour that survived, or of the
    recovery secret of one that did not. The server may hold one kind for each client, never both.

    Attributes:
        shares: uint32[k, 9], elements of GF(2^31 - 1).
        sent: bool[k], the slots that hold a share.

    Example:
        >>> import jax.numpy as jnp
        >>> RevealedShares(jnp.zeros((2, 9), jnp.uint32), jnp.ones(2, bool)).shares.shape
        (2, 9)
    """

    shares: jax.Array
    sent: jax.Array


class ChannelBoard(NamedTuple):
    """What the server of LightSecAgg publishes after stage *advertise*; everybody may hold it.

    Attributes:
        present: bool[n], who advertised a key.
        keys: uint32[n, 8], the public keys of the channels.
        entries: uint32[n, n, 8], for each client and peer what the client combines with its own
            secret. Of the ideal agreement, as in ``Board``.
        session_id: uint32[8], the digest of the keys and of the configuration, from which all
            later keys are derived; every client computes it itself.

    Example:
        >>> import jax.numpy as jnp
        >>> ChannelBoard(jnp.ones(2, bool), None, None, None).present.tolist()
        [True, True]
    """

    present: jax.Array
    keys: jax.Array
    entries: Any
    session_id: jax.Array


class CodedShares(NamedTuple):
    """Stage *share* of LightSecAgg: for each peer one coded vector of a client's mask, sealed.

    The server relays it; only the peer in whose row a vector lies can open it.

    Attributes:
        sealed: ``Sealed`` of uint32[n, L] and uint32[n, 8].
        sent: bool[n], the rows that hold a message.

    Example:
        >>> import jax.numpy as jnp
        >>> sealed = Sealed(jnp.zeros((2, 5), jnp.uint32), jnp.zeros((2, 8), jnp.uint32))
        >>> CodedShares(sealed, jnp.array([True, False])).sealed.ciphertext.shape
        (2, 5)
    """

    sealed: Sealed
    sent: jax.Array


class CodedSum(NamedTuple):
    """Stage *unmask* of LightSecAgg: the sum of a client's coded vectors of the survivors' masks.

    For the server: from enough of them follows the sum of the masks, and no single one.

    Attributes:
        words: uint32[L], elements of GF(2^31 - 1).
        sent: bool[], whether there is one.

    Example:
        >>> import jax.numpy as jnp
        >>> CodedSum(jnp.zeros(5, jnp.uint32), jnp.bool_(True)).words.shape
        (5,)
    """

    words: jax.Array
    sent: jax.Array


class Total(NamedTuple):
    """The sum of the survivors' words, held by the server.

    Attributes:
        words: uint32[D], elements of the protocol's group; zeros where ``ok`` is False.
        ok: bool[], whether the protocol succeeded.
        suspects: bool[n], whose help the server has found to be wrong; None where nobody helps.

    Example:
        >>> import jax.numpy as jnp
        >>> Total(jnp.zeros(3, jnp.uint32), jnp.bool_(False)).ok.item()
        False
    """

    words: jax.Array
    ok: jax.Array
    suspects: jax.Array | None = None
