"""What the server sees of masked updates is uniform, and the battery that says so can tell.

False alarms of the quick tests here together: below 1.1 %, for seeds that are fixed.
"""

import collections
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import fedjax_agg as fa
from fedjax_agg import rounding
from fedjax_agg.arithmetic import Ring
from fedjax_agg.protocols import secagg
from fedjax_agg.symmetric import key_schedule
from fedjax_agg.symmetric.chacha20 import chacha20_block, keystream
from tests.protocols import uniformity

RUNS, ROUNDS, CLIENTS = uniformity.SESSIONS, 3, 6
VIEWED_ROUNDS, SEGMENTS, SEGMENT = 2, 2, 4096
LENGTH = SEGMENTS * SEGMENT
FIVE_ERRORS = 5.0


def seeds(first, count):
    return (
        jnp.stack([fa.fixed_seed(first)] * count).at[:, 1].set(jnp.arange(count, dtype=jnp.uint32))
    )


def random_words(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).integers(0, 2**32, shape, dtype=np.uint32))


def prepare(protocol, session):
    """What every client of a session holds, by the protocol's own function for one client."""

    def one(agreement, client):
        ctx = fa.RoundContext(session.round_id, session.public_seed, client=client)
        return protocol.prepare(agreement, session.client_ids, ctx)

    return jax.vmap(one)(session.agreement, session.client_ids)


def protect(protocol, session, private, words):
    """The upload of every client: uint32[n, D] -> uint32[n, D]."""

    def one(words, private, client):
        ctx = fa.RoundContext(session.round_id, session.public_seed, client=client)
        return protocol.protect(words, private, ctx).words

    return jax.vmap(one)(words, private, session.client_ids)


def uploads(protocol, session, words):
    return protect(protocol, session, prepare(protocol, session), words)


def small_words():
    """Words of heavy-tailed updates well inside the clip: uint32[rounds, clients, D].

    Most of them are a few dozen steps from zero, so that each of the four bytes would betray
    them: the upper two are 00 or ff, and the lowest is far from uniform.
    """
    updates = np.random.default_rng(0).standard_t(5, (VIEWED_ROUNDS, CLIENTS, LENGTH))
    updates = jnp.asarray(updates / np.sqrt(LENGTH) / 20, jnp.float32)
    codec = fa.FixedPoint(clip=1.0, levels=2**15)

    def encode(update):
        return Ring(32).wrap(rounding.round_to_grid("nearest", codec.forward(update, None), None))

    return np.asarray(jax.jit(jax.vmap(jax.vmap(encode)))(updates))


def rows_of(views):
    """The rows of one session that should be independent: rounds x all clients but one x segments.

    Without the last client: its upload follows from those of the others and the sum.
    """
    return np.asarray(views)[:, :-1].reshape(-1, SEGMENT)


@pytest.fixture(scope="module")
def words():
    return small_words()


@pytest.fixture(scope="module")
def runs():
    """100 training runs: the sessions of their rounds, the pair keys and the rounding keys.

    All of them from one program, stacked: [runs, rounds, ...].
    """

    @jax.jit
    @jax.vmap
    def run(seed):
        @jax.vmap
        def one_round(round_id):
            session = fa.simulated_session(seed, num_clients=CLIENTS, round_id=round_id)

            @jax.vmap
            def rounding_key(secret):
                return key_schedule.derive_key(
                    secret, key_schedule.ROUNDING, salt=session.public_seed, round_id=round_id
                )

            return session, prepare(fa.SecAgg(), session), rounding_key(session.secrets)

        return one_round(jnp.arange(ROUNDS, dtype=jnp.uint32))

    return run(seeds(1, RUNS))


@pytest.fixture(scope="module")
def views(runs, words):
    """The uploads of two rounds of every run: uint32[runs, rounds, clients, D]."""
    sessions, private, _ = jax.tree.map(lambda x: x[:, :VIEWED_ROUNDS], runs)
    every_round = jax.vmap(lambda *row: protect(fa.SecAgg(), *row))
    every_run = jax.vmap(every_round, in_axes=(0, 0, None))
    return np.asarray(jax.jit(every_run)(sessions, private, words))


@pytest.fixture(scope="module")
def found(views):
    """The statistics of each of the 100 runs."""
    return [uniformity.statistics(rows_of(view)) for view in views]


# The battery.


def test_masked_uploads_pass_the_battery(found):
    """100 runs of 20 rows of 4096 words, without one alarm."""
    assert len(found) == uniformity.SESSIONS
    rejected = [uniformity.alarms(statistics) for statistics in found]
    assert not any(rejected), rejected


def test_the_battery_is_calibrated(found):
    """At a level of 1 % every test rejects 1 % of masked uploads, within 5 standard errors.

    So the thresholds are no laxer than they say, and no statistic is stuck at a safe value.
    """
    alpha, counts, totals = 0.01, collections.Counter(), collections.Counter()
    for statistics in found:
        counts.update(uniformity.exceeded(statistics, alpha))
        totals.update({test: values.size for test, values in statistics.items()})
    for test, total in totals.items():
        error = np.sqrt(total * alpha * (1 - alpha))
        assert abs(counts[test] - alpha * total) < FIVE_ERRORS * error, test
        assert counts[test] > 0 or total < 500, test


def test_masks_cancel_in_the_sum(views, words):
    """The uploads are those of a working protocol: their sum is that of the words."""
    total = np.sum(views, axis=2, dtype=np.uint32)
    np.testing.assert_array_equal(
        total, np.broadcast_to(words.sum(1, dtype=np.uint32), total.shape)
    )


# Mutants: each takes the masks of a session, uint32[rounds, clients, D], and spoils them.


def no_mask(masks):
    return np.zeros_like(masks)


def constant_mask(masks):
    """One word for all coordinates of an upload."""
    return np.broadcast_to(masks[..., :1], masks.shape)


def counter_stuck(masks):
    """The first block of the keystream again and again."""
    return np.tile(masks[..., :16], LENGTH // 16)


def reused_across_segments(masks):
    """A second segment under the key and nonce of the first."""
    return np.tile(masks[..., :SEGMENT], SEGMENTS)


def reused_across_rounds(masks):
    """Keys that do not depend on the round."""
    return np.broadcast_to(masks[:1], masks.shape)


def reused_across_clients(masks):
    """Two clients with one mask."""
    masks = masks.copy()
    masks[:, 1] = masks[:, 0]
    return masks


def opposite_clients(masks):
    """Two clients with one pair mask and no other."""
    masks = masks.copy()
    masks[:, 1] = -masks[:, 0]
    return masks


def low_byte_zero(masks):
    return masks & np.uint32(0xFFFFFF00)


def one_bit_stuck(masks):
    """One bit of a mask never changes, in the middle of the word."""
    return masks | np.uint32(1 << 13)


def sixteen_bits_of_mask(masks):
    """A mask as wide as a half word."""
    return masks & np.uint32(0xFFFF)


MUTANTS = {
    no_mask: {"bytes", "windows"},
    constant_mask: {"bytes", "windows", "lags", "bits"},
    counter_stuck: {"bytes", "windows", "lags"},
    reused_across_segments: {"pairs"},
    reused_across_rounds: {"pairs"},
    reused_across_clients: {"pairs"},
    opposite_clients: {"pairs"},
    low_byte_zero: {"bytes", "windows"},
    one_bit_stuck: {"bytes", "windows", "bits"},
    sixteen_bits_of_mask: {"bytes", "windows", "bits"},
}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_battery_rejects(mutant, views, words):
    """By the tests that are made for it, in each of three sessions; unspoiled masks pass."""
    for view in views[:3]:
        masks = view - words
        assert uniformity.rejected_by(rows_of(words + masks)) == set()
        assert uniformity.rejected_by(rows_of(words + mutant(masks))) >= MUTANTS[mutant]


def test_a_mask_reused_in_two_rounds_gives_the_difference_of_updates(views, words):
    """The attack itself: exact on the mutant, and not one coordinate of the real protocol."""
    difference = words[1] - words[0]
    spoiled = words + reused_across_rounds(views[0] - words)
    np.testing.assert_array_equal(spoiled[1] - spoiled[0], difference)
    assert np.sum(views[0, 1] - views[0, 0] == difference) == 0


# Short seeds.

NONCE = key_schedule.segment_nonce(0)


def short_key(seed):
    """Sixteen bits stretched to a key."""
    return jnp.zeros(8, jnp.uint32).at[0].set(seed)


@functools.cache
def blocks_of_short_seeds():
    """The first block under each of the 2^16 short keys: uint32[65536, 16]."""

    @jax.jit
    @jax.vmap
    def block(seed):
        return chacha20_block(short_key(seed), jnp.uint32(0), jnp.asarray(NONCE))

    return np.asarray(block(jnp.arange(2**16, dtype=jnp.uint32)))


def seeds_that_explain(upload):
    """The short seeds that leave 16 small words when their mask is taken off."""
    left = np.arange(2**16)
    for word, column in zip(upload, blocks_of_short_seeds().T):
        opened = (word - column[left]).view(np.int32).astype(np.int64)
        left = left[np.abs(opened) < 2**12]
    return left


def test_brute_force_opens_masks_of_16_bit_seeds_and_no_others(views, words):
    """2^16 trials find the seed, and with it every word; of real uploads they find nothing."""
    seed = 0xBEEF
    mask = np.asarray(jax.jit(keystream, static_argnums=2)(short_key(seed), NONCE, LENGTH))
    upload = words[0, 0] + mask
    assert seeds_that_explain(upload).tolist() == [seed]
    for view in views[:10].reshape(-1, LENGTH):
        assert seeds_that_explain(view).size == 0


def test_battery_rejects_clients_whose_short_seeds_collide(words):
    """Among 1024 clients with 16-bit seeds some share one; 256-bit keys never collide."""
    drawn = np.random.default_rng(5).integers(0, 2**16, 1024)
    seed = next(s for s, times in collections.Counter(drawn.tolist()).items() if times > 1)
    other = (seed + 1) % 2**16
    stream = jax.jit(keystream, static_argnums=2)
    masks = {s: np.asarray(stream(short_key(s), NONCE, LENGTH)) for s in (seed, other)}

    def rejected(first, second):
        rows = np.stack([words[0, 0] + masks[first], words[0, 1] + masks[second]])
        return uniformity.rejected_by(rows.reshape(-1, SEGMENT))

    assert "pairs" in rejected(seed, seed)
    assert rejected(seed, other) == set()


# Every bit of a key.


def flipped_bits(key):
    """The key with each of its 256 bits flipped: uint32[256, 8]."""
    bit = jnp.arange(256, dtype=jnp.uint32)
    word = jnp.arange(8, dtype=jnp.uint32)
    flips = jnp.where(bit[:, None] // 32 == word[None], np.uint32(1) << (bit % 32)[:, None], 0)
    return key[None] ^ flips.astype(jnp.uint32)


def changed_bits(masks, mask):
    """Which bits of a mask change: uint8[flips, words, 32]."""
    changed = np.asarray(masks) ^ np.asarray(mask)
    return np.stack([changed >> np.uint32(bit) & np.uint32(1) for bit in range(32)], -1)


def half_of(changed, axis):
    """Whether about half of the bits change, along an axis, within 5 standard errors."""
    trials = np.prod([changed.shape[i] for i in axis])
    deviation = np.abs(2.0 * np.sum(changed, axis=axis, dtype=np.int64) - trials)
    return deviation < FIVE_ERRORS * np.sqrt(trials)


def test_every_bit_of_a_pair_key_changes_half_of_the_mask():
    """All 256, in one program; false alarms below 2e-4. A short seed and an unused key fail it."""
    length, protocol = 512, fa.SecAgg()
    peer, own = random_words(3, 2, 8)
    signs, nothing = jnp.array([1, 0], jnp.uint32), jnp.zeros(length, jnp.uint32)

    @jax.jit
    @jax.vmap
    def mask(peer, own):
        private = secagg.PairKeys(jnp.stack([peer, own]), signs)
        return protocol.protect(nothing, private, fa.RoundContext()).words

    flips, unflipped = flipped_bits(peer), jnp.broadcast_to(own, (256, 8))
    [right] = np.unique(mask(jnp.broadcast_to(peer, (256, 8)), unflipped), axis=0)
    changed = changed_bits(mask(flips, unflipped), right)
    assert half_of(changed, (1, 2)).all()
    assert half_of(changed, (0, 1)).all()

    wide = jnp.full((256, 8), 0xFFFF, jnp.uint32).at[:, 1:].set(0)
    short = mask(flips & wide, unflipped)
    [short_right] = np.unique(mask(peer[None] & wide, unflipped), axis=0)
    changed = changed_bits(short, short_right)
    assert half_of(changed, (1, 2)).tolist() == [True] * 16 + [False] * 240
    unused = mask(jnp.broadcast_to(peer, (256, 8)), flipped_bits(own))
    np.testing.assert_array_equal(unused, np.broadcast_to(right, (256, length)))


def test_every_bit_of_an_agreement_destroys_the_sum():
    """One client with one wrong bit of 256: not one of 16 words of the total is right."""
    n, length, protocol = 3, 16, fa.SecAgg()
    handle = random_words(4, 8)
    session = fa.Session(
        round_id=jnp.uint32(0),
        public_seed=random_words(5, 8),
        client_ids=jnp.arange(1, n + 1, dtype=jnp.uint32),
        secrets=random_words(6, n, 8),
        agreement=jnp.broadcast_to(handle, (n, 8)),
    )
    words = random_words(7, n, length) % np.uint32(100)
    rows = jnp.concatenate([handle[None], flipped_bits(handle)])

    @jax.jit
    @jax.vmap
    def total(row):
        agreement = session.agreement.at[1].set(row)
        spoiled = dataclasses.replace(session, agreement=agreement)
        received = jnp.sum(uploads(protocol, spoiled, words), axis=0, dtype=jnp.uint32)
        ctx = fa.RoundContext(survivors=jnp.ones(n, bool))
        return protocol.recover(received, ctx).words

    totals, plain = np.asarray(total(rows)), np.asarray(words).sum(0, dtype=np.uint32)
    np.testing.assert_array_equal(totals[0], plain)
    assert np.sum(totals[1:] == plain) == 0


# Keys and nonces.


def key_bytes(keys):
    return [np.asarray(key).tobytes() for key in np.asarray(keys).reshape(-1, 8)]


def mask_log(runs, monkeypatch):
    """By round, every (key, nonce, first word) and coefficient that masks are made from."""
    sessions, private, _ = jax.tree.map(np.asarray, runs)
    log = []

    def recorder(keys, coefficients, nonce, length, start=0):
        for key, coefficient in zip(np.asarray(keys), np.asarray(coefficients)):
            if coefficient:
                stream = (key.tobytes(), np.asarray(nonce).tobytes(), int(start))
                log[-1].append((stream, int(coefficient)))
        return jnp.zeros(length, jnp.uint32)

    monkeypatch.setattr(secagg, "keystream_sum", recorder)
    for run, round_id in np.ndindex(2, ROUNDS):
        log.append([])
        for i in range(CLIENTS):
            mine = jax.tree.map(lambda x, at=(run, round_id, i): jnp.asarray(x[at]), private)
            client = jnp.asarray(sessions.client_ids[run, round_id, i])
            fa.SecAgg().protect(jnp.zeros(16, jnp.uint32), mine, fa.RoundContext(client=client))
    return log


def test_no_key_and_nonce_occur_twice(runs, monkeypatch):
    """In the complete log of three rounds of six clients, and of a second run beside it.

    A stream has exactly two holders, one who adds it and one who subtracts it. A round that is
    run again under its number is the positive control: each stream then occurs four times.
    """
    log = mask_log(runs, monkeypatch)
    entries = [entry for one_round in log for entry in one_round]
    streams = collections.Counter(stream for stream, _ in entries)
    assert len(streams) == 2 * ROUNDS * CLIENTS * (CLIENTS - 1) // 2
    assert set(streams.values()) == {2}
    assert set(collections.Counter(entries).values()) == {1}
    assert {coefficient for _, coefficient in entries} == {1, 2**32 - 1}
    again = collections.Counter(stream for stream, _ in log[0] + log[0])
    assert set(again.values()) == {4}


def test_purposes_never_share_a_key(runs):
    """Masks, rounding, session secrets, public seeds and handles of 100 runs: all different."""
    sessions, private, rounding_keys = jax.tree.map(np.asarray, runs)
    lower = np.tril_indices(CLIENTS, -1)
    upper = lower[::-1]
    pair_keys = private.keys
    np.testing.assert_array_equal(pair_keys[:, :, *lower], pair_keys[:, :, *upper])
    assert (sessions.agreement == sessions.agreement[:, :, :1]).all()
    own = np.arange(CLIENTS)
    groups = {
        "pair masks": (pair_keys[:, :, *lower], CLIENTS * (CLIENTS - 1) // 2),
        "unused": (pair_keys[:, :, own, own], CLIENTS),
        "rounding": (rounding_keys, CLIENTS),
        "secrets": (sessions.secrets, CLIENTS),
        "agreement": (sessions.agreement[:, :, 0], 1),
        "public": (sessions.public_seed, 1),
        "seeds": (seeds(1, RUNS), 1 / ROUNDS),
    }
    for name, (keys, count) in groups.items():
        assert len(key_bytes(keys)) == round(RUNS * ROUNDS * count), name
    everything = [key for keys, _ in groups.values() for key in key_bytes(keys)]
    assert len(set(everything)) == len(everything)


# Joint uniformity.


def test_all_uploads_but_one_are_jointly_uniform_while_the_sum_is_fixed(views, words):
    """The joint law of five uploads of six, and then of all six, over all runs.

    Three bits of each of five uploads are uniform on 2^15 bins, at both ends of the word, at a
    level of 1e-6 each. Two bits of each of all six, on 2^12 bins, are not: what is left of the
    last upload without the sum of the words follows from the others.
    """
    views = views.copy()
    views[:, :, -1] -= words.sum(axis=1, dtype=np.uint32)
    columns = np.moveaxis(views, 2, 0).reshape(CLIENTS, -1)

    def rejected(clients, low, width):
        joint = np.zeros(columns.shape[1], np.uint32)
        for column in columns[:clients]:
            digit = column >> np.uint32(low) & np.uint32(2**width - 1)
            joint = joint << np.uint32(width) | digit
        bins = 2 ** (width * clients)
        return uniformity.chi_square(joint, bins) > scipy.stats.chi2.isf(1e-6, bins - 1)

    assert not rejected(CLIENTS - 1, 0, 3)
    assert not rejected(CLIENTS - 1, 29, 3)
    assert rejected(CLIENTS, 0, 2)
    assert rejected(CLIENTS, 30, 2)
