"""Handwritten digits, trained by many clients under secure aggregation.

Each client holds a skewed handful of scikit-learn's 1797 digits, trains a Flax model on them and
uploads its change under SecAgg; the server sees uniform words, and their sum. Three runs
of the same rounds are compared:

    secure       fixed point, stochastic rounding, ChaCha20 masks
    plain        the same clipped updates averaged as floats, in the clear
    broken key   as secure, but one bit of one client's key material is flipped

``--algorithm`` says how clients train and what the server makes of the mean (by default federated
averaging with momentum), ``--protocol`` how the sum is protected; under ``plain`` there is no key
to break, and the third run is left out.

``--seed`` fixes the data split, the model and the sessions (``fixed_seed``: predictable, for
experiments only).
"""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import _common

RUNS = ("secure", "plain", "broken key")
EPOCHS = 1
BATCH = 16
CLIENT_RATE = 0.3
SERVER_MOMENTUM = 0.6
ADAPTIVE_RATE = 0.01
CLIP = 2.0
# A client's number of images is its weight, up to this: weights are part of the bit budget.
MAX_WEIGHT = 64
# In a session's agreement: the second key exchange is that of the masks.
MASKS = 1


def parse_arguments(arguments=None):
    parser = _common.make_parser(
        "Train on handwritten digits under secure aggregation.",
        rounds=25,
        quick="10 clients, 8 rounds",
    )
    parser.add_argument("--clients", type=int, default=50, help="default: 50")
    parser.add_argument("--bits", type=int, default=16, help="of one client's word; default: 16")
    parser.add_argument(
        "--algorithm", choices=_common.ALGORITHMS, default="fedavgm", help="default: fedavgm"
    )
    parser.add_argument(
        "--protocol", choices=_common.PROTOCOLS, default="secagg", help="default: secagg"
    )
    options = parser.parse_args(arguments)
    if options.quick:
        options.clients, options.rounds = min(options.clients, 10), min(options.rounds, 8)
    _common.check_ranges(parser, options, clients=(2, 500))
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


def make_algorithm(definition, name, codec, *, population=None, **arguments):
    """How clients train the model, and what the server does with the mean of what they send."""
    import optax
    from flax import nnx

    def loss(params, batch):
        images, labels = batch
        logits = nnx.merge(definition, params)(images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)

    return _common.make_algorithm(
        name,
        loss,
        client_rate=CLIENT_RATE,
        epochs=EPOCHS,
        batch_size=BATCH,
        momentum=SERVER_MOMENTUM,
        adaptive_rate=ADAPTIVE_RATE,
        population=population,
        codec=codec,
        **arguments,
    )


def make_training(definition, data, algorithm, seed):
    """What all clients compute in a round, and the accuracy on the test set."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    images, labels, counts, test_images, test_labels = data
    counts = jnp.asarray(counts, jnp.int32)

    @jax.jit
    def train_clients(state, round_id):
        """Every run of a round draws the same batches."""
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), round_id), len(counts))
        own = algorithm.recall(state, jnp.arange(len(counts)))

        def client(own, examples, count, key):
            return algorithm.client(state, own, examples, count, key)

        return jax.vmap(client)(own, (images, labels), counts, keys)

    @jax.jit
    def accuracy(params):
        logits = nnx.merge(definition, params)(test_images)
        return jnp.mean(jnp.argmax(logits, -1) == test_labels)

    return train_clients, accuracy


def float_mean(updates, weights, clip):
    """The weighted mean of the clipped updates, in floating point and in the clear."""
    import jax
    import jax.numpy as jnp
    import optax

    norms = jax.vmap(optax.global_norm)(updates)
    shares = weights / weights.sum() * jnp.minimum(1.0, clip / norms)
    return jax.tree.map(lambda leaf: jnp.tensordot(shares, leaf, axes=1), updates)


def make_experiment(definition, data, algorithm, plan, seed):
    """The jitted parts: rounds, accuracy, and one client's upload."""
    from types import SimpleNamespace

    import jax
    import jax.numpy as jnp

    import fedjax_agg as fa
    from fedjax_agg.codecs import Beside

    train_clients, accuracy = make_training(definition, data, algorithm, seed)
    # SCAFFOLD counts every client once.
    weights = jnp.minimum(jnp.asarray(data[2], jnp.int32), algorithm.max_weight)
    everybody = jnp.arange(plan.num_clients)
    # An update is one tree or, with variates or gradients beside it, two: each has its codec.
    how = {
        "codec": Beside(algorithm.codecs()),
        "weights": weights,
        "max_weight": algorithm.max_weight,
    }

    def in_floats(update):
        return tuple(float_mean(tree, weights, plan.clip) for tree in update)

    def server(state, mean, report, sent):
        moved = algorithm.server(state, mean, report)
        return algorithm.keep(moved, everybody, sent.own, weights > 0)

    def make_round(protocol):
        def run(state, session):
            sent = train_clients(state, session.round_id)
            mean, report = fa.secure_mean(sent.update, session, protocol=protocol, **how)
            gaps = jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b)), mean, in_floats(sent.update))
            moved = server(state, mean, report, sent)
            # A round that failed changes nothing.
            state = jax.tree.map(lambda new, old: jnp.where(report.ok, new, old), moved, state)
            return state, jnp.max(jnp.stack(jax.tree.leaves(gaps))), report

        return jax.jit(run, compiler_options=fa.compiler_options())

    @jax.jit
    def plain_round(state, round_id):
        sent = train_clients(state, round_id)
        # Without a protocol there is no report; all that an algorithm reads of one is this.
        report = SimpleNamespace(total_weight=weights.sum().astype(jnp.float32))
        return server(state, in_floats(sent.update), report, sent)

    @jax.jit
    def show_upload(state, session):
        """The words of the first client, and its upload as the server sees it."""
        updates = train_clients(state, session.round_id).update
        kept = fa.transcript(updates, session, protocol=algorithm.protocol, **how)
        update = jax.tree.map(lambda leaf: leaf[0], updates)
        grid = how["codec"].forward(update, kept.public)
        words = jnp.round(weights[0] * grid).astype(jnp.int32)
        upload = kept.view(server=True).server["upload"].outboxes.words[0, :-1]
        return words, plan.group.centre_lift(upload)

    return make_round, plain_round, accuracy, show_upload


def break_one_key(session):
    """The session with one bit flipped of the first client's handle on the masks' key exchange."""
    import dataclasses

    import numpy as np

    word = session.agreement[0, MASKS, 0]
    flipped = session.agreement.at[0, MASKS, 0].set(word ^ np.uint32(1))
    return dataclasses.replace(session, agreement=flipped)


def train(options, plan, params, algorithm, experiment, log):
    """Runs all three: the record, the times of the rounds, a report and the first upload."""
    import jax
    import numpy as np

    import fedjax_agg as fa

    make_round, plain_round, accuracy, show_upload = experiment
    runs = RUNS[:2] if options.protocol == "plain" else RUNS
    seed = fa.fixed_seed(options.seed)
    sessions = jax.jit(
        lambda r: fa.simulated_session(seed, num_clients=plan.num_clients, round_id=r)
    )
    start, first = algorithm.init(params), sessions(0)
    log("compiling the rounds (a minute on a slow machine) ...")
    began = time.perf_counter()
    # XLA compiles a program on one core: two programs at a time take two.
    with ThreadPoolExecutor() as pool:
        compiled = [
            pool.submit(function.lower(start, first).compile)
            for function in (
                make_round(algorithm.protocol),
                show_upload,
                make_round(fa.Plain(group=plan.group)),
            )
        ]
        masked_round, show_upload, unmasked_round = (future.result() for future in compiled)
    _, _, report = jax.block_until_ready(masked_round(start, first))
    jax.block_until_ready(unmasked_round(start, first))
    log(f"compiled in {time.perf_counter() - began:.1f} s")

    names = [f"accuracy_{run.replace(' ', '_')}" for run in runs]
    settings = {
        name: getattr(options, name)
        for name in ("clients", "bits", "seed", "algorithm", "protocol")
    }
    columns = [*names, "max_abs_difference", "seconds_masked", "seconds_unmasked"]
    record = _common.Record(options.out / "digits", columns, settings)
    states = record.start(dict.fromkeys(runs, start), options.resume)

    def timed(function, *arguments):
        began = time.perf_counter()
        result = jax.block_until_ready(function(*arguments))
        return result, time.perf_counter() - began

    for r in _common.progress(record, options.rounds):
        session = sessions(r)
        _, unmasked = timed(unmasked_round, states["secure"], session)
        (states["secure"], gap, report), masked = timed(masked_round, states["secure"], session)
        states["plain"] = plain_round(states["plain"], session.round_id)
        if "broken key" in states:
            states["broken key"], _, _ = masked_round(states["broken key"], break_one_key(session))
        accuracies = [float(accuracy(states[run].params)) for run in runs]
        record.add([*accuracies, gap, masked, unmasked], states)
    upload = jax.tree.map(np.asarray, show_upload(start, first))
    return runs, record, report, upload


def write_figure(path, accuracies, words, upload, plan):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 3.9), layout="constrained")
    styles = {"secure": ("C0", "-"), "plain": ("C1", "--"), "broken key": ("C3", "-")}
    rounds = np.arange(1, len(accuracies["plain"]) + 1)
    for run, values in accuracies.items():
        colour, line = styles[run]
        left.plot(rounds, values, line, color=colour, label=run, linewidth=2)
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


def main(arguments=None):
    parser, options = parse_arguments(arguments)
    log = _common.make_log(options)
    log(
        f"digits: {options.clients} clients, {options.rounds} rounds, {options.bits} bits, "
        f"seed {options.seed}, {options.algorithm}, {options.protocol}: training secure, plain"
        + (" (no key to break)" if options.protocol == "plain" else " and with a broken key")
    )
    import numpy as np

    data = split_digits(options.clients, np.random.default_rng(options.seed))
    definition, params = make_model(options.seed)
    plan = _common.plan_for(
        parser,
        params,
        options.protocol,
        num_clients=options.clients,
        clip=CLIP,
        bits=options.bits,
        max_weight=min(MAX_WEIGHT, int(data[2].max())),
    )
    log(str(plan))
    algorithm = make_algorithm(
        definition,
        options.algorithm,
        plan.codec(),
        population=plan.num_clients,
        protocol=_common.make_protocol(options.protocol, plan),
        max_weight=plan.max_weight,
    )
    experiment = make_experiment(definition, data, algorithm, plan, options.seed)
    runs, record, report, (words, upload) = train(options, plan, params, algorithm, experiment, log)

    accuracies = {run: record.column(f"accuracy_{run.replace(' ', '_')}") for run in runs}
    masked, unmasked = (
        float(np.median(record.column(f"seconds_{kind}"))) for kind in ("masked", "unmasked")
    )
    result = {
        "accuracy_secure": accuracies["secure"][-1],
        "accuracy_plain": accuracies["plain"][-1],
        "accuracy_broken_key": accuracies["broken key"][-1] if "broken key" in runs else None,
        "max_abs_difference": max(record.column("max_abs_difference")),
        "step": plan.step,
        "parameters": plan.size,
        "bits_per_coordinate": plan.ring_bits,
        "bytes_per_client": sum(int(count) for count in report.bytes_up.values()),
        "seconds_per_round": masked,
        "share_spent_on_masks": max(0.0, 1 - unmasked / masked),
        "algorithm": options.algorithm,
        "protocol": options.protocol,
    }
    figure = options.out / "digits.png"
    write_figure(figure, accuracies, words, upload, plan)
    if options.json:
        print(json.dumps(result))
    else:
        print_table(result)
    log(f"{figure}\n{record.table}")


def print_table(result):
    broken = result["accuracy_broken_key"]
    rows = [
        ("test accuracy, secure", f"{result['accuracy_secure']:.4f}"),
        ("test accuracy, plain", f"{result['accuracy_plain']:.4f}"),
        ("test accuracy, broken key", "-" if broken is None else f"{broken:.4f}"),
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
    _common.call(main)
