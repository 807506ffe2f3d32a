"""Whole runs of the examples, small and in the clear; records that outlive an interruption."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import _common
import jax.numpy as jnp
import language_model
import numpy as np
import own_data
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = ["--clients", "4", "--cohort", "2", "--protocol", "plain", "--json"]


def rows(path, without=("seconds",)):
    with open(path, newline="") as file:
        return [
            {name: value for name, value in row.items() if name not in without}
            for row in csv.DictReader(file)
        ]


@pytest.fixture(scope="module")
def small_data(tmp_path_factory):
    """Two classes that differ by where they are bright, as an .npz."""
    rng = np.random.default_rng(0)
    labels = (np.arange(60) % 2).astype(np.uint8)
    images = rng.integers(0, 60, (60, 4, 4), dtype=np.uint8)
    images[np.arange(60), labels * 3] += 150
    path = tmp_path_factory.mktemp("data") / "small.npz"
    np.savez(path, x_train=images, y_train=labels)
    return path


def run(capsys, main, *arguments):
    main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return json.loads(printed.out), printed.err


@pytest.mark.slow
def test_a_run_cut_in_two_is_the_run(capsys, tmp_path, small_data):
    base = ["--data", small_data, *SMALL]
    whole, shown = run(capsys, own_data.main, *base, "--rounds", 5, "--out", tmp_path / "a")
    assert shown.startswith("own_data: ")
    assert whole["rounds_ok"] == 5
    assert (tmp_path / "a" / "own_data.png").stat().st_size > 10_000
    run(capsys, own_data.main, *base, "--rounds", 2, "--out", tmp_path / "b")
    assert len(rows(tmp_path / "b" / "own_data.csv")) == 2
    again = [*base, "--rounds", 5, "--out", tmp_path / "b", "--resume"]
    resumed, _ = run(capsys, own_data.main, *again)
    assert rows(tmp_path / "a" / "own_data.csv") == rows(tmp_path / "b" / "own_data.csv")
    assert resumed["test_accuracy"] == whole["test_accuracy"]
    with pytest.raises(SystemExit, match=r"--resume: .* was run with alpha 0.5, now 3.0$"):
        own_data.main([str(argument) for argument in [*again, "--alpha", 3]])


@pytest.mark.slow
def test_clients_without_data_and_lost_clients_have_a_result(capsys, tmp_path, small_data):
    found, _ = run(
        capsys, own_data.main, "--data", small_data, *SMALL, "--clients", 300, "--cohort", 4,
        "--rounds", 3, "--out", tmp_path / "a",
    )  # fmt: skip
    assert found["clients_without_data"] >= 240
    assert np.isfinite(found["test_loss"])
    found, _ = run(
        capsys, own_data.main, "--data", small_data, *SMALL, "--dropout", 1.0,
        "--rounds", 2, "--out", tmp_path / "b",
    )  # fmt: skip
    assert found["rounds_ok"] == 0
    first, second = rows(tmp_path / "b" / "own_data.csv", without=("seconds", "round"))
    assert first == second
    assert np.isfinite(found["test_loss"])


@pytest.mark.slow
def test_the_language_model_learns_more_than_frequencies(capsys, tmp_path):
    found, _ = run(capsys, language_model.main, "--quick", "--json", "--out", tmp_path)
    assert found["unigram_entropy"] > 2
    assert found["nats_per_character"] <= found["unigram_entropy"] - 0.3
    assert len(rows(tmp_path / "language_model.csv")) == found["rounds"]
    assert (tmp_path / "language_model.png").stat().st_size > 10_000


def script(name, *arguments, **options):
    command = [sys.executable, EXAMPLES / name, *arguments]
    return subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"MPLBACKEND": "Agg", "JAX_PLATFORMS": "cpu"},
        **options,
    )


@pytest.mark.parametrize("name", ["digits.py", "dropouts.py", "own_data.py", "language_model.py"])
def test_a_flag_out_of_range_is_refused(name):
    process = script(name, "--rounds", 0)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert errors.splitlines()[-1].endswith("error: --rounds 0 must be from 1 to 10000")


def test_data_that_is_not_there_is_one_line(tmp_path):
    process = script("own_data.py", "--data", tmp_path / "no" / "where", "--out", tmp_path)
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert printed.startswith("own_data: ")
    assert errors == f"own_data: {tmp_path / 'no' / 'where'} does not exist\n"


@pytest.mark.slow
@pytest.mark.parametrize("blow", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_is_interrupted_goes_on(tmp_path, small_data, blow):
    base = ["--data", small_data, *SMALL, "--out", tmp_path]
    process = script("own_data.py", *base, "--rounds", 10_000)
    table, waited = tmp_path / "own_data.csv", time.monotonic() + 300
    while not table.exists() or len(table.read_text().splitlines()) < 4:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < waited
        time.sleep(0.1)
    process.send_signal(blow)
    _, errors = process.communicate(timeout=120)
    if blow == signal.SIGINT:
        assert "Traceback" not in errors
        assert errors.splitlines()[-1].startswith("interrupted: the same command with --resume")
    with np.load(tmp_path / "own_data.npz") as kept:
        done = len(kept["rows"])
    assert 3 <= done < 10_000
    process = script("own_data.py", *base, "--rounds", done + 2, "--resume")
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert json.loads(printed)["rounds"] == done + 2
    assert [int(row["round"]) for row in rows(table)] == list(range(1, done + 3))


# ---- the record ----------------------------------------------------------------------------------


STATE = {"a": jnp.arange(3.0), "b": (jnp.int32(7),)}


def make_record(tmp_path, settings="one"):
    return _common.Record(tmp_path / "run", ["x", "y"], {"name": settings})


def test_a_record_holds_rows_and_the_last_state(tmp_path):
    record = make_record(tmp_path)
    record.start(STATE, resume=True)
    record.add([1, 2.5], STATE)
    record.add([True, jnp.float32(4)], {"a": STATE["a"] + 1, "b": STATE["b"]})
    again = make_record(tmp_path)
    state = again.start(STATE, resume=True)
    np.testing.assert_array_equal(state["a"], [1, 2, 3])
    assert int(state["b"][0]) == 7
    assert state["b"][0].dtype == jnp.int32
    assert again.rows == [[1, 2.5], [1, 4]]
    assert again.column("y") == [2.5, 4]
    assert rows(tmp_path / "run.csv") == [
        {"round": "1", "x": "1.0", "y": "2.5"},
        {"round": "2", "x": "1.0", "y": "4.0"},
    ]
    # Without --resume a run begins anew.
    fresh = make_record(tmp_path)
    assert fresh.start(STATE, resume=False) is STATE
    assert rows(tmp_path / "run.csv") == []


def test_a_row_without_its_state_is_made_again(tmp_path):
    record = make_record(tmp_path)
    record.start(STATE, resume=False)
    record.add([1, 2], STATE)
    with record.table.open("a") as file:
        file.write("2,9,9\n3,")
    again = make_record(tmp_path)
    again.start(STATE, resume=True)
    assert len(rows(tmp_path / "run.csv")) == len(again.rows) == 1


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "another"])
def test_a_checkpoint_that_cannot_be_read_is_one_line(tmp_path, damage):
    record = make_record(tmp_path)
    record.start(STATE, resume=False)
    record.add([1, 2], STATE)
    content = record.checkpoint.read_bytes()
    if damage == "another":
        np.savez(record.checkpoint, x=np.ones(3))
    else:
        wrong = {"empty": b"", "cut": content[:-40], "text": b"once upon a time"}[damage]
        record.checkpoint.write_bytes(wrong)
    with pytest.raises(SystemExit, match=r"--resume: .*run.npz cannot be read") as caught:
        make_record(tmp_path).start(STATE, resume=True)
    assert "\n" not in str(caught.value)
