"""A model of characters, trained by clients that each hold one document.

The documents are the help topics that ship with Python (``pydoc_data.topics``); every eighth is
held out. In each round a cohort trains a small neural probabilistic language model (Bengio et al.,
JMLR 2003: the last characters are embedded and a perceptron predicts the next one), uploads its
change as one masked vector, and the server takes their mean, with momentum.

It ends with the loss on the held-out documents in nats a character, beside the entropy of their
own unigram distribution: what the best guess costs that knows how frequent every character is, but
not what came before.

``--seed`` fixes the documents, model, cohorts and sessions (``fixed_seed``: predictable, for
experiments only).
"""

import json

import _common

# Characters beyond ASCII are one.
VOCABULARY = 128
CONTEXT = 8
WINDOW = 64
# A long document is cut down to so many windows, so that no client trains much longer than others.
MAX_WINDOWS = 64
EMBEDDING = 16
HIDDEN = 128
EPOCHS = 1
BATCH = 4
CLIENT_RATE = 1.0
SERVER_MOMENTUM = 0.6
ADAPTIVE_RATE = 0.02
CLIP = 8.0
BITS = 16


def parse_arguments(arguments=None):
    parser = _common.make_parser(
        "Train a model of characters on documents under secure aggregation.",
        rounds=40,
        quick="12 rounds of 6 clients, in the clear unless --protocol says otherwise",
    )
    parser.add_argument("--cohort", type=int, default=16, help="clients in a round; default: 16")
    parser.add_argument(
        "--dropout", type=float, default=0.0, help="part of a cohort that is lost; default: 0"
    )
    parser.add_argument(
        "--algorithm", choices=_common.ALGORITHMS, default="fedavgm", help="default: fedavgm"
    )
    parser.add_argument("--protocol", choices=_common.PROTOCOLS, help="default: secagg+")
    options = parser.parse_args(arguments)
    if options.quick:
        options.cohort, options.rounds = min(options.cohort, 6), min(options.rounds, 12)
    options.protocol = options.protocol or ("plain" if options.quick else "secagg+")
    _common.check_ranges(parser, options, cohort=(2, 60), dropout=(0.0, 1.0))
    return parser, options


def read_documents(rng):
    """Names and codes of the documents to train on, and of those that are held out."""
    from pydoc_data.topics import topics

    import numpy as np

    names = sorted(topics)
    names = [names[i] for i in rng.permutation(len(names))]
    documents = {
        name: np.array(
            [min(ord(character), VOCABULARY - 1) for character in topics[name]], np.uint8
        )
        for name in names
    }
    held_out = {name: documents.pop(name) for name in names[::8]}
    return documents, held_out


def cut(text, rng=None):
    """Windows of a document, uint8[w, CONTEXT + WINDOW], and how many characters each predicts.

    Each window repeats the last characters of the one before it; line ends stand before the first
    and after the last. With ``rng``, at most ``MAX_WINDOWS`` of them.
    """
    import numpy as np

    windows = -(-len(text) // WINDOW)
    padded = np.full(CONTEXT + windows * WINDOW, ord("\n"), np.uint8)
    padded[CONTEXT : CONTEXT + len(text)] = text
    rows = np.stack([padded[w * WINDOW :][: CONTEXT + WINDOW] for w in range(windows)])
    lengths = np.minimum(WINDOW, len(text) - WINDOW * np.arange(windows)).astype(np.int32)
    if rng is None:
        return rows, lengths
    kept = np.sort(rng.permutation(windows)[:MAX_WINDOWS])
    return rows[kept], lengths[kept]


def unigram_entropy(texts):
    """The entropy of the characters' frequencies, in nats a character."""
    import numpy as np

    counts = np.bincount(np.concatenate(texts), minlength=VOCABULARY)
    frequencies = counts[counts > 0] / counts.sum()
    return float(-(frequencies * np.log(frequencies)).sum())


def make_model(seed):
    """The definition of the model, and its parameters."""
    from flax import nnx

    rngs = nnx.Rngs(seed)
    layers = {
        "embed": nnx.Embed(VOCABULARY, EMBEDDING, rngs=rngs),
        "hidden": nnx.Linear(CONTEXT * EMBEDDING, HIDDEN, rngs=rngs),
        "out": nnx.Linear(HIDDEN, VOCABULARY, rngs=rngs),
    }
    return nnx.split(nnx.Dict(layers), nnx.Param)


def make_logits(definition):
    """``logits(params, windows)``: of the character after each of the contexts in a window."""
    import jax.numpy as jnp
    from flax import nnx

    def logits(params, windows):
        layers = nnx.merge(definition, params)
        embedded = layers["embed"](windows.astype(jnp.int32))
        places = windows.shape[1] - CONTEXT + 1
        contexts = jnp.concatenate([embedded[:, i : i + places] for i in range(CONTEXT)], axis=-1)
        return layers["out"](nnx.tanh(layers["hidden"](contexts)))

    return logits


def make_loss(logits):
    """For each window, the mean loss of its characters in nats, and the part guessed right."""
    import jax.numpy as jnp
    import optax

    def loss(params, batch):
        windows, lengths = batch
        targets = windows[:, CONTEXT:].astype(jnp.int32)
        found = logits(params, windows[:, :-1])
        real = jnp.arange(WINDOW, dtype=jnp.int32)[None] < lengths[:, None]
        losses = optax.softmax_cross_entropy_with_integer_labels(found, targets)
        right = (jnp.argmax(found, -1).astype(jnp.int32) == targets).astype(jnp.float32)
        number = lengths.astype(jnp.float32)
        return tuple(jnp.sum(jnp.where(real, x, 0.0), axis=1) / number for x in (losses, right))

    return loss


def make_evaluate(loss, held_out):
    """Nats a character and the part guessed right: of all held-out documents, and of each."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    parts = [cut(text) for text in held_out.values()]
    windows = tuple(np.concatenate(leaves) for leaves in zip(*parts))
    document = np.repeat(np.arange(len(parts)), [len(lengths) for _, lengths in parts])
    shares = np.float32(windows[1] / windows[1].sum())

    @jax.jit
    def losses(params):
        return loss(params, windows)

    def evaluate(params):
        nats, right = losses(params)
        return jnp.vdot(shares, nats), jnp.vdot(shares, right)

    def by_document(params):
        nats = np.asarray(losses(params)[0])
        return np.bincount(document, nats * shares) / np.bincount(document, shares)

    return evaluate, by_document


def write_on(logits, params, seed, length=240):
    """Characters drawn from the model, one after the other."""
    import jax
    import jax.numpy as jnp

    def step(context, key):
        found = logits(params, context[None])[0, -1]
        character = jax.random.categorical(key, found).astype(jnp.uint8)
        return jnp.append(context[1:], character), character

    start = jnp.full(CONTEXT, ord("\n"), jnp.uint8)
    keys = jax.random.split(jax.random.key(seed), length)
    _, characters = jax.jit(lambda: jax.lax.scan(step, start, keys))()
    return "".join(chr(code) for code in characters.tolist())


def write_figure(path, record, names, nats, entropies, entropy, options):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    rounds = np.arange(1, len(record.rows) + 1)
    left.plot(rounds, record.column("heldout_nats"), "C0-", linewidth=2, label="held-out documents")
    left.plot(
        rounds,
        record.column("train_loss"),
        "C1--",
        linewidth=1.5,
        label="the cohort's own, known from the sum",
    )
    left.axhline(entropy, color="0.4", linestyle=":", label="unigram entropy of held-out text")
    left.set(xlabel="round", ylabel="nats a character", title="Loss")
    left.set_ylim(bottom=0)
    left.legend()

    places = np.arange(len(names))
    right.barh(places, nats, color="C0", height=0.6)
    right.plot(entropies, places, "|", color="0.2", markersize=14, mew=2)
    right.set_yticks(places, names, fontsize=9)
    right.invert_yaxis()
    right.set(
        xlabel="nats a character",
        ylabel="held-out document",
        title="Loss of the model (bars), and unigram entropy (marks)",
        xlim=(0, 1.1 * max(*entropies, *nats)),
    )
    figure.suptitle(
        f"Characters: {options.cohort} clients a round with one document each, "
        f"{options.algorithm} under {options.protocol}",
        fontsize=12,
    )
    figure.savefig(path, dpi=120)


def main(arguments=None):
    parser, options = parse_arguments(arguments)
    log = _common.make_log(options)
    log(
        f"language_model: {options.cohort} documents a round, {options.rounds} rounds, "
        f"{options.algorithm}, {options.protocol}, seed {options.seed}"
    )
    import numpy as np

    from fedjax_agg.federated import pad_clients

    rng = np.random.default_rng(options.seed)
    documents, held_out = read_documents(rng)
    data = pad_clients([cut(text, rng) for text in documents.values()])
    entropy = unigram_entropy(list(held_out.values()))
    log(
        f"{len(documents)} documents at as many clients, {len(held_out)} held out with "
        f"{sum(map(len, held_out.values())):,} characters and a unigram entropy of "
        f"{entropy:.3f} nats a character"
    )
    definition, params = make_model(options.seed)
    plan = _common.plan_for(
        parser,
        params,
        options.protocol,
        num_clients=options.cohort,
        clip=CLIP,
        bits=BITS,
        max_weight=int(data.counts.max()),
    )
    log(str(plan))
    logits = make_logits(definition)
    loss = make_loss(logits)
    algorithm = _common.make_algorithm(
        options.algorithm,
        loss,
        client_rate=CLIENT_RATE,
        momentum=SERVER_MOMENTUM,
        adaptive_rate=ADAPTIVE_RATE,
        population=data.num_clients,
        epochs=EPOCHS,
        batch_size=BATCH,
        codec=plan.codec(),
        protocol=_common.make_protocol(options.protocol, plan),
        max_weight=plan.max_weight,
    )
    evaluate, by_document = make_evaluate(loss, held_out)
    record, state = _common.train(
        "language_model",
        options,
        algorithm,
        params,
        data,
        evaluate=evaluate,
        columns=("heldout_nats", "heldout_accuracy"),
        settings={"algorithm": options.algorithm, "documents": len(documents)},
        log=log,
    )

    nats = record.column("heldout_nats")[-1]
    result = {
        "nats_per_character": nats,
        "unigram_entropy": entropy,
        "gap": entropy - nats,
        "accuracy": record.column("heldout_accuracy")[-1],
        "rounds": len(record.rows),
        "rounds_ok": int(sum(record.column("ok"))),
        "clients": len(documents),
        "parameters": plan.size,
        "bits_per_coordinate": plan.ring_bits,
        "seconds_per_round": float(np.median(record.column("seconds"))),
        "algorithm": options.algorithm,
        "protocol": options.protocol,
    }
    figure = options.out / "language_model.png"
    entropies = [unigram_entropy([text]) for text in held_out.values()]
    write_figure(
        figure, record, list(held_out), by_document(state.params), entropies, entropy, options
    )
    if options.json:
        print(json.dumps(result))
    else:
        print_table(result)
        print("\nwhat the model writes:\n" + write_on(logits, state.params, options.seed))
    log(f"{figure}\n{record.table}")


def print_table(result):
    rows = [
        ("unigram entropy of held-out text", f"{result['unigram_entropy']:.3f} nats"),
        ("loss on held-out text", f"{result['nats_per_character']:.3f} nats"),
        ("under the entropy by", f"{result['gap']:.3f} nats"),
        ("characters guessed right", f"{result['accuracy']:.1%}"),
        ("rounds that succeeded", f"{result['rounds_ok']} of {result['rounds']}"),
        ("parameters d", f"{result['parameters']:,}"),
        ("bits a coordinate", f"{result['bits_per_coordinate']}"),
        ("time a round", f"{result['seconds_per_round']:.3f} s"),
    ]
    for name, value in rows:
        print(f"  {name:<34}{value:>14}")


if __name__ == "__main__":
    _common.call(main)
