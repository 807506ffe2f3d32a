"""A round with every message kept, and what a coalition of parties sees of it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from fedjax_agg import _check

# The five regression numbers of Bonawitz et al., CCS'17, count keys and shares of 256 bits.
_PAPER_KEY_BITS = _PAPER_SHARE_BITS = 256


class Mail(NamedTuple):
    """The messages of one stage; the server holds all of it.

    Attributes:
        outboxes: what clients sent, along axis 0; zeros where nothing was.
        sent: bool[n], who sent something.
        inboxes: what the server delivered, along axis 0; None where nothing was.

    Example:
        >>> import jax.numpy as jnp
        >>> Mail(jnp.zeros((2, 3)), jnp.array([True, False])).inboxes is None
        True
    """

    outboxes: Any
    sent: jax.Array
    inboxes: Any = None


class View(NamedTuple):
    """All that a coalition holds after a round, and nothing else.

    Attributes:
        public: the ``RoundContext``: round, public seed, board, survivors.
        server: by stage the ``Mail``, or None if the server is not in the coalition.
        clients: by id, what each client in it privately holds and was sent.
        total: the ``Total``, of the server.

    Example:
        >>> View(public=None, server=None, clients={}, total=None).clients
        {}
    """

    public: Any
    server: Mapping[str, Mail] | None
    clients: Mapping[int, "ClientView"]
    total: Any


class ClientView(NamedTuple):
    """What one client holds after a round.

    Attributes:
        secret: uint32[8], the root of its randomness in this round.
        private: its state before the upload: keys, seeds, and the shares that it was given.
        update: its row of the updates.
        sent: by stage, its outbox.
        received: by stage, its inbox.

    Example:
        >>> ClientView(None, None, None, {}, {}).sent
        {}
    """

    secret: jax.Array
    private: Any
    update: Any
    sent: Mapping[str, Any]
    received: Mapping[str, Any]

    def __repr__(self) -> str:
        return f"ClientView(sent={list(self.sent)}, secrets=<redacted>)"


class Transcript(NamedTuple):
    """A round with every message kept: made by ``transcript``. **Simulation only.**

    It holds the secrets of all clients; ``view`` is what a coalition has of them.

    Attributes:
        stages: by stage in order, the ``Mail``. That of *upload* holds each client's words.
        public: the ``RoundContext`` at the end of the round.
        total: the ``Total``.
        secrets: uint32[n, 8], the roots of the clients' randomness.
        keys: the clients' private states when they joined.
        private: their states before the upload.
        updates: the updates.
        mean: what ``secure_mean`` returns.
        report: the ``Report``.

    Example:
        >>> import jax.numpy as jnp
        >>> import fedjax_agg as fa
        >>> session = fa.simulated_session(fa.fixed_seed(0), num_clients=2)
        >>> kept = fa.transcript(jnp.ones((2, 3)), session, codec=fa.FixedPoint(clip=2.0))
        >>> isinstance(kept, Transcript), list(kept.stages)  # ``Plain`` has one stage
        (True, ['upload'])
        >>> kept.view(server=True).clients
        {}
        >>> kept.bytes()["up"]["upload"]
        12
    """

    stages: Mapping[str, Mail]
    public: Any
    total: Any
    secrets: jax.Array
    keys: Any
    private: Any
    updates: Any
    mean: Any
    report: Any

    def __repr__(self) -> str:
        return f"Transcript(stages={list(self.stages)}, secrets=<redacted>)"

    def view(self, *, server: bool = False, clients: Sequence[int] = ()) -> View:
        """All that these parties hold together.

        Args:
            server: whether the server is one of them.
            clients: the ids of the clients among them, counted from 1.

        Returns:
            The ``View``. Every party holds what is public; the server holds every message and
            the total; a client its own secrets, update and messages.

        Raises:
            ValueError: an id out of range.

        Example:
            >>> import jax.numpy as jnp
            >>> import fedjax_agg as fa
            >>> session = fa.simulated_session(fa.fixed_seed(0), num_clients=2)
            >>> kept = fa.transcript(jnp.ones((2, 2)), session, codec=fa.FixedPoint(clip=2.0))
            >>> view = kept.view(clients=(2,))
            >>> view.server is None, list(view.clients)
            (True, [2])
        """
        n = self.secrets.shape[0]
        for client in clients:
            _check.integer_in("client-id", 1, n, clients=client)

        def row(client, tree):
            return jax.tree.map(lambda x: x[client - 1], tree)

        def client_view(client):
            return ClientView(
                secret=self.secrets[client - 1],
                private=(row(client, self.keys), row(client, self.private)),
                update=row(client, self.updates),
                sent={name: row(client, mail.outboxes) for name, mail in self.stages.items()},
                received={name: row(client, mail.inboxes) for name, mail in self.stages.items()},
            )

        return View(
            public=self.public,
            server=self.stages if server else None,
            clients={int(client): client_view(client) for client in clients},
            total=self.total if server else None,
        )

    def bytes(self) -> dict[str, dict[str, int]]:
        """Bytes of one client by stage, ``up`` and ``down``, as the report counts them."""
        return {
            direction: {stage: int(count) for stage, count in counts.items()}
            for direction, counts in (
                ("up", self.report.bytes_up),
                ("down", self.report.bytes_down),
            )
        }


def paper_bytes(num_clients: int, length: int, *, value_bits: int = 16) -> float:
    """What one client sends and receives by the count of Bonawitz et al., CCS'17, section 7.

    Keys and shares of 256 bits, a list of n flags, and d words of the bits of n values:
    ``(2 n + 5 n - 4) * 256 + n + d * ceil(log2(n (2^value_bits - 1) + 1))`` bits.

    Args:
        num_clients: n.
        length: d, the length of the vector.
        value_bits: the bits of one client's value.

    Returns:
        Bytes. ``Transcript.bytes`` counts what this library's messages hold instead.

    Example:
        The paper's factor of 1.73 for 2^10 users and 2^20 values of 16 bits:

        >>> round(paper_bytes(2**10, 2**20) / (2**20 * 2), 2)
        1.73
    """
    word_bits = (num_clients * (2**value_bits - 1)).bit_length()
    keys = 2 * num_clients * _PAPER_KEY_BITS
    shares = (5 * num_clients - 4) * _PAPER_SHARE_BITS
    return (keys + shares + num_clients + length * word_bits) / 8
