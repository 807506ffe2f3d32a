"""The parameter search: published vectors, exact arithmetic, and simulated graphs."""

import json
import math
import pathlib
import time
from fractions import Fraction

import numpy as np
import pytest
import scipy.sparse
from scipy.sparse.csgraph import connected_components

from fedjax_agg.sharing.graph import offsets
from fedjax_agg.sharing.parameters import GraphParameters, graph_parameters, whole_clients

PATH = pathlib.Path(__file__).parents[1] / "vectors" / "graph_parameters.json"
VECTORS = json.loads(PATH.read_text())
CHEATS = {"semi-malicious": True, "honest-but-curious": False}


def searched(vector):
    numbers = {name: vector[name] for name in vector if name not in ("degree", "threshold")}
    return graph_parameters(**numbers)


def shown(vector):
    return "-".join(str(value) for value in vector.values())


def tail(n, marked, drawn, least):
    """Pr[HG(n, marked, drawn) >= least] in whole numbers."""
    ways = sum(
        math.comb(marked, x) * math.comb(n - marked, drawn - x)
        for x in range(max(least, 0), min(marked, drawn) + 1)
        if drawn - x <= n - marked
    )
    return Fraction(ways, math.comb(n, drawn))


def disconnected(n, bad, degree):
    """The bound on the probability that two runs of degree / 2 positions are all bad."""
    if degree > bad:
        return Fraction(0)
    both = Fraction(math.perm(bad, degree), math.perm(n, degree))
    return Fraction(n * (n - degree - 1), 2) * both


def failures(n, corrupt, dropped, cheats, degree, threshold):
    """The three bounds, exactly."""
    limit = 2 * threshold - degree if cheats else threshold
    return (
        n * tail(n, corrupt, degree, limit),
        disconnected(n, corrupt + dropped, degree),
        # Fewer than t of the neighbours are among the survivors.
        n * (1 - tail(n, n - dropped, degree, threshold)),
    )


def first_valid(n, corrupt, dropped, cheats, security, failure):
    """The smallest even degree below n - 1 and its smallest threshold, by trying all."""
    for degree in range(2, n - 1, 2):
        for threshold in range(2, degree + 1):
            opened, apart, lost = failures(n, corrupt, dropped, cheats, degree, threshold)
            half = Fraction(1, 2 ** (security + 1))
            if opened <= half and apart < half and lost <= Fraction(1, 2**failure):
                return degree, threshold
    return None


@pytest.mark.parametrize("vector", VECTORS["tables"] + VECTORS["production"], ids=shown)
def test_vectors(vector):
    found = searched(vector)
    assert (found.degree, found.threshold) == (vector["degree"], vector["threshold"])
    assert found.log2_privacy_failure is None or found.log2_privacy_failure <= -40
    lost = found.log2_correctness_failure
    assert lost is None or lost <= -vector["failure"]


@pytest.mark.parametrize("vector", VECTORS["unsound"], ids=shown)
def test_where_production_is_refused_it_would_lose_rounds(vector):
    n, dropped = vector["num_clients"], whole_clients(vector["dropout"], vector["num_clients"])
    corrupt = whole_clients(vector["collusion"], n)
    *_, lost = failures(n, corrupt, dropped, False, vector["degree"], vector["threshold"])
    assert lost == Fraction(1, 3)
    assert searched(vector) == GraphParameters(6, 2, None, None)


@pytest.mark.parametrize("cheats", CHEATS)
@pytest.mark.parametrize("n", [4, 5, 9, 16, 33])
def test_the_search_finds_what_trying_all_in_exact_arithmetic_finds(n, cheats):
    sparse = 0
    for corrupt in range(0, n // 2, max(1, n // 10)):
        for dropped in range(0, n // 3, max(1, n // 10)):
            if corrupt + (1 + CHEATS[cheats]) * dropped > n - 2:
                continue
            for security, failure in ((1, 1), (4, 8), (9, 3), (40, 20)):
                found = graph_parameters(
                    n,
                    collusion=corrupt / n,
                    dropout=dropped / n,
                    adversary=cheats,
                    security=security,
                    failure=failure,
                )
                expected = first_valid(n, corrupt, dropped, CHEATS[cheats], security, failure)
                if expected is None:
                    assert found.degree == n - 1
                    continue
                sparse += 1
                assert (found.degree, found.threshold) == expected
                opened, apart, lost = failures(n, corrupt, dropped, CHEATS[cheats], *expected)
                for log, exact in (
                    (found.log2_privacy_failure, opened + apart),
                    (found.log2_correctness_failure, lost),
                ):
                    if exact == 0:
                        assert log is None
                    else:
                        assert log == pytest.approx(math.log2(exact), abs=1e-9)
    assert sparse > 5 or n < 9


@pytest.mark.parametrize(
    ("n", "collusion", "dropout", "cheats"),
    [(500, 0.1, 0.1, True), (300, 0.05, 0.2, False), (1000, 0.05, 0.05, True)],
)
def test_the_reported_failures_are_the_bounds(n, collusion, dropout, cheats):
    adversary = next(name for name, value in CHEATS.items() if value == cheats)
    found = graph_parameters(n, collusion=collusion, dropout=dropout, adversary=adversary)
    corrupt, dropped = round(collusion * n), round(dropout * n)
    opened, apart, lost = failures(n, corrupt, dropped, cheats, found.degree, found.threshold)
    assert found.log2_privacy_failure == pytest.approx(math.log2(opened + apart), abs=1e-9)
    assert found.log2_correctness_failure == pytest.approx(math.log2(lost), abs=1e-9)
    assert math.log2(opened + apart) <= -40
    assert math.log2(lost) <= -20


@pytest.mark.parametrize("adversary", CHEATS)
def test_on_the_complete_graph_the_threshold_is_the_smallest_that_cannot_fail(adversary):
    complete = 0
    for n in range(2, 12):
        for corrupt in range(n):
            for dropped in range(n):
                rates = {"collusion": corrupt / n, "dropout": dropped / n}
                # A client's n - 1 holders: at most c corrupt ones, n - dropped - 1 survivors.
                valid = [
                    t
                    for t in range(1, n)
                    if (2 * t > n - 1 + corrupt if CHEATS[adversary] else t > corrupt)
                    and n - dropped - 1 >= t
                ]
                if not valid:
                    with pytest.raises(ValueError, match=r"\[graph-rates\]$"):
                        graph_parameters(n, **rates, adversary=adversary)
                    continue
                found = graph_parameters(n, **rates, adversary=adversary, security=256)
                if found.degree == n - 1:
                    complete += 1
                    smallest = min([t for t in valid if t >= 2] or valid)
                    assert found == GraphParameters(n - 1, smallest, None, None)
    assert complete > 40


@pytest.mark.parametrize("adversary", CHEATS)
def test_each_rate_that_the_message_suggests_fits_and_one_client_more_does_not(adversary):
    suggested = 0
    for n in (3, 7, 50, 1000):
        for collusion, dropout in ((0.2, 0.5), (0.9, 0.05), (0.1, 0.9), (0.6, 0.45)):
            rates = {"collusion": collusion, "dropout": dropout}
            try:
                graph_parameters(n, **rates, adversary=adversary)
                continue
            except ValueError as error:
                changes = str(error).split("(")[1].split(" would fit")[0]
            for change in changes.split(" or "):
                if change == "no single change":
                    continue
                name, value = change.split("=")
                suggested += 1
                graph_parameters(n, **{**rates, name: float(value)}, adversary=adversary)
                more = {**rates, name: (whole_clients(float(value), n) + 1) / n}
                with pytest.raises(ValueError, match=r"\[graph-rates\]$"):
                    graph_parameters(n, **more, adversary=adversary)
    assert suggested > 5


HONEST, CORRUPT, DROPPED = range(3)


def rings(n, corrupt, dropped, samples):
    """Who stands at each position of random rings."""
    kinds = np.repeat([HONEST, CORRUPT, DROPPED], [n - corrupt - dropped, corrupt, dropped])
    return np.random.default_rng(n).permuted(np.tile(kinds, (samples, 1)), axis=1)


def few_or_many(ring, cheats, degree, threshold):
    """Where a client has too many corrupt neighbours, and where one has too few survivors."""
    n = ring.shape[1]
    around = (np.arange(n)[:, None] + offsets(n, degree)) % n
    corrupt_around = (ring[:, around] == CORRUPT).sum(2)
    alive_around = (ring[:, around] != DROPPED).sum(2)
    limit = 2 * threshold - degree if cheats else threshold
    opened = ((corrupt_around >= limit) & (ring != CORRUPT)).any(1)
    return opened, (alive_around < threshold).any(1)


def fallen_apart(ring, degree):
    """Where the honest survivors are not connected."""
    n = ring.shape[1]
    around = (np.arange(n)[:, None] + offsets(n, degree)) % n
    ends = np.repeat(np.arange(n), degree), around.ravel()
    graph = scipy.sparse.csr_array((np.ones(n * degree), ends), (n, n))
    honest = [np.flatnonzero(row == HONEST) for row in ring]
    return np.array([connected_components(graph[who][:, who])[0] > 1 for who in honest])


CASES = [(60, 12, 3, True), (60, 12, 6, False), (100, 5, 20, True), (40, 2, 19, False)]


@pytest.mark.parametrize(("n", "corrupt", "dropped", "cheats"), CASES)
def test_simulated_graphs_fail_no_more_often_than_the_bounds_say(n, corrupt, dropped, cheats):
    """Failures of 2^-3 are allowed, and 500 graphs drawn. A false alarm, a rate of more than
    five standard errors above the reported bound, has a probability below 1e-6."""
    samples = 500
    adversary = next(name for name, value in CHEATS.items() if value == cheats)
    found = graph_parameters(
        n,
        collusion=corrupt / n,
        dropout=dropped / n,
        adversary=adversary,
        security=3,
        failure=3,
    )
    assert found.degree < n - 1
    ring = rings(n, corrupt, dropped, samples)
    opened, lost = few_or_many(ring, cheats, found.degree, found.threshold)
    opened |= fallen_apart(ring, found.degree)
    logs = found.log2_privacy_failure, found.log2_correctness_failure
    for count, log in zip((opened.sum(), lost.sum()), logs):
        bound = 0.0 if log is None else 2.0**log
        assert bound <= 1 / 8
        assert count <= samples * bound + 5 * math.sqrt(samples * bound)
    # The controls: parameters that the search passed over fail more often than was allowed.
    opened, _ = few_or_many(ring, cheats, found.degree, found.threshold - 2)
    _, lost = few_or_many(ring, cheats, found.degree, found.threshold + 3)
    assert opened.sum() > samples / 8
    assert lost.sum() > samples / 8
    assert fallen_apart(ring, 2).sum() > samples / 8


def test_rates_are_read_as_the_decimals_that_they_stand_for():
    for n in (10, 100, 1000, 10**6):
        for count in range(0, n, max(1, n // 1000)):
            assert whole_clients(float(f"{count / n:.6f}"), n) == count


@pytest.mark.slow
def test_a_million_clients_take_less_than_two_seconds():
    for collusion, dropout, adversary in (
        (0.05, 0.05, "semi-malicious"),
        (0.3, 0.3, "semi-malicious"),
        (0.45, 0.45, "honest-but-curious"),
        (0.3, 0.34, "semi-malicious"),
    ):
        start = time.perf_counter()
        graph_parameters(10**6, collusion=collusion, dropout=dropout, adversary=adversary)
        assert time.perf_counter() - start < 2
