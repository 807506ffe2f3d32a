"""What the benchmarks share: timing, worker processes, the machine, tables and JSON.

Everything is measured in worker processes. Only a process that is pinned before JAX starts gives
XLA a thread pool of one thread, and only a fresh process has a memory of its own to measure. This
module therefore never imports JAX.
"""

import argparse
import contextlib
import ctypes
import gc
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# One sample lasts at least this long, so that the clock and the dispatch jitter do not matter.
SAMPLE_SECONDS = 2e-3
_STARTED = time.perf_counter()


def progress(message: str) -> None:
    """One line on stderr, with the seconds since the start of this process."""
    print(f"[{time.perf_counter() - _STARTED:6.1f} s] {message}", file=sys.stderr, flush=True)


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that all benchmarks have in common."""
    arguments = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--json", action="store_true", help="print JSON only, on stdout")
    arguments.add_argument("--quick", action="store_true", help="a small grid, within a minute")
    arguments.add_argument("--worker", help=argparse.SUPPRESS)
    return arguments


# Processes.


def allowed_cores() -> list[int]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def worker(script: str, task: dict[str, Any]) -> Any:
    """Runs ``script --worker task`` in a new process and returns what it reports.

    Args:
        script: the path of the benchmark, which calls ``enter_worker`` before it imports JAX.
        task: any JSON; ``task["cores"]`` lists the cores to pin the process to, None for all.

    Returns:
        The JSON that the worker gave to ``report``.
    """
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(ROOT), *filter(None, [environment.get("PYTHONPATH")])]
    )
    environment["JAX_PLATFORMS"] = "cpu"
    done = subprocess.run(
        [sys.executable, script, "--worker", json.dumps(task)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{Path(script).name}: the worker {task} ended with {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def enter_worker(task: str) -> dict[str, Any]:
    """The task of this worker, after the process is pinned to its cores."""
    parsed = json.loads(task)
    cores = parsed.get("cores")
    if cores is not None:
        if not hasattr(os, "sched_setaffinity"):
            raise SystemExit("pinning a process to a core needs Linux")
        os.sched_setaffinity(0, cores)
        # XLA sizes its thread pool by the affinity mask; the variable is its explicit form.
        os.environ["NPROC"] = str(len(cores))
    return parsed


def report(result: Any) -> None:
    """The last line of a worker."""
    print(json.dumps(result), flush=True)


def why_not_installed(requirement: str) -> str:
    """What the installer says about a peer that is not there; it installs nothing."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", requirement]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    except (OSError, subprocess.TimeoutExpired) as problem:
        return f"{' '.join(command[1:])}: {problem}"
    if done.returncode:
        return done.stderr.strip()
    return f"not installed; python -m pip install '{requirement}' would do it"


# Timing.


def interleaved(
    functions: dict[str, Callable[[], Any]],
    *,
    seconds: float,
    least: int = 3,
    most: int = 15,
    warm: bool = True,
) -> dict[str, list[float]]:
    """Seconds per call of each function, measured in turns.

    All functions get equally many samples, taken round after round, so that a change of the
    machine's load meets all of them alike and sample k of one may be divided by sample k of
    another. A sample of a fast function is the mean of many calls.

    Args:
        functions: each returns after its work is done.
        seconds: how long to go on; the number of samples is between ``least`` and ``most``.
        least: the fewest samples.
        most: the most samples.
        warm: call everything once before the first sample.

    Returns:
        For each name the samples, in order.
    """
    calls = {name: 1 for name in functions}
    if warm:
        for name, function in functions.items():
            once = _seconds_per_call(function, 1)
            if once < 0.1:  # The first call may have loaded something.
                once = _seconds_per_call(function, 1)
            if once < SAMPLE_SECONDS:
                once = _seconds_per_call(function, max(1, min(50, int(SAMPLE_SECONDS / once / 4))))
            calls[name] = max(1, min(1000, round(SAMPLE_SECONDS / once)))
    samples: dict[str, list[float]] = {name: [] for name in functions}
    begin = time.perf_counter()
    for done in range(most):
        if done >= least and time.perf_counter() - begin > seconds:
            break
        for name, function in functions.items():
            samples[name].append(_seconds_per_call(function, calls[name]))
    return samples


def _seconds_per_call(function: Callable[[], Any], calls: int) -> float:
    begin = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - begin) / calls


def summary(values: Sequence[float], digits: int = 4) -> dict[str, Any]:
    """The median and the interquartile range (the whole range of less than four values)."""
    ordered = sorted(values)
    low, high = ordered[0], ordered[-1]
    if len(ordered) >= 4:
        low, _, high = statistics.quantiles(ordered, n=4, method="inclusive")
    return {
        "median": significant(statistics.median(ordered), digits),
        "spread": [significant(low, digits), significant(high, digits)],
        "samples": len(ordered),
    }


def ratios(numerator: Sequence[float], denominator: Sequence[float]) -> list[float]:
    """Sample by sample, each pair taken within one turn."""
    return [a / b for a, b in zip(numerator, denominator)]


def over_cells(cells: Sequence[tuple[str, float]], *, largest_is_best: bool) -> dict[str, Any]:
    """The best, median and worst of one figure over the grid, and the cells they come from."""
    if not cells:
        return {"best": None, "median": None, "worst": None}
    ordered = sorted(cells, key=lambda cell: cell[1], reverse=largest_is_best)
    return {
        "best": ordered[0][1],
        "best_at": ordered[0][0],
        "median": significant(statistics.median(value for _, value in cells)),
        "worst": ordered[-1][1],
        "worst_at": ordered[-1][0],
    }


def significant(value: float, digits: int = 4) -> float:
    """The number rounded to so many significant digits."""
    return float(f"{value:.{digits}g}")


# Memory.


def resident_bytes() -> int:
    """The resident set of this process now (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def available_bytes() -> int:
    """The memory that the machine can still give."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable"):
            return int(line.split()[1]) * 1024
    raise SystemExit("/proc/meminfo does not say how much memory is available")


def added_bytes(function: Callable[[], Any], *, warm: bool = True) -> int:
    """How far the resident set rises while ``function`` runs, sampled about every millisecond.

    The kernel's own high-water mark would not do: it remembers the compiler. A first call that
    is not measured loads code and starts threads; what it leaves behind goes back to the system.
    """
    if warm:
        function()
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    before = peak = resident_bytes()
    finished = threading.Event()

    def sample():
        nonlocal peak
        while not finished.wait(1e-3):
            peak = max(peak, resident_bytes())

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        result = function()
        peak = max(peak, resident_bytes())
        del result
    finally:
        finished.set()
        sampler.join()
    return peak - before


# Reports.


def machine() -> dict[str, Any]:
    """What the figures depend on besides the code."""
    model, flags = platform.processor() or platform.machine(), set()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                model = value.strip()
            elif name.strip() == "flags":
                flags = set(value.split())
    versions = {}
    for package in ("jax", "jaxlib", "numpy", "cryptography"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "cpu": model,
        "cores": len(allowed_cores()),
        "avx512": "avx512f" in flags,
        "system": platform.platform(),
        "python": platform.python_version(),
        **versions,
        "load_at_start": [round(load, 2) for load in os.getloadavg()],
    }


def describe(host: dict[str, Any]) -> str:
    """One line about the machine."""
    vectors = "AVX-512" if host["avx512"] else "no AVX-512"
    return (
        f"{host['cpu']}, {host['cores']} cores, {vectors}; Python {host['python']}, "
        f"JAX {host['jax']}, NumPy {host['numpy']}; load {host['load_at_start'][0]}"
    )


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Prints right-aligned columns; None is a dash."""
    text = [["-" if cell is None else _cell(cell) for cell in row] for row in rows]
    widths = [
        max(len(column), *(len(row[i]) for row in text)) if text else len(column)
        for i, column in enumerate(columns)
    ]
    for line in [list(columns), *text]:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths)))


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
