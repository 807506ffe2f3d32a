"""All benchmarks, one after the other, and one page about them.

python -m benchmarks --out DIR            # DIR/index.md, pictures, and the JSON of each
python -m benchmarks --quick --out DIR    # small grids
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ALL = (
    "first_call",
    "keystream",
    "round",
    "peers",
    "end_to_end",
    "protocols",
    "scaling",
    "load",
    "packing",
)
PICTURES = ("peers", "end_to_end", "scaling")
RATIO = re.compile("_vs_|ratio|share|price|speedup|over|exponent|deviation")


def main(arguments=None) -> int:
    options = _parse(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    results, failed = {}, []
    for name in options.only or ALL:
        print(f"== {name}", file=sys.stderr, flush=True)
        command = [sys.executable, str(HERE / f"{name}.py"), "--json"]
        done = subprocess.run(
            command + ["--quick"] * options.quick, stdout=subprocess.PIPE, text=True, check=False
        )
        if done.returncode:
            failed.append(name)
            continue
        (options.out / f"{name}.json").write_text(done.stdout)
        results[name] = json.loads(done.stdout)
        # After every benchmark, so that a long run leaves what it has.
        (options.out / "index.md").write_text(_page(results, options.quick))
        _draw(results, options.out)
    print(options.out / "index.md")
    for name in failed:
        print(f"{name} failed; its own output above says why", file=sys.stderr)
    return 1 if failed else 0


def _parse(arguments):
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks"), help="a folder")
    parser.add_argument("--quick", action="store_true", help="small grids")
    parser.add_argument("--only", nargs="+", choices=ALL, help="these benchmarks and no others")
    return parser.parse_args(arguments)


def _page(results, quick) -> str:
    """The page: every ratio with its target, then every other figure."""
    host = next(iter(results.values()))["machine"]
    lines = ["# Benchmarks", "", f"{_host(host)}{' Small grids.' if quick else ''}", ""]
    lines += [
        "Names with `_vs_`, `ratio`, `share`, `price`, `speedup`, `over`, `exponent` or",
        "`deviation` are ratios, and hold on other machines more or less; GB/s, seconds, GiB and",
        "rounds a second hold on this one. [`benchmarks/README.md`](README.md) says what each is.",
        "",
    ]
    lines += [
        "| benchmark | figure | best | median | worst | target |",
        "|---|---|---|---|---|---|",
    ]
    rows = [
        (key, f"| {name} | `{key}` | {row} | {result.get('targets', {}).get(key, '')} |")
        for name, result in results.items()
        for key, figure in result.items()
        if key not in ("machine", "targets", "call_limit_seconds")
        and (row := _row(figure)) is not None
    ]
    # A stable sort: ratios first, and else as the benchmarks have them.
    lines += [line for _, line in sorted(rows, key=lambda row: not RATIO.search(row[0]))]
    for name in PICTURES:
        if name in results:
            lines += ["", f"![{name}]({name}.png)"]
    skipped = [
        (name, cell) for name, result in results.items() for cell in result.get("skipped", [])
    ]
    if skipped:
        lines += [
            "",
            "## Left out",
            "",
            *(f"- {name}: `{json.dumps(cell)}`" for name, cell in skipped),
        ]
    return "\n".join(lines) + "\n"


def _host(host) -> str:
    vectors = "AVX-512" if host["avx512"] else "no AVX-512"
    return (
        f"{host['cpu']}, {host['cores']} cores, {vectors}, {host['system']}, Python "
        f"{host['python']}, JAX {host['jax']}; load {host['load_at_start'][0]} at the start."
    )


def _row(figure) -> str | None:
    """The cells of one figure: a number, a summary, or figures over a grid; else none."""
    if isinstance(figure, bool) or figure is None:
        return None
    if isinstance(figure, (int, float)):
        return f"| {figure:.4g} |"
    if isinstance(figure, dict) and isinstance(figure.get("median"), (int, float)):
        low, high = figure.get("best"), figure.get("worst", figure.get("minimum"))
        shown = ["" if value is None else f"{value:.4g}" for value in (low, figure["median"], high)]
        return " | ".join(shown)
    return None


def _draw(results, out) -> None:
    """The pictures of what there is."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    if "scaling" in results:
        found = results["scaling"]
        figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
        for axis, rows, name, label in (
            (axes[0], found["clients"], "n", "clients in the cohort"),
            (axes[1], found["coordinates"], "d", "coordinates of an update"),
        ):
            times = [row["milliseconds"]["median"] for row in rows]
            axis.loglog([row[name] for row in rows], times, "o-")
            axis.set(
                xlabel=label,
                ylabel="one client's masks [ms]",
                ylim=(min(times) / 3, max(times) * 3),
            )
            axis.grid(alpha=0.3, which="both")
        axes[0].set_title(f"SecAgg+: time ~ n^{found['client_exponent_in_n']:.2f}")
        axes[1].set_title(f"16 neighbours: time ~ d^{found['client_exponent_in_d']:.2f}")
        figure.savefig(out / "scaling.png", dpi=150)
        plt.close(figure)
    if "peers" in results:
        cell = results["peers"]["cells"][-1]
        times = {name: row["median"] for name, row in cell["milliseconds"].items()}
        figure, axis = plt.subplots(figsize=(7, 3.4), layout="constrained")
        names = sorted(times, key=times.get)
        hides = ("secagg_plus", "numpy", "ckks")
        colours = ["tab:blue" if name in hides else "tab:gray" for name in names]
        axis.barh(names, [times[name] for name in names], color=colours)
        axis.set(
            xscale="log",
            xlabel="a round [ms]",
            title=f"{cell['n']} clients, {cell['d']:,} coordinates (blue hides the updates)",
        )
        axis.grid(alpha=0.3, axis="x")
        figure.savefig(out / "peers.png", dpi=150)
        plt.close(figure)
    if "end_to_end" in results:
        found = results["end_to_end"]
        means = ("secagg", "secagg_plus", "plain", "float")
        rates = [found[f"rounds_per_second_{mean}"]["median"] for mean in means]
        figure, axis = plt.subplots(figsize=(7.5, 2.8), layout="constrained")
        bars = axis.barh(means, rates, color=["tab:blue", "tab:blue", "tab:gray", "tab:gray"])
        prices = [found.get(f"price_of_security_{mean}", {}).get("median", 0) for mean in means]
        axis.bar_label(bars, [f"security is {p:.0%} of it" if p else "" for p in prices], padding=4)
        axis.set(
            xlabel="rounds a second, training included",
            xlim=(0, 1.35 * max(rates)),
            title=f"{found['clients']} clients, {found['parameters']:,} parameters "
            "(blue hides the updates)",
        )
        figure.savefig(out / "end_to_end.png", dpi=150)
        plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
