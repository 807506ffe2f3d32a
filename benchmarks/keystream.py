"""How fast masks are: ``keystream_sum`` against OpenSSL, ``jax.random`` and the Mersenne Twister.

A cell of the grid is a number of keys m and a length; its work is the sum of m keystreams of that
many words. The rate counts the bytes of keystream generated and accumulated, 4 * m * length, per
second. Every figure is taken twice: in a process pinned to one core, and on all cores.

    python benchmarks/keystream.py            # a table
    python benchmarks/keystream.py --json     # the same as JSON
    python benchmarks/keystream.py --quick    # a small grid, within a minute
"""

import _bench

KEYS = (1, 2, 3, 4, 8, 16, 17, 64)
LENGTHS = (10**3, 10**5, 10**7)
QUICK_KEYS = (1, 4, 16, 64)
QUICK_LENGTHS = (10**3, 10**5)

# A single call that is planned to take longer is left out and listed.
CALL_LIMIT_SECONDS = 8.0
# GB/s per core, to plan with; never reported.
PLANNED_RATE = {"keystream_512": 1.0, "keystream_default": 1.0, "jax_random": 0.15, "numpy_mt": 0.8}

TARGETS = {
    "ratio_vs_openssl_one_core": 0.85,
    "ratio_vs_jax_random": 10.0,
    "ratio_vs_numpy_mt": 4.0,
}
OPENSSL_BUFFER = 2**16
OPENSSL_CALLS = 16


def main() -> None:
    arguments = _bench.parser(__doc__).parse_args()
    if arguments.worker:
        _measure(_bench.enter_worker(arguments.worker))
        return
    host = _bench.machine()
    _bench.progress(_bench.describe(host))
    keys, lengths = (QUICK_KEYS, QUICK_LENGTHS) if arguments.quick else (KEYS, LENGTHS)
    # Core 0 takes the interrupts.
    places = {"one core": [_bench.allowed_cores()[-1]], "all cores": None}
    rows, skipped = [], []
    for place, cores in places.items():
        task = {
            "place": place,
            "cores": cores,
            "keys": keys,
            "lengths": lengths,
            "seconds": 0.3 if arguments.quick else 1.0,
            "num_cores": 1 if cores else host["cores"],
        }
        result = _bench.worker(__file__, task)
        rows += result["rows"]
        skipped += result["skipped"]
    _show(_results(host, rows, skipped), arguments.json)


def _measure(task) -> None:
    """The worker: all cells on the cores it is pinned to."""
    rows, skipped = [], []
    cells = [(m, length) for length in task["lengths"] for m in task["keys"]]
    for m, length in cells:
        _bench.progress(f"{task['place']}: {m} keys of {length} words")
        planned = {
            name: 4e-9 * m * length / (rate * (1 if name == "numpy_mt" else task["num_cores"]))
            for name, rate in PLANNED_RATE.items()
        }
        functions = _functions(m, length, one_core=task["cores"] is not None)
        for name in list(functions):
            if planned.get(name, 0.0) > CALL_LIMIT_SECONDS:
                del functions[name]
                skipped.append(
                    {
                        "place": task["place"],
                        "keys": m,
                        "length": length,
                        "what": name,
                        "planned_seconds": _bench.significant(planned[name], 2),
                    }
                )
        samples = _bench.interleaved(functions, seconds=task["seconds"])
        rows.append(_row(task["place"], m, length, samples))
    _bench.report({"rows": rows, "skipped": skipped})


def _functions(m, length, *, one_core):
    """What is measured in one cell: name -> a call that returns when the work is done."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    import fedjax_agg as fa
    from fedjax_agg.symmetric.chacha20 import keystream_sum

    generator = np.random.default_rng(m)
    keys = jnp.asarray(generator.integers(0, 2**32, (m, 8), np.uint32))
    # The signs of pairwise masks.
    signs = jnp.where(jnp.arange(m) % 2 == 0, jnp.uint32(1), jnp.uint32(2**32 - 1))
    nonce = jnp.zeros(3, jnp.uint32)
    random_keys = jax.random.split(jax.random.key(m), m)

    def ours(**options):
        compiled = (
            jax.jit(lambda *inputs: keystream_sum(*inputs, length), **options)
            .lower(keys, signs, nonce)
            .compile()
        )
        return lambda: compiled(keys, signs, nonce).block_until_ready()

    @jax.jit
    def random_masks(random_keys, signs):
        masks = jax.vmap(lambda key: jax.random.bits(key, (length,), jnp.uint32))(random_keys)
        return jnp.sum(signs[:, None] * masks, axis=0, dtype=jnp.uint32)

    functions = {
        "keystream_512": ours(compiler_options=fa.compiler_options()),
        "keystream_default": ours(),
        "jax_random": lambda: random_masks(random_keys, signs).block_until_ready(),
    }
    if one_core:
        functions["numpy_mt"] = lambda: _mersenne_twister_masks(m, length)
        if (openssl := _openssl()) is not None:
            functions["openssl"] = openssl
    return functions


def _mersenne_twister_masks(m, length):
    """The sum of m streams of the generator that seeds of 32 bits give in NumPy."""
    import numpy as np

    total = np.zeros(length, np.uint32)
    for seed in range(m):
        stream = np.random.RandomState(seed)
        total += stream.randint(0, 2**32, length, np.uint32)
    return total


def _openssl():
    """OpenSSL's ChaCha20 over one buffer that stays in the cache; None if not installed."""
    try:
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
    except ImportError:
        return None

    encryptor = Cipher(algorithms.ChaCha20(bytes(32), bytes(16)), mode=None).encryptor()
    zeros, stream = bytes(OPENSSL_BUFFER), bytearray(OPENSSL_BUFFER)

    def generate():
        for _ in range(OPENSSL_CALLS):
            encryptor.update_into(zeros, stream)

    return generate


def _row(place, m, length, samples):
    size = 4 * m * length
    work = {name: size for name in samples} | {"openssl": OPENSSL_BUFFER * OPENSSL_CALLS}
    rates = {
        name: [work[name] / seconds / 1e9 for seconds in times] for name, times in samples.items()
    }
    row = {"place": place, "keys": m, "length": length}
    row["gbps"] = {name: _bench.summary(values) for name, values in rates.items()}
    row["ratio"] = {
        name: _bench.summary(_bench.ratios(rates["keystream_512"], rates[name]))
        for name in rates
        if not name.startswith("keystream")
    }
    row["microseconds_512"] = _bench.significant(
        _bench.summary(samples["keystream_512"])["median"] * 1e6
    )
    return row


def _results(host, rows, skipped):
    one = [row for row in rows if row["place"] == "one core"]
    every = [row for row in rows if row["place"] == "all cores"]

    def grid(rows, group, name):
        cells = [
            (row["length"], f"{row['keys']} keys x {row['length']}", row[group][name]["median"])
            for row in rows
            if name in row[group]
        ]
        figure = _bench.over_cells([cell[1:] for cell in cells], largest_is_best=True)
        figure["minimum"] = figure.pop("worst")
        figure["minimum_at"] = figure.pop("worst_at", None)
        figure["by_length"] = {
            str(length): _median_and_minimum([cell[2] for cell in cells if cell[0] == length])
            for length in sorted({cell[0] for cell in cells})
        }
        return figure

    return {
        "what": "sums of ChaCha20 keystreams; ratios are rate over rate, above 1 is faster",
        "machine": host,
        "gbps_one_core_512": grid(one, "gbps", "keystream_512"),
        "gbps_one_core_default": grid(one, "gbps", "keystream_default"),
        "gbps_all_cores_512": grid(every, "gbps", "keystream_512"),
        "gbps_all_cores_default": grid(every, "gbps", "keystream_default"),
        "ratio_vs_openssl_one_core": grid(one, "ratio", "openssl"),
        "ratio_vs_jax_random": grid(every, "ratio", "jax_random"),
        "ratio_vs_jax_random_one_core": grid(one, "ratio", "jax_random"),
        "ratio_vs_numpy_mt": grid(one, "ratio", "numpy_mt"),
        "targets": TARGETS,
        "call_limit_seconds": CALL_LIMIT_SECONDS,
        "skipped": skipped,
        "rows": rows,
    }


def _median_and_minimum(values):
    return {"median": _bench.summary(values)["median"], "minimum": min(values)}


def _show(results, as_json) -> None:
    if as_json:
        import json

        print(json.dumps(results, indent=1))
        return
    print(_bench.describe(results["machine"]))
    names = ("keystream_512", "keystream_default", "jax_random", "numpy_mt", "openssl")
    _bench.table(
        ["place", "keys", "length", "us a call", *(f"{name} GB/s" for name in names)],
        [
            [row["place"], row["keys"], row["length"], row["microseconds_512"]]
            + [row["gbps"].get(name, {}).get("median") for name in names]
            for row in results["rows"]
        ],
    )
    print()
    figures = [name for name in results if name.startswith(("gbps", "ratio"))]
    keys = ("best", "median", "minimum", "minimum_at")
    _bench.table(
        ["over the grid", "best", "median", "minimum", "minimum at", "target"],
        [[name, *(results[name][key] for key in keys), TARGETS.get(name)] for name in figures],
    )
    for cell in results["skipped"]:
        print(f"left out, a call above {CALL_LIMIT_SECONDS} s: {cell}")


if __name__ == "__main__":
    main()
