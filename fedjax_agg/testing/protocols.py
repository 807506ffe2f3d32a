"""check_protocol: the laws of a protocol, on what the server sees and on nothing else."""

import copy
import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import fedjax_agg as fa
from fedjax_agg import _check
from fedjax_agg.participation import STAGES
from fedjax_agg.testing import derivative, hiding
from fedjax_agg.testing.programs import fail
from fedjax_agg.testing.rounds import BLOCK, Rounds, ServerView, Setting

_EXACT = "law 1 (exactness)"
_PARTS = "parts of the words (by_coordinate)"
_CONFIGURATION = "one program for all rounds"


class Coverage(NamedTuple):
    """What ``check_protocol`` has looked at.

    Attributes:
        patterns: the dropout patterns that were run.
        of: how many there are: each client is lost at one of the stages, or never.
        succeeded: the patterns under which the round succeeded.
        masks: the masks that were compared with each other; 0 where nothing is hidden.

    Example:
        >>> import fedjax_agg as fa
        >>> coverage = check_protocol(fa.Plain(), 3, hides=False)
        >>> coverage == Coverage(patterns=8, of=8, succeeded=7, masks=0)
        True
    """

    patterns: int
    of: int
    succeeded: int
    masks: int


def check_protocol(
    protocol: fa.Protocol,
    num_clients: int = 5,
    *,
    length: int = 61,
    tolerates: int = 0,
    hides: bool = True,
    revealed: tuple[str, ...] = ("unmask",),
    max_patterns: int = 8192,
    seed: int = 0,
) -> Coverage:
    """Asserts that a protocol keeps the laws, in rounds of so many clients.

    In this order: it is a frozen configuration that compares, hashes and copies; its costs name
    its stages; no word and no float has 64 bits; **law 1** for every dropout pattern, by
    ``recover`` on the server's view of a transcript, with weights, vmapped over sessions; one
    trace for all of that; what it hides looks uniform and depends on every bit of its keys;
    **law 2**; where it says ``by_coordinate``, that a part of the words is protected as it is among
    the others.

    Args:
        protocol: the protocol.
        num_clients: n, the size of the cohort.
        length: coordinates of an update.
        tolerates: with at most so many clients lost, at whatever stages, the round must succeed.
            Beyond, it may fail, with zeros.
        hides: whether the protocol claims that uploads and messages look uniform. ``Plain`` does
            not: it is checked with False.
        revealed: the stages whose messages are for the server to read and need not be uniform.
        max_patterns: if there are more patterns, so many of them at random, among them nobody
            lost, each client alone at each stage, and everybody at each stage.
        seed: of the sessions, updates and samples, all drawn by NumPy.

    Returns:
        The ``Coverage``.

    Raises:
        AssertionError: a law is broken. The message says which one, where and by how much, and
            shows no key and no word.
        TypeError: ``protocol`` is none.
        ValueError: the protocol does not fit a cohort of this size.

    Formal Guarantees:
        **What passes may still be insecure.** Statistics find masks that are missing, constant,
        reused or narrow, keys that are not used in full, and seeds so short that two of
        ``Coverage.masks`` agree: with 2560 masks, 16 bits surely and 20 with 95 %. They find no
        key that was sent in the clear beside a uniform mask, no collusion and no malicious
        server. A right protocol is rejected with a probability of about 10^-6, over the choice
        of ``seed``.

    Example:
        >>> import fedjax_agg as fa
        >>> check_protocol(fa.Plain(), 4, hides=False)
        Coverage(patterns=16, of=16, succeeded=15, masks=0)
    """
    _check.instance("protocol-type", fa.Protocol, protocol=protocol)
    _check_configuration(protocol)
    protocol.check(num_clients)
    setting = Setting(protocol, num_clients, length, np.random.default_rng(seed))
    _check_stages(setting)
    derivative.check_types(setting)

    patterns, of = setting.patterns(max_patterns)
    # At least two blocks, so that a second trace would show.
    rounds = setting.draw(np.resize(patterns, (max(2 * BLOCK, len(patterns)), num_clients)))
    seen = ServerView(setting)
    server, public = seen.of(rounds)
    ok = _check_law_1(setting, rounds, public.survivors, seen.recover(server, public), tolerates)
    masks = 0
    if hides:
        full = hiding.check_hiding(setting, seen, revealed)
        every = np.concatenate([full, hiding.masks_of(setting, rounds, server)])
        hiding.check_repeats(setting, every, "masks of all patterns", protocol.group.bits)
        masks = len(every)
    derivative.check_law_2(setting)
    if protocol.by_coordinate:
        _check_parts(setting)
    return Coverage(len(patterns), of, int(np.sum(ok[: len(patterns)])), masks)


def _check_parts(setting: Setting) -> None:
    """What claims to protect any part of the words gives that part of the upload."""
    protocol, rounds = setting.protocol, setting.draw([[len(setting.stages)] * setting.n])
    row = jax.tree.map(lambda x: jnp.asarray(x[0]), rounds)
    arguments = setting.arguments("l2", row.weights, row.alive)
    kept = fa.transcript(row.updates, row.session, protocol=protocol, **arguments)
    private = jax.tree.map(lambda x: x[0], kept.private)
    ctx = kept.public._replace(client=row.session.client_ids[0])
    words = jnp.arange(48, dtype=jnp.uint32)
    whole = protocol.protect(words, private, ctx).words
    part = protocol.protect(words[16:32], private, ctx._replace(start=jnp.uint32(16))).words
    if not np.array_equal(part, whole[16:32]):
        fail(protocol, _PARTS, "words 16 to 31 alone are protected otherwise than among others")


def _check_configuration(protocol: fa.Protocol) -> None:
    parameters = getattr(protocol, "__dataclass_params__", None)
    if not dataclasses.is_dataclass(protocol) or not getattr(parameters, "frozen", False):
        fail(protocol, _CONFIGURATION, "it is no frozen dataclass")
    twin = copy.deepcopy(protocol)
    try:
        same_hash = hash(twin) == hash(protocol)
    except TypeError as error:
        fail(protocol, _CONFIGURATION, f"it cannot be hashed: {error}", error)
    if twin != protocol or not same_hash:
        fail(protocol, _CONFIGURATION, "a copy of it is not equal to it or has another hash")


def _check_stages(setting: Setting) -> None:
    protocol, stages, bytes_law = setting.protocol, setting.stages, "the count of bytes"
    if stages != [stage for stage in STAGES if stage in stages]:
        fail(protocol, "the order of stages", f"{stages} are not some of {list(STAGES)} in order")
    cost = protocol.cost(setting.length, setting.n)
    for direction, named in (("up", cost.bytes_up), ("down", cost.bytes_down)):
        if sorted(named) != sorted(stages):
            found = f"bytes_{direction} names {sorted(named)}, the round has {sorted(stages)}"
            fail(protocol, bytes_law, found)
    least, upload = -(-setting.length * protocol.group.bits // 8), cost.bytes_up["upload"]
    if upload < least:
        found = f"{upload} for an upload of {setting.length} words, which take {least}"
        fail(protocol, bytes_law, found)


def _check_law_1(
    setting: Setting, rounds: Rounds, survivors: np.ndarray, total: tuple, tolerates: int
) -> np.ndarray:
    """The totals of all rounds against the plain sums; returns whether each succeeded."""
    words, ok = total
    for name, value, dtype in (("words", words, np.uint32), ("ok", ok, np.bool_)):
        if value.dtype != dtype:
            found = f"Total.{name} is {value.dtype}, where it must be {dtype.__name__}"
            fail(setting.protocol, _EXACT, found)
    counted = np.where(survivors[..., None], setting.integers(rounds), 0)
    wrong = words != setting.words(np.sum(counted, axis=1))
    lost = np.sum(~np.all(rounds.alive, axis=1), axis=1)
    arrived = rounds.alive[:, STAGES.index("upload")]
    uncounted = np.sum(arrived & ~survivors, axis=1)
    broken = (
        (
            ok & np.any(wrong, axis=1),
            "{wrong} of {words} words of the total differ from the plain sum of the survivors'",
        ),
        (
            ~ok & np.any(words, axis=1),
            "ok is False, and {nonzero} words of the total are not zero",
        ),
        (
            ~ok & (lost <= tolerates),
            "ok is False, though it tolerates the loss of {tolerates}",
        ),
        (
            (uncounted > 0) & (lost <= tolerates),
            "{uncounted} of the clients fell silent that nobody lost",
        ),
    )
    for flags, text in broken:
        if not np.any(flags):
            continue
        # The plainest of the patterns that fail.
        first = min(np.flatnonzero(flags), key=lambda row: lost[row])
        found = text.format(
            wrong=np.sum(wrong[first]),
            words=words.shape[1],
            nonzero=np.count_nonzero(words[first]),
            tolerates=tolerates,
            uncounted=uncounted[first],
        )
        where = setting.lost(rounds.alive[first])
        fail(setting.protocol, _EXACT, f"{where}, {found} ({np.sum(flags)} of {len(ok)} rounds)")
    return ok
