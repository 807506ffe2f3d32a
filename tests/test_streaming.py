"""Clients in blocks: the bits of ``secure_mean``, whatever the blocks, their order and the tree."""

import functools
import io
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import fedjax_agg as fa
from fedjax_agg import streaming
from fedjax_agg.participation import STAGES
from fedjax_agg.streaming import blocks as blocks_module
from tests.sessions import any_session

N = 12
SHAPES = {"w": (2, 3), "b": ()}
PLAIN = fa.Plain()
MASKED = fa.SecAgg(threshold=3, degree=4, min_survivors=5)
PROTOCOLS = [PLAIN, pytest.param(MASKED, marks=pytest.mark.slow)]
protocols = pytest.mark.parametrize("protocol", PROTOCOLS, ids=["plain", "secagg"])
CODEC = fa.FixedPoint(clip=1.0)
KINDS = {
    None: None,
    "integer": jnp.arange(N, dtype=jnp.int32) % 4,
    "fraction": jnp.linspace(0.0, 1.0, N, dtype=jnp.float32),
}
LIKE = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in SHAPES.items()}


def updates(n=N):
    rng = np.random.default_rng(0)
    return {
        name: jnp.asarray(rng.normal(scale=0.4, size=(n, *shape)), jnp.float32)
        for name, shape in SHAPES.items()
    }


@functools.cache
def session():
    return fa.simulated_session(fa.fixed_seed(5), num_clients=N, round_id=7)


def start(protocol=PLAIN, weights=None, participation=None, codec=CODEC, n=N):
    return streaming.init(
        LIKE,
        session() if n == N else any_session(n),
        codec=codec,
        protocol=protocol,
        weights=weights,
        max_weight=None if weights is None else 3,
        participation=participation,
    )


def rows(first, count, weights=None):
    """What ``add_block`` takes of so many clients."""
    part = jax.tree.map(lambda x: x[first : first + count], updates())
    block = (part, session().rows(first, count))
    return block if weights is None else (*block, KINDS[weights][first : first + count])


def whole(protocol=PLAIN, weights=None, participation=None, codec=CODEC, mean=True):
    return (fa.secure_mean if mean else fa.secure_sum)(
        updates(),
        session(),
        codec=codec,
        protocol=protocol,
        weights=KINDS[weights],
        max_weight=None if weights is None else 3,
        participation=participation,
    )


def assert_same(found, wanted):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), jax.device_get(wanted))


def streamed(blocks, stream, weights=None):
    for first, count in blocks:
        stream = streaming.add_block(stream, *rows(first, count, weights))
    return stream


def lost(*clients):
    return jnp.asarray(~np.isin(np.arange(N), clients))


# Every client once, unless the name says otherwise.
BLOCKS = {
    "one": [(0, N)],
    "halves": [(0, 6), (6, 6)],
    "backwards": [(8, 4), (4, 4), (0, 4)],
    "uneven": [(5, 7), (0, 1), (3, 2), (1, 2)],
}


# ---- the law -----------------------------------------------------------------------------------


@pytest.mark.quick_cases(1)
@protocols
@pytest.mark.parametrize("blocks", BLOCKS.values(), ids=BLOCKS)
def test_the_mean_and_the_report_are_those_of_all_rows_at_once(blocks, protocol):
    found = streaming.finish(streaming.close(streamed(blocks, start(protocol))))
    assert_same(found, whole(protocol))


@pytest.mark.quick_cases(1)
@protocols
@pytest.mark.parametrize("weights", ["integer", "fraction"])
def test_weights(weights, protocol):
    stream = streamed(BLOCKS["uneven"], start(protocol, weights), weights)
    assert_same(streaming.finish(stream), whole(protocol, weights))
    assert_same(streaming.finish_sum(stream), whole(protocol, weights, mean=False))


@protocols
def test_who_is_in_no_block_is_lost_at_upload(protocol):
    blocks = [(6, 5), (0, 3), (4, 2)]
    found = streaming.finish(streamed(blocks, start(protocol)))
    assert_same(found, whole(protocol, participation=lost(3, 11)))
    assert found[1].survivors.tolist() == lost(3, 11).tolist()


@protocols
@pytest.mark.parametrize("stage", STAGES)
def test_who_is_lost_otherwise_may_be_in_a_block(stage, protocol):
    there = fa.Participation.until(stage, lost(2, 7))
    stream = streamed([(6, 6), (0, 5)], start(protocol, participation=there))
    wanted = fa.Participation(there.alive & fa.Participation.until("upload", lost(5)).alive)
    assert_same(streaming.finish(stream), whole(protocol, participation=wanted))


@pytest.mark.slow
def test_fewer_survivors_than_a_client_answers_for_open_nothing():
    mean, report = streaming.finish(streamed([(0, 4)], start(MASKED)))
    assert not bool(report.ok)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(mean))
    wanted = whole(MASKED, participation=jnp.arange(N) < 4)
    assert_same((mean, report), wanted)


def test_nobody_came():
    _, report = streaming.finish(start())
    assert (bool(report.ok), float(report.total_weight)) == (False, 0.0)


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_any_clients_may_make_a_block(rounding):
    """A block need not be consecutive: its session says who is in it."""
    codec = fa.FixedPoint(clip=1.0, rounding=rounding)
    order, stream = np.random.default_rng(1).permutation(N), start(codec=codec)
    for chosen in order.reshape(4, 3):
        block = jax.tree.map(lambda x: x[chosen], updates())  # noqa: B023
        own = fa.Session(
            session().round_id,
            session().public_seed,
            *(x[chosen] for x in (session().client_ids, session().secrets, session().agreement)),
        )
        stream = streaming.add_block(stream, block, own)
    assert_same(streaming.finish(stream), whole(codec=codec))


def test_inside_jit_and_scan():
    def step(stream, block):
        return streaming.add_block(stream, *block), None

    @jax.jit
    def run(blocks, stream):
        stream, _ = lax.scan(step, stream, blocks)
        return streaming.finish(streaming.close(stream)), stream.sum.refused

    stacked = jax.tree.map(lambda *x: jnp.stack(x), *(rows(i, 3, "integer") for i in (9, 0, 3, 6)))
    found, refused = run(stacked, start(weights="integer"))
    assert_same(found, whole(weights="integer"))
    assert int(refused) == 0


def test_a_host_iterator_of_blocks_is_one_block_ahead(monkeypatch):
    log, add_block = [], blocks_module.add_block

    def logged(stream, updates, session, *rest, **options):
        log.append(f"add {session.client_ids[0] - 1}")
        return add_block(stream, updates, session, *rest, **options)

    def blocks():
        for first, count in BLOCKS["uneven"]:
            log.append(f"fetch {first}")
            yield rows(first, count, "fraction")

    monkeypatch.setattr(blocks_module, "add_block", logged)
    stream = streaming.add_blocks(start(weights="fraction"), blocks())
    expected = "fetch 5, fetch 0, add 5, fetch 3, add 0, fetch 1, add 3, add 1"
    assert ", ".join(log) == expected
    assert_same(streaming.finish(stream), whole(weights="fraction"))
    assert_same(streaming.add_blocks(start(), iter(())), start())


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("mode", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@pytest.mark.parametrize("weights", [None, "integer"])
def test_a_block_may_be_spread_over_a_mesh(mode, weights):
    places = jax.make_mesh((2,), ("clients",), axis_types=(mode,))
    stream = start(weights=weights)
    for first in (4, 8, 0):
        block, own, *rest = rows(first, 4, weights)
        block, rest = jax.device_put((block, rest), NamedSharding(places, P("clients")))
        stream = streaming.add_block(stream, block, own, *rest)
    assert_same(streaming.finish(stream), whole(weights=weights))


@pytest.mark.slow
def test_a_masked_block_over_a_mesh():
    places = jax.make_mesh((2,), ("clients",))
    stream = start(MASKED)
    for first in (4, 8, 0):
        block, own = rows(first, 4)
        block = jax.device_put(block, NamedSharding(places, P("clients")))
        stream = streaming.add_block(stream, block, own)
    assert_same(streaming.finish(stream), whole(MASKED))


# ---- sessions of parts -------------------------------------------------------------------------


@pytest.mark.slow
def test_rows_of_a_part_are_those_of_the_whole_session():
    make = functools.partial(fa.simulated_session, fa.fixed_seed(5), round_id=7)
    for first, count in ((0, N), (3, 4), (11, 1)):
        part = make(num_clients=count, first_client=first + 1)
        assert_same(part, session().rows(first, count))
        traced = jax.jit(lambda i, m=count: make(num_clients=m, first_client=i))(first + 1)
        assert_same(part, traced)
    other = make(num_clients=4, first_client=5)
    assert not np.array_equal(other.secrets, session().rows(3, 4).secrets)


def test_rows_of_a_bound_session_keep_the_models():
    hashes = jnp.arange(N * 32, dtype=jnp.uint8).reshape(N, 32)
    part = session().bind(hashes).rows(5, 2)
    assert_same(part.context, hashes[5:7])
    assert_same(jax.jit(lambda i: session().rows(i, 2))(5).client_ids, jnp.array([6, 7], "uint32"))


def test_the_last_id_is_the_largest_int32():
    part = fa.simulated_session(fa.fixed_seed(0), num_clients=2, first_client=2**31 - 2)
    assert part.client_ids.tolist() == [2**31 - 2, 2**31 - 1]


def test_a_cohort_larger_than_what_shares_hold():
    """A hundred thousand clients of whom four have rows."""
    n, codec = 10**5, fa.FixedPoint(clip=1.0, levels=1000, max_levels=1000)
    make = functools.partial(fa.simulated_session, fa.fixed_seed(5), round_id=7)
    stream = streaming.init(jnp.zeros(3), make(num_clients=2), codec=codec, num_clients=n)
    for first in (n - 1, 1):
        own = make(num_clients=2, first_client=first)
        stream = streaming.add_block(stream, jnp.full((2, 3), 0.5), own)
    total, report = streaming.finish_sum(stream)
    assert total.tolist() == [2.0] * 3
    assert np.nonzero(report.survivors)[0].tolist() == [0, 1, n - 2, n - 1]


# ---- what is refused ---------------------------------------------------------------------------

WRONG = {
    "again": (lambda: rows(2, 2), "stream-clients"),
    "partly again": (lambda: rows(3, 2), "stream-clients"),
    "twice in the block": (
        lambda: (
            jax.tree.map(lambda x: x[:2], updates()),
            jax.tree.map(lambda x: x, _replaced(client_ids=jnp.array([9, 9], jnp.uint32))),
        ),
        "stream-clients",
    ),
    "the client 0": (
        lambda: (rows(5, 2)[0], _replaced(client_ids=jnp.array([0, 9], jnp.uint32))),
        "stream-clients",
    ),
    "beyond the cohort": (
        lambda: (rows(5, 2)[0], _replaced(client_ids=jnp.array([12, 13], jnp.uint32))),
        "stream-clients",
    ),
    "another round": (
        lambda: (rows(5, 2)[0], _replaced(round_id=jnp.uint32(8))),
        "stream-round",
    ),
    "another seed": (
        lambda: (rows(5, 2)[0], _replaced(public_seed=jnp.zeros(8, jnp.uint32))),
        "stream-round",
    ),
}


def _replaced(**fields):
    part = session().rows(5, 2)
    names = ("round_id", "public_seed", "client_ids", "secrets", "agreement")
    return fa.Session(**{name: getattr(part, name) for name in names} | fields)


@pytest.mark.parametrize(("block", "tag"), WRONG.values(), ids=WRONG)
def test_a_wrong_block_raises_or_if_traced_is_ignored_whole(block, tag):
    stream = streamed([(0, 4)], start())
    with pytest.raises(ValueError, match=rf"\[{tag}\]$"):
        streaming.add_block(stream, *block())
    # The stream is as good as before.
    after = jax.jit(streaming.add_block)(stream, *block())
    assert_same((after.sum.words, after.sum.arrived), (stream.sum.words, stream.sum.arrived))
    assert int(after.sum.refused) == 1
    # The control: a right block, after which the round is that of its clients.
    after = jax.jit(streaming.add_block)(after, *rows(5, 2))
    assert int(after.sum.refused) == 1
    there = lost(4, 7, 8, 9, 10, 11)
    assert_same(streaming.finish(after), whole(participation=there))


def test_a_late_block_raises_or_if_traced_is_ignored():
    stream = streaming.close(streamed([(0, 4)], start()))
    with pytest.raises(ValueError, match=r"clients 5 to 6 .*\[stream-closed\]$"):
        streaming.add_block(stream, *rows(4, 2))
    late = jax.jit(streaming.add_block)(stream, *rows(4, 2))
    assert int(late.sum.refused) == 1
    assert_same(streaming.finish(late), whole(participation=jnp.arange(N) < 4))
    one = streamed([(4, 2)], streaming.edge(start())).sum
    with pytest.raises(ValueError, match=r"\[stream-closed\]$"):
        streaming.merge(stream, one)
    merged = jax.jit(streaming.merge)(stream, one)
    assert_same(merged.sum.words, stream.sum.words)
    assert int(merged.sum.refused) == 1


@pytest.mark.parametrize("what", ["updates", "weights", "codec"])
def test_a_derivative_is_refused_and_not_zero(what):
    """Words are integers, so JAX would give zeros without a word."""

    def loss(values):
        x, w, clip = updates()["w"], KINDS["fraction"], 1.0
        x, w, clip = (
            values * given if name == what else given
            for name, given in (("updates", x), ("weights", w), ("codec", clip))
        )
        stream = streaming.init(
            jnp.zeros((2, 3), jnp.float32),
            session(),
            codec=fa.FixedPoint(clip=clip),
            weights="fraction",
        )
        mean, _ = streaming.finish(streaming.add_block(stream, x, session(), w))
        return jnp.sum(mean)

    with pytest.raises(ValueError, match=r"\[stream-derivative\]"):
        jax.grad(loss)(1.0)
    assert float(jax.grad(lambda v: loss(lax.stop_gradient(v)) + v)(1.0)) == 1.0


# ---- a tree of aggregators ---------------------------------------------------------------------


@protocols
def test_a_tree_of_two_levels_is_the_flat_round(protocol):
    root = start(protocol)
    edges = [streamed(blocks, streaming.edge(root)).sum for blocks in ([(6, 3)], [(0, 3), (3, 1)])]
    edges += [streamed(blocks, streaming.edge(root)).sum for blocks in ([(9, 2)], [(11, 1)])]
    left, right = streaming.merge(*edges[:2]), jax.jit(streaming.merge)(*edges[2:])
    root = streaming.merge(streaming.merge(root, right), left)
    flat = streamed([(0, 4), (6, 6)], start(protocol))
    assert_same(root.sum, flat.sum)
    assert_same(streaming.finish(root), whole(protocol, participation=lost(4, 5)))


def test_sums_with_a_client_in_common_do_not_add():
    edges = [streamed(blocks, streaming.edge(start())).sum for blocks in ([(0, 4)], [(3, 4)])]
    with pytest.raises(ValueError, match=r"client 4 of other .*\[stream-merge\]$"):
        streaming.merge(*edges)
    with pytest.raises(ValueError, match=r"\[stream-merge\]$"):
        streaming.merge(edges[0], edges[0])
    merged = jax.jit(streaming.merge)(*edges)
    assert_same((merged.words, merged.arrived), (edges[0].words, edges[0].arrived))
    assert int(merged.refused) == 1


def plain_words(first, count):
    """The partial sum of the words of a block, as ``Plain`` has it."""
    return streamed([(first, count)], streaming.edge(start())).sum.words


@pytest.mark.slow
def test_under_masks_an_edge_holds_nothing_but_masked_words():
    """What it holds changes with keys alone, where in the clear it does not."""
    root = start(MASKED)
    found = streamed([(0, 4)], streaming.edge(root)).sum
    masked = np.asarray(found.words)
    assert masked.shape == (7,)
    assert (masked != np.asarray(plain_words(0, 4))).all()
    # Small words would show: those in the clear are within four times 2^16 of zero.
    clear = np.asarray(plain_words(0, 4)).view(np.int32)
    assert (np.abs(clear) < 2**18).all()
    assert (np.abs(masked.view(np.int32).astype(np.int64)) > 2**18).sum() >= 6
    # All that there is besides is who has arrived, and a count.
    leaves = jax.tree.leaves(found)
    assert [(leaf.shape, leaf.dtype.name) for leaf in leaves] == [
        ((7,), "uint32"),
        ((N,), "bool"),
        ((), "int32"),
    ]


def test_in_the_clear_an_edge_holds_the_plain_partial_sum():
    """The control of the test above."""
    codec = fa.FixedPoint(clip=1.0, rounding="nearest", norm="linf")
    stream = streamed([(0, 4)], streaming.edge(start(codec=codec)))
    step = 1.0 / float(codec.levels)
    flat = np.concatenate([updates()["b"].reshape(N, 1), updates()["w"].reshape(N, 6)], axis=1)
    wanted = np.round(np.clip(flat[:4], -1, 1) / step).astype(np.int64).sum(axis=0)
    assert stream.sum.words.view(np.int32).tolist() == wanted.tolist()


# ---- saved and resumed -------------------------------------------------------------------------


def saved(stream):
    """The leaves of a stream as bytes."""
    file = io.BytesIO()
    np.savez(file, *jax.device_get(jax.tree.leaves(stream)))
    return file.getvalue()


def restored(data, definition):
    with np.load(io.BytesIO(data)) as file:
        return jax.tree.unflatten(definition, [jnp.asarray(file[name]) for name in file.files])


@protocols
def test_a_stream_that_ends_at_any_block_resumes_bit_for_bit(protocol):
    """Five times a new stream goes on with what the last one has saved."""
    arguments = {"protocol": protocol, "weights": "integer", "participation": lost(8)}
    blocks = [(i, 1) for i in np.random.default_rng(3).permutation(N).tolist()]
    ends = sorted(np.random.default_rng(4).choice(np.arange(1, N), 5, replace=False).tolist())
    data, done = saved(start(**arguments)), 0
    for end in [*ends, N]:
        definition = jax.tree.structure(jax.eval_shape(lambda: start(**arguments)))
        stream = restored(data, definition)
        data = saved(streamed(blocks[done:end], stream, "integer"))
        # What was added after the last save is lost with the process, and comes again.
        streamed(blocks[end : end + 1], restored(data, definition), "integer")
        done = end
    found = streaming.finish(restored(data, definition))
    assert_same(found, whole(protocol, "integer", lost(8)))


ADDS_AND_SAVES = """
import pathlib, sys, jax
from tests import test_streaming as here

file = pathlib.Path(sys.argv[1])
stream, done = here.start(weights="integer"), 0
if file.exists():
    stream = here.restored(file.read_bytes(), jax.tree.structure(stream))
    done = int(stream.sum.arrived.sum())
for first in range(done, here.N):
    stream = here.streamed([(first, 1)], stream, "integer")
    print("added", first, flush=True)
    partial = file.with_suffix(".partial")
    partial.write_bytes(here.saved(stream))
    partial.replace(file)
    print("saved", first, flush=True)
"""


@pytest.mark.slow
def test_a_process_killed_at_five_random_blocks_resumes_bit_for_bit(tmp_path):
    """Some die between adding a block and saving it, and some after."""
    file, rng = tmp_path / "stream.npz", np.random.default_rng(7)
    command = [sys.executable, "-c", ADDS_AND_SAVES, str(file)]
    lines = []
    for _ in range(5):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            lines += [process.stdout.readline().split() for _ in range(rng.integers(1, 4))]
            process.kill()
        assert process.returncode == -signal.SIGKILL
    ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    lines += [line.split() for line in ended.stdout.splitlines()]
    assert lines[-1] == ["saved", str(N - 1)]
    assert len(lines) > 2 * N - 5  # Every block was added, and was there once in the end.
    stream = restored(file.read_bytes(), jax.tree.structure(start(weights="integer")))
    assert_same(streaming.finish(stream), whole(weights="integer"))


@pytest.mark.default_dtypes
@protocols
def test_orbax_saves_a_stream_as_it_is(protocol, tmp_path):
    with ocp.CheckpointManager(tmp_path) as manager:
        stream = streamed([(0, 4)], start(protocol, "fraction"), "fraction")
        manager.save(1, args=ocp.args.StandardSave(stream))
        manager.wait_until_finished()
        restore = ocp.args.StandardRestore(start(protocol, "fraction"))
        stream = manager.restore(1, args=restore)
    found = streaming.finish(streamed([(4, 8)], stream, "fraction"))
    assert_same(found, whole(protocol, "fraction"))


def test_a_stream_prints_and_compares_as_its_configuration():
    stream = streamed([(0, 4)], start())
    for text in (repr(stream), repr(stream.sum), f"{stream}"):
        assert "redacted" in text
        assert str(int(session().secrets[0, 0])) not in text
        assert not any(str(word) in text for word in stream.sum.words.tolist())
    hash(jax.tree.structure(stream))
    assert jax.tree.structure(stream) == jax.tree.structure(start())


# ---- the program -------------------------------------------------------------------------------


def compiled(n, m=4, d=1000):
    """The program of a block of m clients, of a cohort of n."""
    part = jax.eval_shape(lambda: any_session(m))
    codec = fa.FixedPoint(clip=1.0, levels=100, max_levels=100)

    def make():
        return streaming.init(jnp.zeros(d, jnp.float32), any_session(2), codec=codec, num_clients=n)

    block = jax.ShapeDtypeStruct((m, d), jnp.float32)
    stream = jax.eval_shape(make)
    return jax.jit(streaming.add_block).lower(stream, block, part).compile().memory_analysis()


def test_memory_does_not_grow_with_the_cohort():
    small, large = compiled(1000), compiled(10**6)
    assert large.temp_size_in_bytes <= small.temp_size_in_bytes
    # The flags of a million clients are there once and not in every temporary.
    assert large.output_size_in_bytes - small.output_size_in_bytes < 8 * 10**6
    # The control: it does grow with the block.
    assert compiled(1000, m=64).temp_size_in_bytes > small.temp_size_in_bytes


def test_the_words_are_added_in_place():
    stream = start()
    words = stream.sum.words
    streaming.add_block(stream, *rows(0, 4))
    assert words.is_deleted()
    assert not stream.sum.arrived.is_deleted()


def test_blocks_of_one_size_share_one_program(monkeypatch):
    traced = []
    forward = fa.FixedPoint.forward
    monkeypatch.setattr(fa.FixedPoint, "forward", lambda *args: traced.append(1) or forward(*args))
    # A cohort of another size than in all other tests, so that nothing comes from a cache.
    n = N + 2
    stream = start(n=n)
    for first in range(0, n, 2):
        own = any_session(n).rows(first, 2)
        block = jax.tree.map(lambda x: x[first : first + 2], updates(n))  # noqa: B023
        stream = streaming.add_block(stream, block, own)
        assert len(traced) == 1
    streaming.add_block(
        start(n=n), jax.tree.map(lambda x: x[:3], updates(n)), any_session(n).rows(0, 3)
    )
    assert len(traced) == 2
