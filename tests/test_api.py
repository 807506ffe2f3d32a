"""The public names, their documentation, and what printing them shows."""

import dataclasses
import doctest
import importlib
import inspect
import pkgutil
import pprint
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_agg as fa
from fedjax_agg.arithmetic import Ring

TOP_LEVEL = [
    "Codec",
    "Exchange",
    "FixedPoint",
    "LightSecAgg",
    "Participation",
    "Plain",
    "Plan",
    "Protocol",
    "Report",
    "RoundContext",
    "SecAgg",
    "SecureAggregateState",
    "Session",
    "Transcript",
    "agree_group_key",
    "apply_if_ok",
    "blind_mean",
    "compare_costs",
    "compiler_options",
    "drop_clients",
    "fixed_seed",
    "open_blind",
    "plan_round",
    "root_seed",
    "secure_aggregate",
    "secure_mean",
    "secure_sum",
    "simulated_session",
    "transcript",
]


def modules():
    found = pkgutil.walk_packages(fa.__path__, "fedjax_agg.")
    names = [module.name for module in found]
    public = [name for name in names if not any(part[0] == "_" for part in name.split("."))]
    return [fa, *map(importlib.import_module, public)]


def is_documentable(thing):
    """Functions, also those that a transformation wraps, and classes."""
    return inspect.isclass(thing) or (callable(thing) and hasattr(thing, "__name__"))


def public_objects():
    """Every public function and class: the top level, and what each module defines itself."""
    found = {f"fedjax_agg.{name}": getattr(fa, name) for name in fa.__all__}
    for module in modules():
        for name, thing in vars(module).items():
            own = getattr(thing, "__module__", None) == module.__name__
            if name[0] != "_" and own and is_documentable(thing):
                found[f"{module.__name__}.{name}"] = thing
    return sorted({id(thing): (path, thing) for path, thing in found.items()}.values(), key=str)


def public_methods():
    for path, thing in public_objects():
        if not inspect.isclass(thing):
            continue
        for name, member in vars(thing).items():
            if isinstance(member, (staticmethod, classmethod)):
                member = member.__func__
            if name[0] != "_" and (inspect.isfunction(member) or isinstance(member, property)):
                yield f"{path}.{name}", member


OBJECTS = public_objects()
METHODS = list(public_methods())


def lacks_doctest(name, doc):
    """What is missing for the docstring to show the object called ``name`` at work."""
    examples = doctest.DocTestParser().get_examples(doc or "")
    mentions = [bool(re.search(rf"\b{name}\b", example.source)) for example in examples]
    if not any(mentions):
        return "no example mentions it"
    after = examples[mentions.index(True) :]
    return None if any(example.want.strip() for example in after) else "no example shows a value"


def test_top_level_names_are_pinned():
    assert fa.__all__ == TOP_LEVEL
    assert all(hasattr(fa, name) for name in TOP_LEVEL)


def test_nothing_but_rooms_and_pinned_names_is_at_the_top_level():
    names = [name for name, thing in vars(fa).items() if not inspect.ismodule(thing)]
    assert sorted(name for name in names if name[0] != "_") == TOP_LEVEL


def test_the_package_has_a_version():
    assert re.fullmatch(r"\d+\.\d+\.\d+", fa.__version__)


@pytest.mark.parametrize("module", modules(), ids=lambda module: module.__name__)
def test_every_module_has_a_docstring(module):
    assert module.__doc__
    assert module.__doc__.strip()


@pytest.mark.parametrize(("path", "thing"), OBJECTS, ids=[path for path, _ in OBJECTS])
def test_every_public_object_has_a_docstring_and_a_doctest_that_shows_it(path, thing):
    doc = vars(thing).get("__doc__") if inspect.isclass(thing) else thing.__doc__
    assert doc
    # What a dataclass or a NamedTuple writes by itself says nothing.
    assert not doc.startswith(f"{thing.__name__}(")
    assert lacks_doctest(thing.__name__, doc) is None


@pytest.mark.parametrize(("path", "method"), METHODS, ids=[path for path, _ in METHODS])
def test_every_public_method_has_a_docstring_of_its_own(path, method):
    assert method.__doc__
    assert method.__doc__.strip()


def test_the_walk_finds_the_objects_that_the_rooms_define():
    paths = {path for path, _ in OBJECTS}
    assert {
        "fedjax_agg.arithmetic.ring.Ring",
        "fedjax_agg.codecs.codec.register_codec",
        "fedjax_agg.symmetric.chacha20.keystream_sum",
        "fedjax_agg.structure.flatten",
    } <= paths
    assert {thing for _, thing in OBJECTS} >= {getattr(fa, name) for name in TOP_LEVEL}
    assert {"fedjax_agg.arithmetic.ring.Ring.centre_lift"} <= {path for path, _ in METHODS}


@pytest.mark.parametrize(
    ("doc", "missing"),
    [
        (None, "no example mentions it"),
        ("One line.", "no example mentions it"),
        (">>> another(1)\n2", "no example mentions it"),
        (">>> my_thing_too(1)\n2", "no example mentions it"),
        (">>> x = my_thing(1)\n", "no example shows a value"),
        (">>> 1\n1\n>>> x = my_thing(1)\n", "no example shows a value"),
        (">>> x = my_thing(1)\n>>> x\n2", None),
        (">>> my_thing(1)\n2", None),
    ],
)
def test_control_of_the_doctest_rule(doc, missing):
    assert lacks_doctest("my_thing", doc) == missing


CONFIGURATIONS = [
    (Ring(8), Ring(8), Ring(9), "Ring(bits=8)"),
    (fa.Plain(Ring(20)), fa.Plain(Ring(20)), fa.Plain(), "Plain(group=Ring(bits=20))"),
    (
        fa.SecAgg(group=Ring(20)),
        fa.SecAgg(None, None, True, group=Ring(20)),
        fa.SecAgg(),
        "SecAgg(threshold=None, degree=None, consistency=True, group=Ring(bits=20), "
        "min_survivors=None)",
    ),
    (
        fa.SecAgg(5, degree=6, consistency=False, min_survivors=4),
        fa.SecAgg(np.int64(5), np.int8(6), False, min_survivors=np.uint8(4)),
        fa.SecAgg(5, 6),
        "SecAgg(threshold=5, degree=6, consistency=False, group=Ring(bits=32), min_survivors=4)",
    ),
    (
        fa.SecAgg(),
        fa.SecAgg(group=Ring(32)),
        fa.Plain(),
        "SecAgg(threshold=None, degree=None, consistency=True, group=Ring(bits=32), "
        "min_survivors=None)",
    ),
    (
        fa.FixedPoint(clip=1.0),
        fa.FixedPoint(1.0, 2**15, max_levels=2**15),
        fa.FixedPoint(clip=2.0),
        "FixedPoint(clip=1.0, levels=32768, max_levels=32768, norm='l2', rounding='stochastic')",
    ),
]


@pytest.mark.parametrize(("one", "same", "other", "text"), CONFIGURATIONS)
def test_a_configuration_compares_hashes_and_prints_as_what_it_is(one, same, other, text):
    assert one == same
    assert hash(one) == hash(same)
    assert one != other
    assert len({one, same, other}) == 2
    assert repr(one) == text
    assert eval(text, {**vars(fa), "Ring": Ring}) == one


def test_a_plan_compares_hashes_and_prints_as_its_numbers():
    numbers = {"num_clients": 100, "clip": 1.0, "bits": 16}
    plan = fa.plan_round(1000, **numbers)
    same = fa.plan_round({"w": jnp.ones((10, 100))}, **numbers)
    other = fa.plan_round(1000, **numbers, max_weight=2)
    assert plan == same
    assert hash(plan) == hash(same)
    assert plan != other
    assert eval(repr(plan), {"Plan": fa.Plan}) == plan
    assert "no sum wraps" in str(plan)


@pytest.mark.parametrize("one", [row[0] for row in CONFIGURATIONS], ids=str)
def test_a_configuration_is_frozen(one):
    field = dataclasses.fields(one)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(one, field, getattr(one, field))


def session_words(session):
    """Every word of a session that is not known to all."""
    return set(np.concatenate([np.ravel(session.secrets), np.ravel(session.agreement)]).tolist())


def shown_words(text):
    """Every number in a text, decimal or hexadecimal."""
    decimal = {int(digits) for digits in re.findall(r"\d+", text)}
    return decimal | {int(digits, 16) for digits in re.findall(r"[0-9a-f]+", text)}


@pytest.mark.parametrize(
    "show", [repr, str, "{}".format, pprint.pformat, lambda s: repr([s]), lambda s: f"{(s,)}"]
)
def test_printing_a_session_shows_no_secret(show):
    session = fa.simulated_session(fa.fixed_seed(0), num_clients=3)
    words = session_words(session)
    assert not words & shown_words(show(session))
    # The control, and what the documentation of the class says: the leaves are the secrets.
    assert words <= shown_words(repr(session.secrets.tolist()) + repr(session.agreement.tolist()))
    assert words <= shown_words("".join(str(leaf.tolist()) for leaf in jax.tree.leaves(session)))


@pytest.mark.parametrize(
    "misuse",
    [
        lambda s: fa.secure_mean(s, s, codec=fa.FixedPoint(clip=1.0)),
        lambda s: fa.secure_mean(jnp.ones((3, 2)), s, codec=s),
        lambda s: fa.secure_mean(jnp.ones((3, 2)), s, codec=fa.FixedPoint(clip=1.0), protocol=s),
        lambda s: fa.secure_mean(jnp.ones((3, 2)), s.secrets, codec=fa.FixedPoint(clip=1.0)),
        lambda s: fa.simulated_session(s, num_clients=3),
        lambda s: fa.simulated_session(s.secrets, num_clients=3),
        lambda s: fa.fixed_seed(s.secrets[0]),
        lambda s: fa.fixed_seed(s.secrets[0].tolist()),
        lambda s: fa.simulated_session(fa.fixed_seed(0), num_clients=3, round_id=s.secrets[0]),
        lambda s: fa.SecAgg(s),
        lambda s: fa.SecAgg(group=s),
        lambda s: fa.SecAgg(threshold=s.secrets[0]),
        lambda s: fa.drop_clients(s, 3, 0.5),
        lambda s: fa.drop_clients(s.secrets, 3, 0.5),
        lambda s: fa.drop_clients(s.secrets[0], 3, s.secrets[1]),
        lambda s: s.bind(s.secrets[0]),
        lambda s: fa.Participation.until(s, jnp.ones(3, bool)),
        lambda s: fa.apply_if_ok(s, s),
        lambda s: fa.plan_round(10, num_clients=3, clip=s.secrets[0], bits=16),
        lambda s: fa.FixedPoint(clip=s),
    ],
)
def test_an_error_about_a_misplaced_session_shows_no_secret(misuse):
    session = fa.simulated_session(fa.fixed_seed(0), num_clients=3)
    with pytest.raises((TypeError, ValueError)) as caught:
        misuse(session)
    assert not session_words(session) & shown_words(str(caught.value))


def leaf_words(tree):
    leaves = [np.ravel(leaf) for leaf in jax.tree.leaves(tree)]
    return {int(word) for leaf in leaves if leaf.dtype == np.uint32 for word in leaf}


@pytest.mark.parametrize(
    "protocol", [fa.Plain(), pytest.param(fa.SecAgg(), marks=pytest.mark.slow)]
)
def test_the_state_of_the_optax_end_holds_no_secret(protocol):
    session = fa.simulated_session(fa.fixed_seed(0), num_clients=3)
    codec = fa.FixedPoint(clip=1.0, rounding="nearest")
    aggregate = fa.secure_aggregate(codec, protocol, num_clients=3)
    rule = fa.apply_if_ok(aggregate, optax.sgd(0.1, momentum=0.9))
    params = jnp.zeros(2)
    state = rule.init(params)
    _, state = rule.update(jnp.ones((3, 2)), state, params, session=session)
    assert bool(state.aggregate.report.ok)
    words = session_words(session)
    assert not words & leaf_words(state)
    assert not words & shown_words(repr(state))
    # Nor anything of the session's shape, whatever its type.
    assert all(np.shape(leaf)[-1:] != (8,) for leaf in jax.tree.leaves(state))
    # The control: a state that kept its session would be found out.
    assert words <= leaf_words((state, session))


@pytest.mark.slow
def test_the_state_of_the_optax_end_keeps_its_structure_and_counts_nothing():
    """So that it scans, and so that a run can resume from parameters alone."""
    session = fa.simulated_session(fa.fixed_seed(0), num_clients=3)
    codec = fa.FixedPoint(clip=1.0, rounding="nearest")
    rule = fa.secure_aggregate(codec, fa.SecAgg(), num_clients=3)
    params = jnp.zeros(2)
    first = rule.init(params)
    _, second = rule.update(jnp.ones((3, 2)), first, params, session=session)
    _, third = rule.update(jnp.ones((3, 2)), second, params, session=session)
    shapes = [jax.tree.map(lambda x: (x.shape, x.dtype), state) for state in (first, second)]
    assert shapes[0] == shapes[1]
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), second, third))
