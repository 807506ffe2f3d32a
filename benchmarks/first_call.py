"""How long the first call of a round takes: tracing, lowering, compiling, running.

A cell is a protocol and n clients with flat updates of 1000 float32. Every sample is a process of
its own without a cache of compiled programs, after the import and after the session is made.

    python benchmarks/first_call.py            # a table
    python benchmarks/first_call.py --json     # the same as JSON
    python benchmarks/first_call.py --quick    # one sample of two cells
"""

import itertools
import time

import _bench

COORDINATES = 1000
NEIGHBOURS = 16
CELLS = (("Plain", 100), ("SecAgg", 4), ("SecAgg", 100), ("SecAgg+", 100), ("LightSecAgg", 100))
QUICK_CELLS = (("Plain", 100), ("SecAgg", 100))
PARTS = ("trace", "lower", "compile", "run")

TARGETS = {"first_call_seconds_secagg_n100": 10.0}


def main() -> None:
    arguments = _bench.parser(__doc__).parse_args()
    if arguments.worker:
        _measure(_bench.enter_worker(arguments.worker))
        return
    host = _bench.machine()
    _bench.progress(_bench.describe(host))
    cells = QUICK_CELLS if arguments.quick else CELLS
    samples = {cell: [] for cell in cells}
    # In turns, so that a change of load meets all cells.
    for turn in range(1 if arguments.quick else 5):
        for protocol, n in cells:
            _bench.progress(f"{protocol}, {n} clients, sample {turn + 1}")
            task = {"protocol": protocol, "n": n}
            samples[protocol, n].append(_bench.worker(__file__, task))
    _show(_results(host, samples), arguments.json)


def _measure(task) -> None:
    """The worker: one first call."""
    import jax
    import jax.numpy as jnp

    import fedjax_agg as fa

    jax.config.update("jax_enable_compilation_cache", False)
    n = task["n"]
    protocol = {
        "Plain": fa.Plain(),
        "SecAgg": fa.SecAgg(),
        "SecAgg+": fa.SecAgg(degree=NEIGHBOURS),
        "LightSecAgg": fa.LightSecAgg(privacy=n // 4, survivors=3 * n // 4),
    }[task["protocol"]]
    codec = fa.FixedPoint(clip=1.0)
    session = fa.simulated_session(fa.fixed_seed(0), num_clients=n)
    updates = jnp.ones((n, COORDINATES), jnp.float32)
    jax.block_until_ready((session, updates))

    def mean(updates, session):
        return fa.secure_mean(updates, session, codec=codec, protocol=protocol)

    clock = [time.perf_counter()]
    traced = jax.jit(mean, compiler_options=fa.compiler_options()).trace(updates, session)
    clock.append(time.perf_counter())
    lowered = traced.lower()
    clock.append(time.perf_counter())
    compiled = lowered.compile()
    clock.append(time.perf_counter())
    _, found = jax.block_until_ready(compiled(updates, session))
    clock.append(time.perf_counter())
    assert found.ok
    _bench.report([after - before for before, after in itertools.pairwise(clock)])


def _results(host, samples):
    rows = [
        {"protocol": protocol, "n": n, "figure": _figure(protocol, n)}
        | {part: _bench.summary(times) for part, times in zip(PARTS, zip(*found))}
        | {"total": _bench.summary([sum(times) for times in found])}
        for (protocol, n), found in samples.items()
    ]
    return {
        "what": "seconds from the call of a jitted round to its result; below is faster",
        "machine": host,
        **{row["figure"]: row["total"] for row in rows},
        "targets": TARGETS,
        "rows": rows,
    }


def _figure(protocol, n):
    return f"first_call_seconds_{protocol.lower().replace('+', '_plus')}_n{n}"


def _show(results, as_json) -> None:
    if as_json:
        import json

        print(json.dumps(results, indent=1))
        return
    print(_bench.describe(results["machine"]))
    _bench.table(
        ["protocol", "n", *(f"{part} s" for part in (*PARTS, "total")), "spread", "target"],
        [
            [row["protocol"], row["n"]]
            + [row[part]["median"] for part in (*PARTS, "total")]
            + [row["total"]["spread"], TARGETS.get(row["figure"])]
            for row in results["rows"]
        ],
    )


if __name__ == "__main__":
    main()
