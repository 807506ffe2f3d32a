"""One more block of clients in the sum."""

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_agg import _check, budget, mesh
from fedjax_agg._stages import Cohort, Static, before_uploads, sum_uploads, uploader
from fedjax_agg.participation import as_participation
from fedjax_agg.session import Session
from fedjax_agg.streaming.stream import Stream, Sum
from fedjax_agg.structure import Structure, client_structure


def add_block(
    stream: Stream,
    updates: Any,
    session: Session,
    weights: jax.Array | None = None,
    *,
    axis_name: str | tuple[str, ...] | None = None,
) -> Stream:
    """The stream after one more block of clients: any clients, in any order, each once.

    Eagerly, the ``sum`` of the stream that is given is donated: go on with the one that is
    returned. Blocks of one size share one program. There is **no derivative**: a sum of words
    has none, and that of ``secure_mean`` needs the units of all clients.

    Args:
        stream: the round so far.
        updates: a pytree of floats as ``like`` of ``init``, with an axis 0 of m clients.
        session: the rows of these clients, ``session.rows(first, m)`` or
            ``simulated_session(..., num_clients=m, first_client=first)``: ids and all.
        weights: [m], of the kind that ``init`` was told.
        axis_name: the axes of the device mesh that the block lies along, as for ``secure_mean``.

    Returns:
        The ``Stream``.

    Raises:
        TypeError: an argument of another type.
        ValueError: updates or weights of another structure, shape or dtype than the stream's;
            a derivative; and see the table.

    | input | static | traced |
    | --- | --- | --- |
    | a client that has arrived, is in the block twice, or is not of the cohort | ``ValueError`` | the block is ignored, ``stream.sum.refused`` counts it |
    | a block after ``close`` | ``ValueError`` | the same |
    | rows of another round or seed | ``ValueError`` | the same |
    | weights out of range | ``ValueError`` | moved to the nearer end |

    Example:
        >>> import jax.numpy as jnp
        >>> import fedjax_agg as fa
        >>> from fedjax_agg import streaming
        >>> session = fa.simulated_session(fa.fixed_seed(0), num_clients=5)
        >>> stream = streaming.init(jnp.zeros(3), session, codec=fa.FixedPoint(clip=2.0))
        >>> stream = streaming.add_block(stream, jnp.ones((2, 3)), session.rows(0, 2))
        >>> stream.sum.arrived.tolist()
        [True, True, False, False, False]
    """  # noqa: E501
    _check.instance("stream-type", Stream, stream=stream)
    _check.instance("session-type", Session, session=session)
    _check.shape("session-rounds", (), **{"session.round_id": session.round_id})
    m = session.num_clients
    clients = mesh.client_axes(updates, axis_name)
    rows = mesh.rows_given(clients, m)
    structure = client_structure(updates, rows)
    wanted = stream.public.structure
    if structure != wanted:
        raise _check.error("stream-updates", f"updates {_shown(structure)}", _shown(wanted))
    if stream.weights != _kind(weights):
        found = "None" if weights is None else _check.shown_type(weights)
        wanted = f"as init was told, weights={stream.weights!r}"
        raise _check.error("stream-weights", f"weights={found}", wanted)
    if weights is not None:
        _check.shape("weights-shape", (rows,), weights=weights)
        weights, _ = budget.weights_on_grid(weights, stream.max_weight)
    _refuse(stream, session)
    static = Static(stream.protocol, weights is not None, True, clients)
    words, held = stream.sum.words, (stream.sum.arrived, stream.sum.refused)
    rest: Any = dataclasses.replace(stream, sum=None)  # type: ignore[arg-type]
    words, arrived, refused = _add(static, words, held, rest, updates, session, weights)
    total = Sum(words, arrived, refused, stream.sum.group)
    return dataclasses.replace(stream, sum=total)


def _kind(weights) -> str | None:
    """Which of the kinds of weights that ``init`` knows."""
    if weights is None:
        return None
    return "fraction" if jnp.issubdtype(jnp.result_type(weights), jnp.floating) else "integer"


def _shown(structure: Structure) -> str:
    leaves = [f"{t.name}{[*shape]}" for t, shape in zip(structure.dtypes, structure.shapes)]
    return f"of leaves {', '.join(leaves)} in {structure.treedef}"


def _refuse(stream: Stream, session: Session) -> None:
    """Raises where the program would ignore the block, if that is known before it runs."""
    ids = _check.concrete(session.client_ids)
    closed, arrived = _check.concrete(stream.closed), _check.concrete(stream.sum.arrived)
    block = "a block" if ids is None else f"a block of clients {ids[0]} to {ids[-1]}"
    if closed is not None and closed:
        raise _check.error("stream-closed", block, "given before close")
    public = stream.public
    for name in ("round_id", "public_seed"):
        mine, theirs = (_check.concrete(getattr(x, name)) for x in (public, session))
        if mine is not None and theirs is not None and (mine != theirs).any():
            raise _check.error("stream-round", f"session.{name} of {block}", "that of the stream")
    if ids is None or arrived is None:
        return
    known = (ids >= 1) & (ids <= arrived.shape[0])
    wrong = ~known
    wrong[known] = arrived[ids[known].astype(np.int64) - 1]
    if wrong.any() or len(set(ids.tolist())) < len(ids):
        subject = f"client {ids[wrong][0]} of {block}" if wrong.any() else block
        raise _check.error(
            "stream-clients", subject, f"from 1 to {arrived.shape[0]}, and in no block before"
        )


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _add(static, words, held, stream, updates, session, weights):
    """The words and flags with one more block, or without it where it is refused."""
    codec, updates, weights = _without_derivative((stream.codec, updates, weights))
    stream = dataclasses.replace(stream, codec=codec)
    # Flags too are computed on every device, or the compiler would choose where they lie.
    add = mesh.on_each_device(
        functools.partial(_added, static),
        static.clients,
        (False, False, False, True, False, True),
        updates=3,
    )
    return add(words, held, stream, updates, session, weights)


def _added(static, words, held, stream, updates, session, weights):
    n, m, group = stream.num_clients, session.num_clients, static.protocol.group
    public, (arrived, refused) = stream.public, held
    # The id 0 becomes the largest number, which is out of range too.
    rows = session.client_ids - jnp.uint32(1)
    ordered = jnp.sort(rows)
    right = (
        ~stream.closed
        & (ordered[-1] < jnp.uint32(n))
        & ~jnp.any(ordered[1:] == ordered[:-1])
        & ~jnp.any(arrived[rows])
        & (session.round_id == public.round_id)
        & jnp.all(session.public_seed == public.public_seed)
    )
    block = _block(static.protocol, stream, session, rows)
    upload = uploader(static, stream.codec, session, block)
    added = sum_uploads(static, upload, (updates, weights), m, words.shape[0])
    return (
        jnp.where(right, group.add(words, added), words),
        # What is refused is moved out of range, and dropped.
        arrived.at[jnp.where(right, rows, jnp.uint32(n))].set(True, mode="drop"),
        refused + (~right).astype(jnp.int32),
    )


def _block(protocol, stream, session, rows) -> Cohort:
    """The cohort of one block, as at uploads."""
    active = stream.uploads[rows]
    if stream.cohort is None:
        everybody = as_participation(None, session.num_clients)
        _, block = before_uploads(protocol, session, everybody, stream.public)
        return block._replace(active=active)
    public, private, _, refusals, _ = stream.cohort
    private = jax.tree.map(lambda x: x[rows], private)
    return Cohort(public, private, active, refusals[rows], {})


@jax.custom_jvp
def _without_derivative(floats):
    return floats


@_without_derivative.defjvp
def _no_derivative(primals, tangents):
    raise _check.error("stream-derivative", "what add_block is given", "free of derivatives")


def add_blocks(
    stream: Stream,
    blocks: Iterable[tuple[Any, ...]],
    *,
    axis_name: str | tuple[str, ...] | None = None,
) -> Stream:
    """``add_block`` for each of many blocks, and the next one is fetched while one is added.

    Args:
        stream: the round so far, consumed as by ``add_block``.
        blocks: an iterable on the host of ``(updates, session)`` or ``(updates, session,
            weights)``, for example a generator that reads files. Two blocks are held at a time.
        axis_name: as for ``add_block``.

    Returns:
        The ``Stream``.

    Raises:
        ValueError: what ``add_block`` refuses; the blocks before it are lost with the stream.

    Example:
        >>> import jax.numpy as jnp
        >>> import fedjax_agg as fa
        >>> from fedjax_agg import streaming
        >>> session = fa.simulated_session(fa.fixed_seed(0), num_clients=6)
        >>> stream = streaming.init(jnp.zeros(3), session, codec=fa.FixedPoint(clip=2.0))
        >>> blocks = ((jnp.ones((2, 3)), session.rows(i, 2)) for i in (0, 2, 4))
        >>> streaming.finish(streaming.close(streaming.add_blocks(stream, blocks)))[0].tolist()
        [1.0, 1.0, 1.0]
    """
    waiting: tuple[Any, ...] | None = None
    for block in blocks:
        # Still under way when the iterator makes the next block and it goes to the device.
        stream = stream if waiting is None else add_block(stream, *waiting, axis_name=axis_name)
        waiting = jax.device_put(tuple(block))
    return stream if waiting is None else add_block(stream, *waiting, axis_name=axis_name)
