"""Many clients in blocks: a million in the clear, ten thousand under SecAgg+ with a tenth lost.

Updates are flat float32[10^4], made on the device from the number of their block and kept by
nobody. Every figure is of a process of its own, whose peak is the largest resident set that it
ever had, the compiler and JAX included.

    python benchmarks/load.py            # tables
    python benchmarks/load.py --json     # the same as JSON
    python benchmarks/load.py --quick    # a hundredth of the clients
"""

import _bench

COORDINATES = 10**4
# The second has to fit into the memory of the first.
CLIENTS = (10**4, 10**6)
QUICK_CLIENTS = (10**3, 10**4)
MASKED_CLIENTS = 10**4
QUICK_MASKED_CLIENTS = 100
QUICK_COORDINATES = 10**3
ROUNDINGS = ("nearest", "stochastic")
# So many clients at a time: their updates are 10 MB, a few times what a cache holds.
BLOCK = 250
QUICK_BLOCK = 50
DROPOUT = COLLUSION = 0.1
# A million of these clients fit into 32 bits: 10^6 * 2047 < 2^31.
BITS = 12
MASKED_BITS = 16

TARGETS = {"peak_ratio": 1.1, "plain_seconds": 600.0, "masked_seconds": 600.0}


def main() -> None:
    arguments = _bench.parser(__doc__).parse_args()
    if arguments.worker:
        task = _bench.enter_worker(arguments.worker)
        {"plain": _plain, "masked": _masked}[task["what"]](task)
        return
    host, quick = _bench.machine(), arguments.quick
    _bench.progress(_bench.describe(host))
    size = {
        "d": QUICK_COORDINATES if quick else COORDINATES,
        "block": QUICK_BLOCK if quick else BLOCK,
    }
    plain = [
        _bench.worker(__file__, {"what": "plain", "n": n, "rounding": rounding, **size})
        for rounding in ROUNDINGS
        for n in (QUICK_CLIENTS if quick else CLIENTS)
    ]
    n = QUICK_MASKED_CLIENTS if quick else MASKED_CLIENTS
    masked = _bench.worker(__file__, {"what": "masked", "n": n, **size})
    _show(_results(host, plain, masked), arguments.json)


# Blocks.


def _blocks(n, d, block):
    """``(first row, updates, session)`` of every block, made when it is asked for."""
    import functools

    import jax
    import jax.numpy as jnp

    import fedjax_agg as fa

    def words(rows):
        """Cheap words that no two coordinates of a client share."""
        column = jnp.arange(d, dtype=jnp.uint32)
        mixed = (rows[:, None] * jnp.uint32(2654435761)) ^ (column[None] * jnp.uint32(40503))
        return mixed * jnp.uint32(2246822519)

    @functools.partial(jax.jit, static_argnums=1)
    def make(first, count):
        rows = first + jnp.arange(count, dtype=jnp.uint32)
        # Uniform in [-s, s) with s so that the norm is about 2, which a clip of 1 halves.
        scale = jnp.float32(2 * (3 / d) ** 0.5 / 2**31)
        updates = jax.lax.bitcast_convert_type(words(rows), jnp.int32).astype(jnp.float32) * scale
        session = fa.simulated_session(
            fa.fixed_seed(0), num_clients=count, first_client=first + jnp.uint32(1)
        )
        return updates, session

    for first in range(0, n, block):
        yield make(jnp.uint32(first), min(block, n - first))


def _peak_gib() -> float:
    """All that this process ever held."""
    import resource

    return _bench.significant(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


class _Stages:
    """Seconds of every stage, and how many of them went to tracing and compiling."""

    def __init__(self):
        import jax

        self.rows, self._compiled = {}, 0.0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event, seconds, **_):
        if "/compile/" in event:
            self._compiled += seconds

    def run(self, name, function):
        import time

        import jax

        before, begin, cpu = self._compiled, time.perf_counter(), time.process_time()
        result = jax.block_until_ready(function())
        self.rows[name] = {
            "seconds": _bench.significant(time.perf_counter() - begin),
            # Of all threads: what a machine with other work takes longer for, but not more of.
            "cpu_seconds": _bench.significant(time.process_time() - cpu),
            "compiling": _bench.significant(self._compiled - before),
            "peak_gib": _peak_gib(),
        }
        _bench.progress(f"  {name}: {self.rows[name]}")
        return result


def _streamed(stages, n, d, block, **arguments):
    """A round in blocks, stage by stage: the mean and the report."""
    import jax
    import jax.numpy as jnp

    from fedjax_agg import streaming

    like = jax.ShapeDtypeStruct((d,), jnp.float32)
    stream = stages.run("init", lambda: streaming.init(like, num_clients=n, **arguments))
    stream = stages.run("blocks", lambda: streaming.add_blocks(stream, _blocks(n, d, block)))
    mean, report = stages.run("finish", lambda: streaming.finish(streaming.close(stream)))
    assert bool(report.ok), f"the round of {n} clients failed"
    return mean, report


def _result(task, stages, report):
    import os

    seconds = sum(stage["seconds"] for stage in stages.rows.values())
    return {
        "n": task["n"],
        "d": task["d"],
        "survivors": int(report.survivors.sum()),
        "seconds": _bench.significant(seconds),
        "cpu_seconds": _bench.significant(sum(row["cpu_seconds"] for row in stages.rows.values())),
        "clients_per_second": _bench.significant(task["n"] / seconds),
        "peak_gib": _peak_gib(),
        "stages": stages.rows,
        "load_at_end": [round(load, 2) for load in os.getloadavg()],
    }


def _plain(task) -> None:
    """Everybody comes, in the clear."""
    import fedjax_agg as fa

    n, d, rounding = task["n"], task["d"], task["rounding"]
    _bench.progress(f"Plain, {rounding}, {n} clients, {d} coordinates")
    levels = 2 ** (BITS - 1) - 1
    _, first = next(_blocks(n, d, task["block"]))
    stages = _Stages()
    _, report = _streamed(
        stages,
        n,
        d,
        task["block"],
        session=first,
        codec=fa.FixedPoint(clip=1.0, levels=levels, max_levels=levels, rounding=rounding),
    )
    assert float(report.total_weight) == n
    _bench.report({"rounding": rounding} | _result(task, stages, report))


def _masked(task) -> None:
    """SecAgg+ on the graph of a plan, with as many clients lost at *upload* as it allows for."""
    import jax

    import fedjax_agg as fa

    n, d = task["n"], task["d"]
    plan = fa.plan_round(
        d, num_clients=n, clip=1.0, bits=MASKED_BITS, dropout=DROPOUT, collusion=COLLUSION
    )
    protocol, codec = plan.protocol(), plan.codec()
    degree = protocol.degree_of(n)
    _bench.progress(f"SecAgg+, {n} clients, {degree} neighbours, {d} coordinates")
    arguments = {
        "session": fa.simulated_session(fa.fixed_seed(0), num_clients=n),
        "codec": codec,
        "participation": fa.drop_clients(fa.fixed_seed(1), n, DROPOUT),
    }
    stages = _Stages()
    mean, report = _streamed(stages, n, d, task["block"], protocol=protocol, **arguments)
    result = _result(task, stages, report)
    _bench.progress("the same in the clear, to compare")
    plain, _ = _streamed(_Stages(), n, d, task["block"], **arguments)
    assert bool(jax.numpy.all(mean == plain)), "the masked round is not the plain one"
    graph = {"degree": degree, "threshold": protocol.threshold_of(n), "lost": DROPOUT}
    _bench.report(graph | result)


# Reports.


def _results(host, plain, masked):
    ratios = {
        small["rounding"]: _bench.significant(large["peak_gib"] / small["peak_gib"])
        for small, large in zip(plain[::2], plain[1::2])
    }
    return {
        "what": "peak_ratio: the peak of the larger cohort over that of the smaller; seconds of "
        "the largest cohorts, compilation included; smaller is better",
        "peak_ratio": max(ratios.values()),
        "peak_ratio_by_rounding": ratios,
        "plain_seconds": max(row["seconds"] for row in plain),
        "masked_seconds": masked["seconds"],
        "targets": TARGETS,
        "machine": host,
        "plain": plain,
        "masked": masked,
    }


def _show(results, as_json) -> None:
    if as_json:
        import json

        print(json.dumps(results, indent=1))
        return
    rows = [[name, results[name], f"<= {target:g}"] for name, target in TARGETS.items()]
    _bench.table(["figure", "value", "target"], rows)
    print(f"\n{_bench.describe(results['machine'])}\n")
    heads = ["n", "seconds", "cpu_seconds", "clients_per_second", "peak_gib"]
    rows = [
        [name, *(row[head] for head in heads), row["load_at_end"][0]]
        for row, name in [(row, f"Plain, {row['rounding']}") for row in results["plain"]]
        + [(results["masked"], f"SecAgg+, k = {results['masked']['degree']}")]
    ]
    _bench.table(["round", "n", "seconds", "CPU s", "clients / s", "peak GiB", "load"], rows)
    print()
    heads = ["seconds", "cpu_seconds", "compiling", "peak_gib"]
    rows = [
        [name, *(stage[head] for head in heads)]
        for name, stage in results["masked"]["stages"].items()
    ]
    columns = ["seconds", "CPU s", "of it compiling", "peak GiB so far"]
    _bench.table(["stage under masks", *columns], rows)


if __name__ == "__main__":
    main()
