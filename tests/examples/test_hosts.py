"""Two processes over the loopback interface: one mean, and no hang when one of them is lost."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_agg as fa

SCRIPT = Path(__file__).parents[2] / "examples" / "hosts.py"
PROTOCOLS = {"plain": fa.Plain(), "secagg+": fa.SecAgg(threshold=3, degree=4)}


def run(*arguments, seconds=240):
    # One device for each process, where this one has eight.
    environment = {
        k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "PYTEST_XDIST_WORKER")
    }
    return subprocess.run(
        [sys.executable, SCRIPT, "--time-limit", "180", *arguments],
        capture_output=True,
        text=True,
        timeout=seconds,
        env=environment,
        check=False,
    )


def lines_of(found, process):
    return [line for line in found.stdout.splitlines() if line.startswith(f"process {process} ")]


def digests(protocol):
    """Of the means of both rounds, in this process."""
    number = np.arange(1000, dtype=np.float32)
    updates = jnp.asarray(np.stack([np.sin(number * (i + 1)) for i in range(16)]) / 32)
    for round_id in range(2):
        session = fa.simulated_session(fa.fixed_seed(0), num_clients=16, round_id=round_id)
        codec = fa.FixedPoint(clip=1.0)
        mean, _ = fa.secure_mean(updates, session, codec=codec, protocol=protocol)
        yield hashlib.sha256(np.asarray(mean).tobytes()).hexdigest()[:16]


@pytest.mark.slow
@pytest.mark.default_dtypes
@pytest.mark.parametrize("name", PROTOCOLS)
def test_two_processes_have_the_mean_of_one(name):
    found = run("--protocol", name)
    assert found.returncode == 0, found.stderr
    for process in (0, 1):
        assert lines_of(found, process) == [
            f"process {process} round {i} ok True mean {digest}"
            for i, digest in enumerate(digests(PROTOCOLS[name]))
        ]


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_who_is_left_says_so_and_ends(lost):
    found = run("--protocol", "plain", "--lose", str(lost), seconds=120)
    assert found.returncode != 0
    assert len(lines_of(found, lost)) == 1
    left = 1 - lost
    assert f"process {left}: another process was lost in round 1: " in found.stdout
    assert "Traceback" not in found.stderr + found.stdout


def test_bad_flags_are_one_line():
    found = run("--processes", "3", seconds=60)
    assert found.returncode == 2
    assert found.stderr.splitlines()[-1].endswith("--processes 3 must divide 16 clients")
