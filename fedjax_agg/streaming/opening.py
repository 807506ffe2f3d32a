"""The sums of several aggregators as one, and the mean at the root."""

import dataclasses
import functools
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_agg import _check, mesh
from fedjax_agg._core import inverse
from fedjax_agg._stages import Static, after_uploads, at_uploads
from fedjax_agg.participation import Participation
from fedjax_agg.secure_round import Report, report_of
from fedjax_agg.streaming.stream import Stream, Sum, cohort_without_exchanges

Aggregator = TypeVar("Aggregator", Sum, Stream)


def merge(into: Aggregator, other: Sum) -> Aggregator:
    """One aggregator's sum plus another's: words and flags only, so any tree of them will do.

    Only the root, whose stream is finished, unmasks anything.

    Args:
        into: a ``Sum``, or the ``Stream`` of an aggregator.
        other: the ``Sum`` of another aggregator of the same round.

    Returns:
        What ``into`` is. Where the two have a client in common, or the stream is closed, the
        traced result is ``into`` with one more ``refused``.

    Raises:
        TypeError: an argument of another type.
        ValueError: a client that has arrived at both, a closed stream, unless traced; sums of
            other sizes.

    Example:
        >>> import jax.numpy as jnp
        >>> from fedjax_agg import streaming
        >>> from fedjax_agg.arithmetic import Ring
        >>> def of(word, arrived):
        ...     words, arrived = jnp.array([word], jnp.uint32), jnp.array(arrived)
        ...     return streaming.Sum(words, arrived, jnp.int32(0), Ring(8))
        >>> total = streaming.merge(of(5, [True, False]), of(255, [False, True]))
        >>> total.words.tolist(), total.arrived.tolist()
        ([4], [True, True])
    """
    _check.instance("stream-type", (Sum, Stream), into=into)
    _check.instance("stream-type", Sum, other=other)
    if isinstance(into, Stream):
        closed = _check.concrete(into.closed)
        if closed is not None and closed:
            raise _check.error("stream-closed", "a sum", "given before close")
        return dataclasses.replace(into, sum=_merged(into.sum, other, into.closed))
    return _merged(into, other, jnp.bool_(False))


def _merged(into: Sum, other: Sum, closed: jax.Array) -> Sum:
    for x, y in ((into.words, other.words), (into.arrived, other.arrived)):
        if x.shape != y.shape or into.group != other.group:
            found = f"other with {_check.shown_type(y)} in {other.group}"
            wanted = f"of {_check.shown_type(x)} in {into.group}"
            raise _check.error("stream-merge", found, wanted)
    both = into.arrived & other.arrived
    known = _check.concrete(both)
    if known is not None and known.any():
        found = f"client {int(np.argmax(known)) + 1} of other"
        raise _check.error("stream-merge", found, "one who has not arrived yet")
    right = ~closed & ~jnp.any(both)
    return dataclasses.replace(
        into,
        words=jnp.where(right, into.group.add(into.words, other.words), into.words),
        arrived=jnp.where(right, into.arrived | other.arrived, into.arrived),
        refused=into.refused + other.refused + (~right).astype(jnp.int32),
    )


def close(stream: Stream) -> Stream:
    """The stream after the last block: later ones are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import fedjax_agg as fa
        >>> from fedjax_agg import streaming
        >>> session = fa.simulated_session(fa.fixed_seed(0), num_clients=5)
        >>> stream = streaming.init(jnp.zeros(3), session, codec=fa.FixedPoint(clip=2.0))
        >>> bool(streaming.close(stream).closed)
        True
    """
    _check.instance("stream-type", Stream, stream=stream)
    return dataclasses.replace(stream, closed=jnp.bool_(True))


def finish(stream: Stream) -> tuple[Any, Report]:
    """Ends the round and opens the mean: the survivors help the server to unmask the sum.

    Once for each ``init``: two sums of one cohort, over different survivors, open the difference.

    Args:
        stream: the root's, with all that arrived.

    Returns:
        The weighted mean over the survivors, in the structure and dtypes of ``like``, and the
        ``Report``, both as ``secure_mean`` gives them. Who is in no block was lost at upload.

    Raises:
        TypeError: an argument of another type.

    Example:
        >>> import jax.numpy as jnp
        >>> import fedjax_agg as fa
        >>> from fedjax_agg import streaming
        >>> session = fa.simulated_session(fa.fixed_seed(0), num_clients=2)
        >>> stream = streaming.init(
        ...     jnp.zeros(2), session, codec=fa.FixedPoint(clip=2.0), weights="integer")
        >>> stream = streaming.add_block(stream, jnp.eye(2), session, jnp.array([3, 1]))
        >>> mean, report = streaming.finish(streaming.close(stream))
        >>> mean.tolist(), float(report.total_weight)
        ([0.75, 0.25], 4.0)
    """
    _check.instance("stream-type", Stream, stream=stream)
    return _finish(stream, _grid(stream), True)


def finish_sum(stream: Stream) -> tuple[Any, Report]:
    """``finish`` without the division: the weighted sum over the survivors, and the ``Report``.

    Example:
        >>> import jax.numpy as jnp
        >>> import fedjax_agg as fa
        >>> from fedjax_agg import streaming
        >>> session = fa.simulated_session(fa.fixed_seed(0), num_clients=2)
        >>> stream = streaming.init(jnp.zeros(2), session, codec=fa.FixedPoint(clip=2.0))
        >>> stream = streaming.add_block(stream, jnp.ones((2, 2)), session)
        >>> streaming.finish_sum(streaming.close(stream))[0].tolist()
        [2.0, 2.0]
    """
    _check.instance("stream-type", Stream, stream=stream)
    return _finish(stream, _grid(stream), False)


def _grid(stream: Stream) -> jax.Array:
    """How many grid steps of a weight make one; an argument, so that no division is folded."""
    return jnp.float32(stream.max_weight if stream.weights == "fraction" else 1)


@functools.partial(jax.jit, static_argnums=2)
def _finish(stream, grid, mean):
    """Steps 10 to 14, on every device alike where blocks have left the sum on an Explicit mesh."""
    axes = mesh.explicit_mesh(stream.sum.words)
    function = functools.partial(_finished, mean)
    return mesh.on_each_device(function, axes, (False, False))(stream, grid)


def _finished(mean, stream, grid):
    protocol, session, uploads = stream.protocol, stream.session, stream.sum
    participation = Participation(
        stream.participation.alive & Participation.until("upload", uploads.arrived).alive
    )
    cohort = stream.cohort
    if cohort is None:
        cohort = cohort_without_exchanges(protocol, stream.public, stream.num_clients)
    cohort = at_uploads(protocol, participation, cohort)
    total, outcome, _ = after_uploads(protocol, session, participation, cohort, uploads.words)
    lifted = protocol.group.centre_lift(total.words).astype(jnp.float32)
    weighted = stream.weights is not None
    static = Static(protocol, weighted, mean)
    public = stream.public._replace(survivors=outcome.survivors)
    value, total_weight, ok = inverse(static, stream.codec, lifted, public, grid, outcome.ok)
    outcome = outcome._replace(ok=ok)
    return value, report_of(protocol, uploads.words.shape[0], outcome, total_weight)
