"""Local training: every example once in each epoch, padding never, and batches of what is there."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_agg.federated import train_locally
from fedjax_agg.federated.local import full_gradient, mean_loss

LENGTH = 7


def batches_of(count, epochs, batch_size, seed=0):
    """What each step averaged: float[steps, LENGTH], a row of weights over the examples.

    The gradient of ``g . onehot(example)`` is the mean of one-hot vectors, and the optimizer
    writes it down instead of applying it.
    """
    size = min(batch_size or LENGTH, LENGTH)
    steps = epochs * -(-LENGTH // size)

    def write_down(grads, step, params=None):
        del params
        log = jnp.zeros((steps, LENGTH), jnp.float32).at[step].set(grads["g"])
        return {"g": jnp.zeros_like(grads["g"]), "log": log}, step + 1

    optimizer = optax.GradientTransformation(lambda params: jnp.int32(0), write_down)
    rows = jnp.where(jnp.arange(LENGTH) < count, jnp.arange(LENGTH), -(10**6))
    # Padding is NaN, which a mask alone would let through to the gradient.
    onehots = jnp.where(rows[:, None] < 0, jnp.nan, jnp.eye(LENGTH, dtype=jnp.float32))
    params = {"g": jnp.zeros(LENGTH, "f4"), "log": jnp.zeros((steps, LENGTH), "f4")}
    trained = train_locally(
        lambda params, batch: jnp.sqrt(1.0 + 2.0 * (batch @ params["g"])),
        optimizer,
        params,
        onehots,
        jnp.int32(count),
        jax.random.key(seed),
        epochs=epochs,
        batch_size=batch_size,
    )
    return np.asarray(trained.params["log"]), int(trained.steps)


CASES = [(7, 3), (5, 2), (4, 4), (1, 3), (6, None), (7, 7)]


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize(("count", "batch_size"), CASES)
def test_an_epoch_visits_every_real_example_once_and_no_padding(count, batch_size):
    epochs = 3
    log, steps = batches_of(count, epochs, batch_size)
    size = min(batch_size or LENGTH, LENGTH)
    assert steps == epochs * -(-count // size)
    log = log[:steps].reshape(epochs, -1, LENGTH)
    for epoch in log:
        seen = []
        for i, row in enumerate(epoch):
            members = np.flatnonzero(row)
            assert len(members) == min(size, count - i * size)
            np.testing.assert_allclose(row[members], 1 / len(members), rtol=1e-6)
            seen.extend(members.tolist())
        assert sorted(seen) == list(range(count))


def test_epochs_and_keys_draw_different_orders():
    log, _ = batches_of(7, 2, 1)
    orders = [np.argmax(log[:7], axis=1).tolist(), np.argmax(log[7:], axis=1).tolist()]
    other, _ = batches_of(7, 2, 1, seed=1)
    orders.append(np.argmax(other[:7], axis=1).tolist())
    assert len({tuple(order) for order in orders}) == 3


def test_a_batch_without_examples_moves_neither_the_model_nor_the_optimizer():
    """Momentum would go on; here a client of one example takes one step of the four."""
    examples = jnp.array([4.0, jnp.nan, jnp.nan, jnp.nan], jnp.float32)
    optimizer = optax.sgd(0.25, momentum=0.5)

    def end(count, examples, epochs=1):
        return train_locally(
            lambda p, x: 0.5 * (p - x) ** 2,
            optimizer,
            jnp.float32(0),
            examples,
            jnp.int32(count),
            jax.random.key(0),
            epochs=epochs,
            batch_size=1,
        )

    one = end(1, examples)
    assert (float(one.params), int(one.steps), float(one.loss)) == (1.0, 1, 8.0)
    # v = 4, 5, 4.5 in three epochs of one step, so that momentum runs through.
    three = end(1, examples, epochs=3)
    y, v, losses = 0.0, 0.0, []
    for _ in range(3):
        losses.append(0.5 * (y - 4) ** 2)
        v = 0.5 * v + (y - 4)
        y -= 0.25 * v
    assert float(three.params) == y
    assert float(three.loss) == pytest.approx(np.mean(losses))
    none = end(0, jnp.zeros(4, jnp.float32))
    assert (float(none.params), int(none.steps), float(none.loss)) == (0.0, 0, 0.0)


def test_the_full_gradient_is_that_of_the_mean_over_real_examples():
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(5, 3)).astype(np.float32), rng.normal(size=3).astype(np.float32)
    padded = jnp.asarray(np.concatenate([x, np.full((2, 3), np.nan, np.float32)]))

    def loss(params, batch):
        return jnp.exp(batch @ params), batch[:, 0] > 0.0

    grads, value, correct = full_gradient(loss, jnp.asarray(w), padded, jnp.int32(5))
    np.testing.assert_allclose(grads, np.mean(np.exp(x @ w)[:, None] * x, axis=0), rtol=1e-5)
    assert float(value) == pytest.approx(np.mean(np.exp(x @ w)), rel=1e-5)
    assert float(correct) == pytest.approx(np.mean(x[:, 0] > 0))


def test_a_loss_in_half_precision_is_averaged_in_float32():
    losses = jnp.full(3000, 1.0, jnp.bfloat16)
    value, _ = mean_loss(lambda p, b: losses, None, None, jnp.ones(3000, bool))
    assert value.dtype == jnp.float32
    assert float(value) == 1.0
