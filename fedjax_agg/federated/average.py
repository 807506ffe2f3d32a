"""FedAvg on parameters: the weighted mean of models that were trained elsewhere."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_agg import _check
from fedjax_agg.codecs import Codec
from fedjax_agg.participation import STAGES, Participation, as_participation
from fedjax_agg.protocols import Plain, Protocol
from fedjax_agg.secure_round import Report, secure_mean
from fedjax_agg.session import Session, context_hash
from fedjax_agg.structure import Structure, client_structure


def average_parameters(
    params: Any,
    session: Session,
    *,
    codec: Codec,
    protocol: Protocol = Plain(),
    weights: jax.Array | None = None,
    max_weight: int | None = None,
    start: Any = None,
    start_hashes: jax.Array | None = None,
    participation: Participation | jax.Array | None = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> tuple[Any, Report, jax.Array]:
    """FedAvg on models: sum n_i y_i / sum n_i, with integer weights inside the secure sum.

    In the **delta form**, with a ``start`` x, clients send y_i - x and the result is
    x + sum n_i (y_i - x) / sum n_i: the same mean where all began at x, and far cheaper, since
    the codec need only span a change. A client that began elsewhere would break the identity. It
    is found by the hash of its start and left out: it knows the hash of x, and uploads nothing.

    In the **direct form**, without a start, clients send y_i and the codec spans the parameters
    themselves: for one average of models with different starts. Beware that a norm clip then
    shrinks the model.

    Args:
        params: the models y_i, a pytree of floats, every leaf [n, ...].
        session: of the n clients.
        codec: of a change, or of a model in the direct form.
        protocol: how words are protected.
        weights: [n], n_i, as ``secure_mean`` takes them, such as numbers of examples.
        max_weight: the largest integer weight.
        start: x, in the structure of one model, or None for the direct form.
        start_hashes: uint8[n, 32], the ``context_hash`` of the model at which each client began;
            None where all began at x.
        participation: who is there.
        axis_name: the axes of the device mesh that clients lie along, as for ``secure_mean``.

    Returns:
        The average, in the structure and dtypes of one model; the ``Report``; and bool[n], which
        clients were left out for a stale start. Where ``report.ok`` is False the average is
        ``start``, or zeros in the direct form.

    Raises:
        TypeError: a leaf that is no float.
        ValueError: a start of another structure; hashes without a start or of another shape; and
            what ``secure_mean`` raises.

    Example:
        >>> import jax.numpy as jnp
        >>> import fedjax_agg as fa
        >>> from fedjax_agg.session import context_hash
        >>> start, old = jnp.ones(2), jnp.zeros(2)
        >>> models = jnp.array([[1.5, 1.0], [1.0, 0.5], [9.0, 9.0]])
        >>> hashes = jnp.stack([context_hash(x) for x in (start, start, old)])
        >>> average, report, stale = average_parameters(
        ...     models, fa.simulated_session(fa.fixed_seed(0), num_clients=3),
        ...     codec=fa.FixedPoint(clip=1.0), weights=jnp.array([3, 1, 1]),
        ...     start=start, start_hashes=hashes)
        >>> average, stale
        (Array([1.375, 0.875], dtype=float32), Array([False, False,  True], dtype=bool))
    """
    _check.instance("session-type", Session, session=session)
    n = session.num_clients
    participation = as_participation(participation, n)
    stale = jnp.zeros(n, jnp.bool_)
    if start is None:
        if start_hashes is not None:
            raise _check.error("start", "start=None", "the model of start_hashes")
    else:
        _check_start(params, start, n)
        params = jax.tree.map(lambda y, x: y - jnp.asarray(x)[None], params, start)
    if start_hashes is not None:
        _check.array("context-hash", np.uint8, (n, 32), start_hashes=start_hashes)
        stale = jnp.any(start_hashes != context_hash(start)[None], axis=1)
        from_upload = np.arange(len(STAGES)) >= STAGES.index("upload")
        gone = jnp.asarray(from_upload)[:, None] & stale[None]
        participation = Participation(participation.alive & ~gone)
    mean, report = secure_mean(
        params,
        session,
        codec=codec,
        protocol=protocol,
        weights=weights,
        max_weight=max_weight,
        participation=participation,
        axis_name=axis_name,
    )
    if start is not None:
        # A failed round has a mean of zeros.
        mean = jax.tree.map(jnp.add, start, mean)
    return mean, report, stale


def _check_start(params: Any, start: Any, n: int) -> None:
    """Requires the structure of one of n models, in every leaf."""
    wanted, found = client_structure(params, n), Structure.of(start, "start")
    if found.treedef != wanted.treedef:
        raise _check.error(
            "start", f"the tree {found.treedef} of start", f"that of one model, {wanted.treedef}"
        )
    leaves = jax.tree_util.tree_leaves_with_path(start)
    found_leaves, wanted_leaves = (zip(x.dtypes, x.shapes) for x in (found, wanted))
    for (path, _), one, other in zip(leaves, found_leaves, wanted_leaves):
        if one != other:
            name = "start" + jax.tree_util.keystr(path)
            found_type, wanted_type = (f"{dtype.name}{[*shape]}" for dtype, shape in (one, other))
            raise _check.error(
                "start", f"{name} of type {found_type}", f"{wanted_type}, as in one model"
            )
