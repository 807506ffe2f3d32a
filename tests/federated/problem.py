"""A small problem with dyadic numbers, and every algorithm once more in NumPy.

Example e of a client has the loss 1/2 sum_j s_ej (x_j - b_ej)^2. The reference is written from the
papers, for full batches: float64, one client after the other, no padding, no codec.
"""

import jax
import jax.numpy as jnp
import numpy as np

import fedjax_agg as fa
from fedjax_agg.federated import ClientData

COUNTS = np.array([4, 2, 1, 1, 2], np.int32)
N, M, D = len(COUNTS), 4, 3


def loss(params, batch):
    """Losses and which are correct, float[B] both; x is the vector of all parameters."""
    x = jnp.concatenate([params["w"], params["b"][None]])
    slopes, targets = batch
    losses = 0.5 * jnp.sum(slopes * (x[None] - targets) ** 2, axis=-1)
    return losses, targets[:, 0] > 0.0


def tree(vector):
    vector = jnp.asarray(vector, jnp.float32)
    return {"w": vector[..., :-1], "b": vector[..., -1]}


def vector(params):
    return np.concatenate([np.asarray(params["w"]), np.asarray(params["b"])[..., None]], axis=-1)


def examples(dyadic, seed=0):
    """Slopes and targets of every client: lists of float[count, D]."""
    rng = np.random.default_rng(seed)
    if dyadic:
        slopes = [np.full((k, D), rng.choice([0.5, 1.0], D)) for k in COUNTS]
        targets = [rng.integers(-8, 9, (k, D)) / 4 for k in COUNTS]
    else:
        slopes = [np.full((k, D), rng.uniform(0.5, 2.0, D)) for k in COUNTS]
        targets = [rng.uniform(-2.0, 2.0, (k, D)) for k in COUNTS]
    return slopes, targets


def client_data(slopes, targets, padding=np.nan):
    """Padded with what must never be read."""

    def pad(rows):
        padded = np.full((len(rows), M, D), padding, np.float32)
        for row, values in zip(padded, rows):
            row[: len(values)] = values
        return jnp.asarray(padded)

    counts = jnp.asarray([len(row) for row in targets], jnp.int32)
    return ClientData((pad(slopes), pad(targets)), counts)


# Steps of 2^-17 up to 8; with a weight of 4 a word is still below 2^23.
FINE = fa.FixedPoint(clip=8.0, levels=2**20, max_levels=2**20, norm="linf", rounding="nearest")
COARSE = fa.FixedPoint(clip=8.0, levels=2**10, max_levels=2**10, norm="linf", rounding="nearest")


class Reference:
    """The algorithms by their papers, on a flat float64 vector."""

    def __init__(self, slopes, targets, rate=0.5, epochs=2):
        self.slopes, self.targets, self.rate, self.epochs = slopes, targets, rate, epochs
        self.counts = np.array([len(t) for t in targets])

    def gradient(self, i, x):
        return np.mean(self.slopes[i] * (x - self.targets[i]), axis=0)

    def descend(self, i, x, direction=lambda g, y: g, rate=None):
        y = x
        for _ in range(self.epochs):
            y = y - (self.rate if rate is None else rate) * direction(self.gradient(i, y), y)
        return y

    def mean(self, vectors, cohort, weights=None):
        weights = self.counts[cohort] if weights is None else weights
        return np.sum(weights[:, None] * np.stack(vectors), axis=0) / np.sum(weights)

    def change(self, x, cohort, **arguments):
        return self.mean([self.descend(i, x, **arguments) - x for i in cohort], cohort)

    def fed_sgd(self, x, cohorts):
        for cohort in cohorts:
            x = x - self.rate * self.mean([self.gradient(i, x) for i in cohort], cohort)
        return x

    def fed_avg(self, x, cohorts):
        for cohort in cohorts:
            x = self.mean([self.descend(i, x) for i in cohort], cohort)
        return x

    def fed_avg_m(self, x, cohorts, rate=0.5, momentum=0.5):
        v = np.zeros_like(x)
        for cohort in cohorts:
            v = momentum * v + self.change(x, cohort)
            x = x + rate * v
        return x

    def fed_prox(self, x, cohorts, mu=0.5):
        for cohort in cohorts:
            x = x + self.change(x, cohort, direction=lambda g, y, x=x: g + mu * (y - x))
        return x

    def adaptive(self, x, cohorts, kind, rate=0.25, b1=0.9, b2=0.95, tau=0.125):
        m, v = np.zeros_like(x), np.full_like(x, tau**2)
        for cohort in cohorts:
            delta = self.change(x, cohort)
            square = delta * delta
            m = b1 * m + (1 - b1) * delta
            if kind == "adagrad":
                v = v + square
            elif kind == "adam":
                v = b2 * v + (1 - b2) * square
            else:
                v = v - (1 - b2) * square * np.sign(v - square)
            x = x + rate * m / (np.sqrt(v) + tau)
        return x

    def scaffold(self, x, cohorts, server_rate=1.0):
        n = len(self.counts)
        c, own = np.zeros_like(x), np.zeros((n, x.size))
        for cohort in cohorts:
            ends, changes = {}, {}
            for i in cohort:
                ends[i] = self.descend(i, x, lambda g, y, i=i, c=c: g - own[i] + c)
                changes[i] = -c + (x - ends[i]) / (self.epochs * self.rate)
            new_x = x + server_rate * np.mean([ends[i] - x for i in cohort], axis=0)
            c = c + np.sum([changes[i] for i in cohort], axis=0) / n
            for i in cohort:
                own[i] = own[i] + changes[i]
            x = new_x
        return x, c, own

    def mime_lite(self, x, cohorts, momentum=0.5):
        """Of SGD with momentum: U(g, s) = g + momentum s, and V is the same."""
        s = np.zeros_like(x)
        for cohort in cohorts:
            new_x = x + self.change(x, cohort, direction=lambda g, y, s=s: g + momentum * s)
            s = self.mean([self.gradient(i, x) for i in cohort], cohort) + momentum * s
            x = new_x
        return x


def run(algorithm, params, data, cohorts, make_session, dropped=None):
    """Rounds with given cohorts: the states and metrics; ``dropped`` is a client in each."""
    state, found = algorithm.init(params), []
    for r, cohort in enumerate(cohorts):
        session = make_session(len(cohort), r)
        here = None if dropped is None else jnp.asarray(cohort != dropped[r])
        clients = jnp.asarray(cohort, jnp.int32)
        state, metrics, report = algorithm.step(
            state, data, session, clients=clients, participation=here
        )
        found.append((metrics, report))
    return state, found


def same_bits(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other)):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), strict=True)
