"""What a plan says when it is printed: the proof, what a server can learn, and what it costs."""

import math
from typing import Any

from fedjax_agg.protocols.protocol import packed_bytes
from fedjax_agg.sharing import parameters


def text(plan: Any) -> str:
    """The lines of a ``Plan``."""
    largest = plan.num_clients * plan.max_weight * plan.levels << plan.shift
    low_bits = f" x 2**{plan.shift} (blind)" if plan.blind else ""
    ring = (
        f"{plan.num_clients} clients x weight {plan.max_weight} x {plan.levels} levels"
        f"{low_bits} = {largest} <= 2**{plan.ring_bits - 1} - 1 = {plan.group.largest}:"
        " no sum wraps\n"
        f"step {plan.step:.6g}, error of the mean at most {plan.error_bound:.6g},"
        f" {plan.ring_bits} bits a coordinate,\n"
        f"{packed_bytes(plan.length, plan.group)} bytes an upload"
    )
    if plan.privacy is not None:
        return f"{ring}\n{_coding(plan)}"
    return ring if plan.degree is None else f"{ring}\n{_graph(plan)}"


def _graph(plan: Any) -> str:
    """Who shares with whom, what a server can learn, when a round fails, and what it costs."""
    n = plan.num_clients
    others = "all" if plan.degree == n - 1 else f"{plan.degree} of the"
    learns = "learns no more than the sum"
    if plan.log2_privacy_failure is not None:
        odds = f"with probability at most {_power(plan.log2_privacy_failure)}"
        learns = f"learns more than the sum {odds}"
        if plan.consistency and plan.degree != n - 1:
            learns = (
                f"opens the update of one client {odds};\n"
                "the sum that it learns may be over fewer survivors than it names"
            )
    fails = (
        "no round fails"
        if plan.log2_correctness_failure is None
        else f"a round fails with probability at most {_power(plan.log2_correctness_failure)}"
    )
    return (
        f"Each client shares its secrets with {others} {n - 1} others,"
        f" and {plan.threshold} of them can rebuild one.\n"
        f"{_server(plan)}\n{learns}.\n{_least(plan)}\n{fails}.\n"
        f"{_bytes(plan)}\ngenerates {plan.server_keystream_words} words of keystream."
    )


def _coding(plan: Any) -> str:
    """How masks are coded, what a server can learn, and what it costs."""
    n, parts = plan.num_clients, plan.survivors - plan.privacy
    products = sum(plan.cost.server_field_products.values())
    return (
        f"Each client cuts its mask into {parts} parts and codes them for all {n - 1} others;\n"
        f"{plan.privacy} of them learn nothing of it, and {plan.survivors} clients can rebuild"
        " a sum of masks.\n"
        f"{_server(plan)}\nlearns no more than the sum.\n{_least(plan)}\nno round fails.\n"
        f"A client stores {n} x ceil({plan.length} / {parts}) words of its peers' coded masks,"
        f" {plan.stored_bytes} bytes.\n"
        f"{_bytes(plan)}\ndoes {products} products in the field, whoever is lost."
    )


def _server(plan: Any) -> str:
    server = "shows clients different survivors" if plan.consistency else "follows the rules"
    corrupt = parameters.whole_clients(plan.collusion, plan.num_clients)
    return f"A server that {server}, with {corrupt} of {plan.num_clients} clients corrupt,"


def _least(plan: Any) -> str:
    return (
        f"Clients answer for no fewer than {plan.min_survivors} survivors;"
        f" with {plan.dropped} lost,"
    )


def _bytes(plan: Any) -> str:
    return (
        f"A client sends {plan.bytes_up} and receives {plan.bytes_down} bytes in a round,"
        " and the server"
    )


def _power(log2: float) -> str:
    """A power of two that is no smaller, with one decimal."""
    return f"2^{math.ceil(10 * log2) / 10:.1f}"
