"""What each client of one cohort privately holds in one round, and what all of them know."""

import dataclasses
import functools
import hashlib
import secrets
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fedjax_agg import _check
from fedjax_agg.sharing.agreement import IdealKeyExchange, KeyExchange
from fedjax_agg.symmetric import key_schedule
from fedjax_agg.symmetric.sha256 import sha256

# An id is an int32; a protocol that shares secrets holds fewer.
MAX_CLIENTS = 2**31 - 1


class RoundContext(NamedTuple):
    """What is public in a round; every party may see all of it.

    Attributes:
        round_id: uint32[], the number of the round.
        public_seed: uint32[8], the source of all public randomness of the round.
        client: uint32[], the id of the client that calls, 1 to n; None at the server.
        context_hash: uint8[32], the digest of the model that this client was given; at the
            server uint8[n, 32], of what it gave to each. None where no context is bound.
        structure: the tree, shapes and dtypes of an update.
        board: what the server has published to all clients; None before.
        survivors: bool[n], whose uploads are in the sum; None before the uploads.
        total_weight: float32[], the sum of their weights; None before it is known.
        start: uint32[], a multiple of 16: the first coordinate of the words that a client is to
            protect; None where they are all words.
        key_exchange: how clients come to the secrets of pairs; static.

    Example:
        >>> import jax.numpy as jnp
        >>> from fedjax_agg.structure import Structure
        >>> RoundContext(structure=Structure.of(jnp.zeros(3))).structure.size
        3
    """

    round_id: Any = None
    public_seed: Any = None
    client: Any = None
    context_hash: Any = None
    structure: Any = None
    board: Any = None
    survivors: Any = None
    total_weight: Any = None
    start: Any = None
    key_exchange: KeyExchange = IdealKeyExchange()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class Session:
    """The private state of the clients of one cohort in one round.

    A pytree, so that it passes through ``jit``, ``vmap`` and ``scan``; the fields of one client
    are the rows of ``client_ids``, ``secrets``, ``agreement`` and ``context``. Its ``repr`` shows
    no secret, but ``jax.tree.leaves(session)`` are the secrets themselves. One session serves one
    round: two sums under one session are masked by one pad, and what hides each is gone from
    their difference.

    Attributes:
        round_id: uint32[], the number of the round; public.
        public_seed: uint32[8], the source of all public randomness; public.
        client_ids: uint32[n], 1 to n, or those of a part of a larger cohort; public.
        secrets: uint32[n, 8], the root of each client's own randomness in this round.
        agreement: uint32[n, 2, 8], each client's handles on two ideal key agreements, of the
            channels between clients and of their masks: all rows are equal, and the dealer
            hands client i the secret of the pair (i, j) from row i. They stand for key
            exchanges, and no function of a client or of the server receives them. None where
            the key exchange is real, as of ``host.keys.X25519``, and needs no dealer.
        context: uint8[n, 32] or None, the digest of the model that each client was given, from
            ``bind``.
        key_exchange: how clients come to the secrets of pairs; static.

    Example:
        >>> session = simulated_session(root_seed(), num_clients=2)
        >>> isinstance(session, Session), session.secrets.shape
        (True, (2, 8))
    """

    round_id: jax.Array
    public_seed: jax.Array
    client_ids: jax.Array
    secrets: jax.Array
    agreement: Any
    context: jax.Array | None = None
    key_exchange: KeyExchange = dataclasses.field(
        default=IdealKeyExchange(), metadata={"static": True}
    )

    @property
    def num_clients(self) -> int:
        """The number of clients in the cohort."""
        return self.client_ids.shape[-1]

    def bind(self, context_hashes: jax.Array) -> "Session":
        """The same session for clients that were given these models.

        Masks then depend on the model: clients that were given different ones have masks that
        do not cancel, so a server that hands out several learns nothing from the sum (Pasquini,
        Francati and Ateniese, CCS'22).

        Args:
            context_hashes: uint8[32] from ``context_hash``, or uint8[n, 32] for a server that
                gives out different models.

        Raises:
            ValueError: another shape or type.

        Example:
            >>> import jax.numpy as jnp
            >>> session = simulated_session(fixed_seed(0), num_clients=2)
            >>> session.bind(context_hash({"w": jnp.ones(3)})).context.shape
            (2, 32)
        """
        if jnp.ndim(context_hashes) == 1:
            _check.array("context-hash", np.uint8, (32,), context_hashes=context_hashes)
            context_hashes = jnp.broadcast_to(context_hashes, (self.num_clients, 32))
        _check.array(
            "context-hash", np.uint8, (self.num_clients, 32), context_hashes=context_hashes
        )
        return dataclasses.replace(self, context=context_hashes)

    def rows(self, first: jax.Array | int, count: int) -> "Session":
        """The same session for a part of its clients, such as one block of a stream.

        Args:
            first: the row of the first of them, from 0; may be traced (int32 or uint32), and is
                then moved down where fewer than ``count`` follow.
            count: how many, 1 to all; static.

        Raises:
            ValueError: rows that are not there; a session of several rounds.

        Example:
            >>> session = simulated_session(fixed_seed(0), num_clients=5)
            >>> session.rows(2, 2).client_ids.tolist()
            [3, 4]
        """
        _check.shape("session-rounds", (), **{"session.round_id": self.round_id})
        n = self.num_clients
        count = _check.integer_in("rows", 1, n, count=count)
        number = _check.concrete(first)
        if number is not None:
            first = _check.integer_in("rows", 0, n - count, first=number[()])

        def part(x):
            return lax.dynamic_slice_in_dim(x, first, count)

        by_client = ("client_ids", "secrets", "agreement", "context")
        parts = {name: jax.tree.map(part, getattr(self, name)) for name in by_client}
        return dataclasses.replace(self, **parts)

    def __repr__(self) -> str:
        return f"Session(num_clients={self.num_clients}, secrets=<redacted>)"


def root_seed() -> jax.Array:
    """A fresh seed of 256 bits from the operating system.

    Hand it to compiled functions as an argument: one that a function closes over, or that it calls
    for itself under ``jit``, is drawn once and written into its program.

    Returns:
        uint32[8].

    Example:
        >>> seed = root_seed()
        >>> seed.shape, seed.dtype.name
        ((8,), 'uint32')
    """
    return jnp.asarray(np.frombuffer(secrets.token_bytes(32), np.uint32))


def fixed_seed(number: int) -> jax.Array:
    """A **predictable** seed for experiments that must repeat: it protects nothing.

    Args:
        number: an integer from 0 to 2^32 - 1.

    Returns:
        uint32[8].

    Raises:
        ValueError: ``number`` is not such an integer.

    Example:
        >>> fixed_seed(7)
        Array([7, 0, 0, 0, 0, 0, 0, 0], dtype=uint32)
    """
    number = _check.integer_in("fixed-seed", 0, 2**32 - 1, number=number)
    return jnp.zeros(8, jnp.uint32).at[0].set(np.uint32(number))


def simulated_session(
    seed: jax.Array,
    *,
    num_clients: int,
    round_id: jax.Array | int = 0,
    first_client: jax.Array | int | None = None,
) -> Session:
    """The session of one round in which one process plays all clients.

    Sessions of different rounds, or of different seeds, share no key.

    Args:
        seed: uint32[8], from ``root_seed`` or ``fixed_seed``; one seed serves a whole training
            run.
        num_clients: the size of the cohort, 2 to 2^31 - 1.
        round_id: the number of the round, 0 to 2^32 - 1; may be traced (uint32 or int32).
        first_client: None for the whole cohort. The id of a client, counted from 1, for the
            rows of ``num_clients`` clients from it on, 1 or more, of a larger cohort, with the
            keys that they have in the session of all; may be traced (uint32 or int32). A cohort
            of a million in blocks then never needs a session of a million rows.

    Returns:
        The session.

    Raises:
        ValueError: a seed of another form, such as an integer or a ``jax.random`` key; a cohort
            of one; a negative round; ids beyond 2^31 - 1.

    Formal Guarantees:
        Keys are derived by HKDF-SHA256 from all 256 bits of the seed and from the round, so they
        are as strong as the seed. The key agreement between clients is **ideal**: it hands both
        ends of a pair one key, where a deployment would run X25519. One process holds the
        secrets of every client, so a session models a protocol and protects nothing from the
        machine that runs it.

    Example:
        >>> session = simulated_session(fixed_seed(0), num_clients=3, round_id=5)
        >>> session
        Session(num_clients=3, secrets=<redacted>)
        >>> int(session.round_id)
        5
        >>> last = simulated_session(fixed_seed(0), num_clients=1, round_id=5, first_client=3)
        >>> bool((last.secrets[0] == session.secrets[2]).all())
        True
    """
    _check.words("seed", (8,), seed=seed)
    whole = first_client is None
    num_clients = _check.integer_in(
        "num-clients", 2 if whole else 1, MAX_CLIENTS, num_clients=num_clients
    )
    last = MAX_CLIENTS + 1 - num_clients
    first = _check.number("first-client", 1, last, first_client=1 if whole else first_client)
    return _derive_session(seed, _check.round_number(round_id), first, num_clients)


@functools.partial(jax.jit, static_argnums=3)
def _derive_session(
    seed: jax.Array, round_id: jax.Array, first_client: jax.Array, num_clients: int
) -> Session:
    """The keys of a session; compiled, so that eager calls do not derive one by one."""

    def derive(label: str, client: jax.Array, second: int = 0) -> jax.Array:
        return key_schedule.derive_key(
            seed,
            label,
            salt=jnp.zeros(8, jnp.uint32),
            round_id=round_id,
            first=client,
            second=second,
        )

    client_ids = first_client + jnp.arange(num_clients, dtype=jnp.uint32)
    everyone = jnp.uint32(0)
    handles = jnp.stack([derive(key_schedule.AGREEMENT, everyone, kind) for kind in (0, 1)])
    return Session(
        round_id=round_id,
        public_seed=derive(key_schedule.PUBLIC, everyone),
        client_ids=client_ids,
        secrets=jax.vmap(lambda client: derive(key_schedule.CLIENT, client))(client_ids),
        agreement=jnp.broadcast_to(handles, (num_clients, 2, 8)),
    )


def context_hash(model: Any) -> jax.Array:
    """The SHA-256 digest of a model, for ``Session.bind``: what a client checks its masks against.

    Args:
        model: any pytree of arrays.

    Returns:
        uint8[32], over the path, shape and dtype of every leaf and over the bytes of all.

    Example:
        >>> import jax.numpy as jnp
        >>> context_hash({"w": jnp.ones(3)})[:4]
        Array([232,  26, 210, 190], dtype=uint8)
    """
    header, leaves = "", []
    for path, leaf in jax.tree_util.tree_leaves_with_path(model):
        leaf = jnp.asarray(leaf)
        header += f"{jax.tree_util.keystr(path)} {leaf.dtype.name}{[*leaf.shape]}\n"
        words = leaf.astype(jnp.uint8) if leaf.dtype == jnp.bool_ else leaf
        leaves.append(lax.bitcast_convert_type(words, jnp.uint8).ravel())
    digest = np.frombuffer(hashlib.sha256(header.encode()).digest(), np.uint8)
    return sha256(jnp.concatenate([jnp.asarray(digest), *leaves]))
