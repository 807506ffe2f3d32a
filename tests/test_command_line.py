"""The planner on the command line: numbers out, or one line and status 2."""

import json
import math
import subprocess
import sys

import pytest

import fedjax_agg as fa
from fedjax_agg.__main__ import main

PLAN = "plan --clients 1000 --params 1e6 --clip 1 --bits 16 --dropout 0.1 --collusion 0.1"
KEYS = [
    "ring_bits",
    "levels",
    "step",
    "error_bound",
    "degree",
    "threshold",
    "min_survivors",
    "privacy",
    "survivors",
    "log2_privacy_failure",
    "log2_correctness_failure",
    "bytes_up",
    "bytes_down",
    "stored_bytes",
    "server_keystream_words",
]
INTEGERS = {"ring_bits", "levels", "min_survivors", "bytes_up", "bytes_down", "stored_bytes"}
OF_GRAPH, OF_CODE = {"degree", "threshold"}, {"privacy", "survivors"}


@pytest.fixture
def run(capsys):
    """Runs ``python -m fedjax_agg`` in this process: status, stdout, stderr."""

    def run(arguments):
        try:
            status = main(arguments.split())
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return run


def the_plan(**changes):
    numbers = {"num_clients": 1000, "clip": 1.0, "bits": 16, "dropout": 0.1, "collusion": 0.1}
    return fa.plan_round(10**6, **{**numbers, **changes})


@pytest.mark.parametrize(
    ("arguments", "changes"),
    [
        ("", {}),
        ("--adversary semi-malicious --security 40 --failure 20 --max-weight 1", {}),
        ("--adversary honest-but-curious", {"consistency": False}),
        ("--security 60 --failure 30", {"security": 60, "failure": 30}),
        ("--max-weight 20", {"max_weight": 20}),
        ("--clients 4 --collusion 0", {"num_clients": 4, "collusion": 0}),
        ("--protocol secagg", {}),
        ("--protocol light-secagg", {"protocol": "light-secagg"}),
    ],
)
def test_json_is_the_numbers_of_the_plan(run, arguments, changes):
    status, out, err = run(f"{PLAN} {arguments} --json")
    assert (status, err) == (0, "")
    numbers = json.loads(out)
    assert list(numbers) == KEYS
    plan = the_plan(**changes)
    assert numbers == {key: getattr(plan, key) for key in KEYS}
    present, absent = OF_GRAPH, OF_CODE
    if "protocol" in changes:
        present, absent = absent, present
    assert all(type(numbers[key]) is int for key in INTEGERS | present)
    assert all(numbers[key] is None for key in absent)


def test_json_of_the_example():
    numbers = the_plan()
    assert (numbers.degree, numbers.threshold, numbers.min_survivors) == (96, 67, 900)
    assert (numbers.ring_bits, numbers.levels) == (26, 32767)


def test_where_only_the_complete_graph_will_do_its_degree_is_shown_and_nothing_can_fail(run):
    _, out, _ = run(f"{PLAN} --clients 5 --dropout 0.2 --collusion 0.2 --json")
    numbers = json.loads(out)
    assert (numbers["degree"], numbers["threshold"], numbers["min_survivors"]) == (4, 3, 4)
    assert numbers["log2_privacy_failure"] is numbers["log2_correctness_failure"] is None


def test_without_rates_there_is_no_graph(run):
    status, out, _ = run("plan --clients 10 --params 100 --clip 0.5 --bits 8 --json")
    numbers = json.loads(out)
    assert status == 0
    assert [numbers[key] for key in KEYS[4:11]] == [None] * 7
    assert math.isclose(numbers["step"], 0.5 / 127)


def test_without_json_the_plan_is_printed(run):
    assert run(PLAN) == (0, f"{the_plan()}\n", "")


BAD = {
    "--dropout 0.6": "--dropout 0.449 would fit",
    "--collusion 0.9": "--collusion 0.798 would fit",
    "--dropout 1.5": "--dropout 1.5 must be at least 0 and below 1",
    "--dropout nan": "--dropout nan must be at least 0",
    "--collusion -0.1": "--collusion -0.1 must be at least 0",
    "--bits 24": "--bits 22 or --clients 256 would fit",
    "--bits 1": "--bits 1 must be an integer from 2 to 24",
    "--clients 1": "--clients 1 must be an integer from 2 to 2147483647",
    "--clients 2.5": "--clients: '2.5' must be a whole number",
    "--clients many": "--clients: 'many' must be a whole number",
    "--params 0": "--params 0 must be an integer from 1",
    "--params inf": "--params: 'inf' must be a whole number",
    "--clip 0": "--clip 0.0 must be a positive number",
    "--clip nan": "--clip nan must be a positive number",
    "--clip one": "--clip: invalid float value: 'one'",
    "--max-weight 0": "--max-weight 0 must be an integer from 1",
    "--max-weight 100000": "--max-weight 65 would fit",
    "--security 0": "--security 0 must be an integer from 1 to 256",
    "--failure 1e3": "--failure 1000 must be an integer from 1 to 256",
    "--protocol lightsecagg": "--protocol: invalid choice: 'lightsecagg'",
    "--protocol light-secagg --dropout 0.6": "--dropout 0.449 would fit",
    "--protocol light-secagg --bits 22": "--bits 21 or --clients 512 would fit",
    "--protocol light-secagg --params 1e10": "--params 858992800 would fit",
    "--adversary evil": "--adversary: invalid choice: 'evil'",
    "--colour red": "unrecognized arguments: --colour red",
    "--client 10": "unrecognized arguments: --client 10",
    "--clients": "--clients: expected one argument",
}


@pytest.mark.parametrize(("arguments", "message"), BAD.items())
def test_bad_input_is_one_line_with_the_number_to_change_and_status_2(run, arguments, message):
    status, out, err = run(f"{PLAN} {arguments}")
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert err.startswith("python -m fedjax_agg")
    assert message in err


@pytest.mark.parametrize("arguments", ["", "plan", "paln", PLAN.replace("--bits 16", "")])
def test_a_missing_or_unknown_command_or_argument_is_one_line_too(run, arguments):
    status, out, err = run(arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)


@pytest.mark.parametrize(("flag", "value"), [("--dropout", "0.449"), ("--collusion", "0.798")])
def test_the_number_that_a_message_suggests_fits(run, flag, value):
    assert run(f"{PLAN} {flag} {value}")[0] == 0
    more = f"{float(value) + 0.001:.3f}"
    assert run(f"{PLAN} {flag} {more}")[0] == 2


def test_help_says_what_there_is(run):
    status, out, err = run("plan --help")
    assert (status, err) == (0, "")
    assert all(flag in out for flag in ("--clients", "--protocol", "--dropout", "--json"))


def process(arguments):
    command = [sys.executable, "-m", "fedjax_agg", *arguments.split()]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_as_a_process():
    done = process(f"{PLAN} --json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["degree"] == 96
    failed = process(f"{PLAN} --dropout 0.6")
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr.count("\n") == 1
    assert "Traceback" not in failed.stderr
