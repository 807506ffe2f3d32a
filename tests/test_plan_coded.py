"""Plans of LightSecAgg: its two numbers, its group, what a client stores, and its costs."""

import math

import pytest

import fedjax_agg as fa
from fedjax_agg.arithmetic import M31
from fedjax_agg.costs import compare_costs


def plan_for(size=10**6, **changes):
    numbers = {"num_clients": 1000, "clip": 1.0, "bits": 16, "dropout": 0.1, "collusion": 0.1}
    return fa.plan_round(size, **{**numbers, "protocol": "light-secagg", **changes})


@pytest.mark.parametrize("consistency", [True, False])
def test_the_protocol_of_a_plan_has_its_numbers(consistency):
    plan = plan_for(consistency=consistency)
    assert (plan.privacy, plan.survivors, plan.min_survivors) == (100, 900, 900)
    assert plan.protocol() == fa.LightSecAgg(100, 900, consistency)
    assert plan.group == plan.protocol().group == M31()
    assert plan.ring_bits == 31
    assert (plan.degree, plan.threshold) == (None, None)
    assert (plan.log2_privacy_failure, plan.log2_correctness_failure) == (None, None)
    plan.protocol().check(plan.num_clients)


def test_rates_that_are_not_stated_are_zero():
    plan = plan_for(num_clients=10, dropout=None, collusion=None)
    assert (plan.privacy, plan.survivors) == (1, 10)
    assert plan == plan_for(num_clients=10, dropout=0.0, collusion=0)


def test_plans_of_secagg_are_what_they_were():
    plan = plan_for(protocol="secagg")
    assert plan.protocol() == fa.SecAgg(67, 96, group=plan.group, min_survivors=900)
    assert (plan.privacy, plan.survivors) == (None, None)
    assert plan.stored_bytes == 96 * 2 * 36


def test_sums_up_to_half_the_field_fit_and_one_more_level_does_not():
    most = (M31().largest // 32767) // 3
    plan = plan_for(10, num_clients=most, max_weight=3)
    assert most * 3 * 32767 <= plan.group.largest == 2**30 - 1
    with pytest.raises(ValueError, match=rf"num_clients={most} would fit.*\[plan-ring\]$"):
        plan_for(10, num_clients=most + 1, max_weight=3)
    # The ring of 32 bits has room for twice as many.
    plan_for(10, num_clients=most + 1, max_weight=3, protocol="secagg")


@pytest.mark.parametrize("max_weight", [1, 20])
def test_a_client_stores_a_coded_part_of_the_mask_of_each(max_weight):
    plan = plan_for(max_weight=max_weight)
    assert plan.length == 10**6 + (max_weight > 1)
    assert plan.stored_bytes == 4 * 1000 * math.ceil(plan.length / (900 - 100))
    assert plan.server_keystream_words == 0


def test_costs_are_counted_by_hand():
    """N = 4, T = 1, U = 3, ten words: two parts of five words."""
    cost = fa.LightSecAgg(1, 3).cost(10, 4, dropped=1)
    assert cost == fa.LightSecAgg(1, 3).cost(10, 4)
    coded, packed = math.ceil(5 * 31 / 8), math.ceil(10 * 31 / 8)
    assert cost.bytes_up == {
        "advertise": 32,
        "share": 3 * (coded + 32),
        "upload": packed,
        "attest": 3 * 32,
        "unmask": coded,
    }
    assert cost.bytes_down == {
        "advertise": 3 * 32,
        "share": 3 * (coded + 32),
        "upload": 0,
        "attest": 1,
        "unmask": 3 * 32,
    }
    # Mask and noise are fifteen elements of two words; six messages of five words are sealed or
    # opened.
    assert cost.client_keystream_words == {"share": 2 * 15 + 6 * 5, "upload": 2 * 10}
    inverse, nodes, clients, parts = 59, 3, 4, 2
    weights = clients * nodes * (1 + 1 + inverse + 1) + nodes * nodes
    assert cost.client_field_products == {"share": clients * nodes * 5 + weights}
    weights = parts * clients * (1 + 1 + inverse + 1) + clients * clients
    assert cost.server_field_products == {"unmask": parts * clients * 5 + weights}
    assert cost.client_stored_bytes == {"share": 4 * 4 * 5}


def test_printing_a_plan_says_what_its_numbers_mean():
    lines = str(plan_for()).splitlines()
    assert lines[0].endswith("<= 2**30 - 1 = 1073741823: no sum wraps")
    assert lines[3:] == [
        "Each client cuts its mask into 800 parts and codes them for all 999 others;",
        "100 of them learn nothing of it, and 900 clients can rebuild a sum of masks.",
        "A server that shows clients different survivors, with 100 of 1000 clients corrupt,",
        "learns no more than the sum.",
        "Clients answer for no fewer than 900 survivors; with 100 lost,",
        "no round fails.",
        "A client stores 1000 x ceil(1000000 / 800) words of its peers' coded masks, "
        "5000000 bytes.",
        "A client sends 8782968 and receives 4935185 bytes in a round, and the server",
        "does 1050600000 products in the field, whoever is lost.",
    ]
    assert all(len(line) <= 100 for line in lines)


def test_costs_side_by_side():
    plan = plan_for(10**5, num_clients=100)
    secagg = plan_for(10**5, num_clients=100, protocol="secagg").protocol()
    rows = compare_costs(plan, {"light": plan.protocol(), "secagg": secagg}).rows
    of = {(row.protocol, row.role, row.stage): row for row in rows}
    light, heavy = (of[name, "server", "round"] for name in ("light", "secagg"))
    assert light.keystream_words == 0
    assert light.field_products < heavy.keystream_words
    assert light.bytes_received > 2 * heavy.bytes_received
    # All share; what is left of them uploads.
    cost = plan.protocol().cost(10**5, 100)
    assert of["light", "server", "share"].bytes_received == 100 * cost.bytes_up["share"]
    assert of["light", "server", "unmask"].bytes_received == 90 * cost.bytes_up["unmask"]
    assert of["light", "client", "round"].bytes_stored == plan.stored_bytes == 4 * 100 * 1250
    assert [row.bytes_stored for row in rows if row.role == "server"] == [0] * 12
