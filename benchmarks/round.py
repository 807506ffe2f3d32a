"""What a secure round costs, each part against the limit that it cannot beat.

A cell is n clients with flat updates float32[d]. ``Plain()`` is set against the float mean as a
matrix product (``ones @ x``, the bandwidth limit) and against ``jnp.mean``; ``SecAgg()`` against
its own keystreams and nothing else; memory against the n * d * 4 bytes of the updates.

    python benchmarks/round.py            # a table
    python benchmarks/round.py --json     # the same as JSON
    python benchmarks/round.py --quick    # a small grid, within a minute
"""

import _bench

CLIENTS = (16, 64, 256)
COORDINATES = (10**5, 10**6)
QUICK_CLIENTS = (16, 64)
QUICK_COORDINATES = (10**5,)

# A SecAgg call that is planned to take longer is left out and listed.
CALL_LIMIT_SECONDS = 60.0
# A cell needs about this many times the bytes of its updates.
PLANNED_MEMORY = 4.0
MODES = ("nearest", "stochastic")
NORMS = ("l2", "linf")

TARGETS = {
    "plain_nearest_vs_matmul_mean": 3.0,
    "plain_stochastic_vs_matmul_mean": 9.0,
    "secagg_vs_keystream": 1.3,
    "peak_bytes_over_nd4": 3.0,
}


def main() -> None:
    arguments = _bench.parser(__doc__).parse_args()
    if arguments.worker:
        _measure(_bench.enter_worker(arguments.worker))
        return
    host = _bench.machine()
    _bench.progress(_bench.describe(host))
    clients = QUICK_CLIENTS if arguments.quick else CLIENTS
    coordinates = QUICK_COORDINATES if arguments.quick else COORDINATES
    cells, skipped = [], []
    for d in coordinates:
        for n in clients:
            needed, available = PLANNED_MEMORY * n * d * 4, _bench.available_bytes()
            if needed > available:
                skipped.append(
                    {"n": n, "d": d, "what": "all", "planned_bytes": needed, "limit": available}
                )
                continue
            task = {"n": n, "d": d, "seconds": 0.5 if arguments.quick else 3.0}
            cell = _bench.worker(__file__, task)
            skipped += cell.pop("skipped")
            cells.append(cell)
    _show(_results(host, cells, skipped), arguments.json)


def _measure(task) -> None:
    """The worker: one cell, in a process of its own because of the memory."""
    n, d = task["n"], task["d"]
    _bench.progress(f"{n} clients, {d} coordinates: compiling")
    plain, limits, compiled_bytes = _plain(n, d)
    masked, masked_bytes = _secagg(n, d)
    guard, guard_alive = _guard(n, d)
    compiled_bytes |= masked_bytes

    cell = {"n": n, "d": d, "skipped": []}
    updates, session = _inputs(n, d)
    _bench.progress(f"{n} clients, {d} coordinates: memory")
    size = 4 * n * d
    # The updates are resident already, and count.
    peaks = {
        name: size + _bench.added_bytes(lambda call=call: call(updates, session))
        for name, call in plain.items()
    }

    _bench.progress(f"{n} clients, {d} coordinates: Plain")
    functions = {
        name: lambda call=call: call(updates, session) for name, call in (plain | limits).items()
    }
    times = _bench.interleaved(functions, seconds=task["seconds"], most=25)
    cell["plain"] = _plain_rows(times, size)

    _bench.progress(f"{n} clients, {d} coordinates: the guard of client_loop")
    functions = {name: lambda call=call: call(updates, session) for name, call in guard.items()}
    times = _bench.interleaved(functions, seconds=task["seconds"] / 2, most=25)
    cell["guard"] = {
        body: _bench.summary(_bench.ratios(times[f"{body}_unguarded"], times[f"{body}_guarded"]))
        | {"guard_in_program": alive}
        for body, alive in guard_alive.items()
    }

    planned = _planned_seconds(n, d)
    if planned > CALL_LIMIT_SECONDS:
        cell["skipped"].append(
            {
                "n": n,
                "d": d,
                "what": "secagg",
                "planned_seconds": _bench.significant(planned, 2),
                "limit": CALL_LIMIT_SECONDS,
            }
        )
    else:
        _bench.progress(f"{n} clients, {d} coordinates: SecAgg, about {planned:.2g} s a call")
        arguments = {"secagg": (updates, session), "keystream": _pair_keys(n)}
        functions = {name: lambda name=name: masked[name](*arguments[name]) for name in masked}
        quick_enough = planned < 10
        peaks["secagg"] = size + _bench.added_bytes(functions["secagg"], warm=quick_enough)
        times = _bench.interleaved(
            functions,
            seconds=2 * task["seconds"],
            least=3 if quick_enough else 2,
            warm=quick_enough,
        )
        cell["secagg"] = {
            "milliseconds": _milliseconds(times["secagg"]),
            "keystream_milliseconds": _milliseconds(times["keystream"]),
            "keystream_gbps": _bench.significant(
                4e-9 * n * n * d / _bench.summary(times["keystream"])["median"]
            ),
            "vs_keystream": _bench.summary(_bench.ratios(times["secagg"], times["keystream"])),
        }
    cell["memory"] = {
        name: {
            "compiler": _bench.significant(compiled_bytes[name] / size),
            "resident": _bench.significant(peak / size),
            "larger": _bench.significant(max(compiled_bytes[name], peak) / size),
        }
        for name, peak in peaks.items()
    }
    _bench.report(cell)


def _inputs(n, d):
    """Updates float32[n, d] of norm about 2, one row after the other, and a session."""
    import jax

    import fedjax_agg as fa

    def row(key):
        return 2.0 * d**-0.5 * jax.random.normal(key, (d,))

    rows = jax.jit(lambda keys: jax.lax.map(row, keys))
    updates = rows(jax.random.split(jax.random.key(0), n))
    session = jax.jit(fa.simulated_session, static_argnames="num_clients")(
        fa.fixed_seed(0), num_clients=n
    )
    return jax.block_until_ready((updates, session))


def _compile(function, arguments):
    """A call that returns when the work is done, and the compiled program.

    Of every program, rounds and limits alike, with the flags that the README asks for.
    """
    import jax

    import fedjax_agg as fa

    jitted = jax.jit(function, compiler_options=fa.compiler_options())
    compiled = jitted.lower(*arguments).compile()
    return lambda *inputs: jax.block_until_ready(compiled(*inputs)), compiled


def _compiled_bytes(compiled):
    memory = compiled.memory_analysis()
    return memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes


def _shapes(n, d):
    import jax
    import jax.numpy as jnp

    import fedjax_agg as fa

    updates = jax.ShapeDtypeStruct((n, d), jnp.float32)
    session = jax.eval_shape(lambda: fa.simulated_session(fa.fixed_seed(0), num_clients=n))
    return updates, session


def _plain(n, d):
    """The rounds without masks, their limits, and the compiler's bytes of the rounds."""
    import jax.numpy as jnp

    import fedjax_agg as fa

    shapes = _shapes(n, d)

    def round_of(codec):
        return lambda updates, session: fa.secure_mean(updates, session, codec=codec)

    rounds, sizes = {}, {}
    for norm in NORMS:
        for mode in MODES:
            name = f"{norm}_{mode}"
            codec = fa.FixedPoint(clip=1.0, norm=norm, rounding=mode)
            rounds[name], compiled = _compile(round_of(codec), shapes)
            sizes[name] = _compiled_bytes(compiled)
    share = jnp.full(n, 1.0 / n, jnp.float32)
    limits = {
        "matmul_mean": _compile(lambda updates, session: share @ updates, shapes)[0],
        "jnp_mean": _compile(lambda updates, session: jnp.mean(updates, axis=0), shapes)[0],
    }
    return rounds, limits, sizes


def _secagg(n, d):
    """The masked round, its keystreams alone, and the compiler's bytes of the round."""
    import jax
    import jax.numpy as jnp

    import fedjax_agg as fa
    from fedjax_agg.symmetric.chacha20 import keystream_sum

    codec = fa.FixedPoint(clip=1.0)

    def masked_round(updates, session):
        return fa.secure_mean(updates, session, codec=codec, protocol=fa.SecAgg())

    def keystreams(keys, signs):
        nonce = jnp.zeros(3, jnp.uint32)
        of_clients = jax.vmap(lambda key, sign: keystream_sum(key, sign, nonce, d))(keys, signs)
        return of_clients, keystream_sum(keys[0], signs[0], nonce, d)

    masked, compiled = _compile(masked_round, _shapes(n, d))
    pair_keys = jax.eval_shape(lambda: _pair_keys(n))
    bound, _ = _compile(keystreams, pair_keys)
    return {"secagg": masked, "keystream": bound}, {"secagg": _compiled_bytes(compiled)}


def _pair_keys(n):
    """n keys and signs for each of n clients: its n - 1 pairs and its own."""
    import jax.numpy as jnp

    keys = jnp.arange(n * n * 8, dtype=jnp.uint32).reshape(n, n, 8) * jnp.uint32(2654435761)
    row, column = jnp.arange(n)[:, None], jnp.arange(n)[None, :]
    signs = jnp.sign(row - column).astype(jnp.int32).astype(jnp.uint32)
    return keys, signs


def _planned_seconds(n, d):
    """The time of one round of keystreams, from the rate of one client's at a short length."""
    import time

    import jax
    import jax.numpy as jnp

    from fedjax_agg.symmetric.chacha20 import keystream_sum

    sample = min(d, 10**5)
    keys, signs = (both[0] for both in _pair_keys(n))
    one, _ = _compile(
        lambda keys, signs: keystream_sum(keys, signs, jnp.zeros(3, jnp.uint32), sample),
        (keys, signs),
    )
    jax.block_until_ready(one(keys, signs))
    begin = time.perf_counter()
    one(keys, signs)
    return (time.perf_counter() - begin) * n * d / sample


def _guard(n, d):
    """``client_loop`` and the plain loop, over a body that rounds and one that makes masks.

    Equal times say that the guard may go only where the compiler has not removed it already, so
    the second result says for each body whether it is in the compiled program.
    """
    import jax.numpy as jnp
    from jax import lax

    from fedjax_agg import _xla
    from fedjax_agg.symmetric.chacha20 import keystream_sum

    loops = {
        "guarded": _xla.client_loop,
        "unguarded": lambda count, body, init: lax.fori_loop(0, count, body, init),
    }

    def rounding(loop):
        def total(updates, session):
            def add(i, words):
                row = lax.dynamic_index_in_dim(updates, i, keepdims=False)
                units = jnp.clip(row, -1.0, 1.0) * 2.0**15
                return words + lax.bitcast_convert_type(
                    jnp.round(units).astype(jnp.int32), jnp.uint32
                )

            return loop(n, add, jnp.zeros(d, jnp.uint32))

        return total

    def masks(loop):
        # Sixteen clients with sixteen keys each, whatever the cell.
        keys, signs = _pair_keys(16)

        def total(updates, session):
            def add(i, words):
                row = [lax.dynamic_index_in_dim(x, i, keepdims=False) for x in (keys, signs)]
                return words + keystream_sum(*row, jnp.zeros(3, jnp.uint32), d)

            return loop(16, add, jnp.zeros(d, jnp.uint32))

        return total

    bodies = {"rounding": rounding}
    if n == min(CLIENTS):
        bodies["keystream"] = masks
    shapes = _shapes(n, d)
    calls, alive = {}, {}
    for body, make in bodies.items():
        for name, loop in loops.items():
            calls[f"{body}_{name}"], compiled = _compile(make(loop), shapes)
            if name == "guarded":
                # Neither body has a matrix product of its own.
                alive[body] = " dot(" in compiled.as_text()
    return calls, alive


def _milliseconds(times):
    return _bench.summary([1e3 * time for time in times])


def _plain_rows(times, size):
    rows = {}
    for name, samples in times.items():
        rows[name] = {
            "milliseconds": _milliseconds(samples),
            "gbps_of_input": _bench.significant(1e-9 * size / _bench.summary(samples)["median"]),
            "vs_matmul_mean": _bench.summary(_bench.ratios(samples, times["matmul_mean"])),
            "vs_jnp_mean": _bench.summary(_bench.ratios(samples, times["jnp_mean"])),
        }
    return rows


def _results(host, cells, skipped):
    def over(rows):
        """Best, median and worst over the cells, and the rows themselves."""
        figure = _bench.over_cells(
            [(f"{row['n']} x {row['d']}", row["median"]) for row in rows], largest_is_best=False
        )
        return figure | {"rows": rows}

    def plain(name, limit):
        return over([{"n": c["n"], "d": c["d"]} | c["plain"][name][f"vs_{limit}"] for c in cells])

    def with_linf(mode, limit):
        return plain(f"l2_{mode}", limit) | {"linf": plain(f"linf_{mode}", limit)}

    def guard(body):
        rows = [{"n": c["n"], "d": c["d"]} | c["guard"][body] for c in cells if body in c["guard"]]
        return over(rows)

    memory = [
        {"n": c["n"], "d": c["d"], "round": name, "median": row["larger"]} | row
        for c in cells
        for name, row in c["memory"].items()
    ]
    return {
        "what": "times relative to the other, so smaller is better; guard_speedup is the time "
        "without the guard over the time with it",
        "machine": host,
        "plain_nearest_vs_matmul_mean": with_linf("nearest", "matmul_mean"),
        "plain_stochastic_vs_matmul_mean": with_linf("stochastic", "matmul_mean"),
        "plain_vs_jnp_mean": {
            "nearest": with_linf("nearest", "jnp_mean"),
            "stochastic": with_linf("stochastic", "jnp_mean"),
        }
        | plain("l2_nearest", "jnp_mean"),
        "secagg_vs_keystream": over(
            [
                {"n": c["n"], "d": c["d"]} | c["secagg"]["vs_keystream"]
                for c in cells
                if "secagg" in c
            ]
        ),
        "peak_bytes_over_nd4": over(memory),
        "guard_speedup": guard("rounding") | {"keystream": guard("keystream")},
        "targets": TARGETS,
        "call_limit_seconds": CALL_LIMIT_SECONDS,
        "skipped": skipped,
        "cells": cells,
    }


def _show(results, as_json) -> None:
    if as_json:
        import json

        print(json.dumps(results, indent=1))
        return
    print(_bench.describe(results["machine"]))
    rows = [
        [
            *(cell["n"], cell["d"], name),
            *(row["milliseconds"]["median"], row["gbps_of_input"]),
            *(row["vs_matmul_mean"]["median"], row["vs_jnp_mean"]["median"]),
            cell["memory"].get(name, {}).get("larger"),
        ]
        for cell in results["cells"]
        for name, row in cell["plain"].items()
    ]
    _bench.table(
        ["n", "d", "Plain", "ms", "GB/s of input", "vs matmul", "vs jnp.mean", "peak / nd4"], rows
    )
    print()
    rows = [
        [cell["n"], cell["d"]]
        + [cell["secagg"][name]["median"] for name in ("milliseconds", "keystream_milliseconds")]
        + [cell["secagg"]["keystream_gbps"], cell["secagg"]["vs_keystream"]["median"]]
        + [cell["memory"]["secagg"]["larger"]]
        for cell in results["cells"]
        if "secagg" in cell
    ]
    _bench.table(
        ["n", "d", "SecAgg ms", "keystreams ms", "keystream GB/s", "ratio", "peak / nd4"], rows
    )
    print()
    figures = [*TARGETS, "plain_vs_jnp_mean", "guard_speedup"]
    keys = ("best", "median", "worst", "worst_at")
    _bench.table(
        ["over the cells", "best", "median", "worst", "worst at", "target"],
        [[name, *(results[name].get(key) for key in keys), TARGETS.get(name)] for name in figures],
    )
    rows = [row for row in _guard_rows(results) if not row["guard_in_program"]]
    if rows:
        print(f"the guard of client_loop was removed by the compiler in {len(rows)} programs")
    for cell in results["skipped"]:
        print(f"left out: {cell}")


def _guard_rows(results):
    return results["guard_speedup"]["rows"] + results["guard_speedup"]["keystream"]["rows"]


if __name__ == "__main__":
    main()
