"""The server of SecAgg: it routes messages, and recovers the sum from them."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fedjax_agg import _xla
from fedjax_agg.arithmetic import Ring
from fedjax_agg.protocols.secagg import _keys as secagg_keys
from fedjax_agg.protocols.secagg._client import ids
from fedjax_agg.protocols.secagg._keys import MASK, mask_nonce
from fedjax_agg.session import RoundContext
from fedjax_agg.sharing import agreement, graph, shamir
from fedjax_agg.symmetric.chacha20 import keystream_sum
from fedjax_agg.wire import Attestations, Board, Mail, RevealedShares, SealedShares, Total

_MINUS_ONE = np.uint32(2**32 - 1)
# Missing masks are repaired so many at a time.
_EDGES_PER_STEP = 64


def keep(outboxes, sent, ctx) -> None:
    """What clients sent is the server's own."""


def route(
    outboxes: SealedShares | Attestations, sent: jax.Array, ctx: RoundContext
) -> SealedShares | Attestations:
    """Every message to the peer in whose slot it lies."""
    arrived = outboxes._replace(sent=outboxes.sent & sent[:, None])
    return jax.tree.map(lambda x: to_peers(x, ctx.board), arrived)


def to_peers(outgoing: jax.Array, board: Board) -> jax.Array:
    """[n, k, ...] by sender and slot -> [n, k, ...] by receiver and the sender's slot there."""
    n, k = board.neighbours.shape
    return outgoing[board.neighbours, graph.reverse_slots(n, k)[None]]


def recover(
    uploads: jax.Array, mail: Mapping[str, Mail], ctx: RoundContext, *, threshold: int, group: Ring
) -> Total:
    """The server rebuilds one secret of each client and removes what masks are left.

    Args:
        uploads: uint32[D], the sum of the survivors' uploads.
        mail: by stage, what clients sent.
        ctx: the public context, with the board and the survivors.
        threshold: t.
        group: the ring of the words.
    """
    board: Board = ctx.board
    n = board.present.shape[0]
    shared, survivors = mail["share"].sent, ctx.survivors
    lost = shared & ~survivors

    revealed: RevealedShares = mail["unmask"].outboxes
    shares = to_peers(revealed.shares, board)
    answered = mail["unmask"].sent
    given = to_peers(revealed.sent & answered[:, None], board)
    chunks, check = jax.vmap(lambda s, p: shamir.recover_secret(s, p, threshold))(shares, given)
    secrets, valid = jax.vmap(shamir.from_chunks)(chunks)
    enough = jnp.sum(given, axis=1, dtype=jnp.int32) >= threshold
    # Of who was lost after sharing, the masks with surviving neighbours are in the sum.
    missing = lost[:, None] & survivors[board.neighbours]
    needed = survivors | jnp.any(missing, axis=1)
    ok = jnp.any(survivors) & jnp.all(~needed | (enough & valid & check.consistent))
    holders = jnp.take_along_axis(board.neighbours, jnp.maximum(check.culprit, 0)[:, None], axis=1)[
        :, 0
    ]
    named = needed & (check.culprit >= 0)
    suspects = jnp.zeros(n, jnp.bool_).at[holders].max(named)

    def self_key(seed, client):
        return secagg_keys.self_key(seed, ctx._replace(client=client))

    clients = jnp.arange(1, n + 1, dtype=jnp.uint32)
    self_keys = jax.vmap(self_key)(secrets, clients)
    minus = jnp.where(survivors, _MINUS_ONE, np.uint32(0))
    length = uploads.shape[0]
    words = uploads + keystream_sum(self_keys, minus, mask_nonce(), length)
    words = words + _repair(secrets, missing, board, ctx, length)
    words = group.from_keystream(words)
    return Total(jnp.where(ok, words, np.uint32(0)), ok, suspects)


def _repair(secrets, missing, board: Board, ctx: RoundContext, length: int) -> jax.Array:
    """What brings the masks between lost and surviving neighbours out of the sum: uint32[length].

    The work grows with the number of such edges, not with the number of all: their list is
    compacted, and a loop with a *traced* trip count takes it block by block. Its size is that of
    the worst case, because a smaller one would drop edges and give a wrong sum in silence.
    """
    n, k = missing.shape
    size = -(-n * k // _EDGES_PER_STEP) * _EDGES_PER_STEP
    (edges,) = jnp.nonzero(missing.ravel(), size=size, fill_value=n * k)
    edges = edges.astype(jnp.int32)
    count = jnp.sum(missing, dtype=jnp.int32)
    steps = (count + np.int32(_EDGES_PER_STEP - 1)) // np.int32(_EDGES_PER_STEP)

    def repair_some(step, words):
        first = step * np.int32(_EDGES_PER_STEP)
        some = lax.dynamic_slice_in_dim(edges, first, _EDGES_PER_STEP)
        real = some < np.int32(n * k)
        some = jnp.where(real, some, np.int32(0))
        lost, slot = some // np.int32(k), some % np.int32(k)
        peer = board.neighbours[lost, slot]
        shared = agreement.agree(
            secrets[lost], board.entries[lost, slot, MASK], slot.astype(jnp.uint32)
        )
        lost_ids, peer_ids = ids(lost), ids(peer)
        # The key that is in the sum is the survivor's, with the model that it was given.
        contexts = None if ctx.context_hash is None else ctx.context_hash[peer]
        keys = secagg_keys.pair_keys(shared, lost_ids, peer_ids, contexts, ctx)
        # The survivor has added the mask if the lost client's id is the smaller one.
        signs = jnp.where(lost_ids < peer_ids, _MINUS_ONE, np.uint32(1))
        signs = jnp.where(real, signs, np.uint32(0))
        return words + keystream_sum(keys, signs, mask_nonce(), length)

    return _xla.client_loop(steps, repair_some, jnp.zeros(length, jnp.uint32))
