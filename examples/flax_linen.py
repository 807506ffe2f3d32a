"""Federated averaging of a Flax Linen model, with clients of different sizes.

A Linen module is stateless, so ``module.apply`` is the model and what ``module.init`` returned the
parameters: nothing else is needed for ``FedAvg``. ``--secagg`` masks the changes of the model: the
result is the same bit for bit, and compiling takes half a minute.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from sklearn.datasets import load_digits

import fedjax_agg as fa
from fedjax_agg.federated import FedAvg, pad_clients, train

CLIENTS, COHORT, TEST = 20, 8, 297


class Perceptron(nn.Module):
    """One hidden layer."""

    @nn.compact
    def __call__(self, x):
        """Images, float32[B, 64], to logits, float32[B, 10]."""
        return nn.Dense(10)(nn.relu(nn.Dense(32)(x)))


def main(protocol=fa.Plain()):
    digits = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(digits[1]))
    images, labels = np.float32(digits[0][order]) / 16, np.int32(digits[1][order])
    # Somewhere between a few digits each and a few hundred.
    cuts = np.sort(rng.choice(np.arange(TEST + 1, len(labels)), CLIENTS - 1, replace=False))
    rows = np.split(np.arange(TEST, len(labels)), cuts - TEST)
    data = pad_clients([(images[mine], labels[mine]) for mine in rows])

    module = Perceptron()

    def loss(params, batch):
        x, y = batch
        logits = module.apply(params, x)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        return losses, logits.argmax(-1) == y

    algorithm = FedAvg(
        loss,
        optax.sgd(0.3),
        codec=fa.FixedPoint(clip=4.0),
        protocol=protocol,
        epochs=2,
        batch_size=16,
        max_weight=64,
    )
    state = algorithm.init(module.init(jax.random.key(0), images[:1]))
    print("rounds  loss   train accuracy")
    for first in range(0, 20, 5):
        state, metrics, _ = train(
            algorithm, state, data, fa.fixed_seed(0), num_rounds=5, cohort=COHORT, start_round=first
        )
        accuracy = metrics.correct[-1] / metrics.examples[-1]
        print(f"{first + 5:6}  {metrics.loss[-1]:.3f}  {accuracy:.3f}")
    correct = module.apply(state.params, images[:TEST]).argmax(-1) == jnp.asarray(labels[:TEST])
    print(f"test accuracy {correct.mean():.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--secagg", action="store_true", help="mask what clients upload")
    main(fa.SecAgg() if parser.parse_args().secagg else fa.Plain())
