"""What server and corrupt clients see has one law for all inputs of one sum: counted, not sampled.

Masks and coefficients are uniform over a field of five elements and are enumerated, so that the
laws compared are exact. Who adds and who subtracts, at which points shares are taken and which of
them are revealed is read from rounds of the library; a recovery secret opens the pair masks of its
owner, as the board does. What the enumeration leaves out is that masks are pseudorandom only.
"""

import functools
import itertools

import numpy as np
import pytest

from tests.protocols import rounds
from tests.protocols.rounds import THRESHOLD, Case

P = 5
VICTIM, PARTNER = 1, 2
PATTERNS = {
    "three clients": {4: "advertise"},
    "four clients": {},
    "4 is lost": {4: "upload"},
    "the victim is declared lost": {VICTIM: "upload"},
}


@functools.cache
def structures():
    """By pattern: the server's view, and the sign of every mask of every client."""
    cases = [
        Case(rounds.session(), rounds.integers(), rounds.alive_until(lost))
        for lost in PATTERNS.values()
    ]
    found = {}
    for name, kept in zip(PATTERNS, rounds.play(*cases)):
        view = rounds.server_view(kept)
        signs = {}
        for u, peers in view.neighbours.items():
            values = kept.private.signs[u - 1].view(np.int32).tolist()
            signs[u] = dict(zip([*peers, u], values))
        assert kept.total.ok
        found[name] = view, signs
    return found


@pytest.mark.slow
def test_the_structure_is_the_papers():
    """The sign of u towards v is that of u - v where both are there; each adds its self mask."""
    for name, (view, signs) in structures().items():
        here = view.shared
        assert here == ({1, 2, 3} if name == "three clients" else {1, 2, 3, 4})
        for u, v in itertools.product(here, repeat=2):
            assert signs[u][v] == (1 if u == v else np.sign(u - v))
        for u, v in itertools.product(here, {4} - here):
            assert signs[u][v] == 0


class Draws:
    """All values of the named variables at once; whatever else is asked for is a constant.

    Constant is what the coalition knows anyhow: the law given any value of it is what is compared.
    """

    def __init__(self, names):
        grid = np.indices((P,) * len(names)).reshape(len(names), -1)
        self.values = dict(zip(names, grid))

    def __getitem__(self, name):
        return self.values.get(name, 3)

    def pair(self, u, v):
        return self["pair", min(u, v), max(u, v)]


def seen(view, signs, corrupt, inputs, draws, late=False):
    """What server and corrupt clients see, one row for each value of the draws.

    Every honest client's upload, every share that was revealed or is held by a corrupt client, and
    the pair masks of a client of whose recovery secret they have t shares.
    """
    columns = []
    honest = sorted(view.shared - set(corrupt))
    for u in honest:
        if u in view.uploads or late:
            upload = inputs[u] + signs[u][u] * draws["self", u]
            for v in view.shared - {u}:
                upload = upload + signs[u][v] * draws.pair(u, v)
            columns.append(upload)
        for kind in ("self", "recovery"):
            revealed = kind == ("self" if u in view.uploads else "recovery")
            points = [
                slot + 1
                for slot, holder in enumerate(view.neighbours[u])
                if holder in corrupt or (revealed and (holder, u) in view.revealed)
            ]
            # Of degree t - 1 = 1.
            columns += [draws[kind, u] + draws["slope", kind, u] * x for x in points]
            if kind == "recovery" and len(points) >= THRESHOLD:
                columns += [draws.pair(u, v) for v in view.shared - {u}]
        columns += [draws.pair(u, v) for v in corrupt if v in view.shared]
    rows = np.broadcast_arrays(*[np.asarray(column) % P for column in columns])
    assert P ** len(rows) < 2**63
    return sum(row.astype(np.int64) * P**i for i, row in enumerate(rows))


def law(*arguments, **options):
    """How often each view occurs, as its code and its count."""
    codes = np.atleast_1d(seen(*arguments, **options))
    return dict(zip(*(x.tolist() for x in np.unique(codes, return_counts=True))))


DRAWN = [
    ("self", VICTIM),
    ("slope", "self", VICTIM),
    ("recovery", VICTIM),
    ("slope", "recovery", VICTIM),
    ("pair", VICTIM, PARTNER),
]


def draws_for(corrupt):
    """The pair masks with client 4 are secret too unless it is corrupt."""
    others = [] if 4 in corrupt else [("pair", VICTIM, 4), ("pair", PARTNER, 4)]
    return Draws([*DRAWN, *others])


def laws(name, corrupt, total):
    """The law of the view for each input of the victim; its partner's makes up the total."""
    view, signs = structures()[name]
    for x in range(P):
        inputs = dict.fromkeys(view.shared, 4) | {VICTIM: x, PARTNER: total - x}
        yield law(view, signs, corrupt, inputs, draws_for(corrupt))


@pytest.mark.parametrize("total", range(P))
@pytest.mark.parametrize(
    ("name", "corrupt"),
    [
        ("three clients", [3]),  # t - 1 corrupt
        ("four clients", [3]),
        ("four clients", [4]),
        ("4 is lost", [3]),
        ("four clients", []),
    ],
)
def test_fewer_than_t_corrupt_learn_the_sum_and_nothing_else(name, corrupt, total):
    """The victim's input moves nothing: the same views, each equally often."""
    first, *others = laws(name, corrupt, total)
    assert all(other == first for other in others)
    assert sum(first.values()) == P ** (5 if corrupt == [4] else 7)


@pytest.mark.parametrize("name", ["three clients", "four clients", "4 is lost"])
def test_the_sum_itself_is_seen(name):
    """The control: two sums have no view in common."""
    one, other = (next(laws(name, [3], total)) for total in (0, 1))
    assert not one.keys() & other.keys()


def test_t_corrupt_see_the_victims_input():
    """The control: with the corrupt 3 and 4 the server has two shares of the recovery secret."""
    found = list(laws("four clients", [3, 4], 0))
    for one, other in itertools.combinations(found, 2):
        assert not one.keys() & other.keys()


@pytest.mark.parametrize("double", [True, False])
def test_a_late_upload_of_the_victim(double):
    """It is declared lost and its recovery secret rebuilt, then its upload arrives.

    The self mask hides it: every input of the victim, with those of all others as they are, has
    the same law. Without that mask no two have a view in common.
    """
    view, signs = structures()["the victim is declared lost"]
    signs = {u: {**row, u: int(double)} for u, row in signs.items()}
    inputs = dict.fromkeys(view.shared, 4)
    found = [
        law(view, signs, [3], inputs | {VICTIM: x}, draws_for([3]), late=True) for x in range(P)
    ]
    if double:
        assert all(other == found[0] for other in found)
    else:
        assert all(not a.keys() & b.keys() for a, b in itertools.combinations(found, 2))
