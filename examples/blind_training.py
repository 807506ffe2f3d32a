"""Training in which the server adds what it cannot read, and every client opens the sum.

Each client holds a skewed handful of scikit-learn's digits and sends the gradient of its loss.
Three runs of the same rounds, with the same clients lost before they upload, are compared:

    server-side   ``secure_mean``: the server opens the mean and makes the step
    replicated    ``blind_mean``: the server sees noise; every client opens the sum and makes the
                  same step by the same rule, so that all models are that of the first run, bit
                  for bit; this is checked after every round
    personal      from one opened sum, each client makes a step by an optax rule and a schedule of
                  learning rates of its own; models drift apart, and no law makes them equal

A client that was lost in a round opens its sum too, when it is back.

``--seed`` fixes the data split, the model, the sessions and who is lost (``fixed_seed``:
predictable, for experiments only).
"""

import itertools
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import _common
import digits

RULES = ("sgd", "momentum", "adam", "yogi")
SCHEDULES = ("constant", "cosine", "halving")
RATES = {"sgd": 0.5, "momentum": 0.1, "adam": 0.003, "yogi": 0.01}
PROTOCOLS = ("secagg", "plain")
CLIP = 4.0
# A client's number of images is its weight, up to this: weights are part of the bit budget.
MAX_WEIGHT = 64


def parse_arguments(arguments=None):
    parser = _common.make_parser(
        "Train with a server that cannot read the sum.",
        rounds=40,
        quick="6 clients, 8 rounds, in the clear unless --protocol says otherwise",
    )
    parser.add_argument("--clients", type=int, default=12, help="default: 12")
    parser.add_argument("--bits", type=int, default=16, help="of one client's word; default: 16")
    parser.add_argument(
        "--rule", choices=RULES, default="adam", help="of the first two runs; default: adam"
    )
    parser.add_argument(
        "--dropout", type=float, default=0.2, help="part lost in every round; default: 0.2"
    )
    parser.add_argument("--protocol", choices=PROTOCOLS, help="default: secagg")
    options = parser.parse_args(arguments)
    if options.quick:
        options.clients, options.rounds = min(options.clients, 6), min(options.rounds, 8)
    options.protocol = options.protocol or ("plain" if options.quick else "secagg")
    _common.check_ranges(parser, options, clients=(3, 100), dropout=(0.0, 1.0))
    return parser, options


# Rules.


def make_rule(name, rate):
    import optax

    if name == "momentum":
        return optax.sgd(rate, momentum=0.9)
    return {"sgd": optax.sgd, "adam": optax.adam, "yogi": optax.yogi}[name](rate)


def make_schedule(name, rate, rounds):
    import optax

    if name == "cosine":
        return optax.cosine_decay_schedule(rate, rounds)
    if name == "halving":
        return optax.exponential_decay(rate, max(1, rounds // 3), 0.5, staircase=True)
    return optax.constant_schedule(rate)


def personal_rules(clients, rounds):
    """For each client a rule and a schedule, no two alike among twelve, and their names."""
    pairs = itertools.islice(itertools.cycle(itertools.product(SCHEDULES, RULES)), clients)
    names = [(rule, schedule) for schedule, rule in pairs]
    # One object for each pair, so that those who share it share a compiled program.
    made = {
        (rule, schedule): make_rule(rule, make_schedule(schedule, RATES[rule], rounds))
        for rule, schedule in names
    }
    return [made[pair] for pair in names], names


# Programs.


def make_programs(options, plan, protocol, definition, params, data, rules):
    """All that is compiled, by name: the parts of a round, and the step of each rule."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from flax import nnx

    import fedjax_agg as fa

    n, seed, codec = options.clients, fa.fixed_seed(options.seed), plan.codec()
    images, labels, counts, test_images, test_labels = (jnp.asarray(part) for part in data)
    shared = {
        "codec": codec,
        "protocol": protocol,
        "weights": jnp.minimum(counts.astype(jnp.int32), plan.max_weight),
        "max_weight": plan.max_weight,
    }

    def begin(r):
        """The session of a round, and who is there."""
        session = fa.simulated_session(seed, num_clients=n, round_id=r)
        return session, fa.drop_clients(seed, n, options.dropout, round_id=r)

    def loss(params, client_images, client_labels, count):
        logits = nnx.merge(definition, params)(client_images)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, client_labels)
        return jnp.sum(jnp.where(jnp.arange(losses.size) < count, losses, 0.0)) / count

    def gradients(models):
        """Of every client's loss at a model of its own."""
        return jax.vmap(jax.grad(loss))(models, images, labels, counts)

    def accuracy(params):
        logits = nnx.merge(definition, params)(test_images)
        return jnp.mean(jnp.argmax(logits, -1) == test_labels)

    def open_round(grads, session, alive):
        return fa.secure_mean(grads, session, participation=alive, **shared)

    def blind_round(grads, session, alive, group):
        return fa.blind_mean(grads, session, group, participation=alive, **shared)

    def open_by_all(blinded, keys):
        """What every client makes of the broadcast with its own copy of the group key."""
        return jax.vmap(lambda key: fa.open_blind(blinded, key, codec=codec))(keys)

    def step_of(rule):
        def step(holding, mean, ok):
            """A step of a client, or of the server: (model, state of the rule)."""
            params, state = holding
            update, moved = rule.update(mean, state, params)
            new = optax.apply_updates(params, update), moved
            # A round that failed changes nothing.
            return jax.tree.map(lambda a, b: jnp.where(ok, a, b), new, holding)

        return step

    first = np.uint32(0)
    models = stack([params] * n)
    session, alive = jax.eval_shape(begin, first)
    group, _ = jax.eval_shape(fa.agree_group_key, session)
    blinded, _ = jax.eval_shape(blind_round, models, session, alive, group)
    wanted = {
        "blind": (blind_round, models, session, alive, group),
        "open": (open_round, models, session, alive),
        "agree": (fa.agree_group_key, session),
        "open by all": (open_by_all, blinded, group.keys),
        "begin": (begin, first),
        "gradients": (gradients, models),
        "accuracy": (accuracy, params),
    }
    # The server of the first run and the clients of the second call one program: a step that XLA
    # compiles together with something else may round differently in the last bit.
    for rule in dict.fromkeys(rules):
        wanted[rule] = (step_of(rule), (params, rule.init(params)), params, np.bool_(True))
    # A short run spends most of its time in the compiler.
    options = {"xla_backend_optimization_level": 0} if options.quick else fa.compiler_options()
    lowered = [
        jax.jit(function, compiler_options=options).lower(*arguments)
        for function, *arguments in wanted.values()
    ]
    # XLA compiles a program on one core: several programs at a time take several cores.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(wanted, pool.map(lambda program: program.compile(), lowered)))


def row(tree, i):
    import jax

    return jax.tree.map(lambda leaf: leaf[i], tree)


def stack(trees):
    import jax
    import numpy as np

    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def same_bits(a, b):
    """Whether two trees of arrays are equal bit for bit."""
    import jax
    import numpy as np

    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in leaves)


# Rounds.


def train(options, plan, protocol, definition, params, data, log):
    """All three runs: the record, what the server saw of the first sum, and the report."""
    import jax
    import numpy as np

    n = options.clients
    common = make_rule(options.rule, RATES[options.rule])
    rules, _ = personal_rules(n, options.rounds)
    log("compiling the rounds (a minute on a slow machine) ...")
    began = time.perf_counter()
    programs = make_programs(options, plan, protocol, definition, params, data, [common, *rules])
    log(f"compiled in {time.perf_counter() - began:.1f} s")
    gradients, accuracy = programs["gradients"], programs["accuracy"]

    session, alive = programs["begin"](np.uint32(0))
    group, mail = programs["agree"](session)
    log(
        f"the server relayed {mail.wrapped.tag.shape[0]} sealed group keys and cannot open one; "
        f"{int(group.confirmed.sum())} of {n} clients confirmed theirs"
    )
    # The sum of the first round twice: what the server has, and what every client opens.
    grads = gradients(stack([params] * n))
    mean, report = programs["open"](grads, session, alive)
    blinded, _ = programs["blind"](grads, session, alive, group)
    flat = np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(mean)])
    opened = np.rint(flat.astype(np.float64) * float(report.total_weight) / plan.step)
    # After the coordinates come the sum of the weights and the tag.
    seen = np.asarray(plan.group.centre_lift(blinded.words[: plan.size]))

    columns = [
        "accuracy_server_side",
        "accuracy_replicated",
        "equal_bit_for_bit",
        "lost",
        "rounds_ok",
        "seconds_open",
        "seconds_blind",
        "seconds_to_open",
        *(f"accuracy_personal_{client}" for client in range(1, n + 1)),
    ]
    settings = {
        name: getattr(options, name)
        for name in ("clients", "rounds", "bits", "rule", "dropout", "protocol", "seed")
    }
    record = _common.Record(options.out / "blind_training", columns, settings)
    # What the server has of the first run, and what every client has of the others.
    start = {
        "server": (params, common.init(params)),
        "replicated": [(params, common.init(params))] * n,
        "personal": [(params, rule.init(params)) for rule in rules],
    }
    state = record.start(start, options.resume)
    run_of = {"replicated": [common] * n, "personal": rules}

    def timed(function, *arguments):
        began = time.perf_counter()
        result = jax.block_until_ready(function(*arguments))
        return result, time.perf_counter() - began

    for r in _common.progress(record, options.rounds):
        session, alive = programs["begin"](np.uint32(r))
        grads = gradients(stack([state["server"][0]] * n))
        (mean, report), seconds_open = timed(programs["open"], grads, session, alive)
        moved = {"server": programs[common](state["server"], mean, report.ok)}
        for run, own_rules in run_of.items():
            grads = gradients(stack([model for model, _ in state[run]]))
            (blinded, _), seconds_blind = timed(programs["blind"], grads, session, alive, group)
            (means, oks), seconds_to_open = timed(programs["open by all"], blinded, group.keys)
            moved[run] = [
                programs[rule](holding, row(means, i), oks[i])
                for i, (rule, holding) in enumerate(zip(own_rules, state[run]))
            ]
        state = moved
        equal = all(same_bits(state["server"], holding) for holding in state["replicated"])
        record.add(
            [
                accuracy(state["server"][0]),
                accuracy(state["replicated"][0][0]),
                equal,
                n - int(report.survivors.sum()) if report.ok else int((~alive.at("upload")).sum()),
                report.ok,
                seconds_open,
                seconds_blind,
                seconds_to_open / n,
                *(accuracy(model) for model, _ in state["personal"]),
            ],
            state,
        )
    return record, seen, opened, report


# Results.


def write_figure(path, record, names, seen, opened, plan, options):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    figure, axes = plt.subplots(2, 2, figsize=(11, 7.4), layout="constrained")
    (same, own), (server, client) = axes
    rounds = np.arange(1, len(record.rows) + 1)
    same.plot(
        rounds, record.column("accuracy_server_side"), color="0.7", linewidth=6, label="server-side"
    )
    same.plot(
        rounds, record.column("accuracy_replicated"), color="C0", linewidth=2, label="replicated"
    )
    same.set_title(f"One rule ({options.rule}): the same model, bit for bit")
    colours = {rule: f"C{i}" for i, rule in enumerate(RULES)}
    lines = dict(zip(SCHEDULES, ("-", "--", ":")))
    for i, (rule, schedule) in enumerate(names, 1):
        values = record.column(f"accuracy_personal_{i}")
        own.plot(rounds, values, color=colours[rule], linestyle=lines[schedule], linewidth=1.5)
    used = [(rule, {"color": colour}) for rule, colour in colours.items()]
    used += [(schedule, {"color": "0.3", "linestyle": line}) for schedule, line in lines.items()]
    for label, style in used:
        if any(label in pair for pair in names):
            own.plot([], [], label=label, **style)
    own.set_title("Personal: each client its own rule and rates")
    for panel in (same, own):
        panel.axhline(0.1, color="0.6", linewidth=1, linestyle="-.", label="chance")
        panel.set(xlabel="round", ylabel="test accuracy", ylim=(0, 1))
        panel.legend(loc="lower right", ncols=2)

    bins = 61
    half = 2 ** (plan.ring_bits - 1) / 1e6
    server.hist(seen / 1e6, bins=bins, range=(-half, half), color="C0")
    server.axhline(len(seen) / bins, color="k", linewidth=1, linestyle="--", label="if uniform")
    server.set(
        title="What the server has of the first sum",
        xlabel="word (millions of grid steps)",
        ylabel="coordinates",
    )
    server.legend(loc="lower right")
    edge = max(1, int(np.percentile(np.abs(opened), 99.5)))
    client.hist(opened / 1e3, bins=bins, range=(-edge / 1e3, edge / 1e3), color="C1", log=True)
    client.set(
        title="What every client opens",
        xlabel="sum (thousands of grid steps)",
        ylabel="coordinates (log scale)",
    )
    lost = int(record.column("lost")[-1])
    figure.suptitle(
        f"Blind training: {plan.num_clients} clients, {lost} lost in every round, "
        f"{plan.size:,} parameters",
        fontsize=12,
    )
    figure.savefig(path, dpi=120)


def main(arguments=None):
    parser, options = parse_arguments(arguments)
    log = _common.make_log(options)
    log(
        f"blind training: {options.clients} clients, {options.rounds} rounds, "
        f"up to {options.dropout:.0%} lost, {options.rule}, seed {options.seed}, "
        f"{options.protocol}: server-side, replicated, personal"
    )
    import numpy as np

    data = digits.split_digits(options.clients, np.random.default_rng(options.seed))
    definition, params = digits.make_model(options.seed)
    plan = _common.plan_for(
        parser,
        params,
        options.protocol,
        num_clients=options.clients,
        clip=CLIP,
        bits=options.bits,
        max_weight=min(MAX_WEIGHT, int(data[2].max())),
        blind=True,
    )
    log(str(plan))
    protocol = _common.make_protocol(options.protocol, plan)
    record, seen, opened, report = train(options, plan, protocol, definition, params, data, log)

    _, names = personal_rules(options.clients, options.rounds)
    personal = [record.column(f"accuracy_personal_{i + 1}")[-1] for i in range(options.clients)]
    equal = all(record.column("equal_bit_for_bit"))
    result = {
        "accuracy_server_side": record.column("accuracy_server_side")[-1],
        "accuracy_replicated": record.column("accuracy_replicated")[-1],
        "equal_bit_for_bit": equal,
        "accuracy_personal": personal,
        "personal_rules": [" ".join(pair) for pair in names],
        "rounds_ok": int(sum(record.column("rounds_ok"))),
        "rounds": len(record.rows),
        # A first round that failed has no sum.
        "correlation": float(np.corrcoef(seen, opened)[0, 1]) if opened.any() else None,
        "correlation_by_chance": plan.size**-0.5,
        "parameters": plan.size,
        "bits_per_coordinate": plan.ring_bits,
        "bytes_per_client": sum(int(count) for count in report.bytes_up.values()),
        "seconds_open": float(np.median(record.column("seconds_open"))),
        "seconds_blind": float(np.median(record.column("seconds_blind"))),
        "seconds_to_open": float(np.median(record.column("seconds_to_open"))),
        "rule": options.rule,
        "protocol": options.protocol,
    }
    figure = options.out / "blind_training.png"
    write_figure(figure, record, names, seen, opened, plan, options)
    if options.json:
        print(json.dumps(result))
    else:
        print_table(result, data[2])
    log(f"{figure}\n{record.table}")
    if not equal:
        sys.exit("a replicated model is not that of the server-side run")


def print_table(result, counts):
    personal = sorted(result["accuracy_personal"])
    correlation = result["correlation"]
    rows = [
        ("test accuracy, server-side", f"{result['accuracy_server_side']:.4f}"),
        ("test accuracy, replicated", f"{result['accuracy_replicated']:.4f}"),
        (
            "equal to the server-side run, bit for bit",
            "yes" if result["equal_bit_for_bit"] else "NO",
        ),
        ("test accuracy, personal: lowest", f"{personal[0]:.4f}"),
        ("    median", f"{personal[len(personal) // 2]:.4f}"),
        ("    highest", f"{personal[-1]:.4f}"),
        ("rounds that succeeded", f"{result['rounds_ok']} of {result['rounds']}"),
        (
            "server's words and sum: correlation",
            "-" if correlation is None else f"{correlation:+.4f}",
        ),
        ("    by chance", f"{result['correlation_by_chance']:.4f}"),
        ("parameters d", f"{result['parameters']:,}"),
        ("bits a coordinate", f"{result['bits_per_coordinate']}"),
        ("bytes a client and round", f"{result['bytes_per_client']:,}"),
        ("time a round, open", f"{result['seconds_open']:.3f} s"),
        ("time a round, blind", f"{result['seconds_blind']:.3f} s"),
        ("time to open, one client", f"{result['seconds_to_open'] * 1e3:.1f} ms"),
    ]
    for name, value in rows:
        print(f"  {name:<44}{value:>12}")
    print(f"\n  {'personal client':<18}{'rule and rates':<22}{'images':>7}{'accuracy':>10}")
    own = zip(result["personal_rules"], counts, result["accuracy_personal"])
    for i, (rule, count, accuracy) in enumerate(own, 1):
        print(f"  {i:<18}{rule:<22}{count:>7}{accuracy:>10.4f}")


if __name__ == "__main__":
    _common.call(main)
