"""The rows of `dropouts.py` outlive an interruption, one run of a protocol at a rate each."""

import csv
from types import SimpleNamespace

import dropouts
import numpy as np
import pytest


def options(tmp_path, *, resume, rounds=3):
    return SimpleNamespace(out=tmp_path, clients=5, rounds=rounds, seed=0, resume=resume)


def row(protocol, rate):
    return {
        "protocol": protocol,
        "dropout": rate,
        "lost": 0,
        "accuracy": 0.5,
        "rounds_ok": 3,
        "refused": ["few-survivors"],
        "bytes_up": {"upload": 8},
        "bytes_down": {"upload": 0},
        "seconds_per_round": 0.25,
        "model": "00",
    }


def test_what_was_finished_is_kept(tmp_path):
    record = dropouts.Rows(options(tmp_path, resume=False))
    record.add(row("Plain", 0.0))
    record.add(row("SecAgg+", 0.2))
    again = dropouts.Rows(options(tmp_path, resume=True))
    assert again.rows == record.rows
    assert again.find("SecAgg+", 0.2) == row("SecAgg+", 0.2)
    assert again.find("SecAgg+", 0.4) is None
    with (tmp_path / "dropouts.csv").open() as file:
        assert [r["protocol"] for r in csv.DictReader(file)] == ["Plain", "SecAgg+"]
    # Without --resume a run begins anew.
    assert dropouts.Rows(options(tmp_path, resume=False)).rows == []


def test_another_run_or_a_broken_file_is_one_line(tmp_path):
    dropouts.Rows(options(tmp_path, resume=False)).add(row("Plain", 0.0))
    with pytest.raises(
        SystemExit, match=r"--resume: .*dropouts.json was run with rounds 3, now 4$"
    ):
        dropouts.Rows(options(tmp_path, resume=True, rounds=4))
    for content in ("", "{", "[]", '{"rows": []}'):
        (tmp_path / "dropouts.json").write_text(content)
        with pytest.raises(SystemExit, match=r"--resume: .*dropouts.json cannot be read: "):
            dropouts.Rows(options(tmp_path, resume=True))


def test_a_model_that_differs_in_one_bit_has_another_digest():
    model = {"w": np.ones(3, np.float32)}
    other = {"w": np.nextafter(model["w"], 2, dtype=np.float32)}
    assert dropouts.digest(model) == dropouts.digest({"w": np.ones(3, np.float32)})
    assert dropouts.digest(model) != dropouts.digest(other)
