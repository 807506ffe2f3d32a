"""Masks and rounds on a GPU, against what its integer units and its memory can do.

    PYTHONPATH=. python benchmarks/gpu.py            # a table, then one JSON object
    PYTHONPATH=. python benchmarks/gpu.py --json     # the object alone
    PYTHONPATH=. python benchmarks/gpu.py --quick    # a short grid

Needs a checkout, JAX with its plugin for the GPU, NumPy and optax, and nothing else. Without a GPU
it measures the same on the CPU, small, and says so: to try the script, not to quote it.

A word of the keystream of one key is 61 integer operations: additions, exclusive ors, rotations.
Both limits are measured here: a program of quarter rounds only, and a copy of a large array.
"""

import json
import os

import _bench

# Operations of a quarter round, and of a word of the keystream.
QUARTER_ROUND, WORD = 12, 61
KEYS, LENGTHS = (1, 4, 16, 17, 64), (10**5, 10**6, 10**7)
QUICK_KEYS, QUICK_LENGTHS = (1, 17), (10**5,)
# Clients, neighbours (None: no masks), coordinates.
ROUNDS = (
    (64, None, 10**6),
    (64, 16, 10**6),
    (1000, None, 10**5),
    (1000, 78, 10**5),
)
QUICK_ROUNDS = ((16, None, 10**5), (16, 4, 10**5))
GOAL_GBPS = 600.0


def main() -> None:
    arguments = _bench.parser(__doc__).parse_args()
    # The rounds of a large cohort need most of the memory for themselves.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import jax

    device = jax.devices()[0]
    on_gpu = device.platform == "gpu"
    small = arguments.quick or not on_gpu
    host = _bench.machine() | {"device": device.device_kind, "platform": device.platform}
    _bench.progress(f"{device.device_kind}: JAX {jax.__version__}")
    if not on_gpu:
        _bench.progress("no GPU here: the short grid, on the CPU")
    seconds = 0.5 if small else 3.0
    limits = _limits(2**18 if small else 2**24, seconds)
    keys, lengths = (QUICK_KEYS, QUICK_LENGTHS) if small else (KEYS, LENGTHS)
    streams = [_keystream(m, length, limits, on_gpu, seconds) for length in lengths for m in keys]
    rounds = [_round(*cell, seconds) for cell in (QUICK_ROUNDS if small else ROUNDS)]
    best = max(row["gbps"]["chosen"]["median"] for row in streams)
    results = {
        "machine": host,
        "limits": limits,
        "keystream": streams,
        "rounds": rounds,
        "keystream_gbps": best,
        "targets": {"keystream_gbps on an H100": GOAL_GBPS},
    }
    if not arguments.json:
        _show(results)
    print(json.dumps(results))


def _limits(size, seconds):
    """Quarter rounds a second without memory, and bytes a second without arithmetic."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from fedjax_agg.symmetric.chacha20_block import double_round

    _bench.progress("the limits of the device")
    x = jnp.arange(16 * size, dtype=jnp.uint32).reshape(16, 64, size // 64)

    @jax.jit
    def turn(x):
        # A block's worth for every load, and one output: of sixteen, XLA would compute each anew.
        state = list(x)
        for _ in range(10):
            state = double_round(state)
        return jax.lax.reduce(
            state, [np.uint32(0)] * 16, lambda a, b: [p + q for p, q in zip(a, b)], (0,)
        )

    copy = jax.jit(lambda x: x + 1)
    calls = {
        "turn": lambda: jax.block_until_ready(turn(x)),
        "copy": lambda: jax.block_until_ready(copy(x)),
    }
    times = _bench.interleaved(calls, seconds=seconds)
    operations = 10 * 8 * QUARTER_ROUND * size
    return {
        "integer_operations_per_second": _bench.summary([operations / s for s in times["turn"]]),
        "integer_gbps": _bench.summary([4e-9 * operations / WORD / s for s in times["turn"]]),
        "memory_gbps": _bench.summary([2e-9 * x.nbytes / s for s in times["copy"]]),
    }


def _keystream(m, length, limits, on_gpu, seconds):
    """The sum of m keystreams, as the library chooses, and by each form that it has."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from fedjax_agg.symmetric import chacha20
    from fedjax_agg.symmetric.chacha20_gpu import keystream_sum_gpu

    _bench.progress(f"{m} keys of {length} words")
    draw = np.random.default_rng(0).integers
    shapes = ((m, 8), (m,), (3,))
    arguments = [jnp.asarray(draw(2**32, size=shape, dtype=np.uint32)) for shape in shapes]

    def scan_over_keys(keys, coefficients, nonce):
        """The plain form: one key after the other into an accumulator in memory."""
        first, nothing = jnp.uint32(0), jnp.zeros(length, jnp.uint32)

        def add(total, row):
            return total + row[1] * chacha20._single(row[0], nonce, first, length), None

        return jax.lax.scan(add, nothing, (keys, coefficients))[0]

    def in_lanes(keys, coefficients, nonce):
        if m == 1:
            return coefficients[0] * chacha20._single(keys[0], nonce, jnp.uint32(0), length)
        return chacha20._sum_over_lanes(keys, coefficients, nonce, jnp.uint32(0), length)

    forms = {
        "chosen": lambda *a: chacha20.keystream_sum(*a, length),
        "variadic_reduce": in_lanes,
        "scan": scan_over_keys,
    }
    if on_gpu:
        forms["pallas"] = lambda *a: keystream_sum_gpu(*a, jnp.uint32(0), length)
    programs = {name: jax.jit(form).lower(*arguments).compile() for name, form in forms.items()}
    found = {name: np.asarray(program(*arguments)) for name, program in programs.items()}
    assert all((words == found["chosen"]).all() for words in found.values()), "bits differ"
    calls = {
        name: lambda program=program: jax.block_until_ready(program(*arguments))
        for name, program in programs.items()
    }
    times = _bench.interleaved(calls, seconds=seconds)
    gbps = {
        name: _bench.summary([4e-9 * m * length / s for s in samples])
        for name, samples in times.items()
    }
    rate = gbps["chosen"]["median"]
    return {
        "keys": m,
        "length": length,
        "gbps": gbps,
        "of_integer_limit": _bench.significant(rate / limits["integer_gbps"]["median"]),
        "of_memory": _bench.significant(rate / limits["memory_gbps"]["median"]),
    }


def _round(n, neighbours, d, seconds):
    """A whole round, of clients, server and updates on one device."""
    import jax

    import fedjax_agg as fa

    name = "plain" if neighbours is None else "secagg_plus"
    _bench.progress(f"{name}: {n} clients, {d} coordinates")
    protocol = fa.Plain() if neighbours is None else fa.SecAgg(degree=neighbours)
    x = jax.random.normal(jax.random.key(0), (n, d)) / 1000
    session = fa.simulated_session(fa.fixed_seed(0), num_clients=n)
    codec = fa.FixedPoint(clip=1.0)
    run = jax.jit(
        lambda x, session: fa.secure_mean(x, session, codec=codec, protocol=protocol),
        compiler_options=fa.compiler_options(),
    )
    program = run.lower(x, session).compile()
    assert bool(program(x, session)[1].ok)
    calls = {"round": lambda: jax.block_until_ready(program(x, session))}
    times = _bench.interleaved(calls, seconds=seconds)["round"]
    return {
        "protocol": name,
        "clients": n,
        "neighbours": neighbours,
        "coordinates": d,
        "seconds": _bench.summary(times),
        "rounds_per_second": _bench.summary([1 / s for s in times]),
    }


def _show(results) -> None:
    limits = results["limits"]
    print(
        f"{results['machine']['device']}: integer limit "
        f"{limits['integer_gbps']['median']:.4g} GB/s of keystream, memory "
        f"{limits['memory_gbps']['median']:.4g} GB/s\n"
    )
    names = list(results["keystream"][0]["gbps"])
    _bench.table(
        ["keys", "words", *(f"{name} GB/s" for name in names), "of integers", "of memory"],
        [
            [row["keys"], row["length"]]
            + [row["gbps"][name]["median"] for name in names]
            + [row["of_integer_limit"], row["of_memory"]]
            for row in results["keystream"]
        ],
    )
    print()
    _bench.table(
        ["protocol", "n", "k", "d", "seconds a round", "rounds/s"],
        [
            [
                *(row[key] for key in ("protocol", "clients", "neighbours", "coordinates")),
                *(row[key]["median"] for key in ("seconds", "rounds_per_second")),
            ]
            for row in results["rounds"]
        ],
    )
    print()


if __name__ == "__main__":
    main()
