"""The key that the clients of a cohort share for an epoch of rounds, and the server does not have.

    wrap       the leader, client 1, draws the key and seals it for every member
    confirm    every member shows a tag under the key that it opened

The server relays both messages. A member that could not open its message, or sees a tag that is
not its own, takes no part in a blind round: with another key its mask would turn the sum into
garbage. A new epoch begins whenever somebody joins, leaves, or may have been compromised. Within
an epoch, members may ratchet: each makes the next key from the one it has, and forgets that one.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fedjax_agg import _check
from fedjax_agg.session import Session
from fedjax_agg.sharing import agreement
from fedjax_agg.symmetric import key_schedule
from fedjax_agg.symmetric.chacha20_block import chacha20_block
from fedjax_agg.symmetric.seal import Sealed, open_with, seal_with

_LEADER = 1
# In a session's agreement, the key exchange of the channels between clients.
_CHANNEL = 0
_IDEAL = agreement.IdealKeyExchange()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class GroupKeys:
    """What each member holds in an epoch; ``repr`` shows no key.

    Attributes:
        keys: uint32[n, 8], each client's copy of the group key; all are equal where all have
            confirmed. Only clients may hold it.
        confirmed: bool[n], whether this client has seen that all others have its key.

    Example:
        >>> import fedjax_agg as fa
        >>> group, _ = fa.agree_group_key(fa.simulated_session(fa.fixed_seed(0), num_clients=4))
        >>> isinstance(group, GroupKeys), group.confirmed.tolist(), group
        (True, [True, True, True, True], GroupKeys(num_clients=4, keys=<redacted>))
    """

    keys: jax.Array
    confirmed: jax.Array

    def ratchet(self) -> "GroupKeys":
        """The keys of the next round: each client's by itself, without a message.

        Each key is HKDF of the one before, for nothing else. All members ratchet after every
        round, or none does; who missed rounds ratchets as often before it opens the next one, and
        opens what it missed on the way.

        Returns:
            The next ``GroupKeys``; who has confirmed stays confirmed.

        Formal Guarantees:
            Forward secrecy: to whoever learns the new key, the old ones are as unknown as
            HMAC-SHA256 is a pseudorandom function, so sums of earlier rounds stay closed if a
            device is seized, **provided** that every member has deleted its old keys and sums.
            **Not given**: anything about rounds to come, which the new key opens until a new
            epoch begins.

        Example:
            >>> import fedjax_agg as fa
            >>> group, _ = fa.agree_group_key(
            ...     fa.simulated_session(fa.fixed_seed(0), num_clients=4))
            >>> later = group.ratchet()
            >>> bool((later.keys == later.keys[:1]).all()), bool((later.keys == group.keys).any())
            (True, False)
        """
        return GroupKeys(_ratcheted(self.keys), self.confirmed)

    def __repr__(self) -> str:
        return f"GroupKeys(num_clients={self.confirmed.shape[-1]}, keys=<redacted>)"


class GroupMail(NamedTuple):
    """What the server relays to set up an epoch; anybody may see it.

    Attributes:
        wrapped: ``Sealed`` with n rows, the group key for each client, from the leader.
        tags: uint32[n, 8], each client's confirmation.

    Example:
        >>> GroupMail._fields
        ('wrapped', 'tags')
    """

    wrapped: Sealed
    tags: jax.Array


def agree_group_key(
    session: Session, *, participation: jax.Array | None = None
) -> tuple[GroupKeys, GroupMail]:
    """One epoch's group key, in all hands but the server's.

    Args:
        session: the private state of the cohort, n clients, at the start of the epoch; its
            ``round_id`` numbers the epoch.
        participation: bool[n], who is there; None means everybody. Who is not has no key. The
            leader, client 1, has to be: without it nobody has one, and nobody confirms.

    Returns:
        The ``GroupKeys``, and the ``GroupMail`` that went through the server.

    Raises:
        TypeError: no ``Session``.
        ValueError: participation of another shape or type; a session that is not simulated.

    Formal Guarantees:
        To a server that relays messages and colludes with no member, the key is as strong as
        ChaCha20 and HMAC-SHA256 over an **ideal** key agreement, and a changed, swapped or
        replayed message is refused. If one member confirms, all members that it was shown have
        its key. **Not given**: anything against a server that colludes with one member or can
        enrol one; fairness of the draw, which is the leader's.

    Example:
        >>> import fedjax_agg as fa
        >>> session = fa.simulated_session(fa.fixed_seed(0), num_clients=4)
        >>> group, mail = agree_group_key(session)
        >>> mail.wrapped.ciphertext.shape, bool((group.keys[0] == group.keys[2]).all())
        ((4, 8), True)
    """
    _check.instance("session-type", Session, session=session)
    if session.agreement is None:
        raise _check.error(
            "group-session", f"a session with {session.key_exchange}", "a simulated one"
        )
    n = session.num_clients
    there = jnp.ones(n, jnp.bool_) if participation is None else participation
    _check.array("participation-shape", np.bool_, (n,), participation=there)
    wrapped = wrap(session)
    keys, members, tags = accept(session, wrapped)
    there = there & there[0]
    confirmed = confirm(session, keys, tags, members & there)
    # Who is not there receives nothing, and holds zeros.
    keys = jnp.where(there[:, None], keys, jnp.uint32(0))
    return GroupKeys(keys, confirmed), GroupMail(wrapped, tags)


@jax.jit
def _ratcheted(keys: jax.Array) -> jax.Array:
    # The salt of RFC 5869 where there is none: the chain of keys belongs to no session.
    salt = jnp.zeros(8, jnp.uint32)

    def next_key(key):
        return key_schedule.derive_key(key, key_schedule.GROUP_RATCHET, salt=salt, round_id=0)

    return jax.vmap(next_key)(keys)


@jax.jit
def wrap(session: Session) -> Sealed:
    """The leader draws the group key and seals it for each client: ``Sealed`` with n rows.

    Example:
        >>> import fedjax_agg as fa
        >>> wrap(fa.simulated_session(fa.fixed_seed(0), num_clients=4)).tag.shape
        (4, 8)
    """
    key = key_schedule.derive_key(
        session.secrets[0],
        key_schedule.GROUP,
        salt=session.public_seed,
        round_id=session.round_id,
    )
    ids = session.client_ids
    slots = ids - np.uint32(_LEADER)
    secret = _exchange_secret(session, session.secrets[0])
    entries = agreement.deal(session.agreement[0, _CHANNEL], secret, ids[0], ids, slots)
    pairs = _IDEAL.agree(secret, entries, slots)

    def seal_for(pair, receiver):
        keys = _wrapping_keys(session, pair, receiver)
        return seal_with(keys, key, round_id=session.round_id, sender=_LEADER, receiver=receiver)

    return jax.vmap(seal_for)(pairs, ids)


@jax.jit
def accept(session: Session, wrapped: Sealed) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Each client opens its message: the keys, uint32[n, 8], whether it could, and its tag.

    Example:
        >>> import fedjax_agg as fa
        >>> session = fa.simulated_session(fa.fixed_seed(0), num_clients=4)
        >>> accept(session, wrap(session))[1].tolist()
        [True, True, True, True]
    """

    def accept_one(root, handle, own, sealed):
        secret, leader = _exchange_secret(session, root), session.client_ids[:1]
        slot = jnp.zeros(1, jnp.uint32)
        entry = agreement.deal(handle, secret, own, leader, slot)
        keys = _wrapping_keys(session, _IDEAL.agree(secret, entry, slot)[0], own)
        key, authentic = open_with(
            keys, sealed, round_id=session.round_id, sender=_LEADER, receiver=own
        )
        return key, authentic, _tags(session, key, own[None])[0]

    handles = session.agreement[:, _CHANNEL]
    return jax.vmap(accept_one)(session.secrets, handles, session.client_ids, wrapped)


@jax.jit
def confirm(session: Session, keys: jax.Array, tags: jax.Array, members: jax.Array) -> jax.Array:
    """Which members see the right tag of every member: bool[n].

    A tag is of its sender, so that nobody's can be passed off as another's.

    Args:
        session: of the epoch.
        keys: uint32[n, 8], what each has opened.
        tags: uint32[n, 8], what each has sent, as the server relays it.
        members: bool[n], who has sent a tag.

    Example:
        >>> import jax.numpy as jnp
        >>> import fedjax_agg as fa
        >>> session = fa.simulated_session(fa.fixed_seed(0), num_clients=3)
        >>> keys, members, tags = accept(session, wrap(session))
        >>> confirm(session, keys, tags, members).tolist()
        [True, True, True]
        >>> confirm(session, keys, tags.at[2].set(tags[1]), members).tolist()
        [False, False, False]
    """

    def sees_all(key):
        right = jnp.all(_tags(session, key, session.client_ids) == tags, axis=1)
        return jnp.all(right | ~members)

    # One client after the other: all of what all expect would be n^2 tags.
    return members & lax.map(sees_all, keys)


def _tags(session: Session, key: jax.Array, senders: jax.Array) -> jax.Array:
    """What each of some senders sends if it has this key: uint32[k, 8], of ChaCha20 as a PRF."""
    tag_key = key_schedule.derive_key(
        key, key_schedule.GROUP_TAG, salt=session.public_seed, round_id=session.round_id
    )
    nonce = jnp.zeros(3, jnp.uint32)
    return jax.vmap(lambda sender: chacha20_block(tag_key, sender, nonce)[:8])(senders)


def _exchange_secret(session: Session, root: jax.Array) -> jax.Array:
    return key_schedule.derive_key(
        root,
        key_schedule.GROUP_EXCHANGE,
        salt=session.public_seed,
        round_id=session.round_id,
    )


def _wrapping_keys(session: Session, pair: jax.Array, receiver: jax.Array) -> jax.Array:
    """Of the one message from the leader to a member: labels of their own, so that no message of
    a round has the same key."""
    return key_schedule.derive_keys(
        pair,
        (key_schedule.GROUP_ENC, key_schedule.GROUP_MAC),
        salt=session.public_seed,
        round_id=session.round_id,
        first=_LEADER,
        second=receiver,
    )
