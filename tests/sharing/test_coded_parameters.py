"""The parameters of coded masks, by all small cohorts, and what is refused."""

import itertools
import re

import pytest

from fedjax_agg.sharing.coded_parameters import (
    MAX_STORED_BYTES,
    CodedParameters,
    coded_parameters,
    stored_bytes,
)
from fedjax_agg.sharing.lagrange import MAX_CLIENTS

ADVERSARIES = {"semi-malicious": True, "honest-but-curious": False}
SMALL = {"size": 100, "collusion": 0.0, "dropout": 0.0}


def valid(n, corrupt, dropped, privacy, survivors, cheats):
    """The four conditions, as the module states them."""
    return (
        corrupt <= privacy < survivors <= n - dropped
        and survivors - corrupt >= 2
        and (not cheats or 2 * survivors > n + privacy)
    )


@pytest.mark.parametrize("adversary", ADVERSARIES)
def test_the_cheapest_valid_numbers_are_found_or_there_are_none(adversary):
    cheats = ADVERSARIES[adversary]
    for n in range(2, 9):
        for corrupt, dropped in itertools.product(range(n), repeat=2):
            every = [
                (survivors - privacy, privacy, survivors)
                for privacy, survivors in itertools.product(range(1, n), range(2, n + 1))
                if valid(n, corrupt, dropped, privacy, survivors, cheats)
            ]
            rates = {"collusion": corrupt / n, "dropout": dropped / n, "adversary": adversary}
            if every:
                found = coded_parameters(n, size=10, **rates)
                assert found == CodedParameters(*max(every)[1:])
            else:
                with pytest.raises(ValueError, match=r"\[coded-rates\]$"):
                    coded_parameters(n, size=10, **rates)


def suggestions(message):
    (listed,) = re.findall(r"\((\S+=.+?) would fit\)", message)
    pairs = (option.split("=") for option in listed.split(" or "))
    return {name: float(value) for name, value in pairs}


@pytest.mark.parametrize(
    ("n", "rates", "adversary"),
    [
        (100, {"dropout": 0.4, "collusion": 0.3}, "semi-malicious"),
        (100, {"dropout": 0.5, "collusion": 0.5}, "honest-but-curious"),
        (1000, {"dropout": 0.5, "collusion": 0.0}, "semi-malicious"),
        (4, {"dropout": 0.5, "collusion": 0.25}, "semi-malicious"),
        (100, {"dropout": 0.0, "collusion": 0.99}, "semi-malicious"),
    ],
)
def test_each_rate_that_is_suggested_fits_and_one_client_more_does_not(n, rates, adversary):
    def planned(**changes):
        return coded_parameters(n, size=10, adversary=adversary, **{**rates, **changes})

    with pytest.raises(ValueError, match=r"\[coded-rates\]$") as caught:
        planned()
    found = suggestions(str(caught.value))
    assert found
    for name, rate in found.items():
        planned(**{name: rate})
        with pytest.raises(ValueError, match=r"\[coded-rates\]$"):
            planned(**{name: rate + 1 / n})


@pytest.mark.parametrize("beside", [0, 1])
def test_each_number_that_is_suggested_can_be_stored_and_more_cannot(beside):
    numbers = {"size": 10**9, "dropout": 0.05, "collusion": 0.12}

    def planned(**changes):
        return coded_parameters(100, beside=beside, **{**numbers, **changes})

    with pytest.raises(ValueError, match=r"\[coded-storage\]$") as caught:
        planned()
    found = suggestions(str(caught.value))
    assert set(found) == {"params_or_size", "collusion"}
    size = int(found["params_or_size"])
    parameters = planned(size=size)
    assert stored_bytes(100, size + beside, parameters) <= MAX_STORED_BYTES
    assert stored_bytes(100, size + beside + 1, parameters) > MAX_STORED_BYTES
    planned(collusion=found["collusion"])
    for changes in ({"size": size + 1}, {"collusion": found["collusion"] + 0.01}):
        with pytest.raises(ValueError, match=r"\[coded-storage\]$"):
            planned(**changes)


def test_where_only_a_smaller_update_can_be_stored_the_message_says_no_more():
    with pytest.raises(ValueError, match=r"\(params_or_size=\d+ would fit\)"):
        coded_parameters(100, size=10**11, dropout=0.3, collusion=0.3)


@pytest.mark.parametrize(
    ("changes", "tag"),
    [
        ({"num_clients": 1}, "coded-clients"),
        ({"num_clients": MAX_CLIENTS + 1}, "coded-clients"),
        ({"dropout": 1.0}, "rate"),
        ({"collusion": "10%"}, "rate"),
        ({"adversary": "malicious"}, "adversary"),
    ],
)
def test_what_is_out_of_range_is_refused(changes, tag):
    arguments = {"num_clients": 10, **SMALL, **changes}
    with pytest.raises(ValueError, match=rf"\[{tag}\]$"):
        coded_parameters(arguments.pop("num_clients"), **arguments)


def test_the_largest_cohort_can_be_planned():
    found = coded_parameters(MAX_CLIENTS, size=10**6, dropout=0.1, collusion=0.1)
    assert found == CodedParameters(3276, MAX_CLIENTS - 3276)
