"""What the server sees of masked updates is uniform, and the battery that says so can tell.

Uploads are looked at twice: as they are sent, and as the server holds them once it has rebuilt the
survivors' self seeds and taken their self masks off, when masks in common with neighbours are all
that is left.

False alarms of the quick tests here together: below 1.3 %, for seeds that are fixed.
"""

import collections
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import fedjax_agg as fa
from fedjax_agg import rounding
from fedjax_agg.arithmetic import Ring
from fedjax_agg.participation import STAGES
from fedjax_agg.protocols import _channels
from fedjax_agg.protocols.secagg import Client
from fedjax_agg.protocols.secagg import _keys as secagg_keys
from fedjax_agg.sharing import graph
from fedjax_agg.symmetric import chacha20, key_schedule, seal
from fedjax_agg.symmetric.chacha20 import keystream
from fedjax_agg.symmetric.chacha20_block import chacha20_block
from tests.parties import QUICKLY, everybody, play
from tests.protocols import uniformity

RUNS, ROUNDS, CLIENTS = uniformity.SESSIONS, 3, 6
VIEWED_ROUNDS, SEGMENTS, SEGMENT = 2, 2, 4096
LENGTH = SEGMENTS * SEGMENT
FIVE_ERRORS = 5.0
DEGREE = 4
PROTOCOL = fa.SecAgg(2, DEGREE)
EDGES = CLIENTS * DEGREE // 2
MASKS = 1  # of the two key exchanges
MINUS_ONE = 2**32 - 1


def seeds(first, count):
    return (
        jnp.stack([fa.fixed_seed(first)] * count).at[:, 1].set(jnp.arange(count, dtype=jnp.uint32))
    )


def random_words(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).integers(0, 2**32, shape, dtype=np.uint32))


@functools.cache
def player():
    """The program of all rounds here, one after the other: sessions, words -> what was played."""

    def play_all(sessions, number, words):
        def one(row):
            session, number = row
            return play(PROTOCOL, words[number], session, everybody(CLIENTS))

        return jax.lax.map(one, (sessions, number))

    return jax.jit(play_all, compiler_options=QUICKLY)


def played(sessions, number, words):
    """The rounds of stacked sessions, where round i is of ``words[number[i]]``, as NumPy arrays."""
    count, size = len(number), RUNS * ROUNDS
    assert count <= size
    number = np.asarray(number, np.int32)
    stack = jax.tree.map(lambda x: np.resize(x, (size, *np.shape(x)[1:])), (sessions, number))
    found = player()(*stack, jnp.asarray(words))
    return jax.tree.map(lambda x: np.asarray(x)[:count], found)


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


# All of them look at a hundred runs of a round.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def words():
    return small_words()


@pytest.fixture(scope="module")
def runs(words):
    """100 training runs: the sessions of their rounds, what was played, and the rounding keys.

    All of them from one program, stacked: [runs, rounds, ...]. The third round is of the words of
    the first.
    """

    @functools.partial(jax.jit, compiler_options=QUICKLY)
    @jax.vmap
    def setup(seed, round_id):
        session = fa.simulated_session(seed, num_clients=CLIENTS, round_id=round_id)

        @jax.vmap
        def rounding_key(secret):
            return key_schedule.derive_key(
                secret, key_schedule.ROUNDING, salt=session.public_seed, round_id=round_id
            )

        return session, rounding_key(session.secrets)

    round_ids = jnp.tile(jnp.arange(ROUNDS, dtype=jnp.uint32), RUNS)
    sessions, rounding_keys = setup(jnp.repeat(seeds(1, RUNS), ROUNDS, axis=0), round_ids)
    found = played(sessions, round_ids % VIEWED_ROUNDS, words)
    by_run = lambda x: np.reshape(x, (RUNS, ROUNDS, *x.shape[1:]))  # noqa: E731
    return jax.tree.map(by_run, (sessions, found, rounding_keys))


@pytest.fixture(scope="module")
def uploads(runs):
    """What clients send in two rounds of every run: uint32[runs, rounds, clients, D]."""
    return runs[1].mail["upload"].outboxes.words[:, :VIEWED_ROUNDS]


@pytest.fixture(scope="module")
def views(runs, uploads):
    """The same without self masks, as the server holds them in the end."""
    self_keys = runs[1].private.mask_keys[:, :VIEWED_ROUNDS, :, -1]

    def self_mask(key):
        return keystream(key, secagg_keys.mask_nonce(), LENGTH)

    masks = jax.jit(lambda keys: jax.lax.map(self_mask, keys))(self_keys.reshape(-1, 8))
    return uploads - np.asarray(masks).reshape(uploads.shape)


@pytest.fixture(scope="module")
def found(views):
    """The statistics of each of the 100 runs."""
    return [uniformity.statistics(rows_of(view)) for view in views]


# The battery.


def test_masked_uploads_pass_the_battery(found):
    """100 runs of 20 rows of 4096 words, without one alarm, self masks taken off."""
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


def test_uploads_of_all_clients_pass_as_they_are_sent(uploads):
    """Ten runs, and no client left out: a self mask hides what the others' uploads would tell."""
    rejected = [uniformity.rejected_by(upload.reshape(-1, SEGMENT)) for upload in uploads[:10]]
    assert not any(rejected), rejected


def messages_of(runs):
    """By name, all words of a kind of message that should be uniform, of all runs."""
    _, found, _ = runs
    mail = found.mail
    return {
        "channel keys": mail["advertise"].outboxes.channel,
        "mask keys": mail["advertise"].outboxes.mask,
        "entries": found.public.board.entries,
        "sealed shares": mail["share"].outboxes.sealed.ciphertext,
        "seals": mail["share"].outboxes.sealed.tag,
        "attestations": mail["attest"].outboxes.tags,
    }


def rows_of_messages(words):
    whole = words.size // SEGMENT * SEGMENT
    return words.reshape(-1)[:whole].reshape(-1, SEGMENT)


def test_all_other_messages_pass_the_battery(runs):
    """Words of one kind after the other, over all runs: keys, board, sealed shares and tags.

    The control: of the same shares before they are sealed, elements of a field of 31 bits, the
    battery sees that a bit is missing.
    """
    for name, words in messages_of(runs).items():
        assert uniformity.rejected_by(rows_of_messages(words)) == set(), name
    opened = rows_of_messages(runs[1].private.shares)
    assert uniformity.rejected_by(opened) >= {"bytes", "windows", "bits"}
    # Which is all that is wrong with them.
    assert uniformity.rejected_by(opened | opened << np.uint32(31)) == set()


def test_masks_cancel_in_the_sum(runs, views, words):
    """The uploads are those of a working protocol: their sum is that of the words."""
    total = np.sum(views, axis=2, dtype=np.uint32)
    np.testing.assert_array_equal(
        total, np.broadcast_to(words.sum(1, dtype=np.uint32), total.shape)
    )
    recovered = runs[1].total
    assert recovered.ok.all()
    np.testing.assert_array_equal(recovered.words[:, :VIEWED_ROUNDS], total)


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


@functools.cache
def masks_of_256():
    """Of 256 states of client 2: shared secrets, self seed and model -> its masks."""
    peers, signs = jnp.array([1, 4, 6], jnp.uint32), jnp.array([1, MINUS_ONE, 0, 1], jnp.uint32)
    length, round_id, public_seed = 512, jnp.uint32(7), random_words(9, 8)

    @functools.partial(jax.jit, compiler_options=QUICKLY)
    @jax.vmap
    def mask(shared, seed, context):
        ctx = fa.RoundContext(round_id, public_seed, jnp.uint32(2), context)
        pairs = secagg_keys.pair_keys(shared, ctx.client, peers, context, public_seed, ctx)
        keys = jnp.concatenate([pairs, secagg_keys.self_key(seed, public_seed, ctx)[None]])
        state = Client(**dict.fromkeys(Client._fields))._replace(mask_keys=keys, signs=signs)
        return PROTOCOL.protect(jnp.zeros(length, jnp.uint32), state, ctx).words

    return mask


def test_every_bit_of_a_secret_changes_half_of_the_mask():
    """All 256 of the secret of an edge, of the self seed and of the digest of the model.

    False alarms below 2e-3. What a short seed has no bits for, and the edge to a neighbour that
    takes no part, fail it.
    """
    mask = masks_of_256()
    shared, seed = random_words(3, 3, 8), random_words(4, 8)
    context = jnp.arange(32, dtype=jnp.uint8)

    def same(x):
        return jnp.broadcast_to(x, (256, *x.shape))

    def with_edge(edge, secrets):
        return same(shared).at[:, edge].set(secrets)

    [right] = np.unique(mask(same(shared), same(seed), same(context)), axis=0)
    bits = jax.lax.bitcast_convert_type(flipped_bits(jnp.zeros(8, jnp.uint32)), jnp.uint8)
    flipped_context = same(context) ^ bits.reshape(256, 32)
    flipped = {
        "a secret whose mask is added": (with_edge(0, flipped_bits(shared[0])), same(seed)),
        "a secret whose mask is subtracted": (with_edge(1, flipped_bits(shared[1])), same(seed)),
        "a self seed": (same(shared), flipped_bits(seed)),
        "a model": (same(shared), same(seed), flipped_context),
    }
    for name, arguments in flipped.items():
        contexts = () if len(arguments) == 3 else (same(context),)
        changed = changed_bits(mask(*arguments, *contexts), right)
        assert half_of(changed, (1, 2)).all(), name
        assert half_of(changed, (0, 1)).all(), name

    wide = jnp.full((256, 8), 0xFFFF, jnp.uint32).at[:, 1:].set(0)
    short = mask(same(shared), flipped_bits(seed) & wide, same(context))
    [short_right] = np.unique(mask(same(shared), seed[None] & wide, same(context)), axis=0)
    changed = changed_bits(short, short_right)
    assert half_of(changed, (1, 2)).tolist() == [True] * 16 + [False] * 240
    absent = mask(with_edge(2, flipped_bits(shared[2])), same(seed), same(context))
    np.testing.assert_array_equal(absent, np.broadcast_to(right, absent.shape))


def test_every_bit_of_an_agreement_destroys_the_sum(words):
    """One client with one wrong bit of 256 in its handle on the masks: shares open, secrets are
    rebuilt, and not one of 16 words of the total is right."""
    session = fa.simulated_session(fa.fixed_seed(4), num_clients=CLIENTS)
    handle = session.agreement[1, MASKS]
    rows = jnp.concatenate([handle[None], flipped_bits(handle)])
    stacked = jax.tree.map(lambda x: jnp.stack([x] * len(rows)), session)
    spoiled = fa.Session(
        stacked.round_id,
        stacked.public_seed,
        stacked.client_ids,
        stacked.secrets,
        stacked.agreement.at[:, 1, MASKS].set(rows),
    )
    total = played(spoiled, np.zeros(len(rows)), words).total
    plain = words[0].sum(0, dtype=np.uint32)
    np.testing.assert_array_equal(total.words[0], plain)
    assert total.ok.all()
    assert np.sum(total.words[1:, :16] == plain[:16]) == 0


# Keys and nonces.


def key_bytes(keys):
    return [np.asarray(key).tobytes() for key in np.asarray(keys).reshape(-1, 8)]


# Who calls the cipher, and what for.
USES = {
    "protect": "mask",
    "recover": "mask",
    "repair_some": "mask",
    "pad": "pad",
    "public_key": "public key",
    "edge": "edge",
    "draw_coefficients": "coefficients",
    "_crypt": "seal",
    "_permutation": "order",
}


class CipherLog:
    """Every block of ChaCha20 that a program computes, with its use and its coefficient.

    It takes the place of the two functions that compute blocks wherever the library has imported
    them, and calls back from the running program, so that no use is missed.
    """

    def __init__(self, monkeypatch):
        self.entries = []
        replaced = {
            id(chacha20_block): self._block(chacha20_block),
            id(chacha20.keystream_sum): self._sum(chacha20.keystream_sum),
        }
        for name, module in list(sys.modules.items()):
            if name.startswith("fedjax_agg"):
                for attribute, value in list(vars(module).items()):
                    if id(value) in replaced:
                        monkeypatch.setattr(module, attribute, replaced[id(value)])
        # Compiled on their own, they might have been traced before.
        for module, name in ((seal, "_crypt"), (graph, "_permutation")):
            monkeypatch.setattr(module, name, getattr(module, name).__wrapped__)

    def record(self, session, alive):
        """The entries of one round.

        The server derives missing keys some at a time, and fills up with the first one, so its
        pads count once. Public keys that it computes again, to check what it has rebuilt, go
        nowhere and are left out.
        """
        self.entries = []
        words = jnp.zeros((CLIENTS, 16), jnp.uint32)
        jax.block_until_ready(self.program(words, session, alive))
        repair = {stream for use, stream, _ in self.entries if use == "repair"}
        others = [entry for entry in self.entries if entry[0] not in ("repair", "check")]
        return others + [("pad", stream, 1) for stream in repair]

    @functools.cached_property
    def program(self):
        return jax.jit(lambda *a: play(PROTOCOL, *a), compiler_options=QUICKLY)

    def _block(self, function):
        def block(key, counter, nonce):
            use, one = self._use(), jnp.uint32(1)
            counter = jnp.asarray(counter, jnp.uint32)
            log = self._log(use, 1, key[None], one[None], jnp.asarray(nonce), counter)
            return function(key, counter, nonce) ^ log

        return block

    def _sum(self, function):
        def keystream_sum(keys, coefficients, nonce, length, start=0):
            blocks, first = -(-length // 16), jnp.uint32(start // 16)
            log = self._log(self._use(), blocks, keys, coefficients, jnp.asarray(nonce), first)
            return function(keys, coefficients, nonce, length, start) ^ log

        return keystream_sum

    def _use(self):
        """That of the innermost function of the library that has one."""
        frame, names = sys._getframe(2), []
        while frame is not None:
            names.append(frame.f_code.co_name)
            frame = frame.f_back
        use = USES[next(name for name in names if name in USES)]
        if use == "public key" and "recover" in names:
            return "check"
        return "repair" if use == "pad" and "derive_some" in names else use

    def _log(self, use, blocks, *arguments):
        """Zero, once the arguments are on record."""

        def callback(keys, coefficients, nonce, first):
            size = keys.shape[-2]
            rows = zip(
                np.reshape(keys, (-1, size, 8)),
                np.reshape(coefficients, (-1, size)),
                np.reshape(nonce, (-1, 3)),
                np.reshape(first, -1),
            )
            for keys_, coefficients_, nonce_, first_ in rows:
                for key, coefficient in zip(np.asarray(keys_), np.asarray(coefficients_)):
                    for counter in range(int(first_), int(first_) + blocks):
                        stream = np.asarray(key).tobytes(), np.asarray(nonce_).tobytes(), counter
                        if coefficient:
                            self.entries.append((use, stream, int(coefficient)))
            return np.zeros(np.shape(first), np.uint32)

        shape = jax.ShapeDtypeStruct((), jnp.uint32)
        return jax.pure_callback(callback, shape, *arguments, vmap_method="broadcast_all")


def repeats(log):
    """What is wrong with a log, by round: blocks that serve two uses or two rounds, and blocks
    that are computed by others than the two ends of an edge, or the client and the server."""
    uses, rounds = collections.defaultdict(set), collections.defaultdict(set)
    for number, entries in enumerate(log):
        for use, stream, _ in entries:
            uses[stream].add(use)
            rounds[stream].add(number)
    found = {f"two uses: {sorted(of)}" for of in uses.values() if len(of) > 1}
    found |= {"two rounds" for of in rounds.values() if len(of) > 1}
    for entries in log:
        times = collections.Counter((use, stream) for use, stream, _ in entries)
        for (use, _), count in times.items():
            if count > HOLDERS[use]:
                found.add(f"{use}: {count} times")
    return found


# A block of a mask is computed at both ends of an edge, or by a client and the server; that of a
# lost client by the server too. A pad by client and dealer, of a lost client by the server too.
HOLDERS = {
    "mask": 3,
    "pad": 3,
    "public key": 1,
    "edge": 2,
    "coefficients": 1,
    "seal": 2,
    "order": 2,
}


def test_no_key_and_nonce_occur_twice(monkeypatch):
    """In the complete log of three rounds of six clients and of a second run beside it, where in
    each round another client is lost before its upload.

    Controls: a session that serves a second round, in which another client is lost, and logs in
    which one key is for both directions of a channel or serves two uses.
    """
    cipher, log = CipherLog(monkeypatch), []
    for run in range(2):
        for number in range(ROUNDS):
            session = fa.simulated_session(fa.fixed_seed(run), num_clients=CLIENTS, round_id=number)
            lost = np.arange(CLIENTS) == number
            alive = everybody(CLIENTS).at[STAGES.index("upload") :].set(~lost)
            log.append(cipher.record(session, alive))
    assert repeats(log) == set()
    for i, entries in enumerate(log):
        blocks = collections.defaultdict(list)
        for use, stream, coefficient in entries:
            blocks[use, stream].append(coefficient)
        streams = collections.Counter(use for use, _ in blocks)
        coefficients = -(-2 * 18 * (PROTOCOL.threshold - 1) // 16)
        assert streams == {
            "mask": EDGES + CLIENTS,
            # And one where there is nothing to repair, of a self seed, which serves nothing else.
            "pad": 2 * 2 * EDGES + (i % ROUNDS > 0),
            "public key": 2 * CLIENTS,
            "edge": 2 * EDGES,
            "coefficients": coefficients * CLIENTS,
            "seal": 2 * 2 * EDGES,  # two blocks of 18 words for each direction
            "order": 1,
        }
        masks = [sum(added) % 2**32 for (use, _), added in blocks.items() if use == "mask"]
        # What is in the sum comes out of it: all masks but those between the lost client and
        # itself and its neighbours, which it computes and never sends.
        assert collections.Counter(map(bool, masks)) == {False: EDGES + CLIENTS - 5, True: 5}

    session = fa.simulated_session(fa.fixed_seed(0), num_clients=CLIENTS, round_id=0)
    again = cipher.record(session, everybody(CLIENTS))
    assert repeats([again]) == set()
    assert "two rounds" in repeats([*log, again])
    assert "mask: 4 times" in repeats([log[0] + log[0]])
    seals = sorted({stream for use, stream, _ in log[0] if use == "seal" and stream[2] == 0})
    shared = {stream: seals[i - i % 2] for i, stream in enumerate(seals)}
    one_key = [(use, shared.get(stream, stream), sign) for use, stream, sign in log[0]]
    assert "seal: 4 times" in repeats([one_key])
    masks = [stream for use, stream, _ in log[0] if use == "mask"]
    assert repeats([[*log[0], ("seal", masks[0], 1)]]) == {"two uses: ['mask', 'seal']"}


def test_the_log_tells_a_wrong_derivation_of_keys(monkeypatch):
    """The mutants: channels whose labels leave the direction out, and one label for two secrets."""
    directed = _channels.channel_keys

    def undirected(channel, peers, session_id, ctx):
        nobody = jnp.uint32(0)
        return directed(channel, peers * nobody, session_id, ctx._replace(client=nobody))

    monkeypatch.setattr(_channels, "channel_keys", undirected)
    monkeypatch.setattr(key_schedule, "SHARING", key_schedule.RECOVERY_SECRET)
    session = fa.simulated_session(fa.fixed_seed(0), num_clients=CLIENTS)
    cipher = CipherLog(monkeypatch)
    found = repeats([cipher.record(session, everybody(CLIENTS))])
    assert found == {"seal: 4 times", "two uses: ['coefficients', 'pad']"}


def test_purposes_never_share_a_key(runs):
    """All keys of 100 runs differ: those of masks, channels, rounding and shares, and the roots.

    A key of an edge is held at both ends, and a key of a channel too.
    """
    sessions, found, rounding_keys = runs
    keys, private = found.keys, found.private

    def held_twice(keys):
        counts = collections.Counter(key_bytes(keys))
        assert set(counts.values()) == {2}
        return list(counts)

    assert (sessions.agreement == sessions.agreement[:, :, :1]).all()
    groups = {
        "pair masks": (held_twice(private.mask_keys[..., :-1, :]), EDGES),
        "self masks": (key_bytes(private.mask_keys[..., -1, :]), CLIENTS),
        "channels": (held_twice(private.channel_keys), 3 * 2 * EDGES),
        "channel secrets": (key_bytes(keys.channel_secret), CLIENTS),
        "recovery secrets": (key_bytes(keys.recovery_secret), CLIENTS),
        "self seeds": (key_bytes(keys.self_seed), CLIENTS),
        "sharing": (key_bytes(keys.sharing_key), CLIENTS),
        "public keys": (key_bytes(np.stack(keys.public)), 2 * CLIENTS),
        "entries": (key_bytes(found.public.board.entries), 2 * 2 * EDGES),
        "rounding": (key_bytes(rounding_keys), CLIENTS),
        "secrets": (key_bytes(sessions.secrets), CLIENTS),
        "agreement": (key_bytes(sessions.agreement[:, :, 0]), 2),
        "public": (key_bytes(sessions.public_seed), 1),
        "seeds": (key_bytes(seeds(1, RUNS)), 1 / ROUNDS),
    }
    for name, (keys, count) in groups.items():
        assert len(keys) == round(RUNS * ROUNDS * count), name
    everything = [key for keys, _ in groups.values() for key in keys]
    assert len(set(everything)) == len(everything)


# Joint uniformity.


def test_all_uploads_but_one_are_jointly_uniform_while_the_sum_is_fixed(uploads, views, words):
    """The joint law of five uploads of six, and then of all six, over all runs.

    Three bits of each of five uploads without self masks are uniform on 2^15 bins, at both ends of
    the word, at a level of 1e-6 each. Two bits of each of all six, on 2^12 bins, are not: what is
    left of the last upload without the sum of the words follows from the others. As they are sent,
    all six are.
    """

    def rejected(uploads, clients, low, width):
        uploads = uploads.copy()
        uploads[:, :, -1] -= words.sum(axis=1, dtype=np.uint32)
        columns = np.moveaxis(uploads, 2, 0).reshape(CLIENTS, -1)
        joint = np.zeros(columns.shape[1], np.uint32)
        for column in columns[:clients]:
            digit = column >> np.uint32(low) & np.uint32(2**width - 1)
            joint = joint << np.uint32(width) | digit
        bins = 2 ** (width * clients)
        return uniformity.chi_square(joint, bins) > scipy.stats.chi2.isf(1e-6, bins - 1)

    assert not rejected(views, CLIENTS - 1, 0, 3)
    assert not rejected(views, CLIENTS - 1, 29, 3)
    assert rejected(views, CLIENTS, 0, 2)
    assert rejected(views, CLIENTS, 30, 2)
    assert not rejected(uploads, CLIENTS, 0, 2)
    assert not rejected(uploads, CLIENTS, 30, 2)
