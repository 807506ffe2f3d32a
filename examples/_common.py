"""What the examples share: flags, the record of a run that can be resumed, algorithms, protocols.

Nothing here imports JAX when it is itself imported, so that an example can say at once what it
is going to do.
"""

import argparse
import csv
import json
import math
import os
import pathlib
import signal
import sys
import time
import zipfile

ALGORITHMS = (
    "fedsgd",
    "fedavg",
    "fedavgm",
    "fedprox",
    "fedadam",
    "fedyogi",
    "fedadagrad",
    "scaffold",
    "mimelite",
)
PROTOCOLS = ("secagg", "secagg+", "plain")
# SecAgg+ is planned for this part of the clients lost, and this part corrupt.
DROPOUT, COLLUSION = 0.2, 0.1
# The signals of Ctrl-C that have come.
interrupts: list[int] = []


def make_parser(description, *, rounds, quick):
    """The flags of every example; ``quick`` says what ``--quick`` leaves at most."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=rounds, help=f"default: {rounds}")
    parser.add_argument(
        "--seed", type=int, default=0, help="of data, model and sessions; default: 0"
    )
    parser.add_argument("--quick", action="store_true", help=f"at most {quick}")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"))
    parser.add_argument("--json", action="store_true", help="print one JSON object and no table")
    parser.add_argument(
        "--resume", action="store_true", help="go on after the last round that --out has"
    )
    return parser


def check_ranges(parser, options, **ranges):
    """Every flag within its range, and a folder to write to."""
    ranges |= {"rounds": (1, 10_000), "seed": (0, 2**32 - 1)}
    for name, (low, high) in ranges.items():
        value = getattr(options, name)
        if not low <= value <= high:
            parser.error(f"--{name.replace('_', '-')} {value} must be from {low} to {high}")
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        parser.error(f"--out {options.out} cannot be written: {problem.strerror}")


def make_log(options):
    """Prints a line at once: to stdout, or beside the JSON object to stderr."""

    def log(line):
        print(line, file=sys.stderr if options.json else sys.stdout, flush=True)

    return log


def call(main):
    """Runs an example; Ctrl-C ends it with one line."""
    signal.signal(signal.SIGINT, _interrupt)
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\ninterrupted: the same command with --resume goes on where it was")


def _interrupt(number, frame):
    interrupts.append(number)
    raise KeyboardInterrupt


def check_settings(checkpoint, then, now):
    """Ends the program with one line where a run was begun with other settings."""
    for name, value in now.items():
        if then.get(name) != value:
            was = f"{checkpoint} was run with {name} {then.get(name)}"
            sys.exit(f"--resume: {was}, now {value}")


class Record:
    """The rows of a run in ``<stem>.csv`` and its last state in ``<stem>.npz``, round by round.

    A run that is killed leaves both, and the library's rounds follow from the seed and their
    number, so a resumed run ends like one that was never interrupted. ``settings`` are what must
    be the same for that.
    """

    def __init__(self, stem, columns, settings, *, unit="round", first=1):
        self.table, self.checkpoint = stem.with_suffix(".csv"), stem.with_suffix(".npz")
        self.columns, self.settings, self.unit, self.first = columns, settings, unit, first
        self.rows = []

    def start(self, state, resume):
        """The state to begin with, which is the last one of an earlier run to be resumed."""
        if resume and self.checkpoint.exists():
            state = self._load(state)
        with self.table.open("w", newline="") as file:
            csv.writer(file).writerows([(self.unit, *self.columns), *self._numbered(self.rows)])
        return state

    def add(self, row, state):
        """The row of a round, and the state after it."""
        import jax
        import numpy as np

        self.rows.append([float(value) for value in row])
        leaves = {f"leaf{i}": np.asarray(x) for i, x in enumerate(jax.tree.leaves(state))}
        # What is half written never bears the name of the checkpoint.
        partial = self.checkpoint.with_name(f"{self.checkpoint.stem}.partial.npz")
        np.savez(
            partial,
            rows=np.array(self.rows),
            settings=np.array(json.dumps(self.settings)),
            **leaves,
        )
        os.replace(partial, self.checkpoint)
        with self.table.open("a", newline="") as file:
            csv.writer(file).writerow(self._numbered(self.rows)[-1])

    def column(self, name):
        """The values of a column, one for each round."""
        return [row[self.columns.index(name)] for row in self.rows]

    def _numbered(self, rows):
        return [(number, *row) for number, row in enumerate(rows, self.first)]

    def _load(self, state):
        import jax
        import numpy as np

        leaves, structure = jax.tree.flatten(state)
        try:
            with np.load(self.checkpoint) as kept:
                settings, rows = json.loads(str(kept["settings"])), kept["rows"].tolist()
                found = [kept[f"leaf{i}"] for i in range(len(leaves))]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as problem:
            sys.exit(f"--resume: {self.checkpoint} cannot be read: {problem}")
        check_settings(self.checkpoint, settings, self.settings)
        self.rows = rows
        return jax.tree.unflatten(structure, [jax.numpy.asarray(leaf) for leaf in found])


def plan_for(parser, params, protocol, **numbers):
    """``plan_round``, with a graph where the protocol is SecAgg+; one line where it cannot be."""
    import fedjax_agg as fa

    graph = {"dropout": DROPOUT, "collusion": COLLUSION} if protocol == "secagg+" else {}
    try:
        return fa.plan_round(params, **numbers, **graph)
    except ValueError as problem:
        parser.error(str(problem))


def make_protocol(name, plan):
    """A protocol in the ring of a plan."""
    import fedjax_agg as fa

    if name == "secagg+":
        return plan.protocol()
    return (fa.SecAgg if name == "secagg" else fa.Plain)(group=plan.group)


def make_algorithm(
    name, loss, client_rate, *, epochs, batch_size, momentum, adaptive_rate, population, **common
):
    """An algorithm of ``fedjax_agg.federated`` by the name that a flag has for it.

    ``momentum`` is the server's in FedAvgM and that of the base optimizer in MimeLite,
    ``adaptive_rate`` the server's rate in FedAdam and its kin, ``population`` the number of all
    clients, each of which keeps a variate in SCAFFOLD.
    """
    import optax

    from fedjax_agg import federated

    client = optax.sgd(client_rate)
    if name == "fedsgd":
        return federated.FedSGD(loss, optax.sgd(client_rate, momentum=0.9), **common)
    local = {"epochs": epochs, "batch_size": batch_size, **common}
    if name == "fedavg":
        return federated.FedAvg(loss, client, **local)
    if name == "fedavgm":
        return federated.FedAvgM(loss, client, momentum=momentum, **local)
    if name == "fedprox":
        return federated.FedProx(loss, client, mu=0.1, **local)
    if name == "scaffold":
        local.pop("max_weight", None)  # Every client counts once.
        return federated.Scaffold(loss, client_rate, population=population, **local)
    if name == "mimelite":
        # Momentum makes steps longer: those of the sum of a geometric series.
        base = optax.sgd(client_rate * (1 - momentum), momentum=momentum)
        return federated.MimeLite(loss, base, **local)
    adaptive = {
        "fedadam": federated.FedAdam,
        "fedyogi": federated.FedYogi,
        "fedadagrad": federated.FedAdagrad,
    }
    return adaptive[name](loss, client, server_rate=adaptive_rate, **local)


def train(stem, options, algorithm, params, data, *, evaluate, columns, settings, log):
    """Rounds of an algorithm, one row and one checkpoint each: the record and the last state.

    ``evaluate(params)`` gives the first ``columns``. Those of a round that failed are those of the
    model that it left unchanged, and what only the clients know is then NaN.
    """
    import jax
    import jax.numpy as jnp

    import fedjax_agg as fa
    from fedjax_agg import federated

    seed = fa.fixed_seed(options.seed)

    def one_round(state, data, r):
        return federated.train(
            algorithm,
            state,
            data,
            seed,
            num_rounds=1,
            cohort=options.cohort,
            dropout=options.dropout,
            start_round=r,
        )

    settings |= {name: getattr(options, name) for name in ("cohort", "dropout", "protocol", "seed")}
    columns = [*columns, "train_accuracy", "train_loss", "clients", "ok", "seconds"]
    record = Record(options.out / stem, columns, settings)
    state = record.start(algorithm.init(params), options.resume)
    if len(record.rows) >= options.rounds:
        return record, state
    log("compiling a round (half a minute on a slow machine) ...")
    began = time.perf_counter()
    jitted = jax.jit(one_round, compiler_options=fa.compiler_options())
    compiled = jitted.lower(state, data, jnp.uint32(0)).compile()
    log(f"compiled in {time.perf_counter() - began:.1f} s")
    for r in progress(record, options.rounds):
        began = time.perf_counter()
        state, metrics, report = jax.block_until_ready(compiled(state, data, jnp.uint32(r)))
        seconds = time.perf_counter() - began
        ok = bool(report.ok[0])
        accuracy = metrics.correct[0] / metrics.examples[0] if ok else math.nan
        loss = metrics.loss[0] if ok else math.nan
        clients = report.survivors.sum() if ok else 0
        record.add([*evaluate(state.params), accuracy, loss, clients, ok, seconds], state)
    return record, state


def progress(record, rounds):
    """The numbers of the rounds that are not in the record, with a bar that shows its last row."""
    import tqdm

    done = len(record.rows)
    if done > rounds:
        sys.exit(f"--resume: {record.checkpoint} has {done} {record.unit}s, now {rounds}")
    with tqdm.tqdm(total=rounds, initial=done, desc=f"{record.unit}s", mininterval=0.5) as bar:
        for r in range(done, rounds):
            # An exception that is raised while Python collects garbage is lost.
            if interrupts:
                raise KeyboardInterrupt
            yield r
            bar.set_postfix_str(f"{record.columns[0]} {record.rows[-1][0]:.3f}", refresh=False)
            bar.update()
