"""Handwritten digits, trained by many clients under secure aggregation.

Each client holds a skewed handful of scikit-learn's 1797 digits, trains a Flax model on them and
uploads its change under SecAgg; the server sees uniform words, and their sum. Three runs
of the same rounds are compared:

    secure       fixed point, stochastic rounding, ChaCha20 masks
    plain        the same clipped updates averaged as floats, in the clear
    broken key   as secure, but one bit of one client's key material is flipped

``--seed`` fixes the data split, the model and the sessions (``fixed_seed``: predictable, for
experiments only).
"""

import argparse
import csv
import json
import pathlib
import sys
import time
from concurrent.futures import ThreadPoolExecutor

RUNS = ("secure", "plain", "broken key")
LOCAL_STEPS = 5
LOCAL_BATCH = 16
LOCAL_RATE = 0.3
CLIP = 2.0
# A client's number of images is its weight, up to this: weights are part of the bit budget.
MAX_WEIGHT = 64
# In a session's agreement: the second key exchange is that of the masks.
MASKS = 1


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(
        description="Train on handwritten digits under secure aggregation."
    )
    parser.add_argument("--clients", type=int, default=50, help="default: 50")
    parser.add_argument("--rounds", type=int, default=30, help="default: 30")
    parser.add_argument("--bits", type=int, default=16, help="of one client's word; default: 16")
    parser.add_argument(
        "--seed", type=int, default=0, help="of data, model and sessions; default: 0"
    )
    parser.add_argument("--quick", action="store_true", help="10 clients, 8 rounds")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"))
    parser.add_argument("--json", action="store_true", help="print one JSON object and no table")
    options = parser.parse_args(arguments)
    if options.quick:
        options.clients, options.rounds = min(options.clients, 10), min(options.rounds, 8)
    for name, low, high in (("clients", 2, 500), ("rounds", 1, 10_000), ("seed", 0, 2**32 - 1)):
        value = getattr(options, name)
        if not low <= value <= high:
            parser.error(f"--{name} {value} must be from {low} to {high}")
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        parser.error(f"--out {options.out} cannot be written: {problem.strerror}")
    return parser, options


def split_digits(clients, rng):
    """Images and labels of each client, padded: [n, k, 64], [n, k], the counts [n], the test set.

    Labels follow a Dirichlet(0.5) law at each client, so that most clients know a few digits.
    """
    import numpy as np
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = rng.permutation(len(digits.target))
    images = (digits.data[order] / 16).astype(np.float32)
    labels = digits.target[order].astype(np.int32)
    test, train = slice(0, 360), slice(360, None)
    images_train, labels_train = images[train], labels[train]
    owner = np.empty(len(labels_train), np.int64)
    for digit in range(10):
        shares = rng.dirichlet(np.full(clients, 0.5))
        members = labels_train == digit
        owner[members] = rng.choice(clients, members.sum(), p=shares)
    # Nobody is left without data: every client takes one image of its own.
    owner[:clients] = np.arange(clients)
    counts = np.bincount(owner, minlength=clients)
    padded_images = np.zeros((clients, counts.max(), 64), np.float32)
    padded_labels = np.zeros((clients, counts.max()), np.int32)
    for client in range(clients):
        mine = owner == client
        padded_images[client, : counts[client]] = images_train[mine]
        padded_labels[client, : counts[client]] = labels_train[mine]
    return padded_images, padded_labels, counts, images[test], labels[test]


def make_model(seed):
    """A perceptron of 105,546 parameters: its definition and its parameters."""
    from flax import nnx

    rngs = nnx.Rngs(seed)
    model = nnx.Sequential(
        nnx.Linear(64, 320, rngs=rngs),
        nnx.relu,
        nnx.Linear(320, 256, rngs=rngs),
        nnx.relu,
        nnx.Linear(256, 10, rngs=rngs),
    )
    return nnx.split(model, nnx.Param)


def make_experiment(definition, data, plan, seed):
    """The jitted parts: rounds, accuracy, and one client's upload."""
    import jax
    import jax.numpy as jnp
    import optax
    from flax import nnx

    import fedjax_agg as fa

    images, labels, counts, test_images, test_labels = data
    counts = jnp.asarray(counts, jnp.int32)
    weights = jnp.minimum(counts, plan.max_weight)
    codec = plan.codec()
    server = optax.sgd(1.0, momentum=0.6)

    def loss(params, batch_images, batch_labels):
        logits = nnx.merge(definition, params)(batch_images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch_labels).mean()

    def local_change(params, key, client_images, client_labels, count):
        """What a client would like the server to subtract: start minus end of its own SGD."""

        def step(local, step_key):
            batch = jax.random.randint(step_key, (LOCAL_BATCH,), 0, count)
            grads = jax.grad(loss)(local, client_images[batch], client_labels[batch])
            return jax.tree.map(lambda p, g: p - LOCAL_RATE * g, local, grads), None

        local, _ = jax.lax.scan(step, params, jax.random.split(key, LOCAL_STEPS))
        return jax.tree.map(jnp.subtract, params, local)

    def changes(params, round_id):
        """The updates of all clients; every run of a round draws the same batches."""
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), round_id), len(counts))
        client = jax.vmap(local_change, in_axes=(None, 0, 0, 0, 0))
        return client(params, keys, images, labels, counts)

    def float_mean(updates):
        """The weighted mean of the same clipped updates, in floating point and in the clear."""
        norms = jax.vmap(optax.global_norm)(updates)
        shares = weights / weights.sum() * jnp.minimum(1.0, plan.clip / norms)
        return jax.tree.map(lambda leaf: jnp.tensordot(shares, leaf, axes=1), updates)

    def secure_round(protocol):
        aggregate = fa.secure_aggregate(
            codec, protocol, num_clients=plan.num_clients, max_weight=plan.max_weight
        )
        rule = fa.apply_if_ok(aggregate, optax.chain(remember(), server))

        def run(params, state, session):
            updates = changes(params, session.round_id)
            step, state = rule.update(updates, state, params, session=session, weights=weights)
            mean, plain = state.inner[0], float_mean(updates)
            gaps = jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b)), mean, plain)
            gap = jnp.max(jnp.stack(jax.tree.leaves(gaps)))
            return optax.apply_updates(params, step), state, gap

        return rule.init, jax.jit(run, compiler_options=fa.compiler_options())

    @jax.jit
    def plain_round(params, state, round_id):
        step, state = server.update(float_mean(changes(params, round_id)), state, params)
        return optax.apply_updates(params, step), state

    @jax.jit
    def accuracy(params):
        logits = nnx.merge(definition, params)(test_images)
        return jnp.mean(jnp.argmax(logits, -1) == test_labels)

    @jax.jit
    def show_upload(params, session):
        """The words of the first client, and its upload as the server sees it."""
        updates = changes(params, session.round_id)
        kept = fa.transcript(
            updates,
            session,
            codec=codec,
            protocol=fa.SecAgg(group=plan.group),
            weights=weights,
            max_weight=plan.max_weight,
        )
        update = jax.tree.map(lambda leaf: leaf[0], updates)
        words = jnp.round(weights[0] * codec.forward(update, kept.public)).astype(jnp.int32)
        upload = kept.view(server=True).server["upload"].outboxes.words[0, :-1]
        return words, plan.group.centre_lift(upload)

    return secure_round, server.init, plain_round, accuracy, show_upload


def remember():
    """An optax rule that changes nothing and keeps the last update in its state."""
    import jax
    import jax.numpy as jnp
    import optax

    return optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params),
        lambda update, state, params=None: (update, update),
    )


def break_one_key(session):
    """The session with one bit flipped of the first client's handle on the masks' key exchange."""
    import dataclasses

    import numpy as np

    word = session.agreement[0, MASKS, 0]
    flipped = session.agreement.at[0, MASKS, 0].set(word ^ np.uint32(1))
    return dataclasses.replace(session, agreement=flipped)


def train(options, plan, params, experiment, log):
    """Runs all three, and returns the accuracies, the gaps and the times of the rounds."""
    import jax
    import numpy as np
    import tqdm

    import fedjax_agg as fa

    secure_round, init_plain, plain_round, accuracy, show_upload = experiment
    init, masked_round = secure_round(fa.SecAgg(group=plan.group))
    _, unmasked_round = secure_round(fa.Plain(group=plan.group))
    seed = fa.fixed_seed(options.seed)
    sessions = jax.jit(
        lambda r: fa.simulated_session(seed, num_clients=plan.num_clients, round_id=r)
    )
    first = sessions(0)
    log("compiling the rounds (a minute on a slow machine) ...")
    began = time.perf_counter()
    # XLA compiles a program on one core: two programs at a time take two.
    with ThreadPoolExecutor() as pool:
        compiled = [
            pool.submit(function.lower(*arguments).compile)
            for function, arguments in (
                (masked_round, (params, init(params), first)),
                (show_upload, (params, first)),
                (unmasked_round, (params, init(params), first)),
            )
        ]
        masked_round, show_upload, unmasked_round = (future.result() for future in compiled)
    jax.block_until_ready(masked_round(params, init(params), first))
    jax.block_until_ready(unmasked_round(params, init(params), first))
    log(f"compiled in {time.perf_counter() - began:.1f} s")

    models = {run: params for run in RUNS}
    states = {"secure": init(params), "plain": init_plain(params), "broken key": init(params)}
    accuracies, gaps = {run: [] for run in RUNS}, []
    times = {"masked": [], "unmasked": []}

    def timed(kind, function, *arguments):
        began = time.perf_counter()
        result = jax.block_until_ready(function(*arguments))
        times[kind].append(time.perf_counter() - began)
        return result

    bar = tqdm.trange(options.rounds, desc="rounds", file=sys.stderr, mininterval=0.5)
    for r in bar:
        session = sessions(r)
        timed("unmasked", unmasked_round, models["secure"], states["secure"], session)
        models["secure"], states["secure"], gap = timed(
            "masked", masked_round, models["secure"], states["secure"], session
        )
        gaps.append(float(gap))
        models["plain"], states["plain"] = plain_round(
            models["plain"], states["plain"], session.round_id
        )
        models["broken key"], states["broken key"], _ = masked_round(
            models["broken key"], states["broken key"], break_one_key(session)
        )
        for run in RUNS:
            accuracies[run].append(float(accuracy(models[run])))
        bar.set_postfix({run: f"{accuracies[run][-1]:.3f}" for run in RUNS})
    upload = jax.tree.map(np.asarray, show_upload(params, first))
    return accuracies, gaps, times, states["secure"].aggregate.report, upload


def write_figure(path, accuracies, words, upload, plan):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 3.9), layout="constrained")
    styles = {"secure": ("C0", "-"), "plain": ("C1", "--"), "broken key": ("C3", "-")}
    rounds = np.arange(1, len(accuracies["plain"]) + 1)
    for run, (colour, line) in styles.items():
        left.plot(rounds, accuracies[run], line, color=colour, label=run, linewidth=2)
    left.axhline(0.1, color="0.6", linewidth=1, linestyle=":", label="chance")
    left.set(xlabel="round", ylabel="test accuracy", ylim=(0, 1), title="Accuracy")
    left.legend(loc="center right")
    edge = max(1, int(np.percentile(np.abs(words), 99.5)))
    middle.hist(words, bins=61, range=(-edge, edge), color="C1")
    middle.set(title="What one client has", xlabel="word (grid steps)", ylabel="coordinates")
    middle.locator_params(axis="x", nbins=5)
    half = 2 ** (plan.ring_bits - 1) / 1e6
    right.hist(upload / 1e6, bins=61, range=(-half, half), color="C0")
    right.set(
        title="What the server sees of it",
        xlabel="uploaded word (millions of grid steps)",
        ylabel="coordinates",
    )
    figure.suptitle(
        f"Digits: {plan.num_clients} clients, {plan.size:,} parameters, "
        f"{plan.ring_bits} bits a coordinate",
        fontsize=12,
    )
    figure.savefig(path, dpi=120)


def write_csv(path, accuracies, gaps):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        names = [f"accuracy_{run.replace(' ', '_')}" for run in RUNS]
        writer.writerow(["round", *names, "max_abs_difference"])
        for r, gap in enumerate(gaps):
            writer.writerow([r + 1, *(accuracies[run][r] for run in RUNS), gap])


def main(arguments=None):
    parser, options = parse_arguments(arguments)

    def log(line):
        print(line, file=sys.stderr if options.json else sys.stdout, flush=True)

    log(
        f"digits: {options.clients} clients, {options.rounds} rounds, {options.bits} bits, "
        f"seed {options.seed}: training secure, plain and with a broken key"
    )
    import numpy as np

    import fedjax_agg as fa

    data = split_digits(options.clients, np.random.default_rng(options.seed))
    definition, params = make_model(options.seed)
    try:
        plan = fa.plan_round(
            params,
            num_clients=options.clients,
            clip=CLIP,
            bits=options.bits,
            max_weight=min(MAX_WEIGHT, int(data[2].max())),
        )
    except ValueError as problem:
        parser.error(str(problem))
    log(str(plan))
    experiment = make_experiment(definition, data, plan, options.seed)
    accuracies, gaps, times, report, (words, upload) = train(options, plan, params, experiment, log)

    masked, unmasked = (float(np.median(times[kind])) for kind in ("masked", "unmasked"))
    result = {
        "accuracy_secure": accuracies["secure"][-1],
        "accuracy_plain": accuracies["plain"][-1],
        "accuracy_broken_key": accuracies["broken key"][-1],
        "max_abs_difference": max(gaps),
        "step": plan.step,
        "parameters": plan.size,
        "bits_per_coordinate": plan.ring_bits,
        "bytes_per_client": sum(int(count) for count in report.bytes_up.values()),
        "seconds_per_round": masked,
        "share_spent_on_masks": max(0.0, 1 - unmasked / masked),
    }
    figure, table = options.out / "digits.png", options.out / "digits.csv"
    write_figure(figure, accuracies, words, upload, plan)
    write_csv(table, accuracies, gaps)
    if options.json:
        print(json.dumps(result))
    else:
        print_table(result)
    log(f"{figure}\n{table}")


def print_table(result):
    rows = [
        ("test accuracy, secure", f"{result['accuracy_secure']:.4f}"),
        ("test accuracy, plain", f"{result['accuracy_plain']:.4f}"),
        ("test accuracy, broken key", f"{result['accuracy_broken_key']:.4f}"),
        ("largest difference from float", f"{result['max_abs_difference']:.3g}"),
        ("one step of the grid", f"{result['step']:.3g}"),
        ("parameters d", f"{result['parameters']:,}"),
        ("bits a coordinate", f"{result['bits_per_coordinate']}"),
        ("bytes a client and round", f"{result['bytes_per_client']:,}"),
        ("time a round", f"{result['seconds_per_round']:.3f} s"),
        ("of it spent on masks", f"{result['share_spent_on_masks']:.0%}"),
    ]
    for name, value in rows:
        print(f"  {name:<32}{value:>12}")


if __name__ == "__main__":
    main()
