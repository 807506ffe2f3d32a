"""No protection: the output of the ideal functionality, as oracle and fast mode."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from fedjax_agg import _check
from fedjax_agg.arithmetic import M31, Group, Ring
from fedjax_agg.protocols.protocol import Cost, Protocol, packed_bytes
from fedjax_agg.session import RoundContext
from fedjax_agg.wire import Mail, Total, Upload


@dataclasses.dataclass(frozen=True)
class Plain(Protocol):
    """The sum in the clear: the same words and the same total as every protocol, hidden by none.

    For experiments on quantisation, wrap, dropouts and bits, and as the oracle in tests.

    Attributes:
        group: the group of the words.

    Formal Guarantees:
        None. The server sees every word of every client.

    Example:
        >>> import jax.numpy as jnp
        >>> from fedjax_agg.session import RoundContext
        >>> Plain().protect(jnp.array([5], jnp.uint32), None, RoundContext()).words
        Array([5], dtype=uint32)
    """

    group: Group = Ring(32)

    by_coordinate = True

    def __post_init__(self):
        _check.instance("group-type", (Ring, M31), group=self.group)

    def protect(self, words: jax.Array, private: None, ctx: RoundContext) -> Upload:
        """The words as they are."""
        return Upload(words)

    def recover(self, uploads: jax.Array, mail: Mapping[str, Mail], ctx: RoundContext) -> Total:
        """The sum as it is, of any set of survivors that is not empty."""
        ok = jnp.any(ctx.survivors)
        return Total(jnp.where(ok, uploads, jnp.uint32(0)), ok)

    def cost(self, length: int, num_clients: int, dropped: int = 0) -> Cost:
        """The packed words, and no work."""
        return Cost({"upload": packed_bytes(length, self.group)}, {"upload": 0})
