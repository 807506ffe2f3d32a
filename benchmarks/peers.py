"""The same work by other means: CKKS, NumPy by hand, DrJAX's mean, a matrix product.

A cell is n clients with flat updates float32[d]. What hides the updates is compared with a whole
SecAgg+ round of 16 neighbours: CKKS (TenSEAL: every client encrypts, the server adds, the holder
of the key decrypts; whoever holds that key can open every update, and no client may be lost), and
pairwise masks in NumPy by hand (64-bit seeds; no shares, no client may be lost). What hides
nothing is compared with ``Plain()``: DrJAX's mean, and the mean as a matrix product.

    python benchmarks/peers.py            # tables, ratios first
    python benchmarks/peers.py --json     # the same as JSON
    python benchmarks/peers.py --quick    # one small cell
"""

import importlib.metadata

import _bench

NEIGHBOURS = 16
CELLS = ((32, 10**5), (128, 10**5))
QUICK_CELLS = ((32, 10**4),)
# Moduli of the example in TenSEAL's documentation: 128 bits of security, one addition's depth.
POLYNOMIAL_DEGREE, MODULI, SCALE = 8192, [60, 40, 60], 2.0**40
TARGETS = {
    "ckks_vs_secagg_plus": 20.0,
    "ckks_bytes_vs_secagg_plus": 10.0,
    "plain_nearest_vs_matmul_mean": 3.0,
    "plain_stochastic_vs_matmul_mean": 9.0,
}


def main() -> None:
    arguments = _bench.parser(__doc__).parse_args()
    if arguments.worker:
        _measure(_bench.enter_worker(arguments.worker))
        return
    host = _bench.machine() | {name: _version(name) for name in ("tenseal", "drjax")}
    _bench.progress(_bench.describe(host))
    cells = [
        _bench.worker(__file__, {"n": n, "d": d, "seconds": 1.0 if arguments.quick else 5.0})
        for n, d in (QUICK_CELLS if arguments.quick else CELLS)
    ]
    _show(_results(host, cells), arguments.json)


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _measure(task) -> None:
    """The worker: one cell."""
    import numpy as np

    n, d = task["n"], task["d"]
    _bench.progress(f"{n} clients, {d} coordinates: compiling")
    rng = np.random.default_rng(0)
    updates = (rng.standard_normal((n, d)) / (2 * np.sqrt(d))).astype(np.float32)
    rounds, sent = _rounds(updates)
    masked = {"secagg_plus": rounds.pop("secagg_plus"), "numpy": lambda: _by_hand(updates)}
    skipped = {}
    try:
        masked["ckks"], sent["ckks"] = _ckks(updates)
    except ImportError:
        skipped["ckks"] = _bench.why_not_installed("tenseal")
    try:
        rounds["drjax"] = _drjax(updates)
    except ImportError:
        skipped["drjax"] = _bench.why_not_installed("drjax")
    _bench.progress(f"{n} clients, {d} coordinates: {', '.join(masked)}")
    times = _bench.interleaved(masked, seconds=task["seconds"], least=3)
    _bench.progress(f"{n} clients, {d} coordinates: {', '.join(rounds)}")
    times |= _bench.interleaved(rounds, seconds=task["seconds"], most=25)
    over = [("secagg_plus", name) for name in ("numpy", "ckks") if name in times]
    over += [("matmul_mean", name) for name in rounds if name != "matmul_mean"]
    _bench.report(
        {
            "n": n,
            "d": d,
            "milliseconds": {
                name: _bench.summary([1e3 * s for s in samples]) for name, samples in times.items()
            },
            "ratios": {
                f"{name}_vs_{base}": _bench.summary(_bench.ratios(times[name], times[base]))
                for base, name in over
            },
            "bytes_per_client": sent,
            "skipped": skipped,
        }
    )


def _rounds(updates):
    """Calls of this library and of the matrix product, compiled, and bytes of one client."""
    import jax
    import jax.numpy as jnp

    import fedjax_agg as fa

    n, options = updates.shape[0], {"compiler_options": fa.compiler_options()}
    session = fa.simulated_session(fa.fixed_seed(0), num_clients=n)
    x = jnp.asarray(updates)
    secagg_plus = fa.SecAgg(degree=min(NEIGHBOURS, n - 1))

    def round_of(protocol, rounding):
        codec = fa.FixedPoint(clip=1.0, rounding=rounding)
        run = jax.jit(
            lambda x, session: fa.secure_mean(x, session, codec=codec, protocol=protocol),
            **options,
        )
        return lambda: jax.block_until_ready(run(x, session))

    matmul = jax.jit(lambda x: jnp.ones((1, n), jnp.float32) @ x / n, **options)
    calls = {
        "secagg_plus": round_of(secagg_plus, "stochastic"),
        "plain_nearest": round_of(fa.Plain(), "nearest"),
        "plain_stochastic": round_of(fa.Plain(), "stochastic"),
        "matmul_mean": lambda: jax.block_until_ready(matmul(x)),
    }
    _, report = calls["secagg_plus"]()
    assert bool(report.ok)
    sent = {"secagg_plus": sum(int(count) for count in report.bytes_up.values())}
    return calls, sent


def _drjax(updates):
    """DrJAX's plain mean, which hides nothing and rounds nothing."""
    import drjax
    import jax
    import jax.numpy as jnp

    import fedjax_agg as fa

    mean = drjax.program(clients=updates.shape[0])(lambda x: drjax.reduce_mean(x))
    run = jax.jit(mean, compiler_options=fa.compiler_options())
    x = jnp.asarray(updates)
    return lambda: jax.block_until_ready(run(x))


def _by_hand(updates):
    """Pairwise masks as one would write them: a seeded generator for each pair of a ring graph."""
    import numpy as np

    n, d = updates.shape
    half = min(NEIGHBOURS, n - 1) // 2
    words = np.rint(updates * 2**15).astype(np.int32).view(np.uint32)
    total = np.zeros(d, np.uint32)
    for client in range(n):
        upload = words[client].copy()
        for step in range(1, half + 1):
            ahead, behind = (client, (client + step) % n), ((client - step) % n, client)
            upload += np.random.default_rng(ahead).integers(2**32, size=d, dtype=np.uint32)
            upload -= np.random.default_rng(behind).integers(2**32, size=d, dtype=np.uint32)
        total += upload
    return total.view(np.int32) / np.float32(n * 2**15)


def _ckks(updates):
    """Encrypt at every client, add at the server, decrypt the sum; and bytes of one client."""
    import numpy as np
    import tenseal

    context = tenseal.context(
        tenseal.SCHEME_TYPE.CKKS, POLYNOMIAL_DEGREE, coeff_mod_bit_sizes=MODULI
    )
    context.global_scale = SCALE
    slots = POLYNOMIAL_DEGREE // 2
    rows = [[row[i : i + slots].tolist() for i in range(0, row.size, slots)] for row in updates]

    def encrypt(row):
        return [tenseal.ckks_vector(context, part) for part in row]

    def run():
        total = encrypt(rows[0])
        for row in rows[1:]:
            total = [a + b for a, b in zip(total, encrypt(row))]
        return np.concatenate([part.decrypt() for part in total]) / len(rows)

    assert np.abs(run() - updates.mean(axis=0)).max() < 1e-5
    return run, sum(len(part.serialize()) for part in encrypt(rows[0]))


def _results(host, cells):
    def figure(name, *, largest_is_best):
        found = [
            (f"n={cell['n']}, d={cell['d']}", cell["ratios"][name]["median"])
            for cell in cells
            if name in cell["ratios"]
        ]
        return _bench.over_cells(found, largest_is_best=largest_is_best)

    lengths = [
        (f"n={c['n']}, d={c['d']}", sent["ckks"] / sent["secagg_plus"])
        for c in cells
        if "ckks" in (sent := c["bytes_per_client"])
    ]
    return {
        "machine": host,
        "targets": TARGETS,
        "ckks_vs_secagg_plus": figure("ckks_vs_secagg_plus", largest_is_best=True),
        "ckks_bytes_vs_secagg_plus": _bench.over_cells(lengths, largest_is_best=True),
        "numpy_vs_secagg_plus": figure("numpy_vs_secagg_plus", largest_is_best=True),
        "plain_nearest_vs_matmul_mean": figure(
            "plain_nearest_vs_matmul_mean", largest_is_best=False
        ),
        "plain_stochastic_vs_matmul_mean": figure(
            "plain_stochastic_vs_matmul_mean", largest_is_best=False
        ),
        "drjax_vs_matmul_mean": figure("drjax_vs_matmul_mean", largest_is_best=False),
        "cells": cells,
        "skipped": [
            {"n": cell["n"], "d": cell["d"], "what": what, "why": why}
            for cell in cells
            for what, why in cell.pop("skipped").items()
        ],
    }


def _show(results, as_json) -> None:
    if as_json:
        import json

        print(json.dumps(results, indent=1))
        return
    rows = [
        [name, *(figure.get(key) for key in ("best", "median", "worst", "worst_at")), bound]
        for name, figure in results.items()
        if name not in ("machine", "targets", "cells", "skipped")
        for bound in [TARGETS.get(name)]
    ]
    _bench.table(["over the cells", "best", "median", "worst", "worst at", "target"], rows)
    print(f"\n{_bench.describe(results['machine'])}\n")
    rows = [
        [cell["n"], cell["d"], name, times["median"], cell["bytes_per_client"].get(name)]
        for cell in results["cells"]
        for name, times in cell["milliseconds"].items()
    ]
    _bench.table(["n", "d", "what", "ms a round", "bytes a client"], rows)
    for cell in results["skipped"]:
        print(f"left out: {cell}")


if __name__ == "__main__":
    main()
