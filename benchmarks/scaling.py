"""How cost grows: a SecAgg+ client with the cohort and the dimension, a round with its places.

Places are cores, or devices that share them. Strong scaling is one cohort on more of them, weak
scaling a cohort that grows with them.

A client's work is the sum of its masks: one keystream for each neighbour of the graph that
``plan_round`` finds for the cohort, whose degree grows like log n, and one of its own.

    python benchmarks/scaling.py            # tables, exponents first
    python benchmarks/scaling.py --json     # the same as JSON
    python benchmarks/scaling.py --quick    # a short grid
"""

import math
import statistics

import _bench

CLIENTS = (10, 100, 1000, 10**4, 65535)
COORDINATES = (10**3, 10**4, 10**5, 10**6, 10**7)
QUICK_COORDINATES = (10**3, 10**4, 10**5)
# Of the client whose cohort grows, and of the round that is spread.
CLIENT_COORDINATES, SPREAD_CLIENTS, SPREAD_COORDINATES = 10**5, 64, 10**5
DROPOUT, COLLUSION = 0.1, 0.05
# A client of the cohort whose dimension grows.
NEIGHBOURS = 16
DEVICES = (1, 2, 4, 8)


def main() -> None:
    arguments = _bench.parser(__doc__).parse_args()
    if arguments.worker:
        task = _bench.enter_worker(arguments.worker)
        {"clients": _clients, "length": _length, "spread": _spread}[task["what"]](task)
        return
    host = _bench.machine()
    _bench.progress(_bench.describe(host))
    seconds = 0.5 if arguments.quick else 3.0
    lengths = QUICK_COORDINATES if arguments.quick else COORDINATES

    def worker(what, **task):
        return _bench.worker(__file__, {"what": what, "seconds": seconds, **task})

    cores = _bench.allowed_cores()

    def spread(count, kind):
        """One cohort, and one as many times as large, on so many cores or devices."""
        place = {"devices": 1, "cores": cores[:count]} if kind == "cores" else {"devices": count}
        strong = worker("spread", clients=SPREAD_CLIENTS, **place)
        if count == 1:
            return {kind: count, "strong": strong, "weak": strong}
        weak = worker("spread", clients=SPREAD_CLIENTS * count, **place)
        return {kind: count, "strong": strong, "weak": weak}

    results = {
        "machine": host,
        "clients": worker("clients"),
        "coordinates": worker("length", lengths=lengths),
        "cores": [spread(count, "cores") for count in range(1, len(cores) + 1)],
        "devices": [spread(count, "devices") for count in DEVICES if count <= max(2, len(cores))],
    }
    for kind in ("cores", "devices"):
        first, last = results[kind][0], results[kind][-1]
        for name in ("plain", "secagg_plus"):
            for scaling in ("strong", "weak"):
                times = [row[scaling][f"{name}_milliseconds"]["median"] for row in (first, last)]
                # Of weak scaling the work has grown as the places have, and 1 is ideal.
                results[f"{scaling}_speedup_{name}_{last[kind]}_{kind}"] = _bench.significant(
                    times[0] / times[1], 3
                )
    results["client_exponent_in_n"] = _exponent(results["clients"], "n")
    results["client_deviation_from_log_n"] = _deviation_from_log(results["clients"])
    results["client_exponent_in_d"] = _exponent(results["coordinates"], "d", from_=10**4)
    _show(results, arguments.json)


def _exponent(rows, name, from_=0):
    """The slope of log time against log n or log d."""
    rows = [row for row in rows if row[name] >= from_]
    times = [math.log(row["milliseconds"]["median"]) for row in rows]
    return _bench.significant(
        statistics.linear_regression([math.log(row[name]) for row in rows], times).slope, 3
    )


def _deviation_from_log(rows):
    """How far the times are from a + b log n at most, as a share of them."""
    x = [math.log(row["n"]) for row in rows]
    times = [row["milliseconds"]["median"] for row in rows]
    line = statistics.linear_regression(x, times)
    off = max(abs(line.slope * a + line.intercept - t) / t for a, t in zip(x, times))
    return _bench.significant(off, 3)


def _masks(keys, length):
    import jax
    import jax.numpy as jnp
    import numpy as np

    import fedjax_agg as fa
    from fedjax_agg.symmetric.chacha20 import keystream_sum

    draw = np.random.default_rng(0).integers
    table = jnp.asarray(draw(2**32, size=(keys, 8), dtype=np.uint32))
    signs = jnp.asarray(np.where(draw(2, size=keys), 1, 2**32 - 1).astype(np.uint32))
    nonce = jnp.zeros(3, jnp.uint32)
    run = jax.jit(
        lambda table, signs: keystream_sum(table, signs, nonce, length),
        compiler_options=fa.compiler_options(),
    )
    return lambda: jax.block_until_ready(run(table, signs))


def _clients(task) -> None:
    """One client's masks in growing cohorts."""
    import fedjax_agg as fa

    plans = {}
    for n in CLIENTS:
        _bench.progress(f"{n} clients: planning")
        plans[n] = fa.plan_round(
            CLIENT_COORDINATES,
            num_clients=n,
            clip=1.0,
            bits=16,
            dropout=DROPOUT,
            collusion=COLLUSION,
        )
    calls = {
        str(n): _masks(plan.protocol().degree_of(n) + 1, CLIENT_COORDINATES)
        for n, plan in plans.items()
    }
    _bench.progress("one client's masks")
    times = _bench.interleaved(calls, seconds=task["seconds"])
    _bench.report(
        [
            {
                "n": n,
                "degree": plan.protocol().degree_of(n),
                "milliseconds": _bench.summary([1e3 * s for s in times[str(n)]]),
            }
            for n, plan in plans.items()
        ]
    )


def _length(task) -> None:
    """One client's masks of growing updates."""
    calls = {str(d): _masks(NEIGHBOURS + 1, d) for d in task["lengths"]}
    _bench.progress("one client's masks of longer updates")
    times = _bench.interleaved(calls, seconds=task["seconds"])
    _bench.report(
        [
            {"d": int(d), "milliseconds": _bench.summary([1e3 * s for s in samples])}
            for d, samples in times.items()
        ]
    )


def _spread(task) -> None:
    """A round of one cohort on so many cores, or devices."""
    import jax
    import jax.numpy as jnp

    import fedjax_agg as fa

    jax.config.update("jax_num_cpu_devices", task["devices"])
    mesh = jax.make_mesh((task["devices"],), ("clients",))
    by_client = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("clients"))
    clients = task["clients"]
    x = jax.random.normal(jax.random.key(0), (clients, SPREAD_COORDINATES)) / 1000
    x = jax.device_put(x, by_client)
    session = fa.simulated_session(fa.fixed_seed(0), num_clients=clients)
    protocols = {"plain": fa.Plain(), "secagg_plus": fa.SecAgg(degree=NEIGHBOURS)}
    codec = fa.FixedPoint(clip=1.0)
    available = len(task.get("cores") or _bench.allowed_cores())
    where = f"{clients} clients, {task['devices']} devices, {available} cores"
    _bench.progress(f"{where}: compiling")

    def call(protocol):
        run = jax.jit(
            lambda x, session: fa.secure_mean(
                x, session, codec=codec, protocol=protocol, axis_name="clients"
            )[0],
            compiler_options=fa.compiler_options(),
        )
        with jax.set_mesh(mesh):
            program = run.lower(x, session).compile()
        return lambda: jax.block_until_ready(program(x, session))

    calls = {name: call(protocol) for name, protocol in protocols.items()}
    _bench.progress(where)
    times = _bench.interleaved(calls, seconds=task["seconds"])
    mean = jax.device_get(calls["plain"]())
    assert bool(jnp.all(mean == jax.device_get(calls["secagg_plus"]())))
    _bench.report(
        {
            f"{name}_milliseconds": _bench.summary([1e3 * s for s in samples])
            for name, samples in times.items()
        }
    )


def _show(results, as_json) -> None:
    if as_json:
        import json

        print(json.dumps(results, indent=1))
        return
    for name, figure in results.items():
        if isinstance(figure, float):
            print(f"{name}: {figure}")
    print(f"{_bench.describe(results['machine'])}\n")
    rows = [[r["n"], r["degree"], r["milliseconds"]["median"]] for r in results["clients"]]
    _bench.table(["n", "degree", f"a client's masks of {CLIENT_COORDINATES} ms"], rows)
    print()
    rows = [[r["d"], r["milliseconds"]["median"]] for r in results["coordinates"]]
    _bench.table(["d", f"masks of {NEIGHBOURS} neighbours ms"], rows)
    for name in ("cores", "devices"):
        print()
        rows = [
            [row[name], scaling]
            + [row[scaling][f"{kind}_milliseconds"]["median"] for kind in ("plain", "secagg_plus")]
            for scaling in ("strong", "weak")
            for row in results[name]
        ]
        _bench.table([name, "scaling", "Plain ms", "SecAgg+ ms"], rows)


if __name__ == "__main__":
    main()
