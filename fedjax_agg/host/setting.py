"""What all parties of a round between processes know before it begins."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_agg.codecs import Codec
from fedjax_agg.protocols import Protocol
from fedjax_agg.secure_round import transcript
from fedjax_agg.session import RoundContext, Session
from fedjax_agg.sharing.agreement import KeyExchange
from fedjax_agg.structure import Structure
from fedjax_agg.wire import Header, round_layouts


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all parties of a round know before it begins; no secret of anybody.

    Attributes:
        protocol: the protocol.
        codec: the codec.
        template: an update without values, a pytree of ``jax.ShapeDtypeStruct``.
        num_clients: n.
        session: 32 bytes, the public seed of the round.
        round_id: the number of the round.
        layouts: by kind of message, how its bytes lie in a frame. A client's first frame is
            ``hello``, with nothing in it: it says whose connection this is.
        time_limit: seconds that a party waits for any one message.

    Example:
        >>> import jax.numpy as jnp
        >>> import fedjax_agg as fa
        >>> session = fa.simulated_session(fa.fixed_seed(0), num_clients=3)
        >>> setting = Setting.of(jnp.ones((3, 5)), session, fa.FixedPoint(clip=1.0), fa.Plain())
        >>> list(setting.layouts)
        ['hello', 'upload']
    """

    protocol: Protocol
    codec: Codec
    template: Any
    num_clients: int
    session: bytes
    round_id: int
    layouts: Mapping[str, Any]
    time_limit: float

    @classmethod
    def of(
        cls,
        updates: Any,
        session: Session,
        codec: Codec,
        protocol: Protocol,
        time_limit: float = 60.0,
    ) -> "Setting":
        """The setting of a round of ``secure_mean``, of which no value of an update is kept."""
        kept = jax.eval_shape(
            lambda updates, session: transcript(updates, session, codec=codec, protocol=protocol),
            updates,
            session,
        )
        outboxes = {stage: _of_one(mail.outboxes) for stage, mail in kept.stages.items()}
        return cls(
            protocol,
            jax.tree.map(np.asarray, codec),
            _of_one(updates),
            session.num_clients,
            np.asarray(session.public_seed, "<u4").tobytes(),
            int(session.round_id),
            round_layouts(outboxes, num_clients=session.num_clients, group=protocol.group),
            time_limit,
        )

    def context(self, key_exchange: KeyExchange) -> RoundContext:
        """What is public of the round at its start."""
        return RoundContext(
            jnp.uint32(self.round_id),
            jnp.asarray(np.frombuffer(self.session, "<u4")),
            structure=Structure.of(self.template),
            key_exchange=key_exchange,
        )

    def header(self, kind: str, sender: int, receiver: int) -> Header:
        """The header of the one message of a kind between two parties."""
        return Header(kind, self.session, self.round_id, sender, receiver)

    def with_board(self, board: Any, ctx: RoundContext) -> RoundContext:
        """The context with the board: server and clients make it of the same list of keys."""
        return ctx._replace(board=self.protocol.deal(board, None, None, ctx))


def _of_one(of_all: Any) -> Any:
    """Shapes and types of one client's row."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), of_all)
