"""What protocols cost side by side: bytes and work, by role and stage."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fedjax_agg import _check
from fedjax_agg.participation import STAGES
from fedjax_agg.plan import Plan
from fedjax_agg.protocols import Protocol
from fedjax_agg.protocols.protocol import Cost

# The last line of a role, after its stages.
ROUND = "round"
_FIRST_STAGE_WITHOUT_THE_DROPPED = "upload"


class CostRow(NamedTuple):
    """One line of a comparison.

    Attributes:
        protocol: its name.
        role: ``"client"``, one of them and one that stays to the end, or ``"server"``.
        stage: the name of a stage, or ``"round"`` for all of them.
        bytes_sent: by this role.
        bytes_received: by this role.
        keystream_words: 32-bit words of ChaCha20, as ``Cost`` counts them.
        field_products: multiplications in GF(2^31 - 1).
        bytes_stored: of its peers' shares, kept from this stage to the end of the round.

    Example:
        >>> CostRow("Plain", "client", "round", 400, 0, 0, 0).bytes_sent
        400
    """

    protocol: str
    role: str
    stage: str
    bytes_sent: int
    bytes_received: int
    keystream_words: int
    field_products: int
    bytes_stored: int = 0


@dataclasses.dataclass(frozen=True)
class CostComparison:
    """The costs of one round under several protocols; ``print`` shows an aligned table.

    Attributes:
        rows: the lines, by protocol, role and stage; the last of each role is the whole round.

    Example:
        >>> from fedjax_agg.protocols import Plain
        >>> from fedjax_agg.plan import plan_round
        >>> comparison = compare_costs(plan_round(100, num_clients=10, clip=1.0, bits=8), [Plain()])
        >>> isinstance(comparison, CostComparison), len(comparison.rows)
        (True, 4)
    """

    rows: tuple[CostRow, ...]

    def __str__(self) -> str:
        titles = tuple(name.replace("_", " ") for name in CostRow._fields)
        cells = [titles, *(tuple(_shown(cell) for cell in row) for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells)]
        lines = []
        for line in cells:
            names = [cell.ljust(width) for cell, width in zip(line[:3], widths)]
            numbers = [cell.rjust(width) for cell, width in zip(line[3:], widths[3:])]
            lines.append("  ".join(names + numbers).rstrip())
        return "\n".join(lines)


def compare_costs(
    plan: Plan, protocols: Sequence[Protocol] | Mapping[str, Protocol]
) -> CostComparison:
    """Bytes and work of one round of a plan, for each of several protocols.

    ``plan.dropped`` clients, none where the plan states no dropout, are lost between their
    shares and their upload.

    Args:
        plan: the size of an update and of the cohort, and its dropout.
        protocols: the protocols, of any groups, or a mapping from the names that the table is
            to show. Without names, a protocol is shown by its type, and by what tells it from
            others of that type.

    Returns:
        The ``CostComparison``; ``rows`` has its numbers.

    Raises:
        TypeError: the plan or a protocol is none.
        ValueError: a protocol that does not fit the cohort.

    Example:
        What whole rounds cost; ``print(comparison)`` shows every stage, as in ``docs/bytes.md``.

        >>> from fedjax_agg.plan import plan_round
        >>> from fedjax_agg.protocols import LightSecAgg, SecAgg
        >>> plan = plan_round(10_000, num_clients=10, clip=1.0, bits=8, dropout=0.2)
        >>> comparison = compare_costs(plan, [SecAgg(group=plan.group), LightSecAgg(1, 8)])
        >>> for row in comparison.rows:
        ...     if row.stage == "round":
        ...         print(row.protocol, row.role, row.bytes_sent, row.keystream_words)
        SecAgg client 16612 100000
        SecAgg server 17440 240000
        LightSecAgg client 94738 68586
        LightSecAgg server 506500 0
    """
    _check.instance("plan-type", Plan, plan=plan)
    rows: list[CostRow] = []
    for name, protocol in _named(protocols).items():
        _check.instance("protocol-type", Protocol, protocols=protocol)
        protocol.check(plan.num_clients)
        cost = protocol.cost(plan.length, plan.num_clients, plan.dropped)
        rows += _client_rows(name, cost)
        rows += _server_rows(name, cost, plan.num_clients, plan.dropped)
    return CostComparison(tuple(rows))


def _named(protocols) -> dict[str, Protocol]:
    if isinstance(protocols, Mapping):
        return {str(name): protocol for name, protocol in protocols.items()}
    if not isinstance(protocols, Sequence):
        raise _check.error(
            "cost-protocols",
            f"protocols of type {type(protocols).__name__}",
            "a sequence or a mapping",
        )
    for protocol in protocols:
        _check.instance("protocol-type", Protocol, protocols=protocol)
    return {_label(protocol, protocols): protocol for protocol in protocols}


def _label(protocol: Protocol, protocols: Sequence[Protocol]) -> str:
    """The type, and where there are several of it, what tells them apart."""
    name = type(protocol).__name__
    same = [vars(other) for other in protocols if type(other) is type(protocol)]
    differing = [
        f"{field}={value!r}"
        for field, value in vars(protocol).items()
        if any(other.get(field) != value for other in same)
    ]
    return f"{name}({', '.join(differing)})" if differing else name


def _stages(cost: Cost) -> list[str]:
    return [stage for stage in STAGES if stage in {*cost.bytes_up, *cost.bytes_down}]


def _client_rows(name: str, cost: Cost) -> list[CostRow]:
    columns = (
        cost.bytes_up,
        cost.bytes_down,
        cost.client_keystream_words,
        cost.client_field_products,
        cost.client_stored_bytes,
    )
    rows = [
        CostRow(name, "client", stage, *(column.get(stage, 0) for column in columns))
        for stage in _stages(cost)
    ]
    return [*rows, _total(rows)]


def _server_rows(name: str, cost: Cost, num_clients: int, dropped: int) -> list[CostRow]:
    """What a client sends the server receives, from all who are there at the stage."""
    rows = []
    for stage in _stages(cost):
        gone = STAGES.index(stage) >= STAGES.index(_FIRST_STAGE_WITHOUT_THE_DROPPED)
        present = num_clients - dropped if gone else num_clients
        traffic = (present * by.get(stage, 0) for by in (cost.bytes_down, cost.bytes_up))
        work = (
            by.get(stage, 0) for by in (cost.server_keystream_words, cost.server_field_products)
        )
        rows.append(CostRow(name, "server", stage, *traffic, *work))
    return [*rows, _total(rows)]


def _total(rows: list[CostRow]) -> CostRow:
    """The whole round: the sum of the stages."""
    numbers = (sum(column) for column in list(zip(*rows))[3:])
    return CostRow(*rows[0][:2], ROUND, *numbers)


def _shown(cell: Any) -> str:
    return cell if isinstance(cell, str) else f"{cell:,}"
