"""Gradients through rounds of secure training: which clients to trust, how fast, how far.

Some clients of a federation have every digit labelled as the next one. All train a linear model
by federated averaging for a few rounds of ``secure_mean``, and a validation set that nobody trains
on tells how good the result is. Its loss is differentiated through all rounds and all local steps
with respect to

    the server's learning rate
    the weight of every client, a float in [0, 1]
    the clip of every update

and Adam descends it: the weights of the spoilt clients fall, nobody having said which they are.

Every such gradient is one of a random map, since updates are rounded at random. It is compared
with central differences of the *expected* map, in which every round is the weighted mean of
clipped updates: a program of its own in NumPy and float64, without JAX, integers or roundings.
The masks of a protocol change no bit of a sum and nothing of its derivative, so ``--protocol
plain`` serves as well as ``secagg`` and compiles faster.

``--seed`` fixes the data, the model and the sessions (``fixed_seed``: predictable, for experiments
only).
"""

import json
import math
import time

import _common

PROTOCOLS = ("plain", "secagg")
IMAGES = 1000
VALIDATION = 397
LOCAL_STEPS = 10
LOCAL_RATE = 0.5
# Where the descent begins: the learning rate and the clip are those of somebody who guessed.
SERVER_RATE, WEIGHT, CLIP = 0.3, 0.5, 0.5
# Adam's rate in the logarithms of rate and clip, and in the weights.
STEP = 0.05
# At the ends of the interval a weight has no derivative on one side.
LOWEST_WEIGHT, HIGHEST_WEIGHT = 0.01, 0.99
# Steps of a float weight; max_weight * levels must stay below 2^23.
MAX_WEIGHT = 256
# Of the central differences, in the hyperparameters themselves.
DIFFERENCE = 1e-5
# How many sessions the check averages over.
SESSIONS = 16
# How far their mean may be from the differences, in parts of the largest derivative of a kind.
TOLERANCE = 1e-3
NAMES = ("server rate", "weights", "clip")


def parse_arguments(arguments=None):
    parser = _common.make_parser(
        "Learn hyperparameters by gradients through rounds of secure training.",
        rounds=5,
        quick="6 clients, 2 spoilt, 15 steps",
    )
    parser.add_argument("--clients", type=int, default=10, help="default: 10")
    parser.add_argument(
        "--spoilt", type=int, default=3, help="clients with wrong labels; default: 3"
    )
    parser.add_argument("--steps", type=int, default=30, help="of the descent; default: 30")
    parser.add_argument("--bits", type=int, default=8, help="of one client's word; default: 8")
    parser.add_argument("--protocol", choices=PROTOCOLS, default="plain", help="default: plain")
    options = parser.parse_args(arguments)
    if options.quick:
        options.clients, options.spoilt = min(options.clients, 6), min(options.spoilt, 2)
        options.steps = min(options.steps, 15)
    _common.check_ranges(
        parser, options, clients=(2, 50), spoilt=(0, options.clients), steps=(1, 10_000)
    )
    return parser, options


def deal_digits(clients, spoilt, rng):
    """Images [n, k, 64] and labels [n, k] of the clients, then of validation and test.

    The last ``spoilt`` clients have every digit labelled as the next one.
    """
    import numpy as np
    from sklearn.datasets import load_digits

    found = load_digits()
    order = rng.permutation(len(found.target))
    images = (found.data[order] / 16).astype(np.float32)
    labels = found.target[order].astype(np.int32)
    each = IMAGES // clients
    own, rest = slice(0, each * clients), slice(IMAGES, None)
    own_labels = labels[own].reshape(clients, each)
    wrong = np.arange(clients)[:, None] >= clients - spoilt
    own_labels = np.where(wrong, (own_labels + 1) % 10, own_labels)
    rest_images, rest_labels = images[rest], labels[rest]
    return (
        (images[own].reshape(clients, each, 64), own_labels),
        (rest_images[:VALIDATION], rest_labels[:VALIDATION]),
        (rest_images[VALIDATION:], rest_labels[VALIDATION:]),
    )


# The map, through rounds of the library.


def make_map(options, plan, protocol, data):
    """Jitted: the loss after one training run, the accuracy, and the gradient of the loss."""
    import jax
    import jax.numpy as jnp
    import optax

    import fedjax_agg as fa

    (images, labels), validation, test = jax.tree.map(jnp.asarray, data)
    seed, n = fa.fixed_seed(options.seed), plan.num_clients

    def loss(params, images, labels):
        logits = images @ params["w"] + params["b"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def local_change(params, images, labels):
        """Start minus end of a client's own descent."""

        def step(local, _):
            grads = jax.grad(loss)(local, images, labels)
            return jax.tree.map(lambda p, g: p - LOCAL_RATE * g, local, grads), None

        local, _ = jax.lax.scan(step, params, length=LOCAL_STEPS)
        return jax.tree.map(jnp.subtract, params, local)

    def train(hyper, run):
        """A model after ``rounds`` rounds; no two runs have a session in common."""
        codec = fa.FixedPoint(hyper["clip"], plan.levels, max_levels=plan.levels)

        def one_round(params, round_id):
            session = fa.simulated_session(seed, num_clients=n, round_id=round_id)
            changes = jax.vmap(local_change, in_axes=(None, 0, 0))(params, images, labels)
            mean, _ = fa.secure_mean(
                changes,
                session,
                codec=codec,
                protocol=protocol,
                weights=hyper["weights"],
                max_weight=plan.max_weight,
            )
            return jax.tree.map(lambda p, m: p - hyper["server rate"] * m, params, mean), None

        ids = jnp.uint32(run) * options.rounds + jnp.arange(options.rounds, dtype=jnp.uint32)
        start = {"w": jnp.zeros((64, 10)), "b": jnp.zeros(10)}
        params, _ = jax.lax.scan(one_round, start, ids)
        return params

    def validation_loss(hyper, run):
        params = train(hyper, run)
        hits = jnp.argmax(test[0] @ params["w"] + params["b"], -1) == test[1]
        return loss(params, *validation), jnp.mean(hits)

    gradient = jax.value_and_grad(validation_loss, has_aux=True)
    return jax.jit(gradient, compiler_options=fa.compiler_options())


# The expected map, in NumPy and float64.


def expected_loss(hyper, rounds, data):
    """What ``make_map`` differentiates, with the mean of every round in place of the round."""
    import numpy as np

    (images, labels), (check_images, check_labels), _ = data
    # One more feature, always 1, stands for the bias.
    images, check_images = (
        np.concatenate([x, np.ones((*x.shape[:-1], 1))], axis=-1, dtype=np.float64)
        for x in (images, check_images)
    )
    one_hot = np.eye(10)[labels]

    def log_softmax(logits):
        logits = logits - logits.max(axis=-1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))

    params = np.zeros((65, 10))
    for _ in range(rounds):
        local = np.broadcast_to(params, (len(images), 65, 10))
        for _ in range(LOCAL_STEPS):
            errors = np.exp(log_softmax(images @ local)) - one_hot
            local = local - LOCAL_RATE * images.swapaxes(1, 2) @ errors / images.shape[1]
        changes = params - local
        norms = np.sqrt((changes**2).sum(axis=(1, 2)))
        shares = hyper["weights"] / hyper["weights"].sum()
        shares = shares * np.minimum(1.0, hyper["clip"] / norms)
        params = params - hyper["server rate"] * np.tensordot(shares, changes, axes=1)
    return -log_softmax(check_images @ params)[np.arange(len(check_labels)), check_labels].mean()


def central_differences(hyper, rounds, data):
    """The gradient of ``expected_loss``, float64, as one vector in the order of ``NAMES``."""
    import numpy as np

    clients = len(hyper["weights"])

    def loss(vector):
        parts = {"server rate": vector[0], "weights": vector[1:-1], "clip": vector[-1]}
        return expected_loss(parts, rounds, data)

    point, moves = as_vector(hyper), DIFFERENCE * np.eye(clients + 2)
    return np.array([(loss(point + h) - loss(point - h)) / (2 * DIFFERENCE) for h in moves])


def as_vector(hyper):
    import numpy as np

    return np.concatenate([np.ravel(np.asarray(hyper[name], np.float64)) for name in NAMES])


def check_gradient(gradient, hyper, options, plan, data, first_run):
    """Gradients at one point, averaged over sessions, against differences of the expected map.

    Errors are relative to the largest derivative of the same kind (rate, weights, clip).
    """
    import numpy as np

    # The library rounds weights to this grid; the expected map is taken where it really is.
    weights = np.rint(np.asarray(hyper["weights"]) * plan.max_weight) / plan.max_weight
    hyper = hyper | {"weights": weights.astype(np.float32)}
    samples = np.array(
        [as_vector(gradient(hyper, np.uint32(first_run + s))[1]) for s in range(SESSIONS)]
    )
    expected = central_differences(hyper, options.rounds, data)
    kinds = [[0], range(1, len(expected) - 1), [-1]]
    scale = np.concatenate([np.full(len(kind), np.abs(expected[kind]).max()) for kind in kinds])
    # A clip that clips nobody has no derivative at all, and then errors are absolute.
    scale = np.where(scale > 0, scale, 1.0)
    mean = samples.mean(axis=0)
    return {
        "gradient": mean,
        "differences": expected,
        "scale": scale,
        "error": np.abs(mean - expected) / scale,
        "error_of_one": np.abs(samples - expected).max(axis=0) / scale,
        "standard_error": samples.std(axis=0, ddof=1) / math.sqrt(SESSIONS) / scale,
    }


# The descent.


def descend(gradient, options):
    """Adam on the hyperparameters: a record with a row for each step, from 0 to the last."""
    import jax.numpy as jnp
    import numpy as np
    import optax

    hyper = {
        "server rate": jnp.float32(SERVER_RATE),
        "weights": jnp.full(options.clients, WEIGHT, jnp.float32),
        "clip": jnp.float32(CLIP),
    }
    # Rate and clip are scales, so it is their logarithms that move.
    scales = ("server rate", "clip")
    rule = optax.adam(STEP)
    position = hyper | {name: jnp.log(hyper[name]) for name in scales}
    weights = [f"weight_{client}" for client in range(1, options.clients + 1)]
    columns = ["validation_loss", "test_accuracy", "server_rate", *weights, "clip"]
    settings = {
        name: getattr(options, name)
        for name in ("clients", "spoilt", "rounds", "bits", "seed", "protocol")
    }
    stem = options.out / "hypergradient"
    record = _common.Record(stem, columns, settings, unit="step", first=0)
    position, state = record.start((position, rule.init(position)), options.resume)
    for number in _common.progress(record, options.steps + 1):
        hyper = position | {name: jnp.exp(position[name]) for name in scales}
        (loss, accuracy), slope = gradient(hyper, np.uint32(number))
        slope = slope | {name: slope[name] * hyper[name] for name in scales}
        move, state = rule.update(slope, state)
        position = optax.apply_updates(position, move)
        position["weights"] = jnp.clip(position["weights"], LOWEST_WEIGHT, HIGHEST_WEIGHT)
        record.add([loss, accuracy, *as_vector(hyper)], (position, state))
    return record


def hyperparameters(row):
    """Those of a row of the record."""
    import numpy as np

    rate, *weights, clip = np.float32(row[2:])
    return {"server rate": rate, "weights": np.array(weights), "clip": clip}


def write_figure(path, rows, checks, options):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    figure, axes = plt.subplots(2, 2, figsize=(11, 7.4), layout="constrained")
    (quality, weights), (scales, errors) = axes
    steps, clean = np.arange(len(rows)), options.clients - options.spoilt
    quality.plot(steps, rows[:, 0], color="C0", linewidth=2, label="validation loss (nats)")
    quality.plot(steps, rows[:, 1], color="C2", linewidth=2, label="test accuracy")
    quality.set(
        title=f"After {options.rounds} rounds of training", ylabel="loss, accuracy", ylim=(0, None)
    )
    for i in range(options.clients):
        kind = {"color": "C0", "label": "right labels"}
        if i >= clean:
            kind = {"color": "C3", "linestyle": "--", "label": "wrong labels"}
        if i not in (0, clean):
            kind["label"] = None
        weights.plot(steps, rows[:, 3 + i], linewidth=1.5, **kind)
    weights.set(title="Learned weights of the clients", ylabel="weight", ylim=(-0.02, 1.02))
    scales.plot(steps, rows[:, 2], color="C4", linewidth=2, label="server learning rate")
    scales.plot(steps, rows[:, -1], color="C1", linewidth=2, label="clip (norm of an update)")
    scales.set(title="Learned rate and clip", ylabel="value", ylim=(0, None))
    for panel in (quality, weights, scales):
        panel.set_xlabel("step of the descent")
        panel.legend(loc="center right" if panel is weights else "best")

    names = ["rate", *(f"w{i + 1}" for i in range(options.clients)), "clip"]
    places = np.arange(len(names))
    for check, when, colour, aside in zip(checks, ("first", "last"), ("C0", "C1"), (-0.15, 0.15)):
        for marker, key, what in (("x", "error_of_one", "worst"), ("o", "error", "mean")):
            errors.plot(
                places + aside,
                check[key],
                marker,
                color=colour,
                label=f"{when} step, {what} of {SESSIONS} sessions",
            )
    errors.axhline(TOLERANCE, color="0.4", linestyle="--", linewidth=1)
    errors.set(
        title="Gradient against differences of the expected map",
        xlabel="hyperparameter (w: weight of a client)",
        ylabel="relative error (log scale)",
        yscale="log",
        ylim=(1e-9, 1),
    )
    errors.set_xticks(places, names, rotation=60 if len(names) > 14 else 0)
    errors.legend(fontsize=8, ncols=2, loc="upper center")
    figure.suptitle(
        f"Hypergradients: {options.clients} clients, {options.spoilt} with wrong labels, "
        f"through {options.rounds} rounds",
        fontsize=12,
    )
    figure.savefig(path, dpi=120)


def main(arguments=None):
    parser, options = parse_arguments(arguments)
    log = _common.make_log(options)
    log(
        f"hypergradients: {options.clients} clients, {options.spoilt} with wrong labels, "
        f"{options.rounds} rounds, {options.steps} steps, seed {options.seed}, {options.protocol}"
    )
    import jax
    import numpy as np

    data = deal_digits(options.clients, options.spoilt, np.random.default_rng(options.seed))
    plan = _common.plan_for(
        parser,
        650,
        options.protocol,
        num_clients=options.clients,
        clip=CLIP,
        bits=options.bits,
        max_weight=MAX_WEIGHT,
    )
    log(str(plan))
    gradient = make_map(options, plan, _common.make_protocol(options.protocol, plan), data)
    log("compiling the rounds and their derivative (a minute on a slow machine) ...")
    began = time.perf_counter()
    shapes = {"server rate": (), "weights": (options.clients,), "clip": ()}
    gradient = gradient.lower(
        {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()},
        jax.ShapeDtypeStruct((), np.uint32),
    ).compile()
    log(f"compiled in {time.perf_counter() - began:.1f} s")
    record = descend(gradient, options)
    first, last = record.rows[0], record.rows[-1]
    log("checking the first and the last gradient ...")
    checks = [
        check_gradient(
            gradient,
            hyperparameters(row),
            options,
            plan,
            data,
            len(record.rows) + i * SESSIONS,
        )
        for i, row in enumerate((first, last))
    ]

    clean = options.clients - options.spoilt
    learned = np.array(last[3:-1])
    error = max(float(check["error"].max()) for check in checks)
    result = {
        "validation_loss": [first[0], last[0]],
        "test_accuracy": [first[1], last[1]],
        "server_rate": [first[2], last[2]],
        "clip": [first[-1], last[-1]],
        "weights": learned.tolist(),
        "highest_weight_spoilt": float(learned[clean:].max()) if options.spoilt else None,
        "lowest_weight_clean": float(learned[:clean].min()) if clean else None,
        "gradient_max_relative_error": error,
        "gradient_agrees": error <= TOLERANCE,
        "gradient_max_standard_error": max(
            float(check["standard_error"].max()) for check in checks
        ),
        "gradient_max_relative_error_of_one_session": max(
            float(check["error_of_one"].max()) for check in checks
        ),
        "sessions": SESSIONS,
        "bits": options.bits,
        "step": plan.step,
        "protocol": options.protocol,
    }
    figure = options.out / "hypergradient.png"
    write_figure(figure, np.array(record.rows), checks, options)
    if options.json:
        print(json.dumps(result))
    else:
        print_table(result, options, checks)
    log(f"{figure}\n{record.table}")


def print_table(result, options, checks):
    clean = options.clients - options.spoilt
    weights = result["weights"]
    rows = [
        (name, f"{before:.4f}", f"{after:.4f}")
        for name, (before, after) in (
            ("validation loss", result["validation_loss"]),
            ("test accuracy", result["test_accuracy"]),
            ("server learning rate", result["server_rate"]),
            ("clip", result["clip"]),
        )
    ]
    for kind, own in (("right", weights[:clean]), ("wrong", weights[clean:])):
        if own:
            between = f"{min(own):.2f}-{max(own):.2f}"
            rows.append((f"weights, {kind} labels", f"{WEIGHT:.2f}", between))
    rows += [
        (name, *(f"{check[key].max():.1e}" for check in checks))
        for name, key in (
            ("relative error of the gradient", "error"),
            ("    its standard error", "standard_error"),
            ("    worst of one session", "error_of_one"),
        )
    ]
    print(f"  {'':<36}{'first step':>12}{'last step':>12}")
    for name, before, after in rows:
        print(f"  {name:<36}{before:>12}{after:>12}")
    print(
        f"  The gradient is the mean over {SESSIONS} sessions, and the reference is central\n"
        "  differences of the expected map in float64. Errors are the largest over all\n"
        "  hyperparameters, relative to the largest derivative of their kind.\n"
        f"  Within {TOLERANCE:.0e} of it: {'yes' if result['gradient_agrees'] else 'NO'}"
    )


if __name__ == "__main__":
    _common.call(main)
