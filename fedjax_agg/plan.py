"""Planning a round: a group in which no sum can wrap, and sharing that outlasts the dropouts."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from fedjax_agg import _check, _plan_text
from fedjax_agg.arithmetic import M31, Ring
from fedjax_agg.budget import blind_shift, require_planned_fit
from fedjax_agg.codecs import FixedPoint
from fedjax_agg.protocols import LightSecAgg, SecAgg
from fedjax_agg.protocols.protocol import Cost
from fedjax_agg.rounding import MAX_UNITS
from fedjax_agg.session import MAX_CLIENTS
from fedjax_agg.sharing import coded_parameters, parameters
from fedjax_agg.sharing.shamir import MAX_HOLDERS
from fedjax_agg.structure import Structure
from fedjax_agg.symmetric.homomorphic_mac import TAG_WORDS

# float32 rounds about ten times between an update and its mean (clip, scale, weight, lift,
# divide), and the norm of a long update adds as much again: 2^-24 each, with room to spare.
_ROUND_OFF = 2.0**-19

# What ``plan_round`` plans for; the second is LightSecAgg.
PROTOCOLS = ("secagg", "light-secagg")


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
        ring_bits: the width of the smallest ring that holds the weighted sum; 31 in GF(2^31 - 1).
        step: clip / levels, in the units of the update.
        error_bound: the largest error of a coordinate of the mean of clipped updates: one step,
            and float32 round-off of at most 2^-19 clips.
        dropout: the fraction of clients that may drop out; None where none was stated, and then
            so are all attributes below but ``consistency``.
        collusion: the fraction of clients that may be corrupt.
        consistency: whether clients attest the survivors before they answer, so that a server
            that shows them different ones learns no more.
        degree: the neighbours of a client in the graph; n - 1 is the complete graph. None under
            LightSecAgg, and so is ``threshold``.
        threshold: how many of them must answer to rebuild what it shared.
        min_survivors: for how few survivors a client still answers.
        log2_privacy_failure: log2 of a bound on the probability that more than the sum is
            learnt; None where it cannot happen.
        log2_correctness_failure: log2 of a bound on the probability that a round fails; None
            where it cannot happen. Both as in ``GraphParameters``.
        blind: whether the ring has room for the low bits of a ``blind_mean``.
        privacy: T of LightSecAgg: so many clients learn nothing of a mask. None under SecAgg, and
            so is ``survivors``.
        survivors: U of LightSecAgg: so many must upload, and so many of them answer.

    Example:
        >>> plan = plan_round(1000, num_clients=100, clip=1.0, bits=16)
        >>> isinstance(plan, Plan), plan.ring_bits, plan.levels, plan.codec().levels, plan.group
        (True, 23, 32767, 32767, Ring(bits=23))
        >>> plan = plan_round(1000, num_clients=100, clip=1.0, bits=16, dropout=0.1, collusion=0.1)
        >>> plan.degree, plan.threshold, plan.min_survivors, plan.dropped
        (32, 22, 90, 10)
        >>> plan = plan_round(1000, num_clients=100, clip=1.0, bits=16, dropout=0.1, collusion=0.1,
        ...                   protocol="light-secagg")
        >>> plan.privacy, plan.survivors, plan.group, plan.stored_bytes
        (10, 90, M31(), 5200)
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
    privacy: int | None = None
    survivors: int | None = None

    @property
    def group(self) -> Ring | M31:
        """The integers, for ``Plain(group=plan.group)``; ``plan.protocol()`` has them."""
        return Ring(self.ring_bits) if self.privacy is None else M31()

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

    @property
    def stored_bytes(self) -> int:
        """Bytes of its peers' shares that one client keeps until the end of a round."""
        return sum(self.cost.client_stored_bytes.values())

    def protocol(self) -> SecAgg | LightSecAgg:
        """The protocol of the plan."""
        if self.privacy is not None and self.survivors is not None:
            return LightSecAgg(self.privacy, self.survivors, self.consistency)
        return SecAgg(
            self.threshold,
            self.degree,
            self.consistency,
            group=Ring(self.ring_bits),
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
        return _plan_text.text(self)


def plan_round(
    params_or_size: Any,
    *,
    num_clients: int,
    clip: float,
    bits: int,
    max_weight: int = 1,
    blind: bool = False,
    protocol: str = "secagg",
    dropout: float | None = None,
    collusion: float | None = None,
    consistency: bool = True,
    security: int = 40,
    failure: int = 20,
) -> Plan:
    """The smallest ring in which no sum can wrap, and the smallest graph that outlasts dropouts.

    The graph is planned where ``dropout`` or ``collusion`` is given; the other one is then zero
    unless stated. ``graph_parameters`` says what it guarantees. LightSecAgg has no graph and one
    group, GF(2^31 - 1); of its two numbers ``coded_parameters`` says how they follow from the
    rates, both zero unless stated.

    Args:
        params_or_size: the parameters, any pytree of floats, or their number.
        num_clients: clients in a cohort, 2 to 2^31 - 1; a graph has up to 65535 neighbours, and
            a cohort of LightSecAgg up to 32767 clients.
        clip: the bound on the norm of one update, in its own units.
        bits: the resolution of one client's word, 2 to 24: levels = 2^(bits-1) - 1.
        max_weight: the largest integer weight.
        blind: whether the round is a ``blind_mean``, whose words leave floor(log2 num_clients)
            low bits of the ring empty, and are followed by the 64 words of a tag.
        protocol: ``"secagg"``, which is SecAgg+ where a smaller graph will do, or
            ``"light-secagg"``.
        dropout: the fraction of clients that may drop out, in [0, 1).
        collusion: the fraction of clients that may be corrupt, in [0, 1).
        consistency: whether clients attest the survivors before they answer, against a server
            that shows them different ones (semi-malicious). False trusts it with that (honest
            but curious), and a smaller graph will do. On a graph that is not complete such a
            server can still have the sum of fewer survivors than it names, as ``SecAgg`` says.
        security: more than the sum is learnt with a probability of at most 2^-security.
        failure: a round fails with a probability of at most 2^-failure. LightSecAgg leaves
            neither to chance.

    Returns:
        The ``Plan``; ``plan.codec()`` and ``plan.protocol()`` are what a round needs.

    Raises:
        ValueError: the numbers do not fit into a 32-bit ring, or into float32; so many dropouts
            leave no threshold; or under LightSecAgg a client would store more than 4 GiB of its
            peers' coded masks. The message shows them, and which one to change to what.

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

        Coded masks, which cost the server the same whoever is lost, and clients more:

        >>> coded = plan_round(1_000_000, num_clients=1000, clip=1.0, bits=16, dropout=0.1,
        ...                    collusion=0.1, protocol="light-secagg")
        >>> coded.protocol()
        LightSecAgg(privacy=100, survivors=900, consistency=True, group=M31())
        >>> round(coded.bytes_up / plan.bytes_up, 1), coded.stored_bytes
        (2.7, 5000000)
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
    _check.boolean("consistency", consistency=consistency)
    _check.boolean("blind", blind=blind)
    _check.one_of("plan-protocol", PROTOCOLS, protocol=protocol)
    coded = protocol == PROTOCOLS[1]
    if blind and coded:
        raise _check.error(
            "blind", f"blind=True with protocol={protocol!r}", "False, or the protocol 'secagg'"
        )
    levels = 2 ** (bits - 1) - 1
    widest: Ring | M31 = M31() if coded else Ring(32)
    largest = require_planned_fit(
        num_clients,
        levels,
        max_weight,
        widest.largest,
        shift=blind_shift(num_clients) if blind else 0,
    )
    sharing: dict[str, Any] = {}
    if coded or dropout is not None or collusion is not None:
        rates = {
            "dropout": 0.0 if dropout is None else dropout,
            "collusion": 0.0 if collusion is None else collusion,
        }
        adversary = parameters.ADVERSARIES[0 if consistency else 1]
        if coded:
            found = coded_parameters.coded_parameters(
                num_clients, size=size, beside=int(max_weight > 1), adversary=adversary, **rates
            )
            sharing = {"min_survivors": found.survivors, **dataclasses.asdict(found)}
        else:
            sharing = _graph(num_clients, rates, adversary, security, failure)
        sharing |= {name: float(rate) for name, rate in rates.items()}
    step = float(clip) / levels
    return Plan(
        size=size,
        num_clients=num_clients,
        clip=float(clip),
        bits=bits,
        max_weight=max_weight,
        levels=levels,
        ring_bits=widest.bits if coded else largest.bit_length() + 1,
        step=step,
        error_bound=step + float(clip) * _ROUND_OFF,
        consistency=consistency,
        blind=blind,
        **sharing,
    )


def _graph(
    num_clients: int, rates: dict[str, float], adversary: str, security: int, failure: int
) -> dict[str, Any]:
    """The attributes of a plan that are about its graph."""
    graph = parameters.graph_parameters(
        num_clients, adversary=adversary, security=security, failure=failure, **rates
    )
    _check.integer_in("sharing-clients", 1, MAX_HOLDERS, degree=graph.degree)
    # On the complete graph the holders of a survivor's secret are all others.
    complete = graph.degree == num_clients - 1
    dropped = parameters.whole_clients(rates["dropout"], num_clients)
    least = graph.threshold + 1 if complete else num_clients - dropped
    return {"min_survivors": least, **dataclasses.asdict(graph)}
