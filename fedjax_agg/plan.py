"""Planning a round: a ring in which no sum can wrap, and a graph that outlasts the dropouts."""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from fedjax_agg import _check
from fedjax_agg.arithmetic import Ring
from fedjax_agg.budget import blind_shift
from fedjax_agg.codecs import FixedPoint
from fedjax_agg.protocols import SecAgg
from fedjax_agg.protocols.protocol import Cost, packed_bytes
from fedjax_agg.rounding import MAX_UNITS
from fedjax_agg.session import MAX_CLIENTS
from fedjax_agg.sharing import parameters
from fedjax_agg.sharing.shamir import MAX_HOLDERS
from fedjax_agg.structure import Structure
from fedjax_agg.symmetric.homomorphic_mac import TAG_WORDS

# float32 rounds about ten times between an update and its mean (clip, scale, weight, lift,
# divide), and the norm of a long update adds as much again: 2^-24 each, with room to spare.
_ROUND_OFF = 2.0**-19


@dataclasses.dataclass(frozen=True)
class Plan:
    """The numbers of a round that fit together, and the proof that they do.

    ``print(plan)`` shows the proof.

    Attributes:
        size: coordinates of one update.
        num_clients: clients in a cohort.
        clip: the bound on the norm of one update, in its own units.
        bits: the resolution of one client's word.
        max_weight: the largest integer weight.
        levels: grid steps in one clip, 2^(bits-1) - 1.
        ring_bits: the width of the smallest ring that holds the weighted sum.
        step: clip / levels, in the units of the update.
        error_bound: the largest error of a coordinate of the mean of clipped updates: one step,
            and float32 round-off of at most 2^-19 clips.
        dropout: the fraction of clients that may drop out; None where none was stated, and then
            so are all attributes below but ``consistency``.
        collusion: the fraction of clients that may be corrupt.
        consistency: whether clients attest the survivors before they answer, so that a server
            that shows them different ones learns no more.
        degree: the neighbours of a client in the graph; n - 1 is the complete graph.
        threshold: how many of them must answer to rebuild what it shared.
        min_survivors: for how few survivors a client still answers.
        log2_privacy_failure: log2 of a bound on the probability that more than the sum is
            learnt; None where it cannot happen.
        log2_correctness_failure: log2 of a bound on the probability that a round fails; None
            where it cannot happen. Both as in ``GraphParameters``.
        blind: whether the ring has room for the low bits of a ``blind_mean``.

    Example:
        >>> plan = plan_round(1000, num_clients=100, clip=1.0, bits=16)
        >>> isinstance(plan, Plan), plan.ring_bits, plan.levels, plan.codec().levels, plan.group
        (True, 23, 32767, 32767, Ring(bits=23))
        >>> plan = plan_round(1000, num_clients=100, clip=1.0, bits=16, dropout=0.1, collusion=0.1)
        >>> plan.degree, plan.threshold, plan.min_survivors, plan.dropped
        (32, 22, 90, 10)
    """

    size: int
    num_clients: int
    clip: float
    bits: int
    max_weight: int
    levels: int
    ring_bits: int
    step: float
    error_bound: float
    dropout: float | None = None
    collusion: float | None = None
    consistency: bool = True
    degree: int | None = None
    threshold: int | None = None
    min_survivors: int | None = None
    log2_privacy_failure: float | None = None
    log2_correctness_failure: float | None = None
    blind: bool = False

    @property
    def group(self) -> Ring:
        """The ring, for ``Plain(group=plan.group)``; ``plan.protocol()`` has it."""
        return Ring(self.ring_bits)

    @property
    def length(self) -> int:
        """Words of a client's vector: coordinates, weight if any, and in a blind round the tag."""
        return self.size + (self.max_weight > 1) + (TAG_WORDS if self.blind else 0)

    @property
    def dropped(self) -> int:
        """How many clients may drop out; 0 where no dropout was stated."""
        return parameters.whole_clients(self.dropout or 0.0, self.num_clients)

    @property
    def cost(self) -> Cost:
        """What a round of ``plan.protocol()`` costs when all ``plan.dropped`` are lost."""
        return self.protocol().cost(self.length, self.num_clients, self.dropped)

    @property
    def bytes_up(self) -> int:
        """Bytes that one client sends in a round."""
        return sum(self.cost.bytes_up.values())

    @property
    def bytes_down(self) -> int:
        """Bytes that one client receives in a round, beside the model."""
        return sum(self.cost.bytes_down.values())

    @property
    def server_keystream_words(self) -> int:
        """32-bit words of ChaCha20 that the server generates when ``plan.dropped`` are lost."""
        return sum(self.cost.server_keystream_words.values())

    def protocol(self) -> SecAgg:
        """The protocol of the plan."""
        return SecAgg(
            self.threshold,
            self.degree,
            self.consistency,
            group=self.group,
            min_survivors=self.min_survivors,
        )

    @property
    def shift(self) -> int:
        """How many low bits of the ring words leave empty: in a blind round floor(log2 n)."""
        return blind_shift(self.num_clients) if self.blind else 0

    def codec(self, *, norm: str = "l2", rounding: str = "stochastic") -> FixedPoint:
        """The codec of the plan."""
        return FixedPoint(
            self.clip, self.levels, max_levels=self.levels, norm=norm, rounding=rounding
        )

    def __str__(self) -> str:
        largest = self.num_clients * self.max_weight * self.levels << self.shift
        low_bits = f" x 2**{self.shift} (blind)" if self.blind else ""
        ring = (
            f"{self.num_clients} clients x weight {self.max_weight} x {self.levels} levels"
            f"{low_bits} = {largest} <= 2**{self.ring_bits - 1} - 1 = {self.group.largest}:"
            " no sum wraps\n"
            f"step {self.step:.6g}, error of the mean at most {self.error_bound:.6g},"
            f" {self.ring_bits} bits a coordinate,\n"
            f"{packed_bytes(self.length, self.group)} bytes an upload"
        )
        return ring if self.degree is None else f"{ring}\n{self._graph_lines()}"

    def _graph_lines(self) -> str:
        """The graph, what a server can learn, when a round fails, and what it costs."""
        n = self.num_clients
        corrupt = parameters.whole_clients(self.collusion or 0.0, n)
        others = "all" if self.degree == n - 1 else f"{self.degree} of the"
        server = "shows clients different survivors" if self.consistency else "follows the rules"
        learns = "learns no more than the sum"
        if self.log2_privacy_failure is not None:
            odds = f"with probability at most {_power(self.log2_privacy_failure)}"
            learns = f"learns more than the sum {odds}"
            if self.consistency and self.degree != n - 1:
                learns = (
                    f"opens the update of one client {odds};\n"
                    "the sum that it learns may be over fewer survivors than it names"
                )
        fails = (
            "no round fails"
            if self.log2_correctness_failure is None
            else f"a round fails with probability at most {_power(self.log2_correctness_failure)}"
        )
        return (
            f"Each client shares its secrets with {others} {n - 1} others,"
            f" and {self.threshold} of them can rebuild one.\n"
            f"A server that {server}, with {corrupt} of {n} clients corrupt,\n"
            f"{learns}.\n"
            f"Clients answer for no fewer than {self.min_survivors} survivors;"
            f" with {self.dropped} lost,\n{fails}.\n"
            f"A client sends {self.bytes_up} and receives {self.bytes_down} bytes in a round,"
            f" and the server\ngenerates {self.server_keystream_words} words of keystream."
        )


def plan_round(
    params_or_size: Any,
    *,
    num_clients: int,
    clip: float,
    bits: int,
    max_weight: int = 1,
    blind: bool = False,
    dropout: float | None = None,
    collusion: float | None = None,
    consistency: bool = True,
    security: int = 40,
    failure: int = 20,
) -> Plan:
    """The smallest ring in which no sum can wrap, and the smallest graph that outlasts dropouts.

    The graph is planned where ``dropout`` or ``collusion`` is given; the other one is then zero
    unless stated. ``graph_parameters`` says what it guarantees.

    Args:
        params_or_size: the parameters, any pytree of floats, or their number.
        num_clients: clients in a cohort, 2 to 2^31 - 1; a graph has up to 65535 neighbours.
        clip: the bound on the norm of one update, in its own units.
        bits: the resolution of one client's word, 2 to 24: levels = 2^(bits-1) - 1.
        max_weight: the largest integer weight.
        blind: whether the round is a ``blind_mean``, whose words leave floor(log2 num_clients)
            low bits of the ring empty, and are followed by the 64 words of a tag.
        dropout: the fraction of clients that may drop out, in [0, 1).
        collusion: the fraction of clients that may be corrupt, in [0, 1).
        consistency: whether clients attest the survivors before they answer, against a server
            that shows them different ones (semi-malicious). False trusts it with that (honest
            but curious), and a smaller graph will do. On a graph that is not complete such a
            server can still have the sum of fewer survivors than it names, as ``SecAgg`` says.
        security: more than the sum is learnt with a probability of at most 2^-security.
        failure: a round fails with a probability of at most 2^-failure.

    Returns:
        The ``Plan``; ``plan.codec()`` and ``plan.protocol()`` are what a round needs.

    Raises:
        ValueError: the numbers do not fit into a 32-bit ring, or into float32, or so many
            dropouts leave no threshold; the message shows them, and which one to change to what.

    Example:
        >>> print(plan_round(1_000_000, num_clients=100, clip=1.0, bits=16, max_weight=20))
        100 clients x weight 20 x 32767 levels = 65534000 <= 2**26 - 1 = 67108863: no sum wraps
        step 3.05185e-05, error of the mean at most 3.24259e-05, 27 bits a coordinate,
        3375004 bytes an upload

        A sparse graph, for which the words of a client are masked with 96 keys and not 999:

        >>> plan = plan_round(
        ...     1_000_000, num_clients=1000, clip=1.0, bits=16, dropout=0.1, collusion=0.1)
        >>> print(str(plan).splitlines()[3])
        Each client shares its secrets with 96 of the 999 others, and 67 of them can rebuild one.
    """
    if isinstance(params_or_size, (int, float, np.integer, str)):
        whole = isinstance(params_or_size, float) and params_or_size.is_integer()
        size = int(params_or_size) if whole else params_or_size
        size = _check.integer_in("plan-size", 1, 2**36, params_or_size=size)
    else:
        size = Structure.of(params_or_size, "params_or_size").size
        if size == 0:
            raise _check.error("plan-size", "params_or_size of 0 coordinates", "a tree of arrays")
    num_clients = _check.integer_in("num-clients", 2, MAX_CLIENTS, num_clients=num_clients)
    _check.positive("clip", clip=clip)
    if _check.concrete(clip) is None or jnp.ndim(clip):
        raise _check.error("clip", f"clip={_check.shown(clip)}", "one number that is not traced")
    bits = _check.integer_in("plan-bits", 2, MAX_UNITS.bit_length() + 1, bits=bits)
    max_weight = _check.integer_in("max-weight", 1, MAX_UNITS, max_weight=max_weight)
    for name, value in (("consistency", consistency), ("blind", blind)):
        if not isinstance(value, bool):
            raise _check.error(name, f"{name}={_check.shown(value)}", "a bool")
    levels = 2 ** (bits - 1) - 1
    shift = blind_shift(num_clients) if blind else 0
    for limit, product, numbers in (
        (MAX_UNITS, max_weight * levels, f"max_weight * levels = {max_weight} * {levels}"),
        (
            Ring(32).largest >> shift,
            num_clients * max_weight * levels,
            f"num_clients * max_weight * levels = {num_clients} * {max_weight} * {levels}",
        ),
    ):
        if product > limit:
            raise _check.error(
                "plan-ring",
                f"{numbers} = {product}",
                f"at most {limit} ({_fitting(num_clients, levels, max_weight, shift)})",
            )
    graph = {}
    if dropout is not None or collusion is not None:
        dropout = 0.0 if dropout is None else dropout
        collusion = 0.0 if collusion is None else collusion
        graph = _graph(num_clients, dropout, collusion, consistency, security, failure)
        _check.integer_in("sharing-clients", 1, MAX_HOLDERS, degree=graph["degree"])
    largest = num_clients * max_weight * levels << shift
    step = float(clip) / levels
    return Plan(
        size=size,
        num_clients=num_clients,
        clip=float(clip),
        bits=bits,
        max_weight=max_weight,
        levels=levels,
        ring_bits=largest.bit_length() + 1,
        step=step,
        error_bound=step + float(clip) * _ROUND_OFF,
        consistency=consistency,
        blind=blind,
        **graph,
    )


def _graph(
    num_clients: int,
    dropout: float,
    collusion: float,
    consistency: bool,
    security: int,
    failure: int,
) -> dict[str, Any]:
    """The attributes of a plan that are about its graph."""
    semi_malicious, curious = parameters.ADVERSARIES
    graph = parameters.graph_parameters(
        num_clients,
        collusion=collusion,
        dropout=dropout,
        adversary=semi_malicious if consistency else curious,
        security=security,
        failure=failure,
    )
    dropped = parameters.whole_clients(dropout, num_clients)
    complete = graph.degree == num_clients - 1
    return {
        "dropout": float(dropout),
        "collusion": float(collusion),
        # On the complete graph the holders of a survivor's secret are all others.
        "min_survivors": graph.threshold + 1 if complete else num_clients - dropped,
        **dataclasses.asdict(graph),
    }


def _power(log2: float) -> str:
    """A power of two that is no smaller, with one decimal."""
    return f"2^{math.ceil(10 * log2) / 10:.1f}"


def _fitting(num_clients: int, levels: int, max_weight: int, shift: int) -> str:
    """Which single number to change, and to what, for both limits to hold."""
    largest = Ring(32).largest >> shift
    fitting = []
    most_levels = min(MAX_UNITS // max_weight, largest // (num_clients * max_weight))
    if most_levels >= 1:
        fitting.append(f"bits={(most_levels + 1).bit_length()}")
    most_weight = min(MAX_UNITS // levels, largest // (num_clients * levels))
    if most_weight >= 1:
        fitting.append(f"max_weight={most_weight}")
    if max_weight * levels <= MAX_UNITS and largest // (max_weight * levels) >= 2:
        fitting.append(f"num_clients={largest // (max_weight * levels)}")
    return " or ".join(fitting) + " would fit" if fitting else "no single change fits"
