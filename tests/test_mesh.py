"""Clients over a mesh: the same bits on 1, 2, 4 and 8 devices, and nobody's update leaves its own.

That the result is right proves little, since XLA would gather all updates and be right too: the
compiled program is read as well.
"""

import contextlib
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import fedjax_agg as fa
from fedjax_agg import streaming
from fedjax_agg.federated import ClientData, FedAvg, train
from fedjax_agg.sharing import shamir
from fedjax_agg.symmetric.key_schedule import derive_key
from fedjax_agg.symmetric.sha256 import sha256
from tests.sessions import any_session

N = 16
MASKED = fa.SecAgg(threshold=3, degree=4)
PROTOCOLS = [fa.Plain(), pytest.param(MASKED, marks=pytest.mark.slow)]
protocols = pytest.mark.parametrize("protocol", PROTOCOLS, ids=["plain", "secagg"])
modes = pytest.mark.parametrize(
    "mode", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"]
)


def updates():
    rng = np.random.default_rng(0)
    draw = functools.partial(rng.normal, scale=0.3)
    return jax.tree.map(
        lambda shape: jnp.asarray(draw(size=(N, *shape)), jnp.float32),
        {"w": (5, 3), "b": ()},
        is_leaf=lambda x: isinstance(x, tuple),
    )


def extra():
    return {"weights": jnp.arange(N) % 4, "participation": jnp.arange(N) != 3}


def mean_of(x, session, protocol, axis_name=None, *, clip=1.0, weights=None, participation=None):
    return fa.secure_mean(
        x,
        session,
        codec=fa.FixedPoint(clip=clip),
        protocol=protocol,
        weights=weights,
        max_weight=3,
        participation=participation,
        axis_name=axis_name,
    )


@functools.cache
def on_one_device(protocol):
    return mean_of(updates(), any_session(N), protocol, **extra())


def make_mesh(devices, mode=AxisType.Auto):
    return jax.make_mesh((devices,), ("clients",), axis_types=(mode,))


def spread(x, mesh):
    return jax.device_put(x, NamedSharding(mesh, P("clients")))


def assert_same(found, wanted):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), jax.device_get(wanted))


# ---- the same bits ------------------------------------------------------------------------------


@pytest.mark.quick_cases(2)
@protocols
@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_arrays_that_are_spread_over_devices_need_no_word(devices, protocol):
    x = spread(updates(), make_mesh(devices))
    assert_same(mean_of(x, any_session(N), protocol, **extra()), on_one_device(protocol))


@protocols
@modes
def test_compiled_under_a_mesh_the_axis_is_named_or_explicit(mode, protocol):
    mesh = make_mesh(8, mode)
    name = "clients" if mode == AxisType.Auto else None
    with jax.set_mesh(mesh):
        run = jax.jit(lambda x, session: mean_of(x, session, protocol, name, **extra()))
        found = run(spread(updates(), mesh), any_session(N))
    assert_same(found, on_one_device(protocol))


@protocols
@modes
def test_inside_somebodys_own_shard_map(mode, protocol):
    """Updates and weights are those of the device, session and participation of the cohort."""
    mesh = make_mesh(4, mode)

    def mine(x, weights, session):
        there = extra()["participation"]
        return mean_of(x, session, protocol, "clients", weights=weights, participation=there)

    own = (P("clients"), P("clients"), P())
    run = jax.jit(jax.shard_map(mine, mesh=mesh, in_specs=own, out_specs=P()))
    data = spread((updates(), extra()["weights"]), mesh)
    assert_same(run(*data, any_session(N)), on_one_device(protocol))


@pytest.mark.slow
def test_sums_in_a_field_are_added_over_devices_by_limbs():
    """Elements of 31 bits would wrap if four devices added them as words."""
    protocol = fa.LightSecAgg(privacy=2, survivors=12)
    wanted = mean_of(updates(), any_session(N), fa.Plain(group=fa.arithmetic.M31()), **extra())
    found = mean_of(spread(updates(), make_mesh(4)), any_session(N), protocol, **extra())
    assert_same(found[0], wanted[0])
    assert bool(found[1].ok)


def test_two_axes_of_clients():
    mesh = jax.make_mesh((2, 4), ("hosts", "devices"))
    x = jax.device_put(updates(), NamedSharding(mesh, P(("hosts", "devices"))))
    found = mean_of(x, any_session(N), fa.Plain(), **extra())
    assert_same(found, on_one_device(fa.Plain()))
    # Spread over the slow axis alone, with a copy on each device of the other.
    x = jax.device_put(updates(), NamedSharding(mesh, P("hosts")))
    found = mean_of(x, any_session(N), fa.Plain(), **extra())
    assert_same(found, on_one_device(fa.Plain()))


def over_two_axes(mode=AxisType.Auto, clients=4, model=2):
    return jax.make_mesh((clients, model), ("clients", "model"), axis_types=(mode,) * 2)


def wide():
    """Leaves whose coordinates lie over a second axis, in front, at the end, or not at all."""
    rng = np.random.default_rng(1)
    specs = {"w": P("clients", None, "model"), "v": P("clients", "model"), "b": P("clients")}
    shapes = {"w": (3, 10), "v": (34,), "b": (5,)}
    leaves = {
        name: jnp.asarray(rng.normal(size=(N, *shape), scale=0.3), jnp.float32)
        for name, shape in shapes.items()
    }
    return leaves, specs


def spread_wide(mesh):
    leaves, specs = wide()
    return jax.tree.map(lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)), leaves, specs)


class WholeOnly(fa.Plain):
    """A protocol that has to have all words at once."""

    by_coordinate = False


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize(
    "protocol",
    [fa.Plain(), WholeOnly(), pytest.param(MASKED, marks=pytest.mark.slow)],
    ids=["plain", "whole only", "secagg"],
)
@modes
def test_coordinates_over_a_second_axis_have_the_bits_of_one_device(protocol, mode):
    """Rounding, masks and norms: those of a coordinate depend on where it is in the whole."""
    wanted = mean_of(wide()[0], any_session(N), protocol, **extra())
    assert_same(
        mean_of(spread_wide(over_two_axes(mode)), any_session(N), protocol, **extra()), wanted
    )


@pytest.mark.slow
@modes
def test_a_derivative_over_two_axes_is_that_of_one_device(mode):
    def loss(x, clip):
        mean, _ = mean_of(x, any_session(N), fa.Plain(), clip=clip, **extra())
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(mean))

    wanted = jax.grad(loss, (0, 1))(wide()[0], 0.5)
    mesh = over_two_axes(mode)
    with jax.set_mesh(mesh) if mode == AxisType.Explicit else contextlib.nullcontext():
        found = jax.grad(loss, (0, 1))(spread_wide(mesh), 0.5)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7),
        jax.device_get(found),
        jax.device_get(wanted),
    )


@pytest.mark.slow
def test_a_blind_round_and_a_stream_over_two_axes_are_those_of_one_device():
    session, codec, mesh = any_session(N), fa.FixedPoint(clip=1.0), over_two_axes()
    group, _ = fa.agree_group_key(session)
    wanted, _ = fa.blind_mean(wide()[0], session, group, codec=codec, protocol=fa.Plain())
    found, _ = fa.blind_mean(spread_wide(mesh), session, group, codec=codec, protocol=fa.Plain())
    assert_same(found.words, wanted.words)

    def streamed(x):
        one = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape[1:]), wide()[0])
        stream = streaming.init(one, session, codec=codec)
        return streaming.finish(streaming.close(streaming.add_block(stream, x, session)))[0]

    assert_same(streamed(spread_wide(mesh)), streamed(wide()[0]))


@pytest.mark.slow
@protocols
@modes
def test_the_derivative_is_that_of_one_device(mode, protocol):
    """In updates, weights and clip, in reverse and forward mode."""
    there, weights = extra()["participation"], jnp.linspace(0, 1, N)
    session, x = any_session(N), updates()

    def loss(x, weights, clip):
        mean, _ = mean_of(x, session, protocol, clip=clip, weights=weights, participation=there)
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(mean))

    grad = jax.grad(loss, (0, 1, 2))
    wanted = grad(x, weights, 0.5)
    direction = jax.tree.map(jnp.ones_like, (x, weights, 0.5))
    mesh = make_mesh(8, mode)
    with jax.set_mesh(mesh) if mode == AxisType.Explicit else contextlib.nullcontext():
        spread_out = spread((x, weights), mesh)
        found = grad(*spread_out, 0.5)
        _, slope = jax.jvp(
            lambda x, weights: loss(x, weights, 0.5), spread_out, spread(direction[:2], mesh)
        )
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7),
        jax.device_get(found),
        jax.device_get(wanted),
    )
    _, expected = jax.jvp(lambda *a: loss(*a, 0.5), (x, weights), direction[:2])
    np.testing.assert_allclose(jax.device_get(slope), expected, rtol=1e-5)


@pytest.mark.slow
@protocols
@modes
def test_a_blind_round_is_that_of_one_device(mode, protocol):
    session, codec = any_session(N), fa.FixedPoint(clip=1.0)
    group, _ = fa.agree_group_key(session)
    run = functools.partial(fa.blind_mean, codec=codec, protocol=protocol, max_weight=3, **extra())
    wanted, _ = run(updates(), session, group)
    found, _ = run(spread(updates(), make_mesh(8, mode)), session, group)
    assert_same(found.words, wanted.words)
    (mean, ok), (expected, _) = (
        fa.open_blind(jax.device_get(blinded), group.keys[0], codec=codec)
        for blinded in (found, wanted)
    )
    assert ok
    assert_same(mean, expected)


def averaging(length):
    """FedAvg of quadratics in dyadic numbers, in which local training is exact, and its data."""
    targets = np.random.default_rng(2).integers(-4, 5, (N, 4, length)) / 4
    data = ClientData(jnp.asarray(targets, jnp.float32), jnp.arange(N, dtype=jnp.int32) % 5)

    def loss(params, batch):
        return 0.5 * jnp.sum((params[None] - batch) ** 2, axis=-1)

    return FedAvg(loss, optax.sgd(0.5), codec=fa.FixedPoint(clip=64.0), batch_size=2), data


@pytest.mark.slow
def test_a_federated_run_is_that_of_one_device():
    algorithm, data = averaging(8)
    start = algorithm.init(jnp.zeros(8))

    def run(data, axis_name=None):
        return train(
            algorithm,
            start,
            data,
            fa.fixed_seed(0),
            num_rounds=2,
            dropout=0.25,
            axis_name=axis_name,
        )

    wanted = run(data)
    mesh = make_mesh(8)
    with jax.set_mesh(mesh):
        found = jax.jit(lambda data: run(data, "clients"))(spread(data, mesh))
    assert_same(found, wanted)
    assert jnp.any(wanted[0].params != 0)


@pytest.mark.parametrize("what", ["digest", "key", "secret"])
def test_cryptography_of_what_lies_over_a_mesh(what):
    """Inside somebody's own ``shard_map``, of rows that differ from device to device."""
    zeros, rows = jnp.zeros(8, jnp.uint32), jnp.arange(64, dtype=jnp.uint32).reshape(8, 8)

    def digest(row):
        return sha256(row.astype(jnp.uint8))

    def key(row):
        return derive_key(row, "purpose", salt=zeros, round_id=7)

    def secret(row):
        return shamir.reconstruct(row.reshape(4, 2), jnp.array([True, True, False, True]))

    function = jax.vmap({"digest": digest, "key": key, "secret": secret}[what])
    over = P("clients")
    spread_out = jax.shard_map(function, mesh=make_mesh(4), in_specs=over, out_specs=over)
    np.testing.assert_array_equal(jax.jit(spread_out)(rows), function(rows))


# ---- the program --------------------------------------------------------------------------------

D = 1000
# The result of one collective is an array or a tuple of several.
COLLECTIVE = re.compile(
    r"= (\S+|\(.*?\)) "
    r"(all-reduce|all-gather|all-to-all|collective-permute|collective-broadcast|reduce-scatter)"
    r"(?:-start)?\("
)
ARRAY = re.compile(r"\w+\[[\d,]*\]")
TRIPS = re.compile(r"known_trip_count[^0-9]*(\d+)")


def compiled(function, mesh, clients=88):
    """The program of a round of ``clients`` that are spread over a mesh."""
    rows = jax.ShapeDtypeStruct(
        (clients, D), jnp.float32, sharding=NamedSharding(mesh, P("clients"))
    )
    session = jax.eval_shape(lambda: any_session(clients))
    return jax.jit(function).lower(rows, session).compile()


def collectives(program):
    return [
        (match[2], array)
        for match in COLLECTIVE.finditer(program.as_text())
        for array in ARRAY.findall(match[1])
    ]


def trip_counts(program):
    return {int(count) for count in TRIPS.findall(program.as_text())}


@protocols
def test_one_all_reduce_of_words_and_no_other_traffic(protocol):
    codec = fa.FixedPoint(clip=1.0)

    def run(x, session):
        return fa.secure_mean(x, session, codec=codec, protocol=protocol, axis_name="clients")

    one, eight = compiled(run, make_mesh(1)), compiled(run, make_mesh(8))
    assert collectives(eight) == [("all-reduce", f"u32[{D}]")]
    # The loop over clients: eleven on each device, and on one device all 88.
    assert {11} <= trip_counts(eight) - trip_counts(one)
    assert 88 in trip_counts(one)
    # The exchanges of SecAgg, which are small, every device computes for all clients.
    assert (88 in trip_counts(eight)) == (protocol == MASKED)
    memory = [program.memory_analysis() for program in (one, eight)]
    arguments = [sizes.argument_size_in_bytes for sizes in memory]
    # An eighth of the updates; the rest, the session above all, is the same on every device.
    assert arguments[0] - arguments[1] == 4 * D * (88 - 11)
    assert memory[1].temp_size_in_bytes <= memory[0].temp_size_in_bytes + 4 * 4 * D


@pytest.mark.parametrize("named", [True, False], ids=["named", "left to XLA"])
def test_clients_train_where_they_are(named):
    """One all-reduce, of words, in a round of local training; the control gathers updates."""
    algorithm, data = averaging(D)
    mesh = make_mesh(8)

    def step(data, session):
        state = algorithm.init(jnp.zeros(D, jnp.float32))
        name = "clients" if named else None
        return algorithm.step(state, data, session, axis_name=name)[0]

    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=NamedSharding(mesh, P("clients"))
        ),
        data,
    )
    with jax.set_mesh(mesh):
        found = collectives(jax.jit(step).lower(shapes, any_session(N)).compile())
    # With three metrics and the total weight.
    assert (found == [("all-reduce", f"u32[{D + 4}]")]) == named, found


@pytest.mark.parametrize(
    "protocol", [fa.Plain(), pytest.param(MASKED, marks=pytest.mark.slow)], ids=["plain", "secagg"]
)
def test_of_two_axes_updates_are_put_together_one_client_at_a_time(protocol):
    """One all-reduce of words; what is gathered is one update, among the devices that share it."""
    mesh, codec, d, n = over_two_axes(AxisType.Explicit), fa.FixedPoint(clip=1.0), 2**16, 88

    def run(x, session):
        return fa.secure_mean(x, session, codec=codec, protocol=protocol)

    over = NamedSharding(mesh, P("clients", "model"))
    rows = jax.ShapeDtypeStruct((n, d), jnp.float32, sharding=over)
    with jax.set_mesh(mesh):
        session = jax.eval_shape(lambda: any_session(n))
        program = jax.jit(run).lower(rows, session).compile()
    found = collectives(program)
    assert [each for each in found if each[0] == "all-reduce"] == [("all-reduce", f"u32[{d}]")]
    gathered = {size for kind, size in found if kind != "all-reduce"}
    assert gathered <= {f"f32[{d}]", f"f32[1,{d}]"}, found
    assert all(kind in ("all-reduce", "all-gather") for kind, _ in found)
    assert n // 4 in trip_counts(program)
    if protocol == fa.Plain():
        # An eighth of the updates, and four vectors.
        sizes = program.memory_analysis()
        assert sizes.argument_size_in_bytes < 4 * d * n / 8 + 128 * n
        assert sizes.temp_size_in_bytes < 4 * 4 * d


def test_without_shard_map_every_update_goes_to_every_device():
    """The control: a loop over a sharded axis gathers them all, and is right all the same."""
    mesh = make_mesh(8)

    def run(x, session):
        words = lax.map(lambda row: jnp.round(row * 100).astype(jnp.int32), x)
        return jnp.sum(words, axis=0)

    found = collectives(compiled(run, mesh))
    assert any(kind == "all-gather" for kind, _ in found), found
