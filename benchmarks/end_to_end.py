"""Rounds a second of the digits run, and what of a round its security costs.

A round is that of ``examples/digits.py``, whole: local training of every client, the mean of the
updates, the server's rule. Only the mean differs: in floating point and in the clear, under
``Plain()`` (fixed point, no masks), ``SecAgg()`` on the complete graph, and SecAgg+ on the graph
that ``plan_round`` finds for 20 % lost and 10 % corrupt clients.

    python benchmarks/end_to_end.py            # a table
    python benchmarks/end_to_end.py --json     # the same as JSON
    python benchmarks/end_to_end.py --quick    # 10 clients in place of 50
"""

import json
import sys

import _bench

CLIENTS, QUICK_CLIENTS = 50, 10
BITS, SEED = 16, 0
MEANS = ("float", "plain", "secagg", "secagg_plus")


def main() -> None:
    arguments = _bench.parser(__doc__).parse_args()
    if arguments.worker:
        _measure(_bench.enter_worker(arguments.worker))
        return
    host = _bench.machine()
    _bench.progress(_bench.describe(host))
    task = {
        "clients": QUICK_CLIENTS if arguments.quick else CLIENTS,
        "seconds": 2.0 if arguments.quick else 20.0,
    }
    _show({"machine": host} | _bench.worker(__file__, task), arguments.json)


def _measure(task) -> None:
    """The worker: all four rounds in turns, from the same state."""
    sys.path.insert(0, str(_bench.ROOT / "examples"))
    import digits
    import jax
    import jax.numpy as jnp
    import numpy as np

    import fedjax_agg as fa

    n = task["clients"]
    data = digits.split_digits(n, np.random.default_rng(SEED))
    definition, params = digits.make_model(SEED)
    largest = min(digits.MAX_WEIGHT, int(data[2].max()))
    numbers = {"num_clients": n, "clip": digits.CLIP, "bits": BITS, "max_weight": largest}
    plan = fa.plan_round(params, **numbers)
    graph = fa.plan_round(params, **numbers, dropout=0.2, collusion=0.1)
    protocols = {
        "plain": fa.Plain(group=plan.group),
        "secagg": fa.SecAgg(group=plan.group),
        "secagg_plus": graph.protocol(),
    }
    codec = plan.codec()
    algorithm = digits.make_algorithm(definition, "fedavgm", codec, max_weight=largest)
    train_clients, _ = digits.make_training(definition, data, algorithm, SEED)
    weights = jnp.minimum(jnp.asarray(data[2], jnp.int32), largest)
    session = fa.simulated_session(fa.fixed_seed(SEED), num_clients=n)
    start = algorithm.init(params)

    def round_under(name):
        def run(state, session):
            (updates,) = train_clients(state, session.round_id).update
            if name == "float":
                mean, ok = digits.float_mean(updates, weights, plan.clip), True
            else:
                mean, report = fa.secure_mean(
                    updates,
                    session,
                    codec=codec,
                    protocol=protocols[name],
                    weights=weights,
                    max_weight=largest,
                )
                ok = report.ok
            return algorithm.server(state, (mean,), None), ok

        compiled = jax.jit(run, compiler_options=fa.compiler_options()).lower(start, session)
        program = compiled.compile()
        return lambda: jax.block_until_ready(program(start, session))

    _bench.progress(f"{n} clients, {plan.size} parameters: compiling")
    calls = {name: round_under(name) for name in MEANS}
    assert all(bool(call()[1]) for call in calls.values())
    _bench.progress(f"{n} clients, {plan.size} parameters: {', '.join(MEANS)}")
    times = _bench.interleaved(calls, seconds=task["seconds"], least=5)
    found = {"clients": n, "parameters": plan.size, "degree": graph.degree}
    for name in MEANS:
        found[f"rounds_per_second_{name}"] = _bench.summary([1 / s for s in times[name]])
    for name in MEANS[1:]:
        price = [1 - ratio for ratio in _bench.ratios(times["float"], times[name])]
        found[f"price_of_security_{name}"] = _bench.summary(price)
    _bench.report(found)


def _show(results, as_json) -> None:
    if as_json:
        print(json.dumps(results, indent=1))
        return
    print(_bench.describe(results["machine"]))
    print(
        f"{results['clients']} clients, {results['parameters']} parameters, "
        f"{results['degree']} neighbours in SecAgg+\n"
    )
    rows = [
        [
            name,
            results[f"rounds_per_second_{name}"]["median"],
            results.get(f"price_of_security_{name}", {}).get("median"),
        ]
        for name in MEANS
    ]
    _bench.table(["mean", "rounds/s", "part of the round that security costs"], rows)


if __name__ == "__main__":
    main()
