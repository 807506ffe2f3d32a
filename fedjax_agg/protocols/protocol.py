"""The type of a protocol: what one client does, what the server does, and in which group."""

import abc
from typing import Any

import jax

from fedjax_agg.arithmetic import Ring
from fedjax_agg.session import RoundContext
from fedjax_agg.wire import Total, Upload


class Protocol(abc.ABC):
    """A way to sum words without showing them, written for **one party**.

    A protocol is a frozen dataclass of public configuration: it compares, hashes and prints as
    that. The round calls ``prepare`` and ``protect`` for every client and adds the uploads of
    the survivors in the protocol's group; ``recover`` is the server's and sees nothing else.

    Law 1: the recovered words equal the plain sum of the survivors' words bit for bit.

    Attributes:
        group: the integers that words, uploads and the total live in.

    Example:
        >>> from fedjax_agg.protocols import Plain, SecAgg
        >>> from fedjax_agg.arithmetic import Ring
        >>> issubclass(SecAgg, Protocol)
        True
        >>> SecAgg() == SecAgg(group=Ring(32)), Plain(group=Ring(20))
        (True, Plain(group=Ring(bits=20)))
    """

    group: Ring

    @abc.abstractmethod
    def prepare(self, agreement: jax.Array, client_ids: jax.Array, ctx: RoundContext) -> Any:
        """What one client holds before its update exists.

        Args:
            agreement: uint32[8], this client's handle on the key agreement.
            client_ids: uint32[n], the cohort.
            ctx: the public context; ``ctx.client`` is the id of this client.

        Returns:
            The private state of the client, any pytree of arrays.
        """

    @abc.abstractmethod
    def protect(self, words: jax.Array, private: Any, ctx: RoundContext) -> Upload:
        """One client's words, uint32[D] -> its upload."""

    @abc.abstractmethod
    def recover(self, uploads: jax.Array, ctx: RoundContext) -> Total:
        """The server: the sum of the survivors' uploads, uint32[D] -> the sum of their words.

        Args:
            uploads: uint32[D], added in the group over ``ctx.survivors``.
            ctx: the public context, ``ctx.survivors`` being whose uploads are in the sum.
        """

    @abc.abstractmethod
    def bytes_up(self, length: int, num_clients: int) -> dict[str, int]:
        """Bytes that one client sends in each stage for ``length`` words."""

    @abc.abstractmethod
    def bytes_down(self, length: int, num_clients: int) -> dict[str, int]:
        """Bytes that one client receives in each stage."""


def packed_bytes(length: int, group: Ring) -> int:
    """The bytes of ``length`` elements of a ring, packed without gaps.

    Example:
        >>> packed_bytes(10, Ring(20))
        25
    """
    return -(-length * group.bits // 8)
