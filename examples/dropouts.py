"""Clients are lost in the middle of a round: who sees what, and what it costs.

First one round of SecAgg+ is printed stage by stage: what the server sees, what client 1 sees and
what a network observer may know. Then the digits of ``digits.py`` are trained while none to 40 %
of the clients are lost in every round, before they upload:

    Plain         in the clear: goes on with whoever is left
    SecAgg        every client shares its secrets with all others; its threshold is two thirds of
                  them
    SecAgg+       with some of the others, as planned for 20 % of lost clients
    LightSecAgg   every client sends all others a coded part of its mask, as planned for the same

All but Plain stop where too few are left to rebuild the masks, or where the sum would be over
fewer clients than was agreed: the clients refuse, nothing is opened, and the model stays as it
was. SecAgg+ and LightSecAgg can be planned for more lost clients; the one then needs more
neighbours, the other longer parts.

``--seed`` fixes the data split, the model, the sessions and who is lost (``fixed_seed``:
predictable, for experiments only).
"""

import csv
import hashlib
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import _common
import digits

RATES = (0.0, 0.1, 0.2, 0.3, 0.4)
QUICK_RATES = (0.0, 0.2, 0.4)
PROTOCOLS = ("Plain", "SecAgg", "SecAgg+", "LightSecAgg")
# Each protocol that hides something is a program that takes a while to compile.
QUICK_PROTOCOLS = ("Plain", "SecAgg+", "LightSecAgg")
STAGES = ("advertise", "share", "upload", "attest", "unmask")
PLANNED, COLLUSION = 0.2, 0.05
BITS = 16


def parse_arguments(arguments=None):
    parser = _common.make_parser(
        "Lose clients in the middle of secure rounds of training.",
        rounds=12,
        quick="10 clients, 4 rounds, 3 rates, no SecAgg",
    )
    parser.add_argument("--clients", type=int, default=20, help="default: 20")
    options = parser.parse_args(arguments)
    if options.quick:
        options.clients, options.rounds = min(options.clients, 10), min(options.rounds, 4)
    _common.check_ranges(parser, options, clients=(5, 100))
    return parser, options


def make_training(definition, data, seed):
    """What all clients would like the server to subtract in a round, and the test accuracy."""
    import jax
    import jax.numpy as jnp

    import fedjax_agg as fa
    from fedjax_agg.federated import ServerState

    # Only its clients are used: the rule of the server is that of ``server_step``.
    clients = digits.make_algorithm(definition, "fedavg", fa.FixedPoint(digits.CLIP))
    train_clients, accuracy = digits.make_training(definition, data, clients, seed)

    @jax.jit
    def changes(params, round_id):
        (updates,) = train_clients(ServerState(params, ()), round_id).update
        return jax.tree.map(jnp.negative, updates)

    return changes, accuracy


def make_plans(params, num_clients, max_weight):
    """Plans of SecAgg+ and of LightSecAgg, for the same numbers; both have the same codec."""
    import fedjax_agg as fa

    return tuple(
        fa.plan_round(
            params,
            num_clients=num_clients,
            clip=digits.CLIP,
            bits=BITS,
            max_weight=max_weight,
            protocol=protocol,
            dropout=PLANNED,
            collusion=COLLUSION,
        )
        for protocol in ("secagg", "light-secagg")
    )


def make_programs(names, plans, counts, params, updates, session, participation):
    """The compiled server steps by protocol, their first states, and the transcript."""
    import jax
    import jax.numpy as jnp
    import optax

    import fedjax_agg as fa

    plan, coded = plans
    weights = jnp.minimum(jnp.asarray(counts, jnp.int32), plan.max_weight)
    codec = plan.codec()
    protocols = {
        "Plain": fa.Plain(group=plan.group),
        "SecAgg": fa.SecAgg(group=plan.group),
        "SecAgg+": plan.protocol(),
        "LightSecAgg": coded.protocol(),
    }
    protocols = {name: protocols[name] for name in names}

    def server_step(protocol):
        aggregate = fa.secure_aggregate(
            codec, protocol, num_clients=plan.num_clients, max_weight=plan.max_weight
        )
        rule = fa.apply_if_ok(aggregate, optax.sgd(1.0, momentum=0.6))

        def run(params, state, updates, session, participation):
            step, state = rule.update(
                updates,
                state,
                params,
                session=session,
                weights=weights,
                participation=participation,
            )
            return optax.apply_updates(params, step), state

        state = rule.init(params)
        jitted = jax.jit(run, compiler_options=fa.compiler_options())
        return jitted.lower(params, state, updates, session, participation), state

    def messages(protocol):
        def run(updates, session, participation):
            kept = fa.transcript(
                updates,
                session,
                codec=codec,
                protocol=protocol,
                weights=weights,
                max_weight=plan.max_weight,
                participation=participation,
            )
            # Without its report, the round need not be compiled a second time.
            return kept._replace(report=None)

        return jax.jit(run).lower(updates, session, participation)

    lowered = {name: server_step(protocol) for name, protocol in protocols.items()}
    programs = [program for program, _ in lowered.values()]
    programs += [messages(protocols[name]) for name in ("SecAgg+", "Plain")]
    # XLA compiles a program on one core: two programs at a time take two.
    with ThreadPoolExecutor() as pool:
        *steps, kept, in_the_clear = pool.map(lambda program: program.compile(), programs)
    states = [state for _, state in lowered.values()]
    return protocols, dict(zip(protocols, zip(steps, states))), (kept, in_the_clear)


def fewest(protocol, num_clients):
    """The fewest survivors whose sum is opened."""
    import fedjax_agg as fa

    if isinstance(protocol, fa.LightSecAgg):
        return protocol.survivors
    return protocol.min_survivors or protocol.threshold_of(num_clients) + 1


def lost_at(rate, num_clients):
    """How many clients a rate is: never more than it, as in a plan."""
    return int(rate * num_clients + 1e-6)


# One round, stage by stage.


def story_participation(seed, plan):
    """Some clients are lost before they upload, and one after it; client 1 stays."""
    import jax.numpy as jnp
    import numpy as np

    import fedjax_agg as fa

    others = np.random.default_rng(seed).permutation(np.arange(1, plan.num_clients))
    early = max(1, lost_at(0.1, plan.num_clients))
    late = early + (early < plan.dropped)
    alive = np.ones((5, plan.num_clients), bool)
    alive[2:, others[:early]] = False
    alive[3:, others[:late]] = False
    return fa.Participation(jnp.asarray(alive))


def print_round(kept, in_the_clear, plan, log):
    """Who sees what, from the views of the transcript alone; ``in_the_clear`` is Plain's."""
    import numpy as np

    n, k, t = plan.num_clients, plan.degree, plan.threshold
    server, network = kept.view(server=True), kept.view()
    client = kept.view(clients=(1,)).clients[1]
    board = network.public.board
    peers = sorted(int(peer) + 1 for peer in np.asarray(board.neighbours[0]))
    survivors = np.asarray(network.public.survivors)
    # Roundings are drawn alike under all protocols, and an upload of Plain is the words.
    own_words = in_the_clear.view(server=True).server["upload"].outboxes.words[0]

    def hexadecimal(words):
        return "".join(f"{int(word):08x}" for word in np.asarray(words).ravel()[:3]) + "..."

    def clients(flags):
        return ", ".join(str(index + 1) for index in np.flatnonzero(flags)) or "nobody"

    def lifted(words, count=5):
        words = np.asarray(plan.group.centre_lift(words)).ravel()[:count]
        return "  ".join(f"{int(word):,}" for word in words) + "  ..."

    def stage(name, what):
        sent = np.asarray(server.server[name].sent)
        gone = before & ~sent
        lost = f"   lost: {clients(gone)}" if gone.any() else ""
        log(f"\n{name}: {what}; {sent.sum()} of {before.sum()} send it{lost}")
        return sent

    def sees(who, *lines):
        for index, line in enumerate(lines):
            log(f"  {who if not index else '':<10}{line}")

    log(f"\nOne round of SecAgg+: {n} clients, each with {k} neighbours; {t} of them rebuild")
    log("a secret, and fewer learn nothing of it. Links to the server are taken for encrypted.")
    before = np.ones(n, bool)
    before = stage("advertise", "two public keys")
    sees("server", f"the keys of all, of client 1: {hexadecimal(board.keys.mask[0])}")
    sees("client 1", f"the same, and its neighbours: {', '.join(map(str, peers))}")
    sees("network", "the same: this is public")

    before = stage("share", "a share of two secrets for each neighbour, sealed")
    mail = server.server["share"]
    slot = int(np.argmin(np.asarray(board.neighbours[0])))
    sender = int(board.neighbours[0, slot]) + 1
    sees(
        "server",
        f"{int(mail.outboxes.sent.sum())} sealed messages; of client {sender} to client 1: "
        + hexadecimal(mail.inboxes.sealed.ciphertext[0, slot]),
    )
    own = client.private[1]
    sees("client 1", f"inside: {hexadecimal(own.shares[slot])}, one share where {t} are needed")
    sees("network", "that messages pass, and their lengths")

    before = stage("upload", f"{plan.length:,} words under masks")
    upload = server.server["upload"].outboxes.words[0]
    sees("client 1", f"has the words      {lifted(own_words)}")
    sees("server", f"sees of client 1   {lifted(upload)}")
    correlation = np.corrcoef(
        *(np.asarray(plan.group.centre_lift(words), np.float64) for words in (own_words, upload))
    )[0, 1]
    sees("", f"correlation of the two: {correlation:+.4f}, by chance {plan.length**-0.5:.4f}")
    sees("network", f"who uploaded, and {plan.cost.bytes_up['upload']:,} bytes from each")

    before = stage("attest", "to each neighbour: this is the set of survivors")
    sees("server", "tags that it cannot make itself, so it cannot name two sets")
    tags = client.received["attest"]
    agreed = int(np.asarray(tags.sent).sum())
    sees("client 1", f"{agreed} tags from neighbours for the same set; it needs {t}")
    sees("network", f"the survivors: all but {clients(~survivors)}")

    before = stage("unmask", "for each neighbour one share, of one of its two secrets")
    revealed = np.asarray(server.server["unmask"].outboxes.sent)
    of_lost = ~survivors[np.asarray(board.neighbours)]
    sees(
        "server",
        f"{int((revealed & ~of_lost).sum())} shares of self seeds of survivors,",
        f"{int((revealed & of_lost).sum())} shares of recovery secrets of {clients(~survivors)}",
    )
    answered = np.asarray(client.sent["unmask"].sent)
    sees("client 1", f"that it gave {int(answered.sum())} shares, and never two of one neighbour")
    sees("network", "who answered")

    total = server.total
    exact = bool((np.asarray(total.words) == np.asarray(in_the_clear.total.words)).all())
    log(f"\ntotal: the server alone has it, over {survivors.sum()} clients")
    sees("server", f"the sum            {lifted(total.words)}")
    log(f"  equal to the sum of the survivors' own words, bit for bit: {'yes' if exact else 'NO'}")
    if not (exact and bool(total.ok)):
        raise SystemExit("the round failed")


# Training.


class Rows:
    """The rows of finished runs, as a table for people and as a checkpoint, one run after another.

    A run of a protocol at a rate takes seconds: one that was interrupted is made again.
    """

    def __init__(self, options):
        """With ``--resume`` those of an earlier run of the same settings."""
        self.table, self.checkpoint = options.out / "dropouts.csv", options.out / "dropouts.json"
        self.settings = {name: getattr(options, name) for name in ("clients", "rounds", "seed")}
        self.rows = self._load() if options.resume and self.checkpoint.exists() else []

    def _load(self):
        try:
            kept = json.loads(self.checkpoint.read_text())
            settings, rows = kept["settings"], kept["rows"]
        except (OSError, ValueError, KeyError, TypeError) as problem:
            sys.exit(f"--resume: {self.checkpoint} cannot be read: {problem}")
        _common.check_settings(self.checkpoint, settings, self.settings)
        return rows

    def find(self, name, rate):
        """The row of a protocol and a rate, or None."""
        found = (row for row in self.rows if (row["protocol"], row["dropout"]) == (name, rate))
        return next(found, None)

    def add(self, row):
        """One more, in both files."""
        self.rows.append(row)
        partial = self.checkpoint.with_suffix(".partial")
        partial.write_text(json.dumps({"settings": self.settings, "rows": self.rows}))
        os.replace(partial, self.checkpoint)
        write_csv(self.table, self.rows)


def digest(model):
    """Of all bits of a model."""
    import jax
    import numpy as np

    leaves = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(model)]
    return hashlib.sha256(b"".join(leaves)).hexdigest()


def train(options, plan, rates, params, training, steps, sessions):
    """A row for each protocol and rate; whether models of runs that never stopped are Plain's."""
    import jax
    import numpy as np
    import tqdm

    import fedjax_agg as fa

    changes, accuracy = training
    seed, n = fa.fixed_seed(options.seed), plan.num_clients
    record = Rows(options)
    runs = [(name, rate) for name in steps for rate in rates]
    missing = [run for run in runs if record.find(*run) is None]
    bar = tqdm.tqdm(
        total=len(runs) * options.rounds,
        initial=(len(runs) - len(missing)) * options.rounds,
        desc="rounds",
        file=sys.stderr,
        mininterval=0.5,
    )
    for name, rate in missing:
        step, state = steps[name]
        model, times, succeeded, reasons = params, [], 0, set()
        for r in range(options.rounds):
            session = sessions(r)
            alive = fa.drop_clients(seed, n, rate, round_id=r)
            inputs = jax.block_until_ready((changes(model, session.round_id), session, alive))
            began = time.perf_counter()
            model, state = jax.block_until_ready(step(model, state, *inputs))
            times.append(time.perf_counter() - began)
            report = state.aggregate.report
            succeeded += bool(report.ok)
            reasons |= {rule for rule, count in report.refusals.items() if int(count)}
            bar.update()
        bar.set_postfix_str(f"{name}, {rate:.0%} lost")
        up, down = (
            {stage: int(count) for stage, count in counts.items()}
            for counts in (report.bytes_up, report.bytes_down)
        )
        record.add(
            {
                "protocol": name,
                "dropout": rate,
                "lost": lost_at(rate, n),
                "accuracy": float(accuracy(model)),
                "rounds_ok": succeeded,
                "refused": sorted(reasons),
                "bytes_up": up,
                "bytes_down": down,
                "seconds_per_round": float(np.median(times)),
                "model": digest(model),
            }
        )
    bar.close()
    rows = [record.find(*run) for run in runs]
    equal = all(
        row["model"] == record.find("Plain", row["dropout"])["model"]
        for row in rows
        if row["rounds_ok"] == options.rounds
    )
    return rows, equal, record.table


def write_figure(path, rows, names, plan, rounds, untrained):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 3.9), layout="constrained")
    styles = {
        "Plain": {"color": "C1", "linestyle": "-", "linewidth": 5, "markersize": 8},
        "SecAgg": {"color": "C0", "linestyle": "--", "linewidth": 2.5, "markersize": 6},
        "SecAgg+": {"color": "C2", "linestyle": ":", "linewidth": 2.5, "markersize": 4},
        "LightSecAgg": {"color": "C3", "linestyle": "-.", "linewidth": 1.5, "markersize": 2},
    }
    for name in names:
        mine, style = [row for row in rows if row["protocol"] == name], styles[name]
        percent = np.array([100 * row["dropout"] for row in mine])
        good = np.array([row["rounds_ok"] == rounds for row in mine])
        accuracy = np.array([row["accuracy"] for row in mine])
        milliseconds = np.array([1e3 * row["seconds_per_round"] for row in mine])
        left.plot(percent[good], accuracy[good], marker="o", label=name, **style)
        right.plot(percent, milliseconds, label=name, **style | {"linewidth": 2})
        cross = {"color": style["color"], "markersize": 4 + 2 * style["markersize"], "mew": 2.5}
        left.plot(percent[~good], accuracy[~good], "x", **cross)
        right.plot(percent[~good], milliseconds[~good], "x", **cross)
        right.plot(percent[good], milliseconds[good], "o", color=style["color"], markersize=6)
    left.plot([], [], "x", color="0.4", markersize=10, mew=2.5, label="refuses: nothing is opened")
    left.axhline(untrained, color="0.6", linewidth=1, linestyle=":", label="before training")
    left.set(
        xlabel="clients lost in every round (%)",
        ylabel="test accuracy",
        ylim=(0, 1),
        title=f"Accuracy after {rounds} rounds",
    )
    left.legend(loc="center left", fontsize=9)
    first = {name: next(row for row in rows if row["protocol"] == name) for name in names}
    for index, (name, row) in enumerate(first.items()):
        kilobytes = [
            (row["bytes_up"].get(stage, 0) + row["bytes_down"].get(stage, 0)) / 1e3
            for stage in STAGES
        ]
        middle.bar(
            np.arange(len(STAGES)) + (index - (len(names) - 1) / 2) * 0.2,
            kilobytes,
            color=styles[name]["color"],
            label=f"{name}: {sum(kilobytes):,.0f} kB in all",
            width=0.2,
        )
    middle.set(
        xticks=range(len(STAGES)),
        xticklabels=STAGES,
        yscale="log",
        ylim=(0.1, 1e5),
        ylabel="kB a round, both ways (log)",
        title="Bytes of one client, by stage",
    )
    middle.legend(fontsize=9, loc="upper left")
    right.set(
        xlabel="clients lost in every round (%)",
        yscale="log",
        ylabel="ms a round, clients and server (log)",
        title="Time of a round, one process for all",
    )
    seconds = [row["seconds_per_round"] for row in rows]
    # Room for the legend.
    right.set_ylim(5e2 * min(seconds), 1e4 * max(seconds))
    right.legend(fontsize=9, loc="upper left", ncols=2)
    for axis in (middle, right):
        axis.yaxis.set_major_formatter("{x:,g}")
        axis.grid(alpha=0.3, axis="y")
    everybody = plan.num_clients - 1
    degrees = {"SecAgg": everybody, "SecAgg+": plan.degree, "LightSecAgg": everybody}
    neighbours = ", ".join(f"{degrees[name]} in {name}" for name in names if name in degrees)
    figure.suptitle(
        f"Dropouts: {plan.num_clients} clients, {plan.size:,} parameters; neighbours a client: "
        f"{neighbours}, planned for {PLANNED:.0%} lost",
        fontsize=12,
    )
    figure.savefig(path, dpi=120)


def write_csv(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        columns = ["protocol", "dropout", "lost", "accuracy", "rounds_ok", "refused"]
        writer.writerow([*columns, "bytes_up", "bytes_down", "seconds_per_round"])
        for row in rows:
            writer.writerow(
                [
                    *(row[column] for column in columns[:-1]),
                    " ".join(row["refused"]),
                    sum(row["bytes_up"].values()),
                    sum(row["bytes_down"].values()),
                    row["seconds_per_round"],
                ]
            )


def print_table(rows, clients, rounds, stops, equal):
    print()
    heads = ("protocol", "lost", "accuracy", "rounds", "sent", "received", "time a round", "")
    print("  {:<13}{:>6}{:>10}{:>8}{:>11}{:>11}{:>14}  {}".format(*heads))
    for row in rows:
        why = f"refused: {', '.join(row['refused'])}" if row["rounds_ok"] < rounds else ""
        print(
            f"  {row['protocol']:<13}{row['dropout']:>6.0%}{row['accuracy']:>10.4f}"
            f"{row['rounds_ok']:>5}/{rounds:<2}"
            f"{sum(row['bytes_up'].values()):>9,} B{sum(row['bytes_down'].values()):>9,} B"
            f"{1e3 * row['seconds_per_round']:>11.1f} ms  {why}".rstrip()
        )
    print()
    for name, least in stops.items():
        more = f"more than {clients - least} of {clients} are lost"
        print(f"  {name} stops when {more}: it opens no sum of fewer than {least}")
    same = "yes" if equal else "NO"
    print(f"  models equal to those of Plain, bit for bit, wherever no round stopped: {same}")


def main(arguments=None):
    parser, options = parse_arguments(arguments)
    log = _common.make_log(options)
    rates = QUICK_RATES if options.quick else RATES
    names = QUICK_PROTOCOLS if options.quick else PROTOCOLS
    log(
        f"dropouts: {options.clients} clients, {options.rounds} rounds, "
        f"{rates[0]:.0%} to {rates[-1]:.0%} lost, seed {options.seed}: {', '.join(names)}"
    )
    import jax
    import numpy as np

    import fedjax_agg as fa

    data = digits.split_digits(options.clients, np.random.default_rng(options.seed))
    definition, params = digits.make_model(options.seed)
    try:
        plans = make_plans(params, options.clients, min(digits.MAX_WEIGHT, int(data[2].max())))
    except ValueError as problem:
        parser.error(str(problem))
    plan, coded = plans
    log(f"{plan}\n\nLightSecAgg:\n{coded}\n")
    seed = fa.fixed_seed(options.seed)
    sessions = jax.jit(
        lambda r: fa.simulated_session(seed, num_clients=plan.num_clients, round_id=r)
    )
    training = make_training(definition, data, options.seed)
    session, story = sessions(0), story_participation(options.seed, plan)
    updates = training[0](params, session.round_id)
    log("compiling the rounds (a minute on a slow machine) ...")
    began = time.perf_counter()
    protocols, steps, transcripts = make_programs(
        names, plans, data[2], params, updates, session, story
    )
    log(f"compiled in {time.perf_counter() - began:.1f} s")

    print_round(*(transcript(updates, session, story) for transcript in transcripts), plan, log)
    log("")
    rows, equal, table = train(options, plan, rates, params, training, steps, sessions)
    stops = {
        name: fewest(protocol, plan.num_clients)
        for name, protocol in protocols.items()
        if name != "Plain"
    }
    figure = options.out / "dropouts.png"
    write_figure(figure, rows, names, plan, options.rounds, float(training[1](params)))
    if options.json:
        result = {
            "clients": plan.num_clients,
            "rounds": options.rounds,
            "parameters": plan.size,
            "degree": plan.degree,
            "threshold": plan.threshold,
            "fewest_survivors": stops,
            "equal_to_plain": equal,
            "rows": rows,
        }
        print(json.dumps(result))
    else:
        print_table(rows, plan.num_clients, options.rounds, stops, equal)
    log(f"{figure}\n{table}")


if __name__ == "__main__":
    _common.call(main)
