"""How many neighbours, and how many of them must answer: the parameters of a sparse graph.

Of n clients, a fraction is corrupt and another drops out, both without regard to the graph. On a
random k-regular Harary graph three events may not happen, and each has a union bound (Bell et
al., CCS'20, section 3; HG(n, m, k) is the number of marked among k drawn from n of which m are
marked):

    privacy       a client has too many corrupt neighbours:  n Pr[HG(n, corrupt, k) >= limit]
    connectivity  the honest survivors fall apart, which takes two disjoint runs of k / 2 positions
                  of the ring without any of them:  n (n-k-1) / 2 * B! (n-k)! / ((B-k)! n!),
                  where B = corrupt + dropped
    correctness   a client has too few survivors around:     n Pr[HG(n, n - dropped, k) < t]

The limit is t against a server that is honest but curious. One that shows clients different sets
of survivors wants t answers of either kind, honest neighbours giving one kind and corrupt ones
both, so the limit is 2 t - k. Half of the privacy failure is allowed to each of the first two.

A neighbourhood is a uniform set of k of all n clients, so n Pr[HG(n, ...)] is the exact expected
number of clients, corrupt ones included, for whom the event happens: a bound for any n.
"""

import dataclasses
import math

import numpy as np

from fedjax_agg import _check

ADVERSARIES = ("semi-malicious", "honest-but-curious")
MAX_BITS = 256
# Rates are read as the decimals that they stand for: 0.29 of 100 clients are 29.
_SLACK = 1e-14
# What a window of a distribution leaves out, relative to the tail that is asked for.
_NEGLIGIBLE = 60 * math.log(2)


@dataclasses.dataclass(frozen=True)
class GraphParameters:
    """A neighbourhood and its threshold, and how likely they are to fail.

    Attributes:
        degree: k, the neighbours of a client; n - 1 is the complete graph.
        threshold: t, how many of them must answer to rebuild a secret.
        log2_privacy_failure: log2 of a bound on the probability, over the graph, that a client's
            secret or a part of the sum could be opened; None where it cannot happen.
        log2_correctness_failure: log2 of a bound on the probability that a client's
            secret cannot be rebuilt; None where it cannot happen.

    Example:
        >>> GraphParameters(16, 11, -40.5, -22.0).degree
        16
    """

    degree: int
    threshold: int
    log2_privacy_failure: float | None
    log2_correctness_failure: float | None


def graph_parameters(
    num_clients: int,
    *,
    collusion: float,
    dropout: float,
    adversary: str = "semi-malicious",
    security: int = 40,
    failure: int = 20,
) -> GraphParameters:
    """The smallest even degree, and its smallest threshold, that keep both failures unlikely.

    The complete graph where no smaller degree will do. There every other client holds a share,
    and with ``c`` corrupt clients nothing is left to chance: t > c against a server that is
    honest but curious, 2 t > n - 1 + c against one that is semi-malicious, and
    t <= n - 1 - dropped in both. The threshold is 2 at least, wherever 2 will do.

    Args:
        num_clients: n, 2 to 2^31 - 1.
        collusion: the fraction of clients who may be corrupt, in [0, 1).
        dropout: the fraction of clients who may drop out, in [0, 1).
        adversary: ``"semi-malicious"``, a server that may show clients different survivors, or
            ``"honest-but-curious"``.
        security: the probability of a privacy failure is at most 2^-security; 1 to 256.
        failure: the probability of a correctness failure is at most 2^-failure; 1 to 256.

    Returns:
        The ``GraphParameters``.

    Raises:
        ValueError: an argument out of range, or rates for which not even the complete graph
            will do; the message says which one to change to what.

    Formal Guarantees:
        With probability 1 - 2^-security over a graph that is drawn after, and independently of,
        who is corrupt and who drops out, every client's shares in corrupt hands are too few and
        the honest survivors are connected, so that only their whole sum is learnt (Bell et al.,
        CCS'20, section 3). Not given: anything about more corrupt clients or dropouts
        than stated. A server that *chooses* the dropouts after it has seen the graph meets
        thresholds that hold for any survivors, but the bound on connectivity is not about it.

    Example:
        >>> graph_parameters(1000, collusion=0.05, dropout=0.05).degree
        52
        >>> graph_parameters(5, collusion=0.2, dropout=0.2)
        GraphParameters(degree=4, threshold=3, log2_privacy_failure=None, \
log2_correctness_failure=None)
    """
    n = _check.integer_in("graph-clients", 2, 2**31 - 1, num_clients=num_clients)
    corrupt = stated_clients(n, collusion=collusion)
    dropped = stated_clients(n, dropout=dropout)
    _check.one_of("adversary", ADVERSARIES, adversary=adversary)
    security = _check.integer_in("security", 1, MAX_BITS, security=security)
    failure = _check.integer_in("failure", 1, MAX_BITS, failure=failure)
    cheats = adversary == ADVERSARIES[0]
    _require_feasible(n, corrupt, dropped, cheats)
    search = _Search(n, corrupt, dropped, cheats, security, failure)
    degree = search.smallest_connected()
    while degree < n - 1:
        least = search.least_degree(degree)
        if least <= degree:
            return search.parameters(degree)
        degree = least
    least = (n - 1 + corrupt) // 2 + 1 if cheats else corrupt + 1
    return GraphParameters(n - 1, min(max(least, 2), n - 1 - dropped), None, None)


def whole_clients(rate: float, num_clients: int) -> int:
    """The largest number of clients that is at most a fraction of them all.

    Args:
        rate: the fraction, in [0, 1).
        num_clients: n.

    Returns:
        floor(rate * n), the rate read as the decimal that it stands for.

    Example:
        >>> whole_clients(0.29, 100), int(0.29 * 100)
        (29, 28)
    """
    return math.floor((rate + _SLACK) * num_clients)


def stated_clients(num_clients: int, /, **rate: float) -> int:
    """``whole_clients`` of one named argument, which must be a fraction in [0, 1).

    Raises:
        ValueError: it is none.

    Example:
        >>> stated_clients(100, dropout=0.29)
        29
    """
    ((name, value),) = rate.items()
    real = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not real or not 0 <= value < 1:
        raise _check.error("rate", f"{name}={_check.shown(value)}", "at least 0 and below 1")
    return whole_clients(float(value), num_clients)


def shortest_rate(count: int, num_clients: int) -> float:
    """The shortest decimal that means so many of all clients.

    Example:
        >>> shortest_rate(333, 1000), shortest_rate(1, 3)
        (0.333, 0.4)
    """
    for digits in range(1, 16):
        rate = math.ceil(count * 10**digits / num_clients) / 10**digits
        if rate < 1 and whole_clients(rate, num_clients) == count:
            return rate
    return count / num_clients


@dataclasses.dataclass(frozen=True)
class _Search:
    """The numbers of a search, and the conditions that it has to meet."""

    n: int
    corrupt: int
    dropped: int
    cheats: bool
    security: int
    failure: int

    def log_disconnected(self, count: int) -> np.ndarray:
        """The natural log of the connectivity bound for the degrees 2, 4, ..., 2 ``count``."""
        bad = self.corrupt + self.dropped
        steps = np.arange(2 * count, dtype=float)
        runs = np.cumsum(np.log((bad - steps) / (self.n - steps)))[1::2]
        pairs = np.log((self.n - steps[1::2] - 2) / 2)
        return math.log(self.n) + pairs + runs

    def smallest_connected(self) -> int:
        """The smallest even degree that meets the connectivity bound, which falls with it."""
        bad = self.corrupt + self.dropped
        limit = -(self.security + 1) * math.log(2)
        if bad == 0:
            return 2
        # Each step divides the bound by n / bad at least. Beyond ``bad`` it is zero, and at
        # n - 1 the graph is complete.
        enough = (2 * math.log(self.n) - limit) / math.log(self.n / bad)
        count = min(bad, self.n - 2, math.ceil(enough) + 2) // 2
        meets = self.log_disconnected(count) < limit
        return 2 * (int(np.argmax(meets)) if meets.any() else count) + 2

    def most(self, degree: int) -> tuple[int, int]:
        """How many corrupt, and how many dropped, neighbours a client may have."""
        privacy = -(self.security + 1) * math.log(2) - math.log(self.n)
        correctness = -self.failure * math.log(2) - math.log(self.n)
        return (
            _quantile(self.n, self.corrupt, degree, privacy),
            _quantile(self.n, self.dropped, degree, correctness),
        )

    def least_degree(self, degree: int) -> int:
        """An even number that no valid degree from ``degree`` on is below.

        With x corrupt and y dropped neighbours, some threshold is valid if and only if
        x + y < k against a curious server, x + 2 y < k against a cheating one, and 2 + y <= k.
        Both x and y grow with k, so whatever x and y say for ``degree`` holds for all larger
        ones, and to repeat this leads to the smallest valid degree without trying them all.
        """
        x, y = self.most(degree)
        least = max(x + 2 * y if self.cheats else x + y, y + 1) + 1
        return least + least % 2

    def parameters(self, degree: int) -> GraphParameters:
        """The smallest valid threshold of a valid degree, and the bounds that it meets."""
        x, _ = self.most(degree)
        threshold = max((degree + x) // 2 + 1 if self.cheats else x + 1, 2)
        limit = 2 * threshold - degree if self.cheats else threshold
        opened = _log_tail(self.n, self.corrupt, degree, limit)
        apart = -math.inf
        if degree <= self.corrupt + self.dropped:
            apart = float(self.log_disconnected(degree // 2)[-1])
        # Fewer than t survivors are more than k - t dropped.
        lost = _log_tail(self.n, self.dropped, degree, degree - threshold + 1)
        log_n = math.log(self.n)
        return GraphParameters(
            degree,
            threshold,
            _log2(float(np.logaddexp(opened + log_n, apart))),
            _log2(lost + log_n),
        )


def _log2(log: float) -> float | None:
    return None if log == -math.inf else log / math.log(2)


def _log_ratios(n: int, marked: int, drawn: int, first: int, last: int) -> np.ndarray:
    """log Pr[HG = x + 1] - log Pr[HG = x] for x = first to last - 1."""
    x = np.arange(first, last, dtype=float)
    return np.log((marked - x) * (drawn - x)) - np.log((x + 1) * (n - marked - drawn + x + 1))


def _quantile(n: int, marked: int, drawn: int, log_tail: float) -> int:
    """The least x with Pr[HG(n, marked, drawn) > x] <= exp(log_tail)."""
    # Hoeffding: Pr[|HG - mean| >= y] <= 2 exp(-2 y^2 / drawn).
    mean = drawn * marked / n
    width = math.sqrt(drawn * (_NEGLIGIBLE - log_tail) / 2)
    first = max(0, drawn + marked - n, math.floor(mean - width))
    last = min(drawn, marked, math.ceil(mean + width))
    logs = np.concatenate([[0.0], np.cumsum(_log_ratios(n, marked, drawn, first, last))])
    weights = np.exp(logs - logs.max())
    # From the small end, where the digits are.
    at_least = np.cumsum(weights[::-1])[::-1]
    more = np.append(at_least[1:], 0.0) / at_least[0]
    return first + int(np.argmax(more <= math.exp(log_tail)))


def _log_tail(n: int, marked: int, drawn: int, least: int) -> float:
    """log Pr[HG(n, marked, drawn) >= least]; -inf where it cannot be."""
    first, last = max(least, 0, drawn + marked - n), min(drawn, marked)
    if first > last:
        return -math.inf
    log_first = (
        _log_choose(marked, first) + _log_choose(n - marked, drawn - first) - _log_choose(n, drawn)
    )
    logs = np.cumsum(_log_ratios(n, marked, drawn, first, last))
    largest = max(0.0, logs.max(initial=0.0))
    total = math.exp(-largest) + float(np.sum(np.exp(logs - largest)))
    return min(0.0, log_first + largest + math.log(total))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _require_feasible(n: int, corrupt: int, dropped: int, cheats: bool) -> None:
    """That the complete graph has a threshold; then a number to change, and to what."""
    factor = 2 if cheats else 1
    total = corrupt + factor * dropped
    if total <= n - 2:
        return
    fitting = []
    if corrupt <= n - 2:
        fitting.append(f"dropout={shortest_rate((n - 2 - corrupt) // factor, n)}")
    if factor * dropped <= n - 2:
        fitting.append(f"collusion={shortest_rate(n - 2 - factor * dropped, n)}")
    times = "2 * " if cheats else ""
    raise _check.error(
        "graph-rates",
        f"collusion + {times}dropout = {corrupt} + {times}{dropped} = {total} of {n} clients",
        f"at most {n - 2} ({' or '.join(fitting) or 'no single change'} would fit)",
    )
