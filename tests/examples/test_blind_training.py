"""The blind example: its rules, its flags, and the equality that it claims."""

import csv
import json

import blind_training
import jax
import numpy as np
import pytest


def run(capsys, *arguments):
    """What ``main`` prints as JSON, in the promotion that a user has."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        blind_training.main([*map(str, arguments), "--json"])
    return json.loads(capsys.readouterr().out)


def test_twelve_clients_have_rules_of_their_own():
    rules, names = blind_training.personal_rules(14, rounds=9)
    assert len(set(names[:12])) == 12
    assert names[12:] == names[:2]
    # Those who share a pair share a compiled step.
    assert len(set(rules)) == 12
    assert rules[12] is rules[0]


@pytest.mark.parametrize(
    ("name", "after_three", "after_six"),
    [("constant", 1.0, 1.0), ("cosine", 0.75, 0.25), ("halving", 0.5, 0.25)],
)
def test_schedules(name, after_three, after_six):
    with jax.numpy_dtype_promotion("standard"):
        schedule = blind_training.make_schedule(name, 2.0, 9)
        values = [float(schedule(step)) for step in (0, 3, 6)]
    np.testing.assert_allclose(values, [2.0, 2 * after_three, 2 * after_six], rtol=1e-6)


def test_equality_is_that_of_bits():
    one = {"w": np.float32([1.0, 0.0])}
    assert blind_training.same_bits(one, {"w": one["w"].copy()})
    for other in (np.nextafter(np.float32(1), np.float32(2)), np.float32(-1)):
        assert not blind_training.same_bits(one, {"w": np.float32([other, 0.0])})
    assert not blind_training.same_bits(one, {"w": np.float32([1.0, -0.0])})


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--clients", "2"], "--clients 2 must be from 3 to 100"),
        (["--dropout", "1.5"], "--dropout 1.5 must be from 0.0 to 1.0"),
        (["--rule", "lamb"], "invalid choice: 'lamb'"),
    ],
)
def test_flags_that_cannot_be(capsys, tmp_path, flags, message):
    with pytest.raises(SystemExit) as ended:
        blind_training.main([*flags, "--out", str(tmp_path)])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["sgd", "momentum", "adam", "yogi"])
def test_ten_rounds_with_dropouts_are_the_server_side_run(capsys, tmp_path, rule):
    """In the clear: masks change no sum. A second call with ``--resume`` has nothing to do."""
    options = ("--clients", 5, "--rounds", 10, "--protocol", "plain", "--rule", rule)
    options += ("--out", tmp_path)
    result = run(capsys, *options)
    assert result["equal_bit_for_bit"] is True
    assert result["accuracy_replicated"] == result["accuracy_server_side"] > 0.3
    assert result["rounds_ok"] == 10
    assert abs(result["correlation"]) < 5 * result["correlation_by_chance"]
    # Models that are moved by different rules are different models.
    assert len(set(result["accuracy_personal"])) > 1
    assert min(result["accuracy_personal"]) > 0.3
    with (tmp_path / "blind_training.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["round"]) for row in rows] == list(range(1, 11))
    assert all(float(row["lost"]) == 1 for row in rows)
    assert (tmp_path / "blind_training.png").read_bytes()[:4] == b"\x89PNG"
    if rule == "adam":
        again = run(capsys, *options, "--resume")
        assert again["accuracy_personal"] == result["accuracy_personal"]
