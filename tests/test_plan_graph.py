"""The graph of a plan, and the costs of protocols side by side."""

import dataclasses
import math
import re

import pytest

import fedjax_agg as fa
from fedjax_agg.arithmetic import Ring
from fedjax_agg.costs import CostRow, compare_costs
from fedjax_agg.protocols import Protocol
from fedjax_agg.protocols.protocol import Cost
from fedjax_agg.sharing.parameters import graph_parameters

NUMBERS = {"num_clients": 1000, "clip": 1.0, "bits": 16}
GRAPH_FIELDS = (
    "dropout",
    "collusion",
    "degree",
    "threshold",
    "min_survivors",
    "log2_privacy_failure",
    "log2_correctness_failure",
)


def plan_for(num_clients=1000, size=10**6, **arguments):
    return fa.plan_round(size, **{**NUMBERS, "num_clients": num_clients, **arguments})


@dataclasses.dataclass(frozen=True)
class Counting(Protocol):
    """A protocol whose costs say what they were asked for."""

    factor: int = 1
    group: Ring = Ring(32)

    def protect(self, words, private, ctx):
        raise NotImplementedError

    def recover(self, uploads, mail, ctx):
        raise NotImplementedError

    def cost(self, length, num_clients, dropped=0):
        up = {"share": 10 * num_clients, "upload": self.factor * length}
        words, products = {"upload": length}, {"share": 3}
        server = {"unmask": num_clients}, {"unmask": 100 + dropped}
        return Cost(up, {"share": 7, "unmask": 5}, words, products, *server)


def test_without_rates_a_plan_is_what_it_was():
    plan = plan_for()
    assert [getattr(plan, name) for name in GRAPH_FIELDS] == [None] * len(GRAPH_FIELDS)
    assert plan.dropped == 0
    assert len(str(plan).splitlines()) == 3
    assert plan.protocol() == fa.SecAgg(group=plan.group)


@pytest.mark.parametrize("consistency", [True, False])
@pytest.mark.parametrize(
    ("num_clients", "dropout", "collusion", "complete"),
    [(1000, 0.1, 0.1, False), (100, 0.05, 0.2, False), (5, 0.2, 0.2, True)],
)
def test_the_graph_of_a_plan_is_that_of_the_search(
    num_clients, dropout, collusion, complete, consistency
):
    plan = plan_for(num_clients, dropout=dropout, collusion=collusion, consistency=consistency)
    graph = graph_parameters(
        num_clients,
        dropout=dropout,
        collusion=collusion,
        adversary="semi-malicious" if consistency else "honest-but-curious",
    )
    assert {name: getattr(plan, name) for name in vars(graph)} == vars(graph)
    assert (plan.degree == num_clients - 1) == complete
    survivors = num_clients - math.floor(dropout * num_clients)
    assert plan.min_survivors == (plan.threshold + 1 if complete else survivors)
    assert plan.min_survivors <= survivors
    assert plan.dropped == num_clients - survivors
    protocol = plan.protocol()
    assert (protocol.threshold, protocol.degree) == (plan.threshold, plan.degree)
    assert (protocol.min_survivors, protocol.group) == (plan.min_survivors, plan.group)
    assert protocol.consistency == consistency


def test_a_rate_that_is_not_stated_beside_the_other_is_zero():
    assert plan_for(dropout=0.1) == plan_for(dropout=0.1, collusion=0)
    assert plan_for(collusion=0.1) == plan_for(collusion=0.1, dropout=0.0)
    assert plan_for(dropout=0.0).degree == 2


def test_the_ring_does_not_depend_on_the_graph():
    plain, planned = plan_for(), plan_for(dropout=0.1, collusion=0.1)
    changed = {"consistency": True, **dict.fromkeys(GRAPH_FIELDS)}
    assert dataclasses.replace(planned, **changed) == plain


def test_security_and_failure_reach_the_search():
    strict = plan_for(dropout=0.05, collusion=0.05, failure=30)
    assert (strict.degree, strict.threshold) == (62, 43)
    loose = plan_for(dropout=0.05, collusion=0.05, security=10, failure=10)
    assert loose.degree < 52
    assert loose.log2_privacy_failure <= -10


def test_a_plan_with_a_graph_compares_hashes_and_prints_as_its_numbers():
    plan, same = (plan_for(dropout=0.1, collusion=0.1) for _ in range(2))
    assert plan == same
    assert hash(plan) == hash(same)
    assert plan != plan_for(dropout=0.1, collusion=0.05)
    assert eval(repr(plan), {"Plan": fa.Plan}) == plan


@pytest.mark.parametrize(("max_weight", "words"), [(1, 10**6), (20, 10**6 + 1)])
def test_costs_are_those_of_the_protocol_and_count_the_weight(max_weight, words):
    plan = plan_for(dropout=0.1, collusion=0.1, max_weight=max_weight)
    assert plan.length == words
    cost = plan.protocol().cost(words, 1000, 100)
    assert plan.cost == cost
    assert plan.bytes_up == sum(cost.bytes_up.values())
    assert plan.bytes_down == sum(cost.bytes_down.values())
    assert plan.server_keystream_words == cost.server_keystream_words["unmask"]
    # The self masks of 900 survivors and the pair masks of 100 clients that are lost.
    assert plan.server_keystream_words > 900 * words
    upload = -(-words * plan.ring_bits // 8)
    assert upload < plan.bytes_up < upload + 10**5


def test_printing_a_plan_says_what_its_graph_means():
    plan = plan_for(dropout=0.1, collusion=0.1)
    first, second, third, fourth = re.split(r"(?<=\.)\n", str(plan).split("an upload\n")[1])
    assert first == (
        "Each client shares its secrets with 96 of the 999 others, and 67 of them can rebuild one."
    )
    assert second.replace("\n", " ") == (
        "A server that shows clients different survivors, with 100 of 1000 clients corrupt, "
        "opens the update of one client with probability at most 2^-43.1; the sum that it "
        "learns may be over fewer survivors than it names."
    )
    assert -43.2 < plan.log2_privacy_failure <= -43.1
    assert third.replace("\n", " ") == (
        "Clients answer for no fewer than 900 survivors; with 100 lost, "
        "a round fails with probability at most 2^-20.6."
    )
    assert -20.7 < plan.log2_correctness_failure <= -20.6
    numbers = [plan.bytes_up, plan.bytes_down, plan.server_keystream_words]
    assert re.findall(r"\d+", fourth) == [str(number) for number in numbers]
    assert all(len(line) <= 100 for line in str(plan).splitlines())


def test_printing_a_plan_with_the_complete_graph_says_that_nothing_is_left_to_chance():
    text = str(plan_for(5, dropout=0.2, collusion=0.2, consistency=False))
    assert (
        "Each client shares its secrets with all 4 others, and 2 of them can rebuild one." in text
    )
    assert "A server that follows the rules, with 1 of 5 clients corrupt,\n" in text
    assert "learns no more than the sum.\n" in text
    assert "Clients answer for no fewer than 3 survivors; with 1 lost,\nno round fails.\n" in text


def test_costs_side_by_side_by_role_and_stage():
    plan = plan_for(10, size=50, dropout=0.2, max_weight=3)
    comparison = compare_costs(plan, [Counting()])
    assert comparison.rows == (
        CostRow("Counting", "client", "share", 100, 7, 0, 3),
        CostRow("Counting", "client", "upload", 51, 0, 51, 0),
        CostRow("Counting", "client", "unmask", 0, 5, 0, 0),
        CostRow("Counting", "client", "round", 151, 12, 51, 3),
        # All ten share; the eight that are left upload and help to unmask.
        CostRow("Counting", "server", "share", 70, 1000, 0, 0),
        CostRow("Counting", "server", "upload", 0, 408, 0, 0),
        CostRow("Counting", "server", "unmask", 40, 0, 10, 102),
        CostRow("Counting", "server", "round", 110, 1408, 10, 102),
    )
    assert hash(comparison) == hash(compare_costs(plan, {"Counting": Counting()}))
    with pytest.raises(dataclasses.FrozenInstanceError):
        comparison.rows = ()


def test_protocols_of_one_type_are_named_by_what_differs():
    plan = plan_for(10, size=50)
    protocols = [Counting(), Counting(2), fa.Plain(plan.group)]
    names = dict.fromkeys(row.protocol for row in compare_costs(plan, protocols).rows)
    assert list(names) == ["Counting(factor=1)", "Counting(factor=2)", "Plain"]
    named = compare_costs(plan, {"one": Counting(), "two": Counting(2)})
    assert {row.protocol for row in named.rows} == {"one", "two"}


def test_the_printed_table_is_aligned():
    plan = plan_for(1000, dropout=0.1, collusion=0.1)
    text = str(compare_costs(plan, [fa.Plain(plan.group), plan.protocol(), Counting(10**6)]))
    title, *lines = text.splitlines()
    columns = [match.span() for match in re.finditer(r"\S+( \S+)*", title)]
    assert len(columns) == 8
    for line in lines:
        cells = [match.span() for match in re.finditer(r"\S+( \S+)*", line)]
        assert [start for start, _ in cells[:3]] == [start for start, _ in columns[:3]]
        assert [end for _, end in cells[3:]] == [end for _, end in columns[3:]]
    assert len({line.split("  ")[0] for line in lines}) == 3


def test_the_sparse_graph_is_cheaper_than_the_complete_one():
    plan = plan_for(1000, dropout=0.1, collusion=0.1)
    complete = dataclasses.replace(plan.protocol(), degree=999, threshold=600)
    rows = compare_costs(plan, {"sparse": plan.protocol(), "complete": complete}).rows
    totals = {(row.protocol, row.role): row for row in rows if row.stage == "round"}
    for role in ("client", "server"):
        sparse, full = totals["sparse", role], totals["complete", role]
        *numbers, stored = zip(sparse[3:], full[3:])
        assert all(a < b for a, b in numbers)
        assert stored == ((96 * 72, 999 * 72) if role == "client" else (0, 0))
