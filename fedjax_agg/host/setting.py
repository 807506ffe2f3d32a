"""What all parties of a round between processes know before it begins."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_agg import _check
from fedjax_agg.codecs import Codec
from fedjax_agg.protocols import Protocol
from fedjax_agg.secure_round import transcript
from fedjax_agg.session import RoundContext, fixed_seed, simulated_session
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
        time_limit: seconds that the server waits at a stage. A client waits three times as long,
            since the server may have waited for others, at two stages, before it answers.

    Example:
        >>> import jax.numpy as jnp
        >>> import fedjax_agg as fa
        >>> setting = Setting.of(
        ...     jnp.ones(5), 3, fa.FixedPoint(clip=1.0), fa.Plain(), public_seed=fa.root_seed())
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
        template: Any,
        num_clients: int,
        codec: Codec,
        protocol: Protocol,
        *,
        public_seed: Any,
        round_id: int = 0,
        time_limit: float = 300.0,
    ) -> "Setting":
        """The setting of a round, which every party makes for itself.

        Args:
            template: an update, or its ``jax.ShapeDtypeStruct`` leaves; no value of it is kept.
            num_clients: n.
            codec: as of ``secure_mean``.
            protocol: as of ``secure_mean``.
            public_seed: uint32[8], the public randomness of the round.
            round_id: the number of the round.
            time_limit: seconds.

        Raises:
            TypeError: no codec, no protocol, an update that is not of floats.
            ValueError: a protocol that does not fit the cohort, another seed.
        """
        _check.words("seed", (8,), public_seed=public_seed)

        def play(session, updates):
            return transcript(updates, session, codec=codec, protocol=protocol)

        session = jax.eval_shape(lambda: simulated_session(fixed_seed(0), num_clients=num_clients))
        updates = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((num_clients, *jnp.shape(x)), x.dtype), template
        )
        stages = jax.eval_shape(play, session, updates).stages
        outboxes = {stage: _of_one(mail.outboxes) for stage, mail in stages.items()}
        return cls(
            protocol,
            jax.tree.map(np.asarray, codec),
            _of_one(updates),
            num_clients,
            np.asarray(public_seed, "<u4").tobytes(),
            round_id,
            round_layouts(outboxes, num_clients=num_clients, group=protocol.group),
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
