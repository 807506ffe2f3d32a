"""Your own labelled images, dealt to any number of clients and trained under secure aggregation.

``--data`` is one of

    an .npz       x_train, y_train and, if there are any, x_test, y_test (as in Keras' mnist.npz)
    a folder      of IDX files, plain or .gz: MNIST, Fashion-MNIST, EMNIST
    a prefix      FOLDER/emnist-letters, where a folder holds several such sets

Without it, scikit-learn's digits are enlarged to 28 x 28, written as IDX files, and read again.
Images are dealt to the clients by class (each has a few classes) or by a Dirichlet law (each class
is shared out unevenly). A cohort is drawn in every round; it trains a perceptron on its own images
and uploads the change, and its losses and hits, as one masked vector.

``--seed`` fixes split, model, cohorts and sessions (``fixed_seed``: predictable, for experiments
only).
"""

import gzip
import json
import math
import pathlib
import struct
import sys
import zipfile
import zlib

import _common

HIDDEN = 200
BATCH = 32
CLIENT_RATE = 0.1
SERVER_MOMENTUM = 0.6
ADAPTIVE_RATE = 0.01
CLIP = 4.0
# max_weight * levels must stay below 2^23, and 12 bits are 2047 levels.
MAX_WEIGHT = 4096
KINDS = {"images": 3, "labels": 1}


class DataError(Exception):
    """What is wrong with the data, in one line."""


def parse_arguments(arguments=None):
    parser = _common.make_parser(
        "Train on your own labelled images under secure aggregation.",
        rounds=50,
        quick="10 clients, 5 a round, 8 rounds, in the clear unless --protocol says otherwise",
    )
    parser.add_argument("--data", type=pathlib.Path, help="an .npz, or a folder of IDX files")
    parser.add_argument("--clients", type=int, default=100, help="default: 100")
    parser.add_argument("--cohort", type=int, default=20, help="clients in a round; default: 20")
    parser.add_argument(
        "--split", choices=("dirichlet", "class"), default="dirichlet", help="default: dirichlet"
    )
    parser.add_argument(
        "--alpha", type=float, default=0.5, help="of the Dirichlet law; less is more uneven; 0.5"
    )
    parser.add_argument(
        "--classes", type=int, default=2, help="of one client, with --split class; default: 2"
    )
    parser.add_argument("--epochs", type=int, default=1, help="of local training; default: 1")
    parser.add_argument("--bits", type=int, default=12, help="of one client's word; default: 12")
    parser.add_argument(
        "--dropout", type=float, default=0.0, help="part of a cohort that is lost; default: 0"
    )
    parser.add_argument(
        "--algorithm", choices=_common.ALGORITHMS, default="fedavgm", help="default: fedavgm"
    )
    parser.add_argument("--protocol", choices=_common.PROTOCOLS, help="default: secagg+")
    options = parser.parse_args(arguments)
    if options.quick:
        options.clients, options.rounds = min(options.clients, 10), min(options.rounds, 8)
        options.cohort = min(options.cohort, 5)
    options.protocol = options.protocol or ("plain" if options.quick else "secagg+")
    _common.check_ranges(
        parser,
        options,
        clients=(2, 1_000_000),
        cohort=(2, min(options.clients, 1000)),
        alpha=(1e-3, 1e6),
        classes=(1, 1000),
        epochs=(1, 100),
        dropout=(0.0, 1.0),
    )
    return parser, options


# Reading.


def read_idx(path):
    """One IDX file, plain or compressed: uint8 of 1 or 3 dimensions."""
    import numpy as np

    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as problem:
        raise DataError(f"{path} cannot be read: {problem}") from None
    if len(content) < 4 or content[:3] != b"\0\0\x08" or content[3] not in KINDS.values():
        raise DataError(f"{path} is no IDX file of bytes: it begins with {content[:4].hex()!r}")
    header = 4 + 4 * content[3]
    if len(content) < header:
        raise DataError(f"{path} is cut off in its header")
    shape = struct.unpack(f">{content[3]}I", content[4:header])
    wanted = header + math.prod(shape)
    if len(content) != wanted:
        kind = "is cut off" if len(content) < wanted else "is too long"
        raise DataError(f"{path} {kind}: {len(content)} bytes, and its header says {wanted}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def write_idx(path, values):
    """uint8 of any shape as a compressed IDX file."""
    header = bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape)
    path.write_bytes(gzip.compress(header + values.tobytes()))


def read_folder(path):
    """x_train, y_train, x_test, y_test of IDX files; the last two may be None."""
    folder, prefix = (path, "") if path.is_dir() else (path.parent, path.name)
    found = {}
    for file in sorted(folder.glob(f"{prefix}*")):
        name = file.name.removesuffix(".gz")
        for kind, dimensions in KINDS.items():
            for part, words in {"train": ("train",), "test": ("t10k", "test")}.items():
                if f"{kind}-idx{dimensions}" in name.replace(".", "-") and any(
                    word in name for word in words
                ):
                    # The same file, compressed and not, is one.
                    found.setdefault((part, kind), {})[name] = file
    several = [files for files in found.values() if len(files) > 1]
    if several:
        names = ", ".join(sorted(several[0]))
        raise DataError(f"{path} holds several sets ({names}): add the first part of a name to it")
    missing = [kind for kind in KINDS if ("train", kind) not in found]
    if missing:
        raise DataError(f"{path} has no *train*{missing[0]}-idx{KINDS[missing[0]]}-ubyte[.gz]")
    parts = {key: read_idx(*files.values()) for key, files in found.items()}
    return [parts.get((part, kind)) for part in ("train", "test") for kind in KINDS]


def read_npz(path):
    """x_train, y_train, x_test, y_test of an .npz; the last two may be None."""
    import numpy as np

    names = ("x_train", "y_train", "x_test", "y_test")
    try:
        with np.load(path) as arrays:
            missing = [name for name in names[:2] if name not in arrays]
            if missing:
                held = ", ".join(arrays) or "nothing"
                raise DataError(f"{path} has no {missing[0]}; it has {held}")
            return [arrays.get(name) for name in names]
    except (
        OSError,
        ValueError,
        EOFError,
        zipfile.BadZipFile,
        zlib.error,
        AttributeError,
    ) as problem:
        reason = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
        raise DataError(f"{path} cannot be read: {reason}") from None


def check_part(path, part, images, labels):
    """One part's images and labels must be real numbers, classes from 0, and as many."""
    import numpy as np

    if images.ndim < 2 or images.dtype.kind not in "uif" or images.size == 0:
        raise DataError(f"{path}: x_{part} is {images.dtype.name}{[*images.shape]}, not images")
    if images.dtype.kind == "f" and not np.isfinite(images).all():
        raise DataError(f"{path}: x_{part} has values that are not finite")
    if labels.ndim != 1 or labels.dtype.kind not in "ui":
        raise DataError(f"{path}: y_{part} is {labels.dtype.name}{[*labels.shape]}, not classes")
    if len(images) != len(labels):
        raise DataError(f"{path}: {len(images)} images and {len(labels)} labels to {part}")
    if labels.min() < 0 or labels.max() >= 10_000:
        raise DataError(f"{path}: y_{part} has the class {labels.min()} or {labels.max()}")


def load(path, rng):
    """x_train [m, p], y_train [m], x_test, y_test, and the factor that brings images to [0, 1].

    Without a test part, a sixth of the training part is set apart.
    """
    import numpy as np

    if path.suffix == ".npz":
        images, labels, test_images, test_labels = read_npz(path)
    elif path.is_file():
        raise DataError(f"{path} is neither an .npz nor a folder of IDX files")
    elif path.parent.is_dir():
        images, labels, test_images, test_labels = read_folder(path)
    else:
        raise DataError(f"{path} does not exist")
    check_part(path, "train", images, labels)
    if test_images is None or test_labels is None:
        order = rng.permutation(len(labels))
        test, train = np.split(order, [max(1, len(order) // 6)])
        if not len(train):
            raise DataError(f"{path} has one image, and none is left to train on")
        images, labels, test_images, test_labels = (
            images[train],
            labels[train],
            images[test],
            labels[test],
        )
    check_part(path, "test", test_images, test_labels)
    if images.shape[1:] != test_images.shape[1:]:
        shapes = [[*x.shape[1:]] for x in (images, test_images)]
        raise DataError(f"{path}: images of {shapes[0]} to train and of {shapes[1]} to test")
    if images.dtype != np.uint8:
        # What is not bytes has a range of its own.
        images, test_images = images.astype(np.float32), test_images.astype(np.float32)
    scale = 1.0 / max(float(np.abs(images).max()), 1e-30)
    images, test_images = (x.reshape(len(x), -1) for x in (images, test_images))
    return images, labels.astype(np.int32), test_images, test_labels.astype(np.int32), scale


def write_digits(folder, rng):
    """scikit-learn's digits, enlarged to 28 x 28, as the four files of MNIST."""
    import numpy as np
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = rng.permutation(len(digits.target))
    pixels = np.round(digits.images[order] * (255 / 16)).astype(np.uint8)
    images = np.zeros((len(pixels), 28, 28), np.uint8)
    images[:, 2:26, 2:26] = pixels.repeat(3, axis=1).repeat(3, axis=2)
    labels = digits.target[order].astype(np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    for part, rows in (("train", slice(300, None)), ("t10k", slice(300))):
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", images[rows])
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", labels[rows])


# Dealing.


def deal_dirichlet(labels, clients, alpha, rng):
    """The owner of each example: every class is shared out by a Dirichlet(alpha) law."""
    import numpy as np

    owner = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        owner[members] = rng.choice(clients, len(members), p=rng.dirichlet(np.full(clients, alpha)))
    return owner


def deal_by_class(labels, clients, classes, rng):
    """The owner of each example: sorted by class and cut, each client gets a few pieces.

    McMahan et al., AISTATS 2017: clients * classes pieces of one size, drawn at random.
    """
    import numpy as np

    order = np.lexsort((rng.random(len(labels)), labels))
    pieces = np.array_split(order, clients * classes)
    owner = np.empty(len(labels), np.int64)
    for position, piece in enumerate(rng.permutation(len(pieces))):
        owner[pieces[piece]] = position % clients
    return owner


def to_clients(images, labels, owner, clients):
    """The padded ``ClientData``; a client may have nothing."""
    import numpy as np

    from fedjax_agg.federated import pad_clients

    order = np.argsort(owner, kind="stable")
    cuts = np.cumsum(np.bincount(owner, minlength=clients))[:-1]
    parts = zip(np.split(images[order], cuts), np.split(labels[order], cuts))
    return pad_clients(list(parts))


# Training.


def make_model(pixels, classes, seed):
    """A perceptron with two hidden layers: its definition and its parameters."""
    from flax import nnx

    rngs = nnx.Rngs(seed)
    model = nnx.Sequential(
        nnx.Linear(pixels, HIDDEN, rngs=rngs),
        nnx.relu,
        nnx.Linear(HIDDEN, HIDDEN, rngs=rngs),
        nnx.relu,
        nnx.Linear(HIDDEN, classes, rngs=rngs),
    )
    return nnx.split(model, nnx.Param)


def make_loss(definition, scale):
    """Losses and hits of a batch of images as they were read."""
    import jax.numpy as jnp
    import optax
    from flax import nnx

    def loss(params, batch):
        images, labels = batch
        logits = nnx.merge(definition, params)(images.astype(jnp.float32) * scale)
        hits = jnp.argmax(logits, -1).astype(jnp.int32) == labels
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels), hits

    return loss


def make_evaluate(loss, test):
    """The accuracy and the mean loss on the test set."""
    import jax
    import jax.numpy as jnp

    @jax.jit
    def evaluate(params):
        def one(example):
            losses, hits = loss(params, jax.tree.map(lambda x: x[None], example))
            return hits[0], losses[0]

        hits, losses = jax.lax.map(one, test, batch_size=1000)
        return jnp.mean(hits), jnp.mean(losses)

    return evaluate


def write_figure(path, record, data, num_classes, options):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    rounds = np.arange(1, len(record.rows) + 1)
    left.plot(rounds, record.column("test_accuracy"), "C0-", linewidth=2, label="test set")
    left.plot(
        rounds,
        record.column("train_accuracy"),
        "C1--",
        linewidth=1.5,
        label="the cohort's own images, known from the sum",
    )
    left.set(xlabel="round", ylabel="accuracy", ylim=(0, 1), title="Accuracy")
    left.legend(loc="lower right")

    shown = min(30, options.clients)
    counts = np.zeros((shown, num_classes))
    for client in range(shown):
        mine = np.asarray(data.examples[1][client, : int(data.counts[client])])
        counts[client] = np.bincount(mine, minlength=num_classes)
    image = right.imshow(counts, aspect="auto", cmap="Blues", interpolation="nearest")
    figure.colorbar(image, ax=right, label="images")
    which = "all clients" if shown == options.clients else f"the first {shown} clients"
    right.set(xlabel="class", ylabel="client", title=f"What {which} have")
    right.xaxis.get_major_locator().set_params(integer=True)
    right.yaxis.get_major_locator().set_params(integer=True)
    figure.suptitle(
        f"{int(data.counts.sum()):,} images at {options.clients} clients, {options.cohort} a round,"
        f" {options.algorithm} under {options.protocol}",
        fontsize=12,
    )
    figure.savefig(path, dpi=120)


def main(arguments=None):
    parser, options = parse_arguments(arguments)
    log = _common.make_log(options)
    log(
        f"own_data: {options.data or 'digits at 28 x 28'}, {options.clients} clients, "
        f"{options.cohort} a round, {options.rounds} rounds, split by {options.split}, "
        f"{options.algorithm}, {options.protocol}, seed {options.seed}"
    )
    import numpy as np

    rng = np.random.default_rng(options.seed)
    path = options.data
    if path is None:
        path = options.out / "digits_28x28"
        write_digits(path, rng)
    try:
        images, labels, test_images, test_labels, scale = load(path, rng)
    except DataError as problem:
        sys.exit(f"own_data: {problem}")
    if options.split == "class":
        owner = deal_by_class(labels, options.clients, options.classes, rng)
    else:
        owner = deal_dirichlet(labels, options.clients, options.alpha, rng)
    data = to_clients(images, labels, owner, options.clients)
    num_classes = 1 + int(max(labels.max(), test_labels.max()))
    counts = np.asarray(data.counts)
    log(
        f"{len(labels):,} images of {images.shape[1]} pixels, {num_classes} classes; "
        f"{counts.min()} to {counts.max()} at a client, {(counts == 0).sum()} clients have none; "
        f"{len(test_labels):,} to test"
    )

    definition, params = make_model(images.shape[1], num_classes, options.seed)
    plan = _common.plan_for(
        parser,
        params,
        options.protocol,
        num_clients=options.cohort,
        clip=CLIP,
        bits=options.bits,
        max_weight=min(MAX_WEIGHT, int(counts.max())),
    )
    log(str(plan))
    loss = make_loss(definition, scale)
    algorithm = _common.make_algorithm(
        options.algorithm,
        loss,
        client_rate=CLIENT_RATE,
        momentum=SERVER_MOMENTUM,
        adaptive_rate=ADAPTIVE_RATE,
        population=options.clients,
        epochs=options.epochs,
        batch_size=BATCH,
        codec=plan.codec(),
        protocol=_common.make_protocol(options.protocol, plan),
        max_weight=plan.max_weight,
    )
    must_match = ("clients", "split", "alpha", "classes", "epochs", "bits", "algorithm")
    record, _ = _common.train(
        "own_data",
        options,
        algorithm,
        params,
        data,
        evaluate=make_evaluate(loss, (test_images, test_labels)),
        columns=("test_accuracy", "test_loss"),
        settings={name: getattr(options, name) for name in must_match} | {"images": len(labels)},
        log=log,
    )

    result = {
        "test_accuracy": record.column("test_accuracy")[-1],
        "test_loss": record.column("test_loss")[-1],
        "rounds": len(record.rows),
        "rounds_ok": int(sum(record.column("ok"))),
        "images": len(labels),
        "clients": options.clients,
        "clients_without_data": int((counts == 0).sum()),
        "parameters": plan.size,
        "bits_per_coordinate": plan.ring_bits,
        "seconds_per_round": float(np.median(record.column("seconds"))),
        "algorithm": options.algorithm,
        "protocol": options.protocol,
    }
    figure = options.out / "own_data.png"
    write_figure(figure, record, data, num_classes, options)
    if options.json:
        print(json.dumps(result))
    else:
        print_table(result)
    log(f"{figure}\n{record.table}")


def print_table(result):
    rows = [
        ("test accuracy", f"{result['test_accuracy']:.4f}"),
        ("test loss", f"{result['test_loss']:.4f} nats"),
        ("rounds that succeeded", f"{result['rounds_ok']} of {result['rounds']}"),
        ("clients without an image", f"{result['clients_without_data']}"),
        ("parameters d", f"{result['parameters']:,}"),
        ("bits a coordinate", f"{result['bits_per_coordinate']}"),
        ("time a round", f"{result['seconds_per_round']:.3f} s"),
    ]
    for name, value in rows:
        print(f"  {name:<28}{value:>14}")


if __name__ == "__main__":
    _common.call(main)
