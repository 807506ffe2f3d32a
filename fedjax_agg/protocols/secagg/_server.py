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
from fedjax_agg.sharing import graph, shamir
from fedjax_agg.symmetric.chacha20 import keystream_sum
from fedjax_agg.wire import Attestations, Board, Mail, RevealedShares, SealedShares, Total

_MINUS_ONE = np.uint32(2**32 - 1)
# So many keys of missing masks are derived at a time, and so many masks added.
_EDGES_PER_STEP = 512
_MASKS_PER_STEP = 64


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
    # What is rebuilt of a lost client is the secret of a key that it has advertised.
    public = jax.vmap(ctx.key_exchange.public_key)(secrets)
    right = survivors | jnp.all(public == board.keys.mask, axis=1)
    ok = jnp.any(survivors) & jnp.all(~needed | (enough & valid & check.consistent & right))
    holders = jnp.take_along_axis(board.neighbours, jnp.maximum(check.culprit, 0)[:, None], axis=1)[
        :, 0
    ]
    named = needed & (check.culprit >= 0)
    suspects = jnp.zeros(n, jnp.bool_).at[holders].max(named)

    def self_key(seed, client):
        return secagg_keys.self_key(seed, board.session_id, ctx._replace(client=client))

    clients = jnp.arange(1, n + 1, dtype=jnp.uint32)
    self_keys = jax.vmap(self_key)(secrets, clients)
    minus = jnp.where(survivors, _MINUS_ONE, np.uint32(0))
    pair_keys, signs = _missing_keys(secrets, missing, board, ctx)
    keys = jnp.concatenate([self_keys, pair_keys])
    coefficients = jnp.concatenate([minus, signs])
    used = np.int32(n) + jnp.sum(missing, dtype=jnp.int32)
    words = group.from_keystream(uploads + _masks(keys, coefficients, used, n, uploads.shape[0]))
    return Total(jnp.where(ok, words, np.uint32(0)), ok, suspects)


def _missing_keys(
    secrets: jax.Array, missing: jax.Array, board: Board, ctx: RoundContext
) -> tuple[jax.Array, jax.Array]:
    """The keys of masks between lost and surviving neighbours: uint32[m, 8], and their signs.

    They are the first rows of a table for the worst case, because a smaller one would drop some
    and give a wrong sum in silence. The work grows with their number, not with that of all edges:
    a loop with a *traced* trip count derives them, some at a time.
    """
    n, k = missing.shape
    step_size = min(_EDGES_PER_STEP, n)
    size = -(-n * k // step_size) * step_size
    # A sort is one program to compile, where the running count of ``jnp.nonzero`` is twenty.
    every = jnp.arange(n * k, dtype=jnp.int32)
    edges = jnp.sort(jnp.where(missing.ravel(), every, np.int32(n * k)))
    edges = jnp.pad(edges, (0, size - n * k))
    count = jnp.sum(missing, dtype=jnp.int32)
    real = jnp.arange(size, dtype=jnp.int32) < count
    edges = jnp.where(real, edges, np.int32(0))
    lost, slot = edges // np.int32(k), edges % np.int32(k)
    peer = board.neighbours[lost, slot]
    # The survivor has added the mask if the lost client's id is the smaller one.
    signs = jnp.where(lost < peer, _MINUS_ONE, np.uint32(1))
    signs = jnp.where(real, signs, np.uint32(0))

    def derive_some(step, keys):
        # Without the barrier XLA takes what fits one step out of the loop, and does it always.
        step, *some = lax.optimization_barrier((step, lost, slot, peer))
        first = step * np.int32(step_size)
        rows = [lax.dynamic_slice_in_dim(x, first, step_size) for x in some]
        some_lost, some_slot, some_peer = rows
        entries = board.entries[some_lost, some_slot, MASK]
        shared = ctx.key_exchange.agree(secrets[some_lost], entries, some_slot.astype(jnp.uint32))
        # The key that is in the sum is the survivor's, with the model that it was given.
        contexts = None if ctx.context_hash is None else ctx.context_hash[some_peer]
        derived = secagg_keys.pair_keys(
            shared, ids(some_lost), ids(some_peer), contexts, board.session_id, ctx
        )
        return lax.dynamic_update_slice_in_dim(keys, derived, first, 0)

    steps = (count + np.int32(step_size - 1)) // np.int32(step_size)
    return lax.fori_loop(0, steps, derive_some, jnp.zeros((size, 8), jnp.uint32)), signs


def _masks(keys, coefficients, used: jax.Array, n: int, length: int) -> jax.Array:
    """The sum of the first ``used`` masks of a table, block by block: uint32[length].

    One loop for self masks and missing masks, because each place that makes masks is two seconds
    of compilation. Blocks are as even as n, the number of self masks, lets them be.
    """
    blocks = -(-n // _MASKS_PER_STEP)
    rows = -(-n // blocks // 8) * 8
    table = jnp.concatenate([keys, coefficients[:, None]], axis=1)
    table = jnp.pad(table, ((0, -table.shape[0] % rows), (0, 0)))

    def add_some(step, words):
        some = lax.dynamic_slice_in_dim(table, step * np.int32(rows), rows)
        return words + keystream_sum(some[:, :8], some[:, 8], mask_nonce(), length)

    steps = (used + np.int32(rows - 1)) // np.int32(rows)
    return _xla.client_loop(steps, add_some, jnp.zeros(length, jnp.uint32))
