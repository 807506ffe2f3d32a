"""The type of a protocol: what one client does, what the server does, and in which group."""

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_agg import _check
from fedjax_agg.arithmetic import Group
from fedjax_agg.session import RoundContext, Session
from fedjax_agg.wire import Mail, Total, Upload


class Exchange(NamedTuple):
    """One stage of messages between clients, through the server.

    Attributes:
        name: the stage, one of ``participation.STAGES``.
        client: ``(private, inbox, ctx) -> (private, outbox)``, for one client. The inbox is what
            the exchange before it brought, None at first.
        server: ``(outboxes, sent, ctx) -> inboxes``, for all clients along axis 0. It only
            routes: what it may use is messages, and bool[n], who sent one.
        publish: ``(outboxes, sent, ctx) -> board`` or None: what the server shows to everybody
            from here on, as ``ctx.board``.

    Example:
        >>> echo = Exchange("share", lambda private, inbox, ctx: (private, inbox), None)
        >>> echo.name, echo.client("secret", "message", None)
        ('share', ('secret', 'message'))
    """

    name: str
    client: Callable[[Any, Any, RoundContext], tuple[Any, Any]]
    server: Callable[[Any, jax.Array, RoundContext], Any]
    publish: Callable[[Any, jax.Array, RoundContext], Any] | None = None


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one round costs, by stage. Bytes are those of a deployment with X25519 keys.

    Attributes:
        bytes_up: that one client sends.
        bytes_down: that one client receives.
        client_keystream_words: 32-bit words of ChaCha20 that one client generates for masks, and to
            seal and open what is as long as a part of one.
        client_field_products: multiplications in GF(2^31 - 1) of one client.
        server_keystream_words: words of ChaCha20 of the server, for all clients.
        server_field_products: multiplications in GF(2^31 - 1) of the server.
        client_stored_bytes: of shares of its peers that one client keeps, by the stage at which it
            gets them, until the round is over. A share is words of 32 bits.

    Work that is named at no stage is none.

    Example:
        >>> words = {"upload": 100}
        >>> cost = Cost({"upload": 400}, {"upload": 0}, client_keystream_words=words)
        >>> cost.bytes_up["upload"], cost.client_keystream_words, cost.server_field_products
        (400, {'upload': 100}, {})
    """

    bytes_up: Mapping[str, int]
    bytes_down: Mapping[str, int]
    client_keystream_words: Mapping[str, int] = dataclasses.field(default_factory=dict)
    client_field_products: Mapping[str, int] = dataclasses.field(default_factory=dict)
    server_keystream_words: Mapping[str, int] = dataclasses.field(default_factory=dict)
    server_field_products: Mapping[str, int] = dataclasses.field(default_factory=dict)
    client_stored_bytes: Mapping[str, int] = dataclasses.field(default_factory=dict)


class Protocol(abc.ABC):
    """A way to sum words without showing them, written for **one party**.

    A protocol is a frozen dataclass of public configuration: it compares, hashes and prints as
    that. A round runs, in this order and each for every client still taking part: ``join``, the
    exchanges of ``prepare``, ``receive``, ``protect``, and after the uploads the exchanges of
    ``respond``. It adds the uploads of the survivors in the protocol's group; ``recover`` is the
    server's and sees nothing but messages.

    Law 1: the recovered words equal the plain sum of the survivors' words bit for bit.

    Attributes:
        group: the integers that words, uploads and the total live in.
        rules: the names of the reasons for which a client refuses to go on.
        by_coordinate: whether ``protect`` takes any part of the words, from ``ctx.start`` on, and
            gives that part of the upload. Devices among which coordinates are shared out then do
            their part only.

    Example:
        >>> from fedjax_agg.protocols import Plain, SecAgg
        >>> from fedjax_agg.arithmetic import Ring
        >>> issubclass(SecAgg, Protocol)
        True
        >>> SecAgg() == SecAgg(group=Ring(32)), Plain(group=Ring(20))
        (True, Plain(group=Ring(bits=20)))
    """

    group: Group
    rules: tuple[str, ...] = ()
    by_coordinate: bool = False

    def check(self, num_clients: int) -> None:
        """Raises ValueError where the configuration does not fit a cohort of this size."""
        del num_clients

    def join(self, secret: jax.Array, ctx: RoundContext) -> Any:
        """One client's private state at the start, from the root of its randomness, uint32[8]."""
        del secret, ctx

    def prepare(self, num_clients: int) -> tuple[Exchange, ...]:
        """The exchanges before the update exists."""
        del num_clients
        return ()

    def deal(self, board: Any, agreement: jax.Array | None, private: Any, ctx: RoundContext) -> Any:
        """Fills in the board what each client combines with its own secrets.

        Args:
            board: what the server published.
            agreement: uint32[n, 2, 8], the handles on the ideal key agreement, whose dealer this
                then is, **in a simulation only**: no client and no server receives them. None
                where the key exchange is real: entries are public keys, and ``private`` may be
                None.
            private: the private states of all clients.
            ctx: the public context.
        """
        del agreement, private, ctx
        return board

    def receive(self, private: Any, inbox: Any, ctx: RoundContext) -> Any:
        """One client takes in what the last exchange of ``prepare`` brought: -> private."""
        del inbox, ctx
        return private

    @abc.abstractmethod
    def protect(self, words: jax.Array, private: Any, ctx: RoundContext) -> Upload:
        """One client's words, uint32[D], or a part of them from ``ctx.start`` on -> its upload."""

    def respond(self, num_clients: int) -> tuple[Exchange, ...]:
        """The exchanges after the uploads; ``ctx.survivors`` is the set that the server names."""
        del num_clients
        return ()

    def refusals(self, private: Any) -> jax.Array:
        """Which rules one client has found broken: bool[len(rules)]. Any of them silences it."""
        del private
        return jnp.zeros(len(self.rules), jnp.bool_)

    @abc.abstractmethod
    def recover(self, uploads: jax.Array, mail: Mapping[str, Mail], ctx: RoundContext) -> Total:
        """The server: the sum of the survivors' uploads -> the sum of their words.

        Args:
            uploads: uint32[D], added in the group over ``ctx.survivors``.
            mail: by stage, what clients sent and received.
            ctx: the public context: the board, and in ``survivors`` whose uploads are in the sum.
        """

    @abc.abstractmethod
    def cost(self, length: int, num_clients: int, dropped: int = 0) -> Cost:
        """What a round costs.

        Args:
            length: coordinates of the masked vector.
            num_clients: the size of the cohort.
            dropped: clients that are lost between their shares and their upload.
        """


def needs_whole_cohort(protocol: Protocol, session: Session, num_clients: int) -> bool:
    """Whether clients have messages for each other, and so a session of all of them is needed.

    Raises:
        ValueError: they have, and the session is not that of clients 1 to ``num_clients``.

    Example:
        >>> import fedjax_agg as fa
        >>> session = fa.simulated_session(fa.fixed_seed(0), num_clients=4)
        >>> needs_whole_cohort(fa.SecAgg(), session, 4), needs_whole_cohort(fa.Plain(), session, 9)
        (True, False)
    """
    if not (protocol.prepare(num_clients) or protocol.respond(num_clients) or protocol.rules):
        return False
    ids = _check.concrete(session.client_ids)
    if session.num_clients != num_clients or (ids is not None and ids[0] != 1):
        raise _check.error(
            "session-part",
            f"session of {session.num_clients} clients"
            + ("" if ids is None else f" from client {ids[0]} on"),
            f"that of all {num_clients} clients from client 1 on",
        )
    return True


class Refusals(NamedTuple):
    """A client's broken rules: in a compiled round it falls silent, on a host it raises.

    Attributes:
        broken: bool[rules].

    Example:
        >>> Refusals.none(2).broken.tolist()
        [False, False]
    """

    broken: jax.Array

    @classmethod
    def none(cls, rules: int) -> "Refusals":
        """No rule broken, of so many."""
        return cls(jnp.zeros(rules, jnp.bool_))

    def add(self, rules: tuple[str, ...], **found: jax.Array) -> "Refusals":
        """Notes broken rules, given as ``name=bool[]`` with underscores for hyphens.

        Raises:
            ValueError: a rule is broken and its flag has a value: one client on a host, whose
                caller is told which rule the server, or a peer, has broken.

        Example:
            >>> import jax
            >>> rules = ("self-seed", "few-shares")
            >>> note = jax.jit(lambda flag: Refusals.none(2).add(rules, few_shares=flag))
            >>> note(True).broken.tolist()
            [False, True]
        """
        broken = self.broken
        for name, flag in found.items():
            rule = name.replace("_", "-")
            value = _check.concrete(flag)
            if value is not None and value.any():
                raise _check.error(
                    f"refuse-{rule}", f"the rule {rule}", "kept for a client to answer"
                )
            index = rules.index(rule)
            here = np.arange(len(rules)) == index
            broken = broken | (flag & jnp.asarray(here))
        return Refusals(broken)


def packed_bytes(length: int, group: Group) -> int:
    """The bytes of ``length`` elements of a group, packed without gaps.

    Example:
        >>> from fedjax_agg.arithmetic import Ring
        >>> packed_bytes(10, Ring(20))
        25
    """
    return -(-length * group.bits // 8)
