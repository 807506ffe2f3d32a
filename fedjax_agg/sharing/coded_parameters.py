"""How many may learn nothing, and how many must answer: the parameters of coded masks.

LightSecAgg (So et al., MLSys'22) leaves nothing to chance. Of N clients, C are corrupt and D are
lost. T coded vectors are independent of a mask, and from those of U clients follows a sum of masks:

    privacy      T = C, or 1 where none is corrupt
    recovery     U = N - D, all who are sure to be left: a mask is cut into U - T parts, and the
                 more there are the less is sent, stored and computed
    the sum      U - C >= 2, so that two honest updates are in it
    one set      2 U > N + T, so that any two sets of survivors which U clients each attest have an
                 honest client in common, who attests one

The last is needed against a server that names different survivors to different clients.
"""

import dataclasses
from collections.abc import Callable

from fedjax_agg import _check
from fedjax_agg.sharing.lagrange import MAX_CLIENTS
from fedjax_agg.sharing.parameters import ADVERSARIES, shortest_rate, stated_clients

# 4 GiB: the coded vectors that one client has to keep from before the update to the end.
MAX_STORED_BYTES = 2**32
_WORD_BYTES = 4


@dataclasses.dataclass(frozen=True)
class CodedParameters:
    """How a mask is coded.

    Attributes:
        privacy: T, so many clients learn nothing of a mask.
        survivors: U, so many are needed for a sum of masks, and enough.

    Example:
        >>> CodedParameters(privacy=10, survivors=70).survivors
        70
    """

    privacy: int
    survivors: int


def coded_parameters(
    num_clients: int,
    *,
    size: int,
    beside: int = 0,
    collusion: float,
    dropout: float,
    adversary: str = "semi-malicious",
) -> CodedParameters:
    """The parameters with which a round costs least, whoever of these clients is lost or corrupt.

    Args:
        num_clients: N, 2 to 32767.
        size: coordinates of an update.
        beside: further words of a client's vector, such as a weight.
        collusion: the fraction of clients who may be corrupt, in [0, 1).
        dropout: the fraction of clients who may drop out, in [0, 1).
        adversary: ``"semi-malicious"``, a server that may show clients different survivors, or
            ``"honest-but-curious"``.

    Returns:
        The ``CodedParameters``.

    Raises:
        ValueError: an argument out of range; rates that leave too few clients; or vectors so long
            that a client would store more than ``MAX_STORED_BYTES``. The message says which one
            to change to what.

    Formal Guarantees:
        Those of ``LightSecAgg``, against C corrupt clients, and D clients lost. Not given:
        anything about more of either.

    Example:
        >>> coded_parameters(100, size=10**6, collusion=0.1, dropout=0.3)
        CodedParameters(privacy=10, survivors=70)
    """
    n = _check.integer_in("coded-clients", 2, MAX_CLIENTS, num_clients=num_clients)
    corrupt = stated_clients(n, collusion=collusion)
    dropped = stated_clients(n, dropout=dropout)
    _check.one_of("adversary", ADVERSARIES, adversary=adversary)
    cheats = adversary == ADVERSARIES[0]

    def enough(c: int, d: int) -> bool:
        return c + d <= n - 2 and (not cheats or max(c, 1) + 2 * d <= n - 1)

    def stored(c: int, d: int) -> int:
        return stored_bytes(n, size + beside, CodedParameters(max(c, 1), n - d))

    def fits(c: int, d: int) -> bool:
        return enough(c, d) and stored(c, d) <= MAX_STORED_BYTES

    if not enough(corrupt, dropped):
        times, limit = "2 * " if cheats else "", n - 1 if cheats and corrupt and dropped else n - 2
        total = corrupt + (2 if cheats else 1) * dropped
        raise _check.error(
            "coded-rates",
            f"collusion + {times}dropout = {corrupt} + {times}{dropped} = {total} of {n} clients",
            f"at most {limit} ({_would_fit(n, corrupt, dropped, enough)})",
        )
    found = CodedParameters(max(corrupt, 1), n - dropped)
    if not fits(corrupt, dropped):
        parts = found.survivors - found.privacy
        largest = MAX_STORED_BYTES // (_WORD_BYTES * n) * parts - beside
        raise _check.error(
            "coded-storage",
            f"num_clients * ceil(params_or_size / (survivors - privacy)) = {n} * "
            f"ceil({size + beside} / ({found.survivors} - {found.privacy})) words = "
            f"{stored(corrupt, dropped)} stored bytes",
            f"at most {MAX_STORED_BYTES} "
            f"({_would_fit(n, corrupt, dropped, fits, f'params_or_size={largest}')})",
        )
    return found


def stored_bytes(num_clients: int, length: int, parameters: CodedParameters) -> int:
    """What one client keeps of the masks of all: bytes.

    Args:
        num_clients: N.
        length: words of a client's vector.
        parameters: how masks are coded.

    Returns:
        The bytes of N vectors of ceil(length / (U - T)) words.

    Example:
        >>> stored_bytes(100, 10**6, CodedParameters(privacy=10, survivors=70))
        6666800
    """
    parts = parameters.survivors - parameters.privacy
    return _WORD_BYTES * num_clients * -(-length // parts)


def _would_fit(
    n: int, corrupt: int, dropped: int, fits: Callable[[int, int], bool], *others: str
) -> str:
    """Which single number to change, and to what."""
    fewer_dropped = next((d for d in range(dropped - 1, -1, -1) if fits(corrupt, d)), None)
    fewer_corrupt = next((c for c in range(corrupt - 1, -1, -1) if fits(c, dropped)), None)
    rates = {"dropout": fewer_dropped, "collusion": fewer_corrupt}
    fitting = [
        *others,
        *(f"{name}={shortest_rate(c, n)}" for name, c in rates.items() if c is not None),
    ]
    return f"{' or '.join(fitting)} would fit" if fitting else "no single change fits"
