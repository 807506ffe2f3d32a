"""What one client does with its examples: gradients, and epochs of shuffled batches."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from fedjax_agg import _check
from fedjax_agg.federated.algorithm import Algorithm, Loss, static


class Trained(NamedTuple):
    """What local training leads to.

    Attributes:
        params: the model at its end.
        loss: float32[], the mean over examples, each in the batch before its step.
        correct: float32[], the part of them that was classified correctly.
        steps: int32[], how many batches had a real example.

    Example:
        >>> Trained._fields
        ('params', 'loss', 'correct', 'steps')
    """

    params: Any
    loss: jax.Array
    correct: jax.Array
    steps: jax.Array


def mean_loss(loss: Loss, params: Any, batch: Any, real: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The mean loss over the real examples of a batch, and the part of them that is correct.

    Args:
        loss: as in ``Algorithm``.
        params: the model.
        batch: a pytree of arrays [B, ...].
        real: bool[B], which examples count; where none does, both results are 0.

    Returns:
        float32[] and float32[].

    Raises:
        ValueError: a loss that does not give one number for each example.

    Example:
        >>> import jax.numpy as jnp
        >>> batch, real = jnp.array([1.0, 3.0, 9.0]), jnp.array([True, True, False])
        >>> mean_loss(lambda p, x: ((p - x) ** 2, x > 2.0), jnp.float32(0), batch, real)
        (Array(5., dtype=float32), Array(0.5, dtype=float32))
    """
    found = loss(params, batch)
    losses, correct = (
        found if isinstance(found, tuple) else (found, jnp.zeros(real.shape, jnp.float32))
    )
    _check.shape("loss", real.shape, **{"loss(params, batch)": losses})
    _check.shape("loss", real.shape, **{"the correct of loss(params, batch)": correct})
    number = jnp.maximum(jnp.sum(real, dtype=jnp.int32), 1).astype(jnp.float32)

    def mean(values):
        return jnp.sum(jnp.where(real, values.astype(jnp.float32), 0.0)) / number

    return mean(losses), mean(correct)


def full_gradient(
    loss: Loss, params: Any, examples: Any, count: jax.Array
) -> tuple[Any, jax.Array, jax.Array]:
    """The gradient of the mean loss over all of a client's examples.

    Args:
        loss: as in ``Algorithm``.
        params: the model.
        examples: a pytree of arrays [m, ...].
        count: int32[], how many are real.

    Returns:
        The gradient, the mean loss, and the part of the examples that is correct.

    Example:
        >>> import jax.numpy as jnp
        >>> examples = jnp.array([1.0, 3.0, jnp.nan])
        >>> full_gradient(lambda p, x: (p - x) ** 2, jnp.float32(0), examples, jnp.int32(2))[0]
        Array(-4., dtype=float32)
    """
    positions = jnp.arange(_length(examples), dtype=jnp.int32)
    batch, real = _pick(examples, positions, positions, count)
    (value, correct), grads = _value_and_gradient(loss, params, batch, real)
    return grads, value, correct


def train_locally(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    params: Any,
    examples: Any,
    count: jax.Array,
    key: jax.Array,
    *,
    epochs: int = 1,
    batch_size: int | None = None,
    direction: Callable[[Any, Any], Any] | None = None,
) -> Trained:
    """Epochs of shuffled batches at one client, as one ``lax.scan``.

    Each epoch goes once through the client's real examples in a new order. A last batch that is
    not full is the mean over what it has; a batch without a real example changes nothing,
    neither the model nor the state of the optimizer. So clients of unequal size take unequal
    numbers of steps, ``epochs * ceil(count / batch_size)``, inside one ``vmap``.

    Args:
        loss: as in ``Algorithm``.
        optimizer: the client's rule; it starts anew.
        params: the model to begin with.
        examples: a pytree of arrays [m, ...].
        count: int32[], how many are real.
        key: a ``jax.random`` key.
        epochs: how often to go through the examples.
        batch_size: examples in a batch; None takes all in one.
        direction: ``(grads, params) -> grads``, what the optimizer gets instead of the gradient.

    Returns:
        The ``Trained``.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> trained = train_locally(
        ...     lambda p, x: (p - x) ** 2, optax.sgd(0.5), jnp.float32(0),
        ...     jnp.array([4.0, 2.0, jnp.nan]), jnp.int32(2), jax.random.key(0), epochs=3)
        >>> float(trained.params), int(trained.steps)
        (3.0, 3)
    """
    length = _length(examples)
    size = length if batch_size is None else min(batch_size, length)
    batches = -(-length // size)
    positions = jnp.arange(batches * size, dtype=jnp.int32)

    def batch_step(carry, rows):
        params, state, totals = carry
        order, places = rows
        batch, real = _pick(examples, order, places, count)
        (value, correct), grads = _value_and_gradient(loss, params, batch, real)
        if direction is not None:
            grads = direction(grads, params)
        updates, moved = optimizer.update(grads, state, params)
        number = jnp.sum(real, dtype=jnp.int32)
        new = (optax.apply_updates(params, updates), moved)
        params, state = jax.tree.map(lambda a, b: jnp.where(number > 0, a, b), new, (params, state))
        weight = number.astype(jnp.float32)
        seen = jnp.stack([value * weight, correct * weight])
        totals = (totals[0] + seen, totals[1] + (number > 0).astype(jnp.int32))
        return (params, state, totals), None

    def epoch(carry, key):
        order = _shuffled(key, length, count) if batches > 1 else positions
        rows = (order[jnp.minimum(positions, length - 1)], positions)
        rows = jax.tree.map(lambda x: x.reshape(batches, size), rows)
        return lax.scan(batch_step, carry, rows)

    params = jax.tree.map(jnp.asarray, params)
    totals = (jnp.zeros(2, jnp.float32), jnp.int32(0))
    carry = (params, optimizer.init(params), totals)
    (params, _, (seen, steps)), _ = lax.scan(epoch, carry, jax.random.split(key, epochs))
    seen = seen / jnp.maximum(count * epochs, 1).astype(jnp.float32)
    return Trained(params, seen[0], seen[1], steps)


@dataclasses.dataclass(frozen=True, eq=False)
class LocalTraining(Algorithm):
    """An algorithm whose clients train on their own for a while.

    Attributes:
        epochs: how often a client goes through its examples in a round.
        batch_size: examples in a batch; None takes all of a client in one.

    Example:
        >>> import fedjax_agg.federated as federated
        >>> issubclass(federated.FedAvg, LocalTraining)
        True
    """

    _: dataclasses.KW_ONLY
    epochs: int = static(default=1)
    batch_size: int | None = static(default=None)

    def __post_init__(self):
        super().__post_init__()
        _check.integer_in("local-steps", 1, 2**16, epochs=self.epochs)
        if self.batch_size is not None:
            _check.integer_in("local-steps", 1, 2**31 - 1, batch_size=self.batch_size)

    def train(
        self,
        optimizer: optax.GradientTransformation,
        params: Any,
        examples: Any,
        count: jax.Array,
        key: jax.Array,
        direction: Callable[[Any, Any], Any] | None = None,
    ) -> Trained:
        """``train_locally`` for so many epochs and batches of this size."""
        return train_locally(
            self.loss,
            optimizer,
            params,
            examples,
            count,
            key,
            epochs=self.epochs,
            batch_size=self.batch_size,
            direction=direction,
        )


def _length(examples: Any) -> int:
    return jax.tree.leaves(examples)[0].shape[0]


def _pick(examples: Any, order: jax.Array, positions: jax.Array, count: jax.Array) -> Any:
    """Rows in an order, and which of them are real: position < count.

    Where none is left a first row stands in, so that padding is never read: what it holds, NaN
    for instance, would come back through the derivative of a masked loss.
    """
    real = positions < count
    rows = jnp.where(real, order, 0)
    return jax.tree.map(lambda leaf: leaf[rows], examples), real


def _value_and_gradient(loss, params, batch, real):
    (value, correct), grads = jax.value_and_grad(
        lambda p: mean_loss(loss, p, batch, real), has_aux=True
    )(params)
    return (value, correct), grads


def _shuffled(key: jax.Array, length: int, count: jax.Array) -> jax.Array:
    """int32[length]: the real examples in random order, then the padding."""
    rows = jnp.arange(length, dtype=jnp.int32)
    padding = (rows >= count).astype(jnp.int32)
    return lax.sort((padding, jax.random.bits(key, (length,)), rows), num_keys=2)[2]
