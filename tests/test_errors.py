"""What a user sees after a mistake: errors.json holds the exact message of each.

Every message reads ``argument=value must be requirement; remedy [tag]``. A row of errors.json is
``tag``, the ``code`` that raises, the ``type`` of the exception, the argument's ``name`` and the
``value`` that the message must show, and the ``message`` itself.
"""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_agg as fa
import fedjax_agg.host.runner
from fedjax_agg import _check, streaming, wire
from fedjax_agg.group_key import GroupKeys
from fedjax_agg.protocols.protocol import Refusals
from fedjax_agg.protocols.secagg import RULES, Client, Keys
from fedjax_agg.symmetric.seal import Sealed
from fedjax_agg.wire import Attestations, Board, PublicKeys, SealedShares, bits

MISTAKES = json.loads(Path(__file__).with_name("errors.json").read_text())
# In every snippet that hands over a seed or a key, the secret is made of this number.
SECRET = "271828182"
FORM = re.compile(r"(?P<subject>.+?) must be (?P<requirement>.+?); (?P<remedy>.+) \[(?P<tag>.+)\]")


@pytest.fixture(scope="module")
def names():
    """What a snippet may use."""
    codec = fa.FixedPoint(clip=1.0)
    session = fa.simulated_session(fa.fixed_seed(0), num_clients=3)
    return {
        "fa": fa,
        "jax": jax,
        "jnp": jnp,
        "np": np,
        "optax": optax,
        "session": session,
        "updates": {"w": jnp.ones((3, 2))},
        "params": {"w": jnp.ones(2)},
        "codec": codec,
        "aggregate": fa.secure_aggregate(codec, num_clients=3),
        "group": GroupKeys(jnp.zeros((3, 8), jnp.uint32), jnp.ones(3, bool)),
        "key": jnp.zeros(8, jnp.uint32),
        "nonce": jnp.zeros(3, jnp.uint32),
        "streaming": streaming,
        "host": fedjax_agg.host,
        "person": fedjax_agg.host.identity.Identity.from_seed(bytes(32)),
        "stream": streaming.init({"w": jnp.zeros(2)}, session, codec=codec),
        **one_client(),
        **one_frame(),
    }


def one_client():
    """Client 1 of four under SecAgg, on a host: its functions, what it holds, what it is sent.

    All keys are arbitrary words. That is enough to find a rule broken, since a client looks at
    what it is sent before it computes with it.
    """
    n, k = 4, 3
    rng = np.random.default_rng(0)

    def words(*shape):
        return jnp.asarray(rng.integers(2**32, size=shape, dtype=np.uint32))

    keys = PublicKeys(words(n, 8), words(n, 8))
    neighbours = jnp.array([[j for j in range(n) if j != i] for i in range(n)], jnp.int32)
    board = Board(jnp.ones(n, bool), keys, neighbours, words(n, k, 2, 8), words(8))
    ctx = fa.RoundContext(
        jnp.uint32(0), words(8), jnp.uint32(1), board=board, survivors=jnp.ones(n, bool)
    )
    protocol = fa.SecAgg(threshold=2)

    def listed(present):
        """The context with a board of whoever is present, which is consistent in itself."""
        session_id = protocol._session_id(keys, present, ctx)
        return ctx._replace(board=board._replace(present=present, session_id=session_id))

    secrets = (words(8), words(8), words(8), words(8))
    everybody, unbroken = jnp.ones(k, bool), Refusals.none(len(RULES))
    _, share = protocol.prepare(n)
    attest, unmask = protocol.respond(n)
    return {
        "board": listed(jnp.ones(n, bool)).board,
        "ctx": listed(jnp.ones(n, bool)),
        "listed": listed,
        "keys": Keys(*secrets, jax.tree.map(lambda x: x[0], keys), unbroken),
        "client": Client(
            mask_keys=words(k + 1, 8),
            signs=jnp.ones(k + 1, jnp.uint32),
            channel_keys=words(k, 6, 8),
            shares=words(k, 18),
            present=everybody,
            session_id=words(8),
            attested=jnp.zeros(32, jnp.uint8),
            answered=jnp.array(False),
            refusals=unbroken,
        ),
        "shares": SealedShares(Sealed(words(k, 18), words(k, 8)), everybody),
        "attestations": Attestations(words(k, 8), everybody),
        "share": share.client,
        "receive": protocol.receive,
        "attest": attest.client,
        "unmask": unmask.client,
    }


def one_frame():
    """A message, and its frame on a link."""
    upload = wire.Upload(jnp.arange(3, dtype=jnp.uint32))
    layout, link = wire.layout_of(upload), bytes(32)
    header = wire.Header("upload", bytes(32), round_id=7, sender=1, receiver=0)
    return {
        "wire": wire,
        "bits": bits,
        "upload": upload,
        "layout": layout,
        "header": header,
        "link": link,
        "frame": wire.pack(upload, layout, header, link),
    }


def mistakes(*tags):
    rows = [row for row in MISTAKES if not tags or row["tag"] in tags]
    names = [f"{row['tag']}: {row['code']}" for row in rows]
    return pytest.mark.parametrize("row", rows, ids=names)


def raised(code, names):
    with pytest.raises(Exception) as caught:  # noqa: PT011
        exec(code, dict(names))
    return caught.value


@pytest.mark.default_dtypes
@mistakes()
def test_each_mistake_raises_its_exact_message(row, names):
    error = raised(row["code"], names)
    assert (type(error).__name__, str(error)) == (row["type"], row["message"])


@mistakes()
def test_each_message_names_the_argument_its_value_the_remedy_and_the_tag(row):
    parts = FORM.fullmatch(row["message"])
    assert parts is not None
    assert row["name"] in parts["subject"]
    assert row["value"] in parts["subject"]
    assert parts["remedy"] == _check.REMEDIES[row["tag"]]
    assert parts["tag"] == row["tag"]


@mistakes("seed", "fixed-seed", "key-shape")
def test_no_message_about_a_seed_or_a_key_shows_it(row):
    assert SECRET not in row["message"]
    # The control: the secret is there to be shown.
    assert SECRET in row["code"] or row["value"] in ("-1", "0.5", "uint32[8]")


@pytest.mark.parametrize(
    "misplace",
    [
        lambda seed: fa.fixed_seed(seed),
        lambda seed: fa.fixed_seed(np.asarray(seed)),
        lambda seed: fa.fixed_seed(seed.tolist()),
        lambda seed: fa.fixed_seed(np.asarray(seed).tobytes()),
        lambda seed: fa.fixed_seed(int.from_bytes(np.asarray(seed).tobytes(), "little")),
        lambda seed: fa.simulated_session(seed[:7], num_clients=3),
        lambda seed: fa.simulated_session(seed.tolist(), num_clients=3),
        lambda seed: fa.simulated_session(np.asarray(seed).tobytes(), num_clients=3),
        lambda seed: fa.simulated_session(fa.fixed_seed(0), num_clients=seed),
        lambda seed: fa.simulated_session(fa.fixed_seed(0), num_clients=3, round_id=seed),
        lambda seed: fa.FixedPoint(clip=seed.tolist()),
        lambda seed: fa.FixedPoint(clip=1.0, norm=seed),
        lambda seed: fa.secure_mean(jnp.ones((3, 2)), seed, codec=fa.FixedPoint(clip=1.0)),
    ],
)
def test_a_seed_in_the_wrong_place_is_refused_and_not_printed(misplace):
    seed = jnp.arange(8, dtype=jnp.uint32) + jnp.uint32(int(SECRET))
    with pytest.raises((TypeError, ValueError)) as caught:
        misplace(seed)
    message = str(caught.value)
    assert FORM.fullmatch(message)
    whole = int.from_bytes(np.asarray(seed).tobytes(), "little")
    assert not any(text in message for text in (SECRET[:-1], str(whole), "\\x"))


def test_every_remedy_of_the_table_is_reached_by_a_mistake():
    assert {row["tag"] for row in MISTAKES} == set(_check.REMEDIES)


def test_every_rule_for_which_a_client_refuses_has_a_remedy():
    refusals = {tag for tag in _check.REMEDIES if tag.startswith("refuse-")}
    # Signatures are those of rounds between processes.
    assert refusals == {f"refuse-{rule}" for rule in (*fa.SecAgg.rules, "signature")}


def test_wrong_types_raise_type_errors_and_wrong_values_value_errors():
    for row in MISTAKES:
        about_type = row["tag"].endswith("-type") or row["tag"] == "update-dtype"
        assert row["type"] == ("TypeError" if about_type else "ValueError"), row["code"]


STATIC_CALLS = {
    "client-axis": lambda f, u: f(u, session=fa.simulated_session(fa.fixed_seed(0), num_clients=4)),
    "weights-shape": lambda f, u: f(u, weights=jnp.ones(2)),
    "weights-dtype": lambda f, u: f(u, weights=jnp.ones(3, bool)),
    "weights-range": lambda f, u: f(u, weights=np.array([1, -1, 2])),
    "participation-dtype": lambda f, u: f(u, participation=jnp.ones(3)),
    "threshold": lambda f, u: f(u, protocol=fa.SecAgg(threshold=3)),
    "weight-budget": lambda f, u: f(u, protocol=fa.SecAgg(group=fa.arithmetic.Ring(16))),
    "protocol-type": lambda f, u: f(u, protocol=fa.SecAgg),
    "update-dtype": lambda f, u: f({"n": u["w"] > 0.0}),
}


@pytest.mark.parametrize("tag", STATIC_CALLS)
def test_under_jit_a_static_mistake_raises_before_the_round_is_traced(tag, monkeypatch):
    session = fa.simulated_session(fa.fixed_seed(0), num_clients=3)
    codec = fa.FixedPoint(clip=1.0)
    encoded = []
    forward = fa.FixedPoint.forward
    monkeypatch.setattr(
        fa.FixedPoint, "forward", lambda *args: encoded.append(tag) or forward(*args)
    )

    def mean(updates, session=session, **arguments):
        return fa.secure_mean(updates, session, codec=codec, **arguments)

    # A shape that no other test uses, so that nothing comes from a cache.
    updates = {"w": jnp.ones((3, 5 + list(STATIC_CALLS).index(tag)))}
    call = jax.jit(lambda updates: STATIC_CALLS[tag](mean, updates))
    with pytest.raises((TypeError, ValueError)) as caught:
        call(updates)
    assert FORM.fullmatch(str(caught.value))["tag"] == tag
    assert encoded == []
    # The control: a right call does reach the codec.
    jax.jit(mean).lower(updates)
    assert encoded != []


def weighted_mean(weights, participation=None):
    """The mean of three fixed updates; nearest rounding needs no key, so it compiles fast."""
    session = fa.simulated_session(fa.fixed_seed(0), num_clients=3)
    codec = fa.FixedPoint(clip=2.0, rounding="nearest")
    updates = jnp.array([[0.5, 0.25], [-0.5, 1.0], [0.125, 0.75]])
    return fa.secure_mean(
        updates, session, codec=codec, weights=weights, max_weight=8, participation=participation
    )


traced_mean = jax.jit(weighted_mean)


@pytest.mark.parametrize(
    ("wrong", "moved"),
    [
        ([1.5, -0.5, 0.5], [1.0, 0.0, 0.5]),
        ([np.nan, 1.0, 1.0], [0.0, 1.0, 1.0]),
        ([np.inf, -np.inf, 1.0], [1.0, 0.0, 1.0]),
        ([9, -1, 2], [8, 0, 2]),
    ],
)
def test_a_traced_weight_out_of_range_moves_to_the_nearer_end_and_nan_to_zero(wrong, moved):
    with pytest.raises(ValueError, match=r"\[weights-range\]$"):
        weighted_mean(jnp.array(wrong))
    value, report = traced_mean(jnp.array(wrong))
    expected, expected_report = weighted_mean(jnp.array(moved))
    np.testing.assert_array_equal(value, expected)
    assert bool(report.ok)
    assert float(report.total_weight) == float(expected_report.total_weight) == sum(moved)


@pytest.mark.parametrize(
    ("weights", "participation", "ok"),
    [
        ([1.0, 1.0, 1.0], [True, True, True], True),
        ([1.0, 1.0, 1.0], [False, False, False], False),
        ([-1.0, -2.0, 0.0], [True, True, True], False),
        ([np.nan, np.nan, np.nan], [True, True, True], False),
        ([np.nan, 1.0, 1.0], [True, False, False], False),
    ],
)
def test_a_traced_total_weight_of_zero_gives_zeros_and_not_ok(weights, participation, ok):
    value, report = traced_mean(jnp.array(weights), jnp.array(participation))
    assert bool(report.ok) == ok
    assert (value.tolist() == [0.0, 0.0]) == (not ok)
    assert (float(report.total_weight) == 0.0) == (not ok)


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_clients": 1000, "bits": 24},
        {"num_clients": 1000, "bits": 16, "max_weight": 1000},
        {"num_clients": 1000, "bits": 24, "max_weight": 1000},
        {"num_clients": 60000, "bits": 20, "max_weight": 16},
        {"num_clients": 65535, "bits": 2, "max_weight": 2**23 - 1},
        {"num_clients": 3, "bits": 24, "max_weight": 3},
    ],
)
def test_each_number_that_a_plan_suggests_fits_and_one_more_does_not(arguments):
    with pytest.raises(ValueError, match=r"\[plan-ring\]$") as caught:
        fa.plan_round(10, clip=1.0, **arguments)
    suggested = re.search(r"\((.*) would fit\)", str(caught.value))
    assert suggested is not None
    for change in suggested[1].split(" or "):
        name, value = change.split("=")
        plan = fa.plan_round(10, clip=1.0, **{**arguments, name: int(value)})
        largest = plan.num_clients * plan.max_weight * plan.levels
        assert largest <= 2 ** (plan.ring_bits - 1) - 1
        assert plan.max_weight * plan.levels < 2**23
        with pytest.raises(ValueError, match=r"\[plan-(ring|bits)\]$"):
            fa.plan_round(10, clip=1.0, **{**arguments, name: int(value) + 1})


def test_numpy_integers_do_not_weaken_the_no_wrap_proof():
    """A product of np.int32 would wrap before it is compared with the ring."""
    session = fa.simulated_session(fa.fixed_seed(0), num_clients=3)
    codec = fa.FixedPoint(clip=1.0, max_levels=np.int32(2**15))
    ones = jnp.ones(3)
    with pytest.raises(ValueError, match=r"\[weight-budget\]$"):
        fa.secure_mean(
            jnp.ones((3, 2)), session, codec=codec, weights=ones, max_weight=np.int32(2**16)
        )
    plan = fa.plan_round(
        np.int32(10),
        num_clients=np.int32(3),
        clip=np.float32(1.0),
        bits=np.int8(16),
        max_weight=np.int16(2),
    )
    assert plan == fa.plan_round(10, num_clients=3, clip=1.0, bits=16, max_weight=2)
    assert repr(plan) == repr(fa.plan_round(10, num_clients=3, clip=1.0, bits=16, max_weight=2))
