"""The program of a round: what may depend on whom, no 64-bit type, no retrace, a fixed size."""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import fedjax_agg as fa
from fedjax_agg.symmetric.chacha20 import keystream
from fedjax_agg.wire import Upload
from tests import taint
from tests.parties import QUICKLY
from tests.sessions import any_session

N = 4
P = jax.sharding.PartitionSpec


def make_session(number=0):
    return any_session(N, number)


def updates(seed=0, n=N):
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=(n, *shape)), jnp.float32)

    return {"w": draw(3, 2), "b": draw(), "h": draw(2).astype(jnp.bfloat16)}


def walk_clients(function, x, **options):
    """The walk of a function of one array of clients."""
    return taint.walk(function, x, taints=[taint.CLIENT_ROWS], **options)


def walk_round(function, **options):
    """The walk of ``function(updates, session, weights, clip, levels, participation)``."""
    session = make_session()
    ranges = (jnp.float32(1), jnp.float32(99))
    arguments = (updates(), session, jnp.ones(N), *ranges, jnp.ones(N, bool))
    taints = [taint.CLIENT_ROWS, taint.session_taint(session), taint.CLIENT_ROWS]
    return taint.walk(function, *arguments, taints=taints + [taint.PUBLIC] * 3, **options)


def round_of(aggregate, protocol, weighted=True, **codec):
    def run(x, session, weights, clip, levels, participation):
        return aggregate(
            x,
            session,
            codec=fa.FixedPoint(clip, levels, **codec),
            protocol=protocol,
            weights=weights if weighted else None,
            participation=participation,
        )

    return run


# ---- who depends on whom ------------------------------------------------------------------------


MORE_CASES = [
    (fa.secure_mean, "l2", "stochastic", False),
    (fa.secure_mean, "l2", "nearest", True),
    (fa.secure_mean, "linf", "stochastic", True),
    (fa.secure_mean, "linf", "nearest", True),
    (fa.secure_sum, "l2", "stochastic", False),
    (fa.secure_sum, "l2", "stochastic", True),
]


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("protocol", [fa.Plain(), fa.SecAgg()], ids=["plain", "secagg"])
@pytest.mark.parametrize(
    ("aggregate", "norm", "rounding", "weighted"),
    [
        (fa.secure_mean, "l2", "stochastic", True),
        (fa.secure_mean, "linf", "nearest", False),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE_CASES),
    ],
)
def test_no_float_ever_mixes_clients(protocol, aggregate, norm, rounding, weighted):
    """Clients meet in integers only, under SecAgg in masked integers only, and no secret comes
    out other than through messages."""
    masked = isinstance(protocol, fa.SecAgg)
    run = round_of(aggregate, taint.Marked(protocol), weighted, norm=norm, rounding=rounding)
    result = walk_round(run, masks_required=masked)
    assert result.violations == []
    value, report = result.outputs
    # The walk followed the data all the way: a lost taint would show as "none".
    assert {t.level for t in jax.tree.leaves(value, is_leaf=taint.is_taint)} == {taint.MANY}
    assert report.total_weight.level == (taint.MANY if weighted else taint.NONE)
    assert keys_of(result.outputs) == set()
    assert {"jit", "custom_jvp_call", "scan"} <= result.entered
    # Keystreams are one, and so are the compressions of the keys that rounding draws from.
    assert ("custom_vmap_call" in result.entered) == (masked or rounding == "stochastic")


def keys_of(outputs):
    """The private keys that show in any output."""
    leaves = jax.tree.leaves(outputs, is_leaf=taint.is_taint)
    return set().union(*(t.keys for t in leaves))


class Bare(fa.SecAgg):
    """Everything but the mask."""

    def protect(self, words, private, ctx):
        return Upload(words)


class PublicMask(fa.SecAgg):
    """A mask from what everybody knows."""

    def protect(self, words, private, ctx):
        mask = keystream(ctx.board.keys.mask[0], jnp.zeros(3, jnp.uint32), words.shape[0])
        return Upload(words + mask)


@pytest.mark.slow
def test_walk_catches_a_protocol_without_masks():
    for protocol in (fa.Plain(), Bare(), PublicMask()):
        run = round_of(fa.secure_mean, taint.Marked(protocol), rounding="nearest")
        result = walk_round(run, masks_required=True)
        assert any("mixes unmasked integers" in violation for violation in result.violations)


class PeekingServer(fa.SecAgg):
    """Looks over the dealer's shoulder at what the clients hold, or at the handles."""

    def deal(self, board, agreement, private, ctx):
        seen = private.self_seed[0] if self.min_survivors is None else agreement[0, 1]
        object.__setattr__(self, "seen", seen)
        return super().deal(board, agreement, private, ctx)

    def recover(self, uploads, mail, ctx):
        total = super().recover(uploads, mail, ctx)
        return total._replace(words=total.words + self.seen[0])


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    ("protocol", "shown"),
    [
        (fa.SecAgg(), set()),
        (PeekingServer(), {"secret"}),
        (PeekingServer(min_survivors=2), {"pair"}),
    ],
    ids=["honest", "a client's seed", "a handle"],
)
def test_walk_shows_what_reaches_the_result_past_the_messages(protocol, shown):
    run = round_of(fa.secure_mean, taint.Marked(protocol), rounding="nearest")
    result = walk_round(run, masks_required=True)
    assert result.violations == []
    assert keys_of(result.outputs) == shown


@pytest.mark.slow
def test_secrets_do_reach_the_result_through_messages():
    """The control: where nobody says what is a message, all of them show."""
    assert keys_of(walk_round(round_of(fa.secure_mean, fa.SecAgg())).outputs) == {"pair", "secret"}


def plain_mean(x):
    return jnp.mean(x, 0)


def secure(x):
    return fa.secure_mean(x, make_session(), codec=fa.FixedPoint(1.0))[0]


def straight_through(x):
    return plain_mean(x) + lax.stop_gradient(secure(x) - plain_mean(x))


def straight_through_per_client(x):
    return x + lax.stop_gradient(secure(x)[None] - x)


def matrix_product(x):
    return jnp.ones(x.shape[0], x.dtype) @ x


def float_scan(x):
    return lax.scan(lambda total, row: (total + row, None), jnp.zeros(x.shape[1:]), x)[0]


def float_while(x):
    def body(state):
        i, total = state
        return i + 1, total + lax.dynamic_index_in_dim(x, i, keepdims=False)

    return lax.while_loop(lambda state: state[0] < N, body, (jnp.int32(0), jnp.zeros(3)))[1]


def two_rows(x):
    return x[0] + x[1]


def neighbours(x):
    return x[1:] - x[:-1]


def reversed_rows(x):
    return x * x[::-1]


def largest_row(x):
    return jnp.max(x, 0)


def which_is_largest(x):
    return jnp.argmax(x, 0)


def a_delayed_row(x):
    """Adds two carries, one of which lags behind the other."""

    def body(state, row):
        _, newer = state
        return (newer, row), state[0] + state[1]

    return lax.scan(body, (jnp.zeros(3), jnp.zeros(3)), x)[1]


def one_client_decides(x):
    """The trip count depends on client 0, the value on client 1."""
    return lax.while_loop(lambda s: s[0] < x[0, 0], lambda s: (s[0] + 1, s[1] * 2), (0.0, x[1]))[1]


MUTANTS = [
    straight_through,
    straight_through_per_client,
    matrix_product,
    plain_mean,
    float_scan,
    float_while,
    two_rows,
    neighbours,
    reversed_rows,
    largest_row,
    which_is_largest,
    a_delayed_row,
    one_client_decides,
]


@pytest.mark.parametrize("mutant", MUTANTS)
def test_walk_catches_floats_that_mix_clients(mutant):
    result = walk_clients(mutant, jnp.ones((N, 3)))
    assert any("floats of several clients" in violation for violation in result.violations)


@jax.custom_jvp
def mean_with_jvp(x):
    return plain_mean(x)


@jax.custom_vjp
def mean_with_vjp(x):
    return plain_mean(x)


@jax.custom_batching.custom_vmap
def mean_with_vmap(x):
    return plain_mean(x)


mean_with_jvp.defjvp(lambda primals, tangents: (plain_mean(*primals), plain_mean(*tangents)))
mean_with_vmap.def_vmap(lambda size, batched, x: (jax.vmap(plain_mean)(x), True))
mean_with_vjp.defvjp(lambda x: (plain_mean(x), None), lambda _, cotangent: (cotangent[None],))
HIDING_PLACES = {
    "jit": jax.jit(plain_mean),
    "custom_jvp_call": mean_with_jvp,
    "custom_vjp_call": mean_with_vjp,
    "custom_vmap_call": mean_with_vmap,
    "remat2": jax.checkpoint(plain_mean),
    "cond": lambda x: lax.cond(True, lambda x: x[0], plain_mean, x),
    "cond (switch)": lambda x: lax.switch(1, [lambda x: x[0], lambda x: x[1], plain_mean], x),
    "cond (platform)": lambda x: lax.platform_dependent(x, tpu=plain_mean, default=lambda x: x[0]),
    "scan": lambda x: lax.scan(lambda c, _: (plain_mean(x), None), x[0], None, length=1)[0],
    "while": lambda x: lax.while_loop(lambda c: c[0] < 0, lambda c: plain_mean(x), x[0]),
    "while (condition)": lambda x: lax.while_loop(
        lambda c: plain_mean(x)[0] < 0, lambda c: c, jnp.zeros(3)
    ),
}


@pytest.mark.parametrize("place", HIDING_PLACES)
def test_walk_enters_every_sub_jaxpr(place):
    """A float mean is found wherever it hides, also in a branch that never runs."""
    result = walk_clients(HIDING_PLACES[place], jnp.ones((N, 3)))
    assert place.split()[0] in result.entered
    assert any("floats of several clients" in violation for violation in result.violations)


def test_walk_refuses_a_higher_order_primitive_that_it_does_not_know():
    def solve(x):
        return lax.custom_linear_solve(lambda v: 2 * v, x, lambda _, b: b / 2)

    with pytest.raises(NotImplementedError, match="custom_linear_solve"):
        walk_clients(solve, jnp.ones((N, 3)))


def last_row(x):
    """A loop that overwrites its carry keeps one client's row."""

    def body(i, _):
        return lax.dynamic_index_in_dim(x, i, keepdims=False)

    return lax.fori_loop(0, N, body, jnp.zeros(3))


def rows_written_one_by_one(x):
    def body(i, rows):
        row = lax.dynamic_index_in_dim(x, i, keepdims=False)
        return lax.dynamic_update_index_in_dim(rows, jnp.sin(row) * row[0], i, 0)

    return lax.fori_loop(0, N, body, jnp.zeros((N, 3))) * x


def rows_scanned(x):
    return lax.scan(lambda _, row: (None, row * row[::-1]), None, x)[1] + x


@pytest.mark.parametrize(
    ("function", "level"),
    [
        (lambda x: jax.vmap(lambda row: row / jnp.linalg.norm(row))(x) + x, taint.ROWS),
        (lambda x: x @ jnp.ones((3, 5)), taint.ROWS),
        (lambda x: (x.T * 2).reshape(3, 1, N)[2, 0], taint.ROWS),
        (rows_written_one_by_one, taint.ROWS),
        (rows_scanned, taint.ROWS),
        (lambda x: x[1] * x[1], taint.ONE),
        (lambda x: jnp.take(x, 2, axis=0) + 1.0, taint.ONE),
        (last_row, taint.ONE),
        (lambda x: x[::-1] * 2, taint.ALONE),
        (lambda x: jnp.sum(x.astype(jnp.int32), 0).astype(jnp.float32), taint.MANY),
        (lambda x: jnp.zeros_like(x) + x.shape[0], taint.NONE),
    ],
)
def test_walk_accepts_what_each_client_computes_alone(function, level):
    """The walk tells one client from many: it does not refuse everything."""
    result = walk_clients(function, jnp.ones((N, 3)))
    assert result.violations == []
    assert result.outputs.level == level


def test_walk_sees_a_float_psum_over_a_mesh_of_clients():
    mesh = jax.make_mesh((8,), ("clients",), axis_types=(jax.sharding.AxisType.Auto,))

    def across(local):
        return jax.shard_map(
            lambda x: lax.psum(local(x), "clients"), mesh=mesh, in_specs=P("clients"), out_specs=P()
        )

    x = jnp.ones((8, 3))
    floats = walk_clients(across(lambda x: x[0]), x)
    assert any("psum" in violation for violation in floats.violations)
    words = walk_clients(across(lambda x: jnp.round(x[0]).astype(jnp.int32)), x)
    assert words.violations == []
    assert words.outputs.level == taint.MANY
    assert "shard_map" in floats.entered & words.entered


def toy_round(mask_first, subtract=True, reveal=False):
    """Words of clients and masks that cancel, in the right and in the wrong order."""

    def run(x, session):
        words = jnp.round(x).astype(jnp.uint32)
        keys = session.agreement[:, 1, :3] * jnp.arange(1, N + 1, dtype=jnp.uint32)[:, None]
        masks = keys - jnp.roll(keys, 1, 0) if subtract else jnp.zeros_like(keys)
        if mask_first:
            total = jnp.sum(taint.message(words + masks), 0, dtype=jnp.uint32)
        else:
            total = jnp.sum(words, 0, dtype=jnp.uint32) + jnp.sum(masks, 0, dtype=jnp.uint32)
        if reveal:
            total = total + session.secrets[0, :3]
        return total.astype(jnp.float32)

    session = make_session()
    return taint.walk(
        run,
        jnp.ones((N, 3)),
        session,
        taints=[taint.CLIENT_ROWS, taint.session_taint(session)],
        masks_required=True,
    )


def test_walk_wants_masks_on_before_words_are_summed():
    assert toy_round(mask_first=True).violations == []
    unmasked = toy_round(mask_first=False).violations
    assert any("reduce_sum mixes unmasked integers" in violation for violation in unmasked)
    # Zeros that come from no key are no masks.
    assert toy_round(mask_first=True, subtract=False).violations != []


def test_walk_shows_a_secret_that_reaches_the_result_past_the_uploads():
    assert toy_round(mask_first=True).outputs.keys == frozenset()
    assert toy_round(mask_first=True, reveal=True).outputs.keys == {"secret"}
    assert toy_round(mask_first=False).outputs.keys == {"pair"}


# ---- no 64-bit type -----------------------------------------------------------------------------


def wide_types(jaxpr):
    variables = [v for eqn in taint.equations(jaxpr) for v in (*eqn.invars, *eqn.outvars)]
    return {str(v.aval) for v in variables if getattr(v.aval, "dtype", np.dtype(bool)).itemsize > 4}


@pytest.mark.default_dtypes
@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("protocol", [fa.Plain(), fa.SecAgg()], ids=["plain", "secagg"])
def test_no_64_bit_type(protocol):
    """Neither in the round nor in its derivative. Keys of jax.random would be 64 bits wide too."""
    run = round_of(fa.secure_mean, protocol)
    arguments = (updates(), make_session(), jnp.ones(N), jnp.float32(1), 99.0, jnp.ones(N, bool))
    assert wide_types(jax.make_jaxpr(run)(*arguments)) == set()
    gradient = jax.grad(lambda *a: run(*a)[0]["b"], argnums=(0, 2, 3))
    assert wide_types(jax.make_jaxpr(gradient)(*arguments)) == set()
    with jax.enable_x64(True):  # the control
        wide = jax.make_jaxpr(jax.jit(lambda x: x.astype(jnp.float64)))(jnp.float32(1))
    assert wide_types(wide) == {"float64[]"}


@pytest.mark.slow
def test_no_data_becomes_64_bits_wide_under_x64():
    """With x64 on, loop counters and positions are int64. Updates, words and keys are not, and
    the result has the same bits."""
    run = round_of(fa.secure_mean, fa.SecAgg())
    ranges = (jnp.float32(1), jnp.float32(99))
    arguments = (updates(), make_session(), jnp.ones(N), *ranges, jnp.ones(N, bool))
    expected = jax.jit(run, compiler_options=QUICKLY)(*arguments)
    with jax.enable_x64(True):
        found = jax.jit(run, compiler_options=QUICKLY)(*arguments)
        marked = round_of(fa.secure_mean, taint.Marked(fa.SecAgg()))
        result = walk_round(marked, masks_required=True)
        control = walk_clients(lambda x: x.astype(jnp.float64) * 2, arguments[0]["w"])
    assert result.violations == []
    assert result.wide == []
    assert control.wide != []
    assert jax.tree.map(lambda x: x.dtype, found) == jax.tree.map(lambda x: x.dtype, expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


# ---- no retrace, no growth ----------------------------------------------------------------------


@pytest.mark.slow
def test_one_trace_for_all_rounds():
    """Round, seed, participation, weights, clip, levels, learning rate: all change, no retrace."""
    traces = []

    def rule(clip, levels, rate):
        codec = fa.FixedPoint(clip, levels)
        aggregate = fa.secure_aggregate(codec, fa.SecAgg(), num_clients=N, max_weight=100)
        return fa.apply_if_ok(aggregate, optax.adam(rate))

    @functools.partial(jax.jit, compiler_options=QUICKLY)
    def step(params, state, grads, seed, round_id, alive, weights, clip, levels, rate):
        traces.append(1)
        session = fa.simulated_session(seed, num_clients=N, round_id=round_id)
        extra = {"session": session, "participation": alive, "weights": weights}
        with jax.numpy_dtype_promotion("standard"):
            change, state = rule(clip, levels, rate).update(grads, state, params, **extra)
        return optax.apply_updates(params, change), state

    params = {"w": jnp.zeros(3)}
    state = rule(1.0, 1, 0.1).init(params)
    for r in range(4):
        params, state = step(
            params,
            state,
            {"w": jnp.full((N, 3), 0.1 * r + 0.1)},
            fa.fixed_seed(r),
            jnp.uint32(7 * r),
            jnp.arange(N) != (2 if r == 1 else N),
            jnp.arange(N) + r,
            jnp.float32(1 + r),
            jnp.float32(100 * r + 100),
            jnp.float32(0.1 / (r + 1)),
        )
        assert bool(state.aggregate.report.ok) == (r != 1)
    assert int(state.inner[0].count) == 3
    assert len(traces) == 1
    # The control: fractional weights are another program.
    ranges = [jnp.float32(1)] * 3
    grads, alive = {"w": jnp.ones((N, 3))}, jnp.ones(N, bool)
    step.trace(params, state, grads, fa.fixed_seed(0), jnp.uint32(0), alive, jnp.ones(N), *ranges)
    assert len(traces) == 2


def compilations(caplog, function):
    caplog.clear()
    with jax.log_compiles(True), caplog.at_level(logging.DEBUG):
        jax.block_until_ready(function())
    return [r.getMessage() for r in caplog.records if r.getMessage().startswith("Compiling")]


@pytest.mark.slow
def test_eager_calls_compile_once(caplog):
    """Without jit around it, a second round with other numbers compiles nothing at all."""
    x = updates(1)

    def call(number, protocol=fa.SecAgg(), **codec):
        return fa.secure_mean(
            x,
            make_session(number),
            codec=fa.FixedPoint(1.0 + number, 100 + number, rounding="nearest", **codec),
            protocol=protocol,
            weights=jnp.arange(N) + number,
            participation=jnp.arange(N) >= number,
        )

    call(0)
    assert compilations(caplog, lambda: call(1)) == []
    assert compilations(caplog, lambda: call(1, fa.Plain())) != []
    # The control: what is static is another program.
    assert compilations(caplog, lambda: call(1, fa.Plain(), max_levels=999)) != []


def traced_round(protocol, n, d, weighted=True):
    session = jax.eval_shape(
        functools.partial(fa.simulated_session, num_clients=n), fa.fixed_seed(0)
    )
    run = round_of(fa.secure_mean, protocol, weighted)
    alive = jax.ShapeDtypeStruct((n,), jnp.bool_)
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in [(n, d), (n,), (), ()]]
    return jax.jit(run).trace(shapes[0], session, *shapes[1:], alive)


def equations(traced):
    return sum(1 for _ in taint.equations(traced.jaxpr))


def program_size(*arguments, **options):
    return equations(traced_round(*arguments, **options))


def what_is_compiled(traced):
    """How many functions and how many lines the compiler is given, before it does anything."""
    text = traced.lower().as_text()
    return text.count("func.func"), len(text.splitlines())


@pytest.mark.slow
def test_as_much_is_compiled_for_a_hundred_clients_as_for_eight():
    """Time to compile cannot grow unseen. What there is more is the longer form of a hash, which is
    for many inputs, and copies of functions for another shape, of arrays that have one shape in a
    small cohort, and a loop over parts where there are more than 4096 of anything."""
    few, many = (traced_round(fa.SecAgg(), n, 5) for n in (8, 104))
    assert equations(many) < 1.25 * equations(few)
    for small, large in zip(what_is_compiled(few), what_is_compiled(many)):
        assert large < 1.25 * small

    def one_by_one(rows):  # the control
        return sum(jax.jit(jnp.sin)(row) for row in rows)

    few, many = (jax.jit(one_by_one).trace(jnp.zeros((n, 5))) for n in (8, 104))
    assert equations(many) > 5 * equations(few)
    assert what_is_compiled(many)[1] > 5 * what_is_compiled(few)[1]


@pytest.mark.slow
@pytest.mark.parametrize("protocol", [fa.Plain(), fa.SecAgg()], ids=["plain", "secagg"])
def test_program_grows_neither_with_clients_nor_with_coordinates(protocol):
    # Numbers of clients that leave the same rest when they are packed into bytes and vectors, and
    # that are many to every hash, which has a smaller program for few.
    size = program_size(protocol, 531, 5)
    assert size == program_size(protocol, 1043, 5) == program_size(protocol, 531, 10**6)
    assert size >= program_size(protocol, 19, 5)
    # The control: a program that differs in one operand does not have the same size.
    assert size != program_size(protocol, 531, 5, weighted=False)


@pytest.mark.slow
def test_program_does_not_grow_with_neighbours():
    # Degrees that leave the same rest in bytes and vectors, and one in the parts of hashes.
    few, many = (program_size(fa.SecAgg(degree=k), 403, 5) for k in (22, 118))
    assert few == many
