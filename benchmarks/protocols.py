"""What dropouts cost: one client and the server of each protocol, apart, and Flower beside.

A cell is n clients with flat updates float32[d], under the graph that ``plan_round`` finds for a
rate of dropouts (SecAgg+), under the complete graph (SecAgg), or with masks that are coded for
that rate (LightSecAgg). Clients are lost at *upload*, which is what costs the server most. One
client is its part of the whole round; the server is ``recover``. The whole round of the cohort is
timed in a process of its own, for its memory.

Flower's figures are of its own functions: quantise, mask and Shamir. Both sides have the same
neighbours, dimension and cores, and neither agrees on keys. Flower comes with the ``bench`` extra.

    python benchmarks/protocols.py            # tables, ratios first
    python benchmarks/protocols.py --json     # the same as JSON
    python benchmarks/protocols.py --quick    # one small cell
"""

import _bench
import _flower

CLIENTS = (64, 256, 1000)
COORDINATES = 10**5
DROPOUTS = (0.0, 0.1, 0.3)
# Every client of LightSecAgg stores a part of the mask of each, and a simulation n times as much.
CODED_CLIENTS = (64, 256)
QUICK_CLIENTS = (32,)
QUICK_COORDINATES = 10**4
QUICK_DROPOUTS = (0.1,)
COLLUSION = 0.05
# The dropouts that happen, up to those that are planned for.
CURVE = (0.0, 0.1, 0.2, 0.3)
# Whole rounds, and Flower's figures, are of the plan for this.
COMPARED = 0.1

# A call that is planned to take longer is left out and listed.
CALL_LIMIT_SECONDS = 60.0
# The first guess, at the end of a neighbourhood: measured as soon as a cell has run.
SECONDS_PER_EDGE = 6e-5
PLANNED_BYTES_PER_EDGE = 4e3
# Of LightSecAgg for each word of a coded vector: coded, sealed, opened; and held four times.
SECONDS_PER_CODED_WORD = 2e-7
PLANNED_BYTES_PER_CODED_WORD = 16.0

TARGETS = {
    "client_vs_flower": 5.0,
    "shamir_vs_flower": 20.0,
    "secagg_plus_round_seconds_n1000": 60.0,
    "peak_gib_n1000": 4.0,
    "repair_share_of_server_at_0": 0.05,
    "light_secagg_server_ratio_30_over_0": 1.1,
}
# The others are upper bounds.
_AT_LEAST = ("client_vs_flower", "shamir_vs_flower")


def main() -> None:
    arguments = _bench.parser(__doc__).parse_args()
    if arguments.worker:
        task = _bench.enter_worker(arguments.worker)
        workers = {"plan": _plan, "cell": _cell, "round": _round, "flower": _beside_flower}
        workers[task["what"]](task)
        return
    host = _bench.machine() | _flower.versions()
    _bench.progress(_bench.describe(host))
    quick = arguments.quick
    seconds = 0.3 if quick else 3.0
    plan = _bench.worker(
        __file__,
        {
            "what": "plan",
            "clients": QUICK_CLIENTS if quick else CLIENTS,
            "coded_clients": QUICK_CLIENTS if quick else CODED_CLIENTS,
            "d": QUICK_COORDINATES if quick else COORDINATES,
            "dropouts": QUICK_DROPOUTS if quick else DROPOUTS,
            "complete": not quick,
        },
    )
    words_per_second, per_edge = plan["words_per_second"], SECONDS_PER_EDGE
    _bench.progress(f"one keystream after the other: {4e-9 * words_per_second:.2g} GB/s")
    skipped, cells, rounds, flower = [], [], [], []

    def fits(cell, what, planned, planned_bytes=0.0):
        """Whether a call may be made; lists it where not."""
        needed = {"planned_seconds": planned, "limit": CALL_LIMIT_SECONDS}
        if planned_bytes > _bench.available_bytes():
            needed = {"planned_bytes": planned_bytes, "limit": _bench.available_bytes()}
        elif planned <= CALL_LIMIT_SECONDS:
            return True
        needed = {name: _bench.significant(value, 2) for name, value in needed.items()}
        skipped.append({"what": what, **_named(cell), **needed})
        return False

    for cell in plan["cells"]:
        edges = cell["n"] * cell["degree"]
        coded_words = edges * cell["words_per_edge"]
        longest = max(
            edges * per_edge + coded_words * SECONDS_PER_CODED_WORD,
            cell["server_words"] / words_per_second,
        )
        needed = edges * PLANNED_BYTES_PER_EDGE + coded_words * PLANNED_BYTES_PER_CODED_WORD
        if not fits(cell, "cell", longest, needed):
            continue
        compared = cell["protocol"] == "SecAgg+" and cell["planned"] == COMPARED
        with_flower = compared and host["flwr"] is not None
        task = {"seconds": seconds, "planned_seconds": longest, "with_flower": with_flower}
        cells.append(_bench.worker(__file__, cell | task | {"what": "cell"}))
        if edges >= 10**4 and not coded_words:
            per_edge = cells[-1]["seconds_to_prepare"] / edges
        if not compared:
            continue
        planned = cell["round_words"] / words_per_second + edges * per_edge
        bytes_of_updates = 8.0 * cell["n"] * cell["d"]
        if fits(cell, "round", planned, bytes_of_updates + PLANNED_BYTES_PER_EDGE * edges):
            task = {"what": "round", "seconds": seconds, "planned_seconds": planned}
            rounds.append(_bench.worker(__file__, cell | task))
        for cores in (None, _bench.allowed_cores()[:1]) if with_flower else ():
            task = {"what": "flower", "seconds": seconds, "cores": cores}
            flower.append(_bench.worker(__file__, cell | task))
    if host["flwr"] is None:
        skipped.append({"what": "flower", "why": _bench.why_not_installed(_flower.REQUIREMENT)})
    _show(_results(host, cells, rounds, flower, skipped), arguments.json)


def _named(cell):
    """What a cell is called in results."""
    return {name: cell[name] for name in ("protocol", "n", "d", "planned", "degree", "threshold")}


# Workers.


def _plan(task) -> None:
    """The cells, from small to large, with the keystream that they need; and its rate here."""
    import jax.numpy as jnp

    import fedjax_agg as fa

    d, cells = task["d"], []
    for n in task["clients"]:
        for dropout in task["dropouts"]:
            plan = fa.plan_round(
                d, num_clients=n, clip=1.0, bits=16, dropout=dropout, collusion=COLLUSION
            )
            cells.append(_planned("SecAgg+", plan.protocol(), n, d, dropout, plan.dropped))
        if task["complete"]:
            # The most clients that may be lost while its threshold is still reached.
            dropout = max(task["dropouts"])
            cells.append(_planned("SecAgg", fa.SecAgg(), n, d, dropout, int(dropout * n)))
    dropout = max(task["dropouts"])
    for n in task["coded_clients"]:
        plan = fa.plan_round(
            d,
            num_clients=n,
            clip=1.0,
            bits=16,
            protocol="light-secagg",
            dropout=dropout,
            collusion=COLLUSION,
        )
        cells.append(_coded("LightSecAgg", plan, n, d, dropout))
    cells.sort(key=lambda cell: cell["n"] * cell["degree"])
    keys = jnp.arange(64 * 8, dtype=jnp.uint32).reshape(64, 8)
    call = _compiled(_masks(d), keys, jnp.ones(64, jnp.uint32))
    times = _bench.interleaved({"masks": call}, seconds=0.5)["masks"]
    rate = 64 * d / _bench.summary(times)["median"]
    _bench.report({"cells": cells, "words_per_second": rate})


def _planned(name, protocol, n, d, planned, dropped):
    server = protocol.cost(d, n, dropped)
    return {
        "protocol": name,
        "n": n,
        "d": d,
        "planned": planned,
        "degree": protocol.degree_of(n),
        "threshold": protocol.threshold_of(n),
        "min_survivors": protocol.min_survivors,
        "words_per_edge": 0,
        "server_words": server.server_keystream_words["unmask"],
        "round_words": server.server_keystream_words["unmask"]
        + n * server.client_keystream_words["upload"],
    }


def _coded(name, plan, n, d, planned):
    """A cell of LightSecAgg: everybody is a neighbour, and U clients must answer."""
    parts = plan.survivors - plan.privacy
    return {
        "protocol": name,
        "n": n,
        "d": d,
        "planned": planned,
        "degree": n - 1,
        "threshold": plan.survivors,
        "privacy": plan.privacy,
        "words_per_edge": -(-d // parts),
        "stored_bytes": plan.stored_bytes,
        "server_words": 0,
    }


def _masks(d):
    import jax.numpy as jnp

    from fedjax_agg.symmetric.chacha20 import keystream_sum

    return lambda keys, signs: keystream_sum(keys, signs, jnp.zeros(3, jnp.uint32), d)


def _compiled(function, *arguments):
    """A call that returns when the work is done; it is compiled here and now."""
    import jax

    import fedjax_agg as fa

    program = jax.jit(function, compiler_options=fa.compiler_options())
    compiled = program.lower(*arguments).compile()
    return lambda *other: jax.block_until_ready(compiled(*(other or arguments)))


def _protocol(task):
    import fedjax_agg as fa

    n, degree = task["n"], task["degree"]
    if task["protocol"] == "LightSecAgg":
        return fa.LightSecAgg(task["privacy"], task["threshold"])
    return fa.SecAgg(
        task["threshold"],
        None if degree == n - 1 else degree,
        min_survivors=task["min_survivors"],
    )


def _session(n):
    import jax

    import fedjax_agg as fa

    make = jax.jit(fa.simulated_session, static_argnames="num_clients")
    return make(fa.fixed_seed(0), num_clients=n)


def _lost(n, rate):
    """That part of the clients is lost at *upload*."""
    import fedjax_agg as fa

    return fa.drop_clients(fa.fixed_seed(1), n, rate)


def _encode(task):
    """One client's update, float32[d] -> its words."""
    import fedjax_agg as fa
    from fedjax_agg import rounding
    from fedjax_agg.structure import Structure

    codec, group = fa.FixedPoint(clip=1.0), _protocol(task).group

    def encode(update, rounding_key, ctx):
        units = codec.forward(update, ctx._replace(structure=Structure.of(update)))
        return group.wrap(rounding.round_to_grid(codec.rounding, units, rounding_key))

    return encode


def _update(d):
    import jax

    return 2.0 * d**-0.5 * jax.random.normal(jax.random.key(0), (d,))


def _cell(task) -> None:
    """One client, and the server at several dropouts, on the messages of a real round."""
    import time

    import jax
    import jax.numpy as jnp

    import fedjax_agg as fa
    from fedjax_agg.protocols.secagg import _server as server

    n, d, label = task["n"], task["d"], _label(task)
    protocol, codec = _protocol(task), fa.FixedPoint(clip=1.0)
    coded = isinstance(protocol, fa.LightSecAgg)
    _bench.progress(f"{label}: compiling the messages")

    # Keys, shares and what is revealed do not depend on the length of updates, but coded masks do.
    def messages(session, participation):
        kept = fa.transcript(
            jnp.zeros((n, d if coded else 1)),
            session,
            codec=codec,
            protocol=protocol,
            participation=participation,
        )
        return kept.stages, kept.public, kept.secrets, kept.private, kept.total.ok

    rates = [rate for rate in CURVE if rate <= task["planned"]]
    session = _session(n)
    prepare = _compiled(messages, session, _lost(n, 0.0))
    rounds, seconds = {}, []
    for rate in rates:
        begin = time.perf_counter()
        rounds[rate] = prepare(session, _lost(n, rate))
        seconds.append(time.perf_counter() - begin)
        assert bool(rounds[rate][-1]), f"the round of {label} failed at {rate}"
        if rate == rates[-1]:
            _bench.progress(f"{label}: compiling one client")
            stages, public, secrets, private, _ = rounds[rate]
            survivor = int(jnp.argmax(public.survivors))
            calls = _client_calls(task, stages, public, secrets, private, survivor)
            del private
        rounds[rate] = _as_the_server_needs_it(*rounds[rate])
    del prepare
    stages, public, secrets = rounds[rates[-1]]
    uploads = jax.random.bits(jax.random.key(1), (d,), jnp.uint32)

    def recover(uploads, stages, public):
        return protocol.recover(uploads, stages, public)

    def repair(secrets, stages, public):
        board = public.board
        lost = stages["share"].sent & ~public.survivors
        missing = lost[:, None] & public.survivors[board.neighbours]
        keys, signs = server._missing_keys(secrets, missing, board, public)
        count = jnp.sum(missing, dtype=jnp.int32)
        return server._masks(keys, signs, count, missing.shape[0], d)

    _bench.progress(f"{label}: compiling the server")
    recovered = _compiled(recover, uploads, stages, public)
    repaired = None if coded else _compiled(repair, secrets, stages, public)
    for rate, (stages, public, secrets) in rounds.items():
        arguments = stages, public
        calls[f"server_{rate}"] = lambda a=arguments: recovered(uploads, *a)
        if repaired is not None:
            calls[f"repair_{rate}"] = lambda a=arguments, s=secrets: repaired(s, *a)
        assert bool(calls[f"server_{rate}"]().ok)
    if task["with_flower"]:
        calls["flower_client"] = _flower_calls(task)["client"]

    _bench.progress(f"{label}: timing")
    quick_enough = task["planned_seconds"] < 10
    times = _bench.interleaved(
        calls,
        seconds=2 * task["seconds"],
        least=3 if quick_enough else 2,
        warm=quick_enough,
    )
    curve = [
        {
            "dropout": rate,
            "lost": int(n - jnp.sum(rounds[rate][1].survivors)),
            "server_milliseconds": _milliseconds(times[f"server_{rate}"]),
            **_repair(times, rate),
            "server_over_none_lost": _bench.summary(
                _bench.ratios(times[f"server_{rate}"], times["server_0.0"])
            ),
        }
        for rate in rates
    ]
    result = _named(task) | {
        "client_milliseconds": _milliseconds(times["client"]),
        "upload_milliseconds": _milliseconds(times["upload"]),
        "mask_milliseconds": _milliseconds(times["mask"]),
        "server": curve,
        "seconds_to_prepare": _bench.significant(min(seconds)),
    }
    if coded:
        result["stored_bytes"] = task["stored_bytes"]
    else:
        shares = _bench.ratios(times["repair_0.0"], times["server_0.0"])
        result["repair_share_at_0"] = _bench.summary(shares)
    if "flower_client" in times:
        ratios = _bench.ratios(times["flower_client"], times["client"])
        result["flower_client_milliseconds"] = _milliseconds(times["flower_client"])
        result["whole_client_vs_flower"] = _bench.summary(ratios)
    _bench.report(result)


def _as_the_server_needs_it(stages, public, secrets, *_):
    """Without the messages between clients, which are most of what a round of coded masks holds."""
    shared = stages["share"]._replace(outboxes=None, inboxes=None)
    return {**stages, "share": shared}, public, secrets


def _repair(times, rate):
    """What only a protocol has that removes the masks of lost clients."""
    name = f"repair_{rate}"
    return {"repair_milliseconds": _milliseconds(times[name])} if name in times else {}


def _client_calls(task, stages, public, secrets, private, index):
    """The whole part of one client, the upload alone, and its masks alone."""
    import jax
    import jax.numpy as jnp

    protocol, encode, d = _protocol(task), _encode(task), task["d"]
    before = public._replace(survivors=None, client=jnp.uint32(index + 1))

    def row(tree):
        return jax.tree.map(lambda x: x[index], tree)

    def client(secret, update, rounding_key, shares, attestations, ctx, survivors):
        private = protocol.join(secret, ctx)
        outboxes = []
        for stage in protocol.prepare(task["n"]):
            private, outbox = stage.client(private, None, ctx)
            outboxes.append(outbox)
        private = protocol.receive(private, shares, ctx)
        outboxes.append(protocol.protect(encode(update, rounding_key, ctx), private, ctx))
        inbox, ctx = None, ctx._replace(survivors=survivors)
        for stage in protocol.respond(task["n"]):
            private, outbox = stage.client(private, inbox, ctx)
            outboxes.append(outbox)
            inbox = attestations
        return outboxes, protocol.refusals(private)

    def upload(update, rounding_key, private, ctx):
        return protocol.protect(encode(update, rounding_key, ctx), private, ctx)

    update, rounding_key, own = _update(d), jnp.arange(8, dtype=jnp.uint32), row(private)
    calls = {
        "client": _compiled(
            client,
            *(secrets[index], update, rounding_key),
            *(row(stages["share"].inboxes), row(stages["attest"].inboxes)),
            *(before, public.survivors),
        ),
        "upload": _compiled(upload, update, rounding_key, own, before),
        "mask": _compiled(protocol.protect, jnp.zeros(d, jnp.uint32), own, before),
    }
    outboxes, refused = calls["client"]()
    assert not bool(refused.any())
    # The one client says what it says in the cohort.
    for mine, theirs in zip(jax.tree.leaves(outboxes[-1]), jax.tree.leaves(row(stages["unmask"]))):
        assert bool((mine == theirs).all())
    return calls


def _round(task) -> None:
    """The whole round of the cohort, in a process of its own because of the memory."""
    import resource

    import jax
    import jax.numpy as jnp

    import fedjax_agg as fa

    n, d, label = task["n"], task["d"], _label(task)
    codec, rate = fa.FixedPoint(clip=1.0), task["planned"]
    _bench.progress(f"{label}: compiling the round")
    make = jax.jit(lambda keys: jax.lax.map(lambda key: jax.random.normal(key, (d,)), keys))
    updates, session = make(jax.random.split(jax.random.key(0), n)), _session(n)

    def round_of(protocol):
        def run(updates, session, participation):
            mean, report = fa.secure_mean(
                2.0 * d**-0.5 * updates,
                session,
                codec=codec,
                protocol=protocol,
                participation=participation,
            )
            return mean, report.ok

        return _compiled(run, updates, session, _lost(n, rate))

    secure = round_of(_protocol(task))
    planned = task["planned_seconds"]
    _bench.progress(f"{label}: the round, about {planned:.2g} s")
    risen = _bench.added_bytes(lambda: secure(updates, session, _lost(n, rate)), warm=False)
    # All that this process ever held, the compiler included.
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    calls = {f"{r}": lambda r=r: secure(updates, session, _lost(n, r)) for r in (0.0, rate)}
    times = _bench.interleaved(
        calls, seconds=task["seconds"], least=3 if planned < 10 else 2, warm=planned < 10
    )
    mean, ok = calls[f"{rate}"]()
    plain, _ = round_of(fa.Plain())(updates, session, _lost(n, rate))
    assert bool(ok), f"the round of {label} failed"
    assert bool(jnp.all(mean == plain)), f"the round of {label} is not the plain one"
    _bench.report(
        _named(task)
        | {
            "seconds": _bench.summary(times[f"{rate}"]),
            "seconds_none_lost": _bench.summary(times["0.0"]),
            "peak_gib": _bench.significant(peak / 2**30),
            "rise_gib": _bench.significant(risen / 2**30),
        }
    )


# Beside Flower.


def _answering(task):
    """How many shares of a secret arrive when as many are lost as is planned for."""
    return max(task["threshold"], round(task["degree"] * (1 - task["planned"])))


def _flower_calls(task):
    import numpy as np

    update = np.asarray(_update(task["d"]))
    return _flower.calls(update, task["degree"], task["threshold"], _answering(task))


def _beside_flower(task) -> None:
    """Quantise and mask of one client, and Shamir for the cohort, beside Flower's."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from fedjax_agg.session import RoundContext
    from fedjax_agg.sharing import shamir
    from fedjax_agg.symmetric.chacha20 import keystream_sum

    n, k, t, d = (task[name] for name in ("n", "degree", "threshold", "d"))
    cores = len(_bench.allowed_cores())
    _bench.progress(f"{_label(task)}: beside Flower, {cores} cores: compiling")
    flower = _flower_calls(task)
    group, encode = _protocol(task).group, _encode(task)

    def random(*shape):
        return jax.random.bits(jax.random.key(2), shape, jnp.uint32)

    def upload(update, rounding_key, keys, signs):
        words = encode(update, rounding_key, RoundContext())
        masks = keystream_sum(keys, signs, jnp.zeros(3, jnp.uint32), d)
        return group.add(words, group.from_keystream(masks))

    def create(secrets, sharing_keys):
        def one(secrets, sharing_key):
            chunks = jnp.concatenate([shamir.to_chunks(secret) for secret in secrets])
            coefficients = shamir.draw_coefficients(sharing_key, t, chunks.shape[0])
            return shamir.share(chunks, coefficients, k)

        return jax.vmap(one)(secrets, sharing_keys)

    def reconstruct(shares, present):
        def one(shares, present):
            chunks, check = shamir.recover_secret(shares, present, t)
            return shamir.from_chunks(chunks)[0], check.consistent

        return jax.vmap(one)(shares, present)

    signs = jnp.where(jnp.arange(k + 1) % 2 == 0, np.uint32(1), np.uint32(2**32 - 1))
    secrets = random(n, 2, 8)
    calls = {
        "upload": _compiled(upload, _update(d), random(8), random(k + 1, 8), signs),
        "create": _compiled(create, secrets, random(n, 8)),
    }
    shares = calls["create"]()[:, :, : shamir.CHUNKS]
    present = jnp.broadcast_to(jnp.arange(k) < _answering(task), (n, k))
    calls["reconstruct"] = _compiled(reconstruct, shares, present)
    rebuilt, consistent = calls["reconstruct"]()
    assert bool(jnp.all(rebuilt == secrets[:, 0]))
    assert bool(jnp.all(consistent))
    calls |= {f"flower_{name}": flower[name] for name in tuple(calls)}

    _bench.progress(f"{_label(task)}: beside Flower, {cores} cores: timing")
    times = _bench.interleaved(calls, seconds=2 * task["seconds"], most=9)
    # Ours is the whole cohort's, Flower's of one client: the others would take as long each.
    clients = {"upload": 1, "create": n, "reconstruct": n}
    result = _named(task) | {"cores": cores}
    for name, count in clients.items():
        flower_times = [count * time for time in times[f"flower_{name}"]]
        result[name] = {
            "milliseconds": _milliseconds(times[name]),
            "flower_milliseconds": _milliseconds(flower_times),
            "vs_flower": _bench.summary(_bench.ratios(flower_times, times[name])),
        }
    _bench.report(result)


def _milliseconds(times):
    return _bench.summary([1e3 * time for time in times])


# Results.


def _label(cell):
    return f"{cell['protocol']}, n {cell['n']}, degree {cell['degree']}, t {cell['threshold']}"


def _over(rows, *, largest_is_best):
    cells = [(f"{row['protocol']} {row['n']} x {row['d']}", row["median"]) for row in rows]
    return _bench.over_cells(cells, largest_is_best=largest_is_best) | {"rows": rows}


def _results(host, cells, rounds, flower, skipped):
    def beside_flower(names, one_core):
        rows = [
            _named(row) | {"cores": row["cores"], "part": name} | row[name]["vs_flower"]
            for row in flower
            for name in names
            if (row["cores"] == 1) == one_core or host["cores"] == 1
        ]
        return _over(rows, largest_is_best=True)

    whole = [
        _named(cell) | cell["whole_client_vs_flower"]
        for cell in cells
        if "whole_client_vs_flower" in cell
    ]
    shamir = ("create", "reconstruct")

    def lost_over_none(rate, coded):
        rows = [
            _named(cell) | {"dropout": rate} | point["server_over_none_lost"]
            for cell in cells
            for point in cell["server"]
            if point["dropout"] == rate and (cell["protocol"] == "LightSecAgg") == coded
        ]
        return _over(rows, largest_is_best=False)

    none_lost = [
        _named(cell) | cell["repair_share_at_0"] for cell in cells if "repair_share_at_0" in cell
    ]
    largest = next((row for row in rounds if row["n"] == 1000), None)
    return {
        "what": "client_vs_flower and shamir_vs_flower: time of Flower over ours, so larger is "
        "better; the others: smaller is better",
        "client_vs_flower": beside_flower(["upload"], False)
        | {
            "one_core": beside_flower(["upload"], True),
            "whole_client": _over(whole, largest_is_best=True),
        },
        "shamir_vs_flower": beside_flower(shamir, False)
        | {"one_core": beside_flower(shamir, True)}
        | {name: beside_flower([name], False) for name in shamir},
        "repair_time_ratio_10_over_0": lost_over_none(COMPARED, False),
        "secagg_server_ratio_30_over_0": lost_over_none(CURVE[-1], False),
        "light_secagg_server_ratio_30_over_0": lost_over_none(CURVE[-1], True),
        "repair_share_of_server_at_0": _over(none_lost, largest_is_best=False),
        "secagg_plus_round_seconds_n1000": largest and largest["seconds"],
        "peak_gib_n1000": largest and largest["peak_gib"],
        "targets": TARGETS,
        "machine": host,
        "call_limit_seconds": CALL_LIMIT_SECONDS,
        "skipped": skipped,
        "server_by_dropout": [
            _named(cell) | {"points": cell["server"]} for cell in cells if len(cell["server"]) > 1
        ],
        "cells": cells,
        "rounds": rounds,
        "flower": flower,
    }


def _show(results, as_json) -> None:
    if as_json:
        import json

        print(json.dumps(results, indent=1))
        return
    rows = []
    for name, target in TARGETS.items():
        figure = results[name]
        bound = f"{'>=' if name in _AT_LEAST else '<='} {target:g}"
        if isinstance(figure, dict) and "best" in figure:
            keys = ("best", "median", "worst", "worst_at")
            rows.append([name, *(figure.get(key) for key in keys), bound])
        else:
            value = figure["median"] if isinstance(figure, dict) else figure
            rows.append([name, None, value, None, None, bound])
    for name, figure in (
        ("client_vs_flower, one core", results["client_vs_flower"]["one_core"]),
        ("client_vs_flower, whole client", results["client_vs_flower"]["whole_client"]),
        ("shamir_vs_flower, one core", results["shamir_vs_flower"]["one_core"]),
        ("repair_time_ratio_10_over_0", results["repair_time_ratio_10_over_0"]),
        ("secagg_server_ratio_30_over_0", results["secagg_server_ratio_30_over_0"]),
    ):
        rows.append(
            [name, *(figure.get(key) for key in ("best", "median", "worst", "worst_at")), None]
        )
    _bench.table(["over the cells", "best", "median", "worst", "worst at", "target"], rows)
    host = results["machine"]
    flower = f"Flower {host['flwr']}, pycryptodome {host['pycryptodome']}"
    print(f"\n{_bench.describe(host)}; {flower if host['flwr'] else 'no Flower'}\n")

    def named(cell):
        return [cell[name] for name in ("protocol", "n", "degree", "threshold")]

    heads = ["protocol", "n", "degree", "t"]
    rows = [
        [*named(cell), f"{cell['planned']:.0%}", f"{point['dropout']:.0%}"]
        + [cell[f"{name}_milliseconds"]["median"] for name in ("client", "upload", "mask")]
        + [point["server_milliseconds"]["median"]]
        + [point.get("repair_milliseconds", {}).get("median")]
        + [point["server_over_none_lost"]["median"]]
        for cell in results["cells"]
        for point in cell["server"]
    ]
    columns = ["client ms", "upload ms", "mask ms", "server ms", "repair ms", "server / at 0 %"]
    _bench.table([*heads, "planned", "lost", *columns], rows)
    if results["rounds"]:
        print()
        rows = [
            [*named(row), f"{row['planned']:.0%}"]
            + [row[name]["median"] for name in ("seconds", "seconds_none_lost")]
            + [row[name] for name in ("peak_gib", "rise_gib")]
            for row in results["rounds"]
        ]
        columns = ["round s", "none lost s", "peak GiB", "rise in the call GiB"]
        _bench.table([*heads, "lost", *columns], rows)
    if results["flower"]:
        print()
        rows = [
            [*named(row), row["cores"], name]
            + [row[name][side]["median"] for side in ("milliseconds", "flower_milliseconds")]
            + [row[name]["vs_flower"]["median"]]
            for row in results["flower"]
            for name in ("upload", "create", "reconstruct")
        ]
        _bench.table([*heads, "cores", "what", "ms", "Flower ms", "ratio"], rows)
    for cell in results["skipped"]:
        print(f"left out: {cell}")


if __name__ == "__main__":
    main()
