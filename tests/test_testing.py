"""The conformance kit: what is shipped passes it, and for each law a protocol or codec that fails.

A wrong one must fail with the message of its own law; the right one that it was made from passes.
The pages in ``docs`` that use the kit run here as they are written.
"""

import dataclasses
import doctest
import itertools
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_agg as fa
from fedjax_agg.arithmetic import Ring
from fedjax_agg.codecs import register_codec
from fedjax_agg.codecs.codec import saturate
from fedjax_agg.protocols import Cost
from fedjax_agg.protocols.protocol import packed_bytes
from fedjax_agg.structure import flatten
from fedjax_agg.testing import check_codec, check_protocol, derivative, hiding, rounds, uniformity
from fedjax_agg.wire import Total, Upload

DOCS = Path(__file__).parent.parent / "docs"
N = 4


# ---- a small right protocol, and what can be wrong with one -------------------------------------


def scrambled(key, length):
    """Words that look uniform to statistics, in no time to compile. No cipher."""
    words = jnp.arange(length, dtype=jnp.uint32)
    for part in key:
        words = words ^ part
        for factor in (0x85EBCA6B, 0xC2B2AE35):
            words = (words ^ (words >> np.uint32(16))) * np.uint32(factor)
        words = words ^ (words >> np.uint32(13))
    return words


@dataclasses.dataclass(frozen=True)
class Revealing(fa.Protocol):
    """A mask from a key of one's own, which whoever is left at *unmask* tells the server.

    Uploads are uniform, and whoever is lost before its upload is not missed.
    """

    group: Ring = Ring(32)

    def join(self, secret, ctx):
        return self.key(secret, ctx)

    def key(self, secret, ctx):
        return secret

    def protect(self, words, private, ctx):
        return Upload(self.group.add(words, self.mask(private, words.shape[0])))

    def mask(self, key, length):
        return self.group.from_keystream(scrambled(key, length))

    def respond(self, num_clients):
        def reveal(private, inbox, ctx):
            return private, private

        return (fa.Exchange("unmask", reveal, lambda outboxes, sent, ctx: None),)

    def recover(self, uploads, mail, ctx):
        keys, sent = mail["unmask"].outboxes, mail["unmask"].sent
        return self.unmasked(uploads, keys, sent, ctx)

    def unmasked(self, uploads, keys, sent, ctx):
        masks = jax.vmap(lambda key: self.mask(key, uploads.shape[0]))(keys)
        masks = self.group.sum(jnp.where(ctx.survivors[:, None], masks, np.uint32(0)))
        ok = jnp.any(ctx.survivors) & jnp.all(sent | ~ctx.survivors)
        words = self.group.add(uploads, self.group.negate(masks))
        return Total(jnp.where(ok, words, np.uint32(0)), ok)

    def cost(self, length, num_clients, dropped=0):
        up = {"upload": packed_bytes(length, self.group), "unmask": 32}
        return Cost(up, dict.fromkeys(up, 0))


class Constant(Revealing):
    """One mask for everybody, always."""

    def key(self, secret, ctx):
        return jnp.zeros(8, jnp.uint32)


class OneWord(Revealing):
    """One word for all coordinates of an upload."""

    def mask(self, key, length):
        return jnp.broadcast_to(super().mask(key, 1), length)


class OnlyPairs(Revealing):
    """Clients 1 and 2 have one mask, which one adds and the other subtracts."""

    def protect(self, words, private, ctx):
        key = jnp.where(ctx.client <= 2, ctx.public_seed, private)
        negated = self.group.negate(self.mask(key, words.shape[0]))
        mask = jnp.where(ctx.client == 2, negated, self.mask(key, words.shape[0]))
        return Upload(self.group.add(words, mask))

    def unmasked(self, uploads, keys, sent, ctx):
        keys = keys.at[:2].set(ctx.public_seed)
        masks = jax.vmap(lambda key: self.mask(key, uploads.shape[0]))(keys)
        masks = masks.at[1].set(self.group.negate(masks[1]))
        masks = self.group.sum(jnp.where(ctx.survivors[:, None], masks, np.uint32(0)))
        ok = jnp.any(ctx.survivors) & jnp.all(sent | ~ctx.survivors)
        words = self.group.add(uploads, self.group.negate(masks))
        return Total(jnp.where(ok, words, np.uint32(0)), ok)


class Unmasked(Revealing):
    def mask(self, key, length):
        return jnp.zeros(length, jnp.uint32)


class Narrow(Revealing):
    """Masks of 16 bits on words of 32."""

    def mask(self, key, length):
        return super().mask(key, length) & np.uint32(0xFFFF)


class ShortSeed(Revealing):
    """Keys of 16 bits, from a good derivation."""

    def key(self, secret, ctx):
        short = scrambled(secret, 1) & np.uint32(0xFFFF)
        return scrambled(jnp.broadcast_to(short, 8), 8)


class HalfTheKey(Revealing):
    """The last four of eight words of a key are not used."""

    def key(self, secret, ctx):
        return secret.at[4:].set(np.uint32(0))


class HalfOfTheChannel(Revealing):
    """What no upload depends on, a message before it, is made of half of the key."""

    def prepare(self, num_clients):
        def advertise(private, inbox, ctx):
            return private, scrambled(private.at[4:].set(np.uint32(0)), 8)

        return (fa.Exchange("advertise", advertise, lambda outboxes, sent, ctx: None),)

    def cost(self, length, num_clients, dropped=0):
        up = {**super().cost(length, num_clients).bytes_up, "advertise": 32}
        return Cost(up, dict.fromkeys(up, 0))


class HalfWhereOneIsLost(HalfOfTheChannel):
    """The mask of a client that sees another one missing is made of half of the key."""

    def prepare(self, num_clients):
        def advertise(private, inbox, ctx):
            return private, scrambled(private, 8)

        def publish(outboxes, sent, ctx):
            return sent

        return (fa.Exchange("advertise", advertise, lambda outboxes, sent, ctx: None, publish),)

    def used(self, private, ctx):
        return jnp.where(jnp.all(ctx.board), private, private.at[4:].set(np.uint32(0)))

    def protect(self, words, private, ctx):
        return super().protect(words, self.used(private, ctx), ctx)

    def respond(self, num_clients):
        def reveal(private, inbox, ctx):
            return private, self.used(private, ctx)

        return (fa.Exchange("unmask", reveal, lambda outboxes, sent, ctx: None),)


class PublicKey(Revealing):
    """Masks that everybody can compute."""

    def key(self, secret, ctx):
        return ctx.public_seed + ctx.client


class DoesNotCancel(Revealing):
    """The server takes off one mask too few."""

    def recover(self, uploads, mail, ctx):
        sent = mail["unmask"].sent
        keys = mail["unmask"].outboxes.at[1].set(np.uint32(0))
        return self.unmasked(uploads, keys, sent, ctx)


class IgnoresSurvivors(Revealing):
    """The server takes off the mask of everybody."""

    def recover(self, uploads, mail, ctx):
        total = super().recover(uploads, mail, ctx._replace(survivors=jnp.ones(N, bool)))
        ok = jnp.any(ctx.survivors) & jnp.all(mail["unmask"].sent | ~ctx.survivors)
        masks = jax.vmap(lambda key: self.mask(key, uploads.shape[0]))(mail["unmask"].outboxes)
        words = self.group.add(uploads, self.group.negate(self.group.sum(masks)))
        return total._replace(words=jnp.where(ok, words, np.uint32(0)), ok=ok)


class OnePattern(Revealing):
    """Right but for one set of survivors."""

    def unmasked(self, uploads, keys, sent, ctx):
        total = super().unmasked(uploads, keys, sent, ctx)
        wrong = jnp.all(ctx.survivors == jnp.array([True, False, True, True]))
        words = total.words.at[0].add((wrong & total.ok).astype(jnp.uint32))
        return total._replace(words=words)


class PartialSum(Revealing):
    """Says that it has failed and hands out the sum so far."""

    def unmasked(self, uploads, keys, sent, ctx):
        return super().unmasked(uploads, keys, sent, ctx)._replace(ok=jnp.all(ctx.survivors & sent))


class NeverOk(Revealing):
    def unmasked(self, uploads, keys, sent, ctx):
        return Total(jnp.zeros_like(uploads), jnp.bool_(False))


class Shy(Revealing):
    """The second client refuses, always."""

    rules = ("shy",)

    def join(self, secret, ctx):
        return secret, ctx.client

    def protect(self, words, private, ctx):
        return super().protect(words, private[0], ctx)

    def refusals(self, private):
        return (private[1] == 2)[None]

    def respond(self, num_clients):
        def reveal(private, inbox, ctx):
            return private, private[0]

        return (fa.Exchange("unmask", reveal, lambda outboxes, sent, ctx: None),)


SEEN: list[Any] = []


class PeeksAtWords(Revealing):
    """The server uses what a client told nobody."""

    def protect(self, words, private, ctx):
        SEEN.append(words)
        return super().protect(words, private, ctx)

    def unmasked(self, uploads, keys, sent, ctx):
        total = super().unmasked(uploads, keys, sent, ctx)
        return total._replace(words=total.words + np.uint32(0) * SEEN[-1])


class PeeksAtUploads(Revealing):
    """The server needs every single upload, where a round adds them as they come."""

    def recover(self, uploads, mail, ctx):
        return super().recover(self.group.sum(mail["upload"].outboxes.words), mail, ctx)


class WideWords(Revealing):
    def protect(self, words, private, ctx):
        wide = words.astype(jnp.int64) + self.mask(private, words.shape[0]).astype(jnp.int64)
        return Upload(wide.astype(jnp.uint32))


class WideSum(Revealing):
    """The dtype is missing from a sum."""

    def unmasked(self, uploads, keys, sent, ctx):
        return super().unmasked(jnp.sum(uploads[None], axis=0).astype(jnp.uint32), keys, sent, ctx)


class WideFloat(Revealing):
    def unmasked(self, uploads, keys, sent, ctx):
        total = super().unmasked(uploads, keys, sent, ctx)
        return total._replace(ok=total.ok & (jnp.sum(jnp.ones(3, jnp.float64)) > 0))


class NamesAnotherStage(Revealing):
    def cost(self, length, num_clients, dropped=0):
        return Cost({"upload": 4 * length, "advertise": 32}, {"upload": 0, "unmask": 0})


class CountsTooLittle(Revealing):
    def cost(self, length, num_clients, dropped=0):
        return Cost({"upload": length, "unmask": 32}, {"upload": 0, "unmask": 0})


class WrongOrder(Revealing):
    def prepare(self, num_clients):
        return super().respond(num_clients)

    def respond(self, num_clients):
        return ()


class AlwaysFromTheFirst(Revealing):
    """Says that it protects parts, and takes every part for the first."""

    by_coordinate = True


class Unequal(Revealing):
    """Equal to itself alone."""

    __eq__ = object.__eq__
    __hash__ = object.__hash__


@dataclasses.dataclass(frozen=True)
class Counting(Revealing):
    """Stores something in itself as it runs."""

    calls: int = 0

    def protect(self, words, private, ctx):
        object.__setattr__(self, "calls", self.calls + 1)
        return super().protect(words, private, ctx)


@dataclasses.dataclass(frozen=True)
class Unhashable(Revealing):
    notes: Any = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Fresh(Revealing):
    """It compares equal and has another hash every time."""

    def __hash__(self):
        return next(COUNT)


class Chatty(Revealing):
    """Shows an unmasked number before the upload."""

    def prepare(self, num_clients):
        def advertise(private, inbox, ctx):
            return private, {"id": ctx.client + jnp.zeros(3, jnp.uint32)}

        return (fa.Exchange("advertise", advertise, lambda outboxes, sent, ctx: None),)

    def cost(self, length, num_clients, dropped=0):
        up = {**super().cost(length, num_clients).bytes_up, "advertise": 12}
        return Cost(up, dict.fromkeys(up, 0))


@dataclasses.dataclass(frozen=True)
class OutOfTheGroup(Revealing):
    """Adds as if the ring had 32 bits."""

    group: Ring = Ring(20)

    def protect(self, words, private, ctx):
        return Upload(words + scrambled(private, words.shape[0]))


COUNT = itertools.count()
NOBODY, ONE = "with nobody lost, ", "with client 4 lost at upload, "
WRONG_PROTOCOLS = [
    (Constant(), "uniformity: byte . of upload.words is .* standard errors from uniform"),
    (OneWord(), "uniformity: byte . of upload.words is .* standard errors from uniform"),
    (OnlyPairs(), "uniformity: .* occur again among .* rows of masks and their negatives"),
    (Unmasked(), "uniformity: byte . of upload.words is .* standard errors from uniform"),
    (Narrow(), "uniformity: byte . of upload.words is .* standard errors from uniform"),
    (ShortSeed(), "uniformity: .* occur again among .* rows of masks"),
    (HalfTheKey(), "uniformity: only 128 of the 256 bits of a client's secret change half"),
    (
        HalfOfTheChannel(),
        "uniformity: only 128 of the 256 bits of a client's secret change half of advertise with",
    ),
    (
        HalfWhereOneIsLost(),
        "uniformity: only 128 of the 256 bits of a client's secret change half of upload.words "
        "with client 1 lost at advertise",
    ),
    (PublicKey(), "uniformity: no bit of any key of the session changes an upload"),
    (Chatty(), r"uniformity: .* \d+ rows of advertise\['id'\]|byte . of advertise\['id'\]"),
    (OutOfTheGroup(), "uniformity: upload.words holds words outside the group of 20 bits"),
    (DoesNotCancel(), NOBODY + "62 of 62 words of the total differ from the plain sum"),
    (IgnoresSurvivors(), ONE + "6. of 62 words of the total differ from the plain sum"),
    (OnePattern(), "with client 2 lost at upload, 1 of 62 words .* differ"),
    (PartialSum(), ONE + "ok is False, and 6. words of the total are not zero"),
    (NeverOk(), NOBODY + "ok is False, though it tolerates the loss of 0"),
    (Shy(), NOBODY + "1 of the clients fell silent that nobody lost"),
    (PeeksAtWords(), "law 1 .*: it uses what no message brings it .UnexpectedTracerError"),
    (PeeksAtUploads(), "law 1 .*: it uses what no message brings it .KeyError"),
    (WideWords(), r"32-bit types: .* 64-bit values where JAX has them, such as .* int64\[62\]"),
    (WideSum(), r"32-bit types: .* such as .* uint64\[1, 62\]"),
    (WideFloat(), r"32-bit types: .* such as .* float64\["),
    (NamesAnotherStage(), r"the count of bytes: bytes_up names \['advertise', 'upload'\], the"),
    (CountsTooLittle(), "the count of bytes: 61 for an upload of 61 words, which take 244"),
    (WrongOrder(), r"the order of stages: \['unmask', 'upload'\] are not some of"),
    (AlwaysFromTheFirst(), r"parts of the words \(by_coordinate\): words 16 to 31 alone"),
    (Unequal(), "one program for all rounds: a copy of it is not equal to it"),
    (Counting(), "one program for all rounds: traced . times for copies, sessions, weights"),
    (Unhashable(), "one program for all rounds: it cannot be hashed: unhashable type: 'list'"),
    (Fresh(), "one program for all rounds: a copy of it is not equal to it or has another hash"),
]


def test_the_protocol_that_wrong_ones_are_made_from_passes():
    """Of 81 patterns it tolerates those without a loss at *unmask*, but for nobody at all."""
    coverage = check_protocol(Revealing(), N)
    assert coverage == (81, 81, 15, coverage.masks)
    assert coverage.masks > 2048


@pytest.mark.quick_cases(3)
@pytest.mark.filterwarnings("ignore:Explicitly requested dtype")
@pytest.mark.parametrize(
    ("protocol", "message"), WRONG_PROTOCOLS, ids=[type(p).__name__ for p, _ in WRONG_PROTOCOLS]
)
def test_a_wrong_protocol_fails_with_its_own_message(protocol, message):
    with pytest.raises(AssertionError) as caught:
        check_protocol(protocol, N)
    assert_one_message(protocol, str(caught.value), message)


def assert_one_message(subject, text, message):
    """One short line that names the law and shows no word of 32 bits."""
    assert re.search(f"^{type(subject).__name__} breaks .*{message}", text)
    assert "\n" not in text
    assert len(text) < 300
    assert not re.search(r"\d{7}|0x", text)


@pytest.mark.slow
def test_what_is_sampled_of_too_many_patterns():
    """Nobody lost, each client alone at each stage, everybody at each stage, and some more."""
    setting = rounds.Setting(Revealing(), 5, 9, np.random.default_rng(0))
    every, of = setting.patterns(243)
    assert (len(np.unique(every, axis=0)), of) == (243, 243)
    some, of = setting.patterns(50)
    assert (len(some), of) == (50, 243)
    rows = {tuple(row) for row in some.tolist()}
    alone = {
        tuple(np.where(np.arange(5) == i, lost, 2).tolist()) for i in range(5) for lost in (0, 1)
    }
    assert rows >= {(2,) * 5, (0,) * 5, (1,) * 5} | alone
    coverage = check_protocol(fa.Plain(), 5, hides=False, max_patterns=20)
    assert coverage == (20, 32, coverage.succeeded, 0)


def test_the_statistics_of_uniform_words_are_normal():
    """Mean and variance of 2048 statistics within 5 standard errors, and the tails that
    ``limit`` counts on: at most 3 in 2048 beyond 3.5, where 0.95 are expected (p = 0.02)."""
    words = np.random.default_rng(0).integers(2**32, size=(512, 4096), dtype=np.uint32)
    found = np.stack([uniformity.byte_errors(row, 32) for row in words])
    assert abs(found.mean()) < 5 / np.sqrt(found.size)
    assert abs(found.var() - 1) < 5 * np.sqrt(2 / found.size)
    assert np.sum(np.abs(found) > 3.5) <= 3
    narrow = np.stack([uniformity.byte_errors(row & np.uint32(0xFFFFF), 20) for row in words])
    assert narrow.shape == (512, 3)
    assert abs(narrow[:, 2].mean()) < 5 / np.sqrt(512)


@pytest.mark.slow
def test_a_right_protocol_passes_whatever_is_drawn():
    """Its uniform messages, in ten draws; together they give an alarm once in 10^5 times."""
    for seed in range(10):
        setting = rounds.Setting(Revealing(), N, 61, np.random.default_rng(100 + seed))
        hiding.check_hiding(setting, rounds.ServerView(setting), ("unmask",))


def test_law_2_fails_where_a_round_has_another_derivative(monkeypatch):
    """No protocol has a part in the derivative but by ``ok``: a wrong round stands in for one."""

    def straight(updates, session, **arguments):
        mean, report = right(updates, session, **arguments)
        plain = jnp.mean(updates, axis=0)
        return jax.lax.stop_gradient(mean - plain) + plain, report

    right = fa.secure_mean
    setting = rounds.Setting(fa.Plain(), N, 9, np.random.default_rng(0))
    derivative.check_law_2(setting)
    monkeypatch.setattr(fa, "secure_mean", straight)
    with pytest.raises(AssertionError) as caught:
        derivative.check_law_2(setting)
    assert_one_message(fa.Plain(), str(caught.value), "law 2 .*nobody lost, the Jacobian by jvp")


# ---- codecs -------------------------------------------------------------------------------------


def static(value):
    return dataclasses.field(default=value, metadata={"static": True})


@register_codec
@dataclasses.dataclass(frozen=True)
class Scaled(fa.Codec):
    """Clips every coordinate to ``clip``; the right codec that wrong ones are made from."""

    clip: Any = 1.0
    max_levels: int = static(1000)
    rounding: str = static("nearest")

    def forward(self, update, ctx):
        return self.bend(flatten(update) / self.clip) * jnp.float32(self.max_levels)

    def bend(self, clips):
        return saturate(clips, 1.0)

    def inverse(self, total, ctx):
        return ctx.structure.unflatten(total * (self.clip / self.max_levels))

    def clipped(self, update):
        return jnp.any(jnp.abs(flatten(update) / self.clip) > 1.0)


def wrong(cls):
    """A frozen, registered codec of the class's own methods on top of ``Scaled``."""
    return register_codec(dataclasses.dataclass(frozen=True)(cls))


@wrong
class BentInverse(Scaled):
    def inverse(self, total, ctx):
        return super().inverse(total * jnp.abs(total), ctx)


@wrong
class Offset(Scaled):
    def inverse(self, total, ctx):
        return super().inverse(total + 1.0, ctx)


@wrong
class TwiceTheScale(Scaled):
    def inverse(self, total, ctx):
        return super().inverse(2.0 * total, ctx)


@wrong
class Nested(Scaled):
    def inverse(self, total, ctx):
        return [super().inverse(total, ctx)]


@wrong
class LowBound(Scaled):
    """What holds for the clip as given; it does not for a smaller one, learned or swept."""

    def forward(self, update, ctx):
        return 0.5 * self.max_levels * saturate(flatten(update), self.clip)

    def inverse(self, total, ctx):
        return ctx.structure.unflatten(total * (2 / self.max_levels))

    def bound(self):
        return self.max_levels // 2


@wrong
class FloatBound(Scaled):
    def bound(self):
        return float(self.max_levels)


@wrong
class StopGradient(Scaled):
    def bend(self, clips):
        return jax.lax.stop_gradient(super().bend(clips))


@wrong
class StraightThrough(Scaled):
    """The derivative of what was not clipped."""

    def bend(self, clips):
        return clips + jax.lax.stop_gradient(super().bend(clips) - clips)


@wrong
class NaiveNorm(Scaled):
    """Divides by a norm whose derivative at zero is not finite."""

    def bend(self, clips):
        return clips / jnp.maximum(1.0, jnp.sqrt(jnp.sum(clips**2)))

    def clipped(self, update):
        return jnp.sum((flatten(update) / self.clip) ** 2) > 1.0


@wrong
class OneWayOnly(Scaled):
    """Reverse mode alone."""

    def bend(self, clips):
        @jax.custom_vjp
        def bent(clips):
            return saturate(clips, 1.0)

        bent.defvjp(lambda clips: (bent(clips), clips), lambda clips, g: (g,))
        return bent(clips)


@wrong
class LooksAtItsRange(Scaled):
    def bend(self, clips):
        return super().bend(clips) if float(self.clip) > 0 else clips


@wrong
class NeverClipped(Scaled):
    def clipped(self, update):
        return jnp.bool_(False)


@wrong
class AlwaysClipped(Scaled):
    def clipped(self, update):
        return jnp.bool_(True)


@wrong
class OftenClipped(Scaled):
    def clipped(self, update):
        return jnp.any(jnp.abs(flatten(update) / self.clip) > 0.5)


@wrong
class ShrinksAgain(Scaled):
    """What is clipped is clipped to nine tenths, and so what was clipped is no fixed point."""

    def bend(self, clips):
        return jnp.where(jnp.any(jnp.abs(clips) > 0.5), 0.9, 1.0) * super().bend(clips)

    def clipped(self, update):
        return jnp.any(jnp.abs(flatten(update) / self.clip) > 0.5)


@wrong
class WideUnits(Scaled):
    def bend(self, clips):
        return super().bend(clips.astype(jnp.float64)).astype(jnp.float32)


@wrong
class TooShort(Scaled):
    def forward(self, update, ctx):
        return super().forward(update, ctx)[1:]


@wrong
class StaysHalf(Scaled):
    def forward(self, update, ctx):
        return super().forward(update, ctx).astype(jax.tree.leaves(update)[0].dtype)


@wrong
class HalfSums(Scaled):
    def inverse(self, total, ctx):
        return jax.tree.map(lambda x: x.astype(jnp.bfloat16), super().inverse(total, ctx))


@wrong
class UnhashableMode(Scaled):
    modes: Any = dataclasses.field(default_factory=list, metadata={"static": True})


@wrong
class FreshMode(Scaled):
    mode: Any = dataclasses.field(default_factory=object, metadata={"static": True})


@wrong
class TextAsRange(Scaled):
    mode: Any = "up"


@dataclasses.dataclass(frozen=True)
class Unregistered(Scaled):
    pass


WRONG_CODECS = [
    (BentInverse(), "linearity of the inverse: inverse of a total is off by"),
    (Offset(), "linearity of the inverse: inverse of zeros is off zero by 1.0e-03"),
    (TwiceTheScale(), "inverse of forward: of what is not clipped, .* is off by 1, where"),
    (Nested(), "inverse of forward: inverse gives another tree than that of an update"),
    (LowBound(), "the bound: a saturated coordinate reaches 1000, bound.. says 500: a sum could"),
    (FloatBound(), "the bound: bound.. is not an integer from 1 to 2.23 - 1 but 1000.0"),
    (StopGradient(), "the derivative: by jvp it is 0 in one coordinate, by finite differences"),
    (StraightThrough(), "the derivative: by jvp it is .*, by finite differences 0"),
    (NaiveNorm(), "the derivative: at an update of 0, 1e-30 or 1e30 it is not finite"),
    (OneWayOnly(), "compilation and differentiation: where values are traced, TypeError"),
    (
        LooksAtItsRange(),
        "compilation and differentiation: where values are traced, ConcretizationTypeError",
    ),
    (NeverClipped(), "inverse of forward: of what is not clipped, .* is off by"),
    (AlwaysClipped(), "inverse of forward: clipped is True even of updates of size 6e-08"),
    (OftenClipped(), "inverse of forward: clipped is True of . updates that come back as they"),
    (ShrinksAgain(), "inverse of forward: what was clipped once and is clipped again is off by"),
    (WideUnits(), "32-bit types: .* kinds of 64-bit floats where JAX has them: .* float64"),
    (TooShort(), r"32-bit types: forward of float32 gives float32\[8\], where it must be .*\[9\]"),
    (StaysHalf(), "32-bit types: forward of bfloat16 gives bfloat16"),
    (HalfSums(), r"32-bit types: inverse gives a leaf bfloat16\[3\], where it must be float32"),
    (UnhashableMode(), "one program for all ranges: its modes cannot be hashed: unhashable"),
    (FreshMode(), "one program for all ranges: the static fields of a copy are not equal"),
    (TextAsRange(), "one program for all ranges: the range .mode is no number"),
    (Unregistered(), "one program for all ranges: its class is not registered"),
]


def test_the_codec_that_wrong_ones_are_made_from_passes():
    check_codec(Scaled(0.3))


@pytest.mark.quick_cases(8)
@pytest.mark.filterwarnings("ignore:Explicitly requested dtype")
@pytest.mark.parametrize(
    ("codec", "message"), WRONG_CODECS, ids=[type(c).__name__ for c, _ in WRONG_CODECS]
)
def test_a_wrong_codec_fails_with_its_own_message(codec, message):
    with pytest.raises(AssertionError) as caught:
        check_codec(codec)
    assert_one_message(codec, str(caught.value), message)


@pytest.mark.parametrize("check", [check_protocol, check_codec])
def test_what_is_neither_is_refused(check):
    with pytest.raises(TypeError):
        check(object())


# ---- what is shipped ----------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [32, 7])
def test_plain_keeps_the_laws(bits):
    coverage = check_protocol(fa.Plain(Ring(bits)), 5, tolerates=4, hides=False)
    assert coverage == (32, 32, 31, 0)


SMALL = fa.SecAgg(threshold=2, consistency=False, group=Ring(20))


@pytest.mark.parametrize(
    ("protocol", "num_clients", "most"),
    [
        pytest.param(SMALL, 4, 1296, marks=pytest.mark.slow),
        pytest.param(fa.SecAgg(degree=4), 6, 100, marks=pytest.mark.slow),
        pytest.param(fa.SecAgg(degree=4), 6, 7776, marks=pytest.mark.exhaustive),
        pytest.param(fa.SecAgg(), 5, 7776, marks=pytest.mark.exhaustive),
    ],
    ids=str,
)
def test_secure_aggregation_keeps_the_laws(protocol, num_clients, most):
    """Every pattern of five clients and of four; of six, a sample out of 46656."""
    coverage = check_protocol(protocol, num_clients, tolerates=1, max_patterns=most)
    assert coverage.patterns == min(coverage.of, most)
    assert 0 < coverage.succeeded < coverage.patterns


CODECS = [
    fa.FixedPoint(clip=1.0),
    fa.FixedPoint(clip=0.3, levels=100, norm="linf", rounding="nearest"),
]
MORE_CODECS = [
    fa.FixedPoint(clip=100.0, rounding="nearest"),
    fa.FixedPoint(clip=1e-3, norm="linf"),
    fa.FixedPoint(clip=2.0, levels=1, max_levels=1),
    fa.FixedPoint(clip=2.0, levels=2**22, max_levels=2**23 - 1, norm="linf", rounding="nearest"),
]


@pytest.mark.parametrize(
    "codec", CODECS + [pytest.param(c, marks=pytest.mark.exhaustive) for c in MORE_CODECS], ids=str
)
def test_fixed_point_keeps_the_laws(codec):
    check_codec(codec)


def test_a_codec_is_checked_for_the_updates_that_it_is_given():
    check_codec(CODECS[1], {"a": [jnp.zeros((2, 1, 3), jnp.bfloat16)], "b": jnp.zeros(())})


# ---- the pages ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.default_dtypes
@pytest.mark.parametrize(
    "page",
    [
        "add_a_protocol.md",
        "add_a_codec.md",
        "bytes.md",
        pytest.param("inverse-transforms.md", marks=pytest.mark.slow),
    ],
)
def test_the_page_runs_as_it_is_written(page):
    failed, attempted = doctest.testfile(str(DOCS / page), module_relative=False)
    assert attempted > 0
    assert failed == 0
