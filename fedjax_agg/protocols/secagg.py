"""Pairwise masks on the complete graph: Bonawitz et al., CCS'17, for a full cohort."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_agg import _check
from fedjax_agg.arithmetic import Ring
from fedjax_agg.protocols.protocol import Protocol, packed_bytes
from fedjax_agg.session import RoundContext
from fedjax_agg.symmetric import key_schedule
from fedjax_agg.symmetric.chacha20 import keystream_sum
from fedjax_agg.wire import Total, Upload

# The update is the first segment of a round's flat vector.
_UPDATE_SEGMENT = 0
_PUBLIC_KEY_BYTES = 32


class PairKeys(NamedTuple):
    """The keys that one client shares with each of its peers; only that client may hold them.

    Attributes:
        keys: uint32[n, 8], one for every member of the cohort.
        signs: uint32[n], 1 where the mask is added, 2^32 - 1 where it is subtracted, 0 for the
            client itself.

    Example:
        >>> import jax.numpy as jnp
        >>> PairKeys(jnp.zeros((2, 8), jnp.uint32), jnp.array([0, 1], jnp.uint32)).keys.shape
        (2, 8)
    """

    keys: jax.Array
    signs: jax.Array


@dataclasses.dataclass(frozen=True)
class SecAgg(Protocol):
    """Secure aggregation with pairwise masks: each upload is uniform, and the masks cancel.

    Client i uploads ``x_i + sum over j < i of PRG(k_ij) - sum over j > i of PRG(k_ij)``: a
    client adds the mask that it shares with a smaller id (Bonawitz et al., CCS'17, section 4).
    PRG is ChaCha20 under the 256-bit key of the pair.

    Every client must upload. With one missing, the sum stays masked, and the round ends with
    ``ok`` False and zeros.

    Attributes:
        group: the ring of words and masks.

    Formal Guarantees:
        Against a server that follows the protocol and sees every upload, and without collusion
        by all but one of the clients, the uploads are as strong as ChaCha20 under keys from an
        ideal key agreement: they are indistinguishable from uniform words with the given sum.
        Not given: tolerance of dropouts, protection from a server that cheats, privacy of the
        sum itself, validity of the updates. One client that uploads wrong words destroys the
        sum. Bytes are counted as those of 32-byte public keys, relayed to every client.

    Example:
        >>> import jax.numpy as jnp
        >>> import fedjax_agg as fa
        >>> session = fa.simulated_session(fa.fixed_seed(0), num_clients=3)
        >>> updates = jnp.array([[0.5, 0.0], [0.25, 0.25], [0.0, 0.5]])
        >>> mean, report = fa.secure_mean(
        ...     updates, session, codec=fa.FixedPoint(clip=1.0), protocol=fa.SecAgg())
        >>> mean, bool(report.ok)
        (Array([0.25, 0.25], dtype=float32), True)
    """

    group: Ring = Ring(32)

    def __post_init__(self):
        _check.instance("group-type", Ring, group=self.group)

    def prepare(self, agreement: jax.Array, client_ids: jax.Array, ctx: RoundContext) -> PairKeys:
        """The pair keys of one client, from the ideal key agreement."""

        def pair_key(peer):
            return key_schedule.derive_key(
                agreement,
                key_schedule.PAIR_MASK,
                salt=ctx.public_seed,
                round_id=ctx.round_id,
                first=jnp.minimum(ctx.client, peer),
                second=jnp.maximum(ctx.client, peer),
            )

        minus_one = jnp.uint32(2**32 - 1)
        signs = jnp.where(client_ids < ctx.client, jnp.uint32(1), minus_one)
        signs = jnp.where(client_ids == ctx.client, jnp.uint32(0), signs)
        return PairKeys(jax.vmap(pair_key)(client_ids), signs)

    def protect(self, words: jax.Array, private: PairKeys, ctx: RoundContext) -> Upload:
        """The words plus the signed sum of the pair masks."""
        nonce = jnp.asarray(key_schedule.segment_nonce(_UPDATE_SEGMENT))
        masks = keystream_sum(private.keys, private.signs, nonce, words.shape[0])
        return Upload(self.group.add(words, self.group.from_keystream(masks)))

    def recover(self, uploads: jax.Array, ctx: RoundContext) -> Total:
        """The sum, in which the masks have cancelled; zeros unless every client is in it."""
        ok = jnp.all(ctx.survivors)
        return Total(jnp.where(ok, uploads, jnp.uint32(0)), ok)

    def bytes_up(self, length: int, num_clients: int) -> dict[str, int]:
        """A public key, then the packed words."""
        return {"advertise": _PUBLIC_KEY_BYTES, "upload": packed_bytes(length, self.group)}

    def bytes_down(self, length: int, num_clients: int) -> dict[str, int]:
        """The public keys of the peers."""
        return {"advertise": _PUBLIC_KEY_BYTES * (num_clients - 1), "upload": 0}
