"""A Flax NNX model trained on the gradients of clients, inside an optax chain.

``nnx.split`` takes the parameters out of the model: a pytree of floats like any other, so the
gradients of all clients are one with a leading axis. ``--secagg`` masks them: the model is the same
bit for bit, and compiling takes half a minute.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

import fedjax_agg as fa

CLIENTS, ROUNDS, TEST = 10, 60, 297


def main(protocol=fa.Plain()):
    digits = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(digits[1]))
    images, labels = (np.float32(digits[0][order]) / 16), np.int32(digits[1][order])
    # 150 digits each, and none twice.
    x, y = images[TEST:].reshape(CLIENTS, -1, 64), labels[TEST:].reshape(CLIENTS, -1)

    rngs = nnx.Rngs(0)
    model = nnx.Sequential(nnx.Linear(64, 32, rngs=rngs), nnx.relu, nnx.Linear(32, 10, rngs=rngs))
    graph, params = nnx.split(model, nnx.Param)

    def loss(params, x, y):
        logits = nnx.merge(graph, params)(x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    aggregate = fa.secure_aggregate(fa.FixedPoint(clip=4.0), protocol, num_clients=CLIENTS)
    rule = fa.apply_if_ok(aggregate, optax.adam(0.01))

    @jax.jit
    def train_round(params, state, seed, r):
        session = fa.simulated_session(seed, num_clients=CLIENTS, round_id=r)
        losses, grads = jax.vmap(jax.value_and_grad(loss), (None, 0, 0))(params, x, y)
        alive = fa.drop_clients(seed, CLIENTS, 0.1, round_id=r)
        change, state = rule.update(grads, state, params, session=session, participation=alive)
        return optax.apply_updates(params, change), state, losses.mean()

    state, seed = rule.init(params), fa.fixed_seed(0)
    print("round  clients  loss")
    for r in range(ROUNDS):
        params, state, mean = train_round(params, state, seed, r)
        if (r + 1) % 15 == 0:
            print(f"{r + 1:5}  {int(state.aggregate.report.survivors.sum()):7}  {mean:.3f}")
    model = nnx.merge(graph, params)
    correct = model(images[:TEST]).argmax(-1) == jnp.asarray(labels[:TEST])
    print(f"test accuracy {correct.mean():.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--secagg", action="store_true", help="mask what clients upload")
    main(fa.SecAgg() if parser.parse_args().secagg else fa.Plain())
