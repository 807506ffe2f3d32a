"""Clients over a mesh of devices: which axes they lie along, and the round on every device.

Each device runs the loop over its own clients inside ``jax.shard_map`` and adds their words; one
``psum`` of uint32[D] adds the devices'. Words are integers, so the total is bit-identical on every
mesh. All that is small, the exchanges of keys and shares, every device computes for itself from
the same session.

Coordinates may lie over further axes. A client's update is then put together on the devices of
these axes, one client at a time, because a norm is a sum of floats whose order must not change;
what follows, rounding and masks, each device does for its part of the coordinates.

Outside of ``shard_map`` a loop over a sharded axis would still be right, but XLA would first
gather the updates of all clients, in the clear, on every device.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from fedjax_agg import _check


class CoordinateAxes(NamedTuple):
    """The further axes of a mesh that the coordinates of updates are spread over.

    Attributes:
        names: the axes, the slowest first.
        size: the number of parts that they make.
        specs: how each leaf of one update lies over them.

    Example:
        >>> CoordinateAxes(("model",), 2, (PartitionSpec(None, "model"),)).size
        2
    """

    names: tuple[str, ...]
    size: int
    specs: tuple[PartitionSpec, ...]


@dataclasses.dataclass(frozen=True)
class ClientAxes:
    """The axes of a mesh that the clients are spread over.

    Attributes:
        names: the axes, the slowest first.
        size: the number of parts that they make.
        mesh: the mesh to run on; None inside somebody's own ``shard_map``, where every device
            has its part already.
        coordinates: the axes that coordinates lie over, where they do.

    Example:
        >>> ClientAxes(("clients",), 8, None).size
        8
    """

    names: tuple[str, ...]
    size: int
    mesh: Mesh | AbstractMesh | None
    coordinates: CoordinateAxes | None = None

    @property
    def all_names(self) -> tuple[str, ...]:
        """The axes of clients and of coordinates."""
        return self.names + (() if self.coordinates is None else self.coordinates.names)


def client_axes(updates: Any, axis_name: str | tuple[str, ...] | None) -> ClientAxes | None:
    """Where the clients of these updates lie; None where they lie on one device.

    Args:
        updates: a pytree of arrays whose axis 0 is the clients.
        axis_name: the axis, or axes, of the mesh; None reads it off the arrays, which show it
            where they are concrete, or have Explicit axes. They alone show over which axes
            coordinates lie.

    Raises:
        ValueError: there is no such axis.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> client_axes(jnp.ones((2, 3)), None)
        >>> mesh = jax.make_mesh((1,), ("clients",))
        >>> rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("clients"))
        >>> client_axes(jax.device_put(jnp.ones((2, 3)), rows), None).names
        ('clients',)
    """
    context = jax.sharding.get_abstract_mesh()
    shardings = [_sharding(leaf) for leaf in jax.tree.leaves(updates)]
    shardings = [s for s in shardings if isinstance(s, NamedSharding)]
    if axis_name is None:
        for sharding in shardings:
            if len(sharding.spec) and sharding.spec[0] is not None:
                axes = _over(sharding.mesh, sharding.spec[0])
                return _with_coordinates(axes, updates)
        return None
    meshes = [context, *(sharding.mesh for sharding in shardings)]
    names = _names(axis_name)
    for mesh in meshes:
        if set(names) <= set(mesh.axis_names):
            if set(names) <= set(context.manual_axes):
                return dataclasses.replace(_over(mesh, names), mesh=None)
            return _with_coordinates(_over(mesh, names), updates)
    found = sorted({name for mesh in meshes for name in mesh.axis_names})
    raise _check.error(
        "axis-name", f"axis_name={axis_name!r}", f"of a mesh in use, with the axes {found}"
    )


def explicit_mesh(x: jax.Array) -> ClientAxes | None:
    """All axes of the mesh that the type of an array names: those of Explicit meshes only.

    What such an array meets must be of the same mesh, so a program on it runs on every device.

    Example:
        >>> import jax.numpy as jnp
        >>> explicit_mesh(jnp.ones(3)) is None
        True
    """
    over = jax.typeof(x).sharding.mesh
    if jax.sharding.AxisType.Explicit not in over.axis_types:
        return None
    return _over(over, tuple(over.axis_names))


def _sharding(leaf):
    """A concrete array has one of its own, a traced one that of its type."""
    return getattr(leaf, "sharding", None) or jax.typeof(leaf).sharding


def _names(axes) -> tuple[str, ...]:
    return axes if isinstance(axes, tuple) else (axes,)


def _with_coordinates(axes: ClientAxes, updates) -> ClientAxes:
    """The same with the axes that coordinates are seen to lie over."""
    specs = []
    for leaf in jax.tree.leaves(updates):
        sharding = _sharding(leaf)
        along = sharding.spec[1:] if isinstance(sharding, NamedSharding) else ()
        specs.append(PartitionSpec(*along))
    names = [name for spec in specs for entry in spec if entry for name in _names(entry)]
    if not names:
        return axes
    over = _over(axes.mesh, tuple(dict.fromkeys(names)))
    coordinates = CoordinateAxes(over.names, over.size, tuple(specs))
    return dataclasses.replace(axes, coordinates=coordinates)


def _over(mesh, axes) -> ClientAxes:
    names = _names(axes)
    size = 1
    for name in names:
        size *= mesh.shape[name]
    return ClientAxes(names, size, mesh)


def on_each_device(
    function: Callable[..., Any],
    axes: ClientAxes | None,
    by_client: tuple[bool, ...],
    updates: int | None = None,
) -> Callable[..., Any]:
    """``function`` on every device with its part of some arguments, and all of the others.

    Args:
        function: with ``axes``, its results must be equal on all devices.
        axes: where the clients lie.
        by_client: for each argument, whether its axis 0 is the clients.
        updates: the argument whose leaves may lie over the axes of coordinates too.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> axes = ClientAxes(("clients",), 1, jax.make_mesh((1,), ("clients",)))
        >>> total = on_each_device(
        ...     lambda x: sum_over_devices(jnp.sum(x, 0), axes, 2), axes, by_client=(True,))
        >>> total(jnp.ones((3, 2)))
        Array([3., 3.], dtype=float32)
    """
    if axes is None or axes.mesh is None:
        return function
    mesh = axes.mesh
    explicit = jax.sharding.AxisType.Explicit in mesh.axis_types

    def specs_of(index, argument):
        leaves, tree = jax.tree.flatten(argument)
        specs = [PartitionSpec(axes.names) if by_client[index] else PartitionSpec()] * len(leaves)
        if index == updates and axes.coordinates is not None:
            specs = [PartitionSpec(axes.names, *spec) for spec in axes.coordinates.specs]
        return jax.tree.unflatten(tree, specs)

    def on_mesh(*arguments):
        specs = tuple(specs_of(i, argument) for i, argument in enumerate(arguments))
        if explicit:
            # Arrays over Explicit axes are moved by a word of ours, others by the compiler.
            arguments = jax.tree.map(
                lambda x, spec: jax.reshard(x, NamedSharding(mesh, spec)), arguments, specs
            )
        mapped = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=PartitionSpec())
        return mapped(*arguments)

    return on_mesh


def clients_of_device(axes: ClientAxes | None, num_clients: int) -> int:
    """How many of the clients one device has.

    Raises:
        ValueError: they do not divide evenly.

    Example:
        >>> clients_of_device(ClientAxes(("clients",), 8, None), 64), clients_of_device(None, 64)
        (8, 64)
    """
    size = 1 if axes is None else axes.size
    if num_clients % size:
        raise _check.error("mesh-clients", f"num_clients={num_clients}", f"a multiple of {size}")
    return num_clients // size


def rows_given(axes: ClientAxes | None, num_clients: int) -> int:
    """How many rows the caller's arrays have: those of all clients, or inside somebody's own
    ``shard_map`` those of the device.

    Raises:
        ValueError: clients do not divide evenly over the devices.

    Example:
        >>> rows_given(ClientAxes(("clients",), 8, None), 64), rows_given(None, 64)
        (8, 64)
    """
    part = clients_of_device(axes, num_clients)
    return num_clients if axes is None or axes.mesh is not None else part


def first_row(axes: ClientAxes | None, num_clients: int) -> jax.Array:
    """The row in the cohort of the first client on this device: int32[].

    Example:
        >>> int(first_row(None, 4))
        0
    """
    if axes is None:
        return jnp.int32(0)
    return lax.axis_index(axes.names) * jnp.int32(clients_of_device(axes, num_clients))


def whole(update: Any, axes: ClientAxes | None) -> Any:
    """One client's update from the parts that the devices have.

    Example:
        >>> whole({"w": jnp.ones(2)}, None)["w"].shape
        (2,)
    """
    if axes is None or axes.coordinates is None:
        return update
    leaves, tree = jax.tree.flatten(update)
    for i, spec in enumerate(axes.coordinates.specs):
        for dimension, names in enumerate(spec):
            if names is not None:
                leaves[i] = lax.all_gather(leaves[i], names, axis=dimension, tiled=True)
    return jax.tree.unflatten(tree, leaves)


def own_part(x: jax.Array, axes: ClientAxes | None) -> tuple[jax.Array, jax.Array | None]:
    """The coordinates of a vector that this device does, and the first of them.

    They are as many on every device, whole blocks of 16; zeros follow the last. Where all are
    this device's the vector is as it was, and the first is None.

    Example:
        >>> own_part(jnp.arange(3), None)
        (Array([0, 1, 2], dtype=int32), None)
    """
    if axes is None or axes.coordinates is None:
        return x, None
    size = length_of_part(x.size, axes)
    start = lax.axis_index(axes.coordinates.names) * jnp.int32(size)
    padded = jnp.pad(x, (0, size * axes.coordinates.size - x.size))
    return lax.dynamic_slice_in_dim(padded, start, size), start


def length_of_part(length: int, axes: ClientAxes | None) -> int:
    """How many coordinates of a vector one device does.

    Example:
        >>> length_of_part(100, None)
        100
    """
    if axes is None or axes.coordinates is None:
        return length
    return -(-length // (16 * axes.coordinates.size)) * 16


def varying(x: jax.Array, axes: ClientAxes | None) -> jax.Array:
    """The same value, as one that may differ from device to device.

    Example:
        >>> varying(jnp.ones(2), None).tolist()
        [1.0, 1.0]
    """
    return x if axes is None else lax.pcast(x, axes.all_names, to="varying")


def sum_over_devices(part: jax.Array, axes: ClientAxes | None, length: int) -> jax.Array:
    """The vector, on every device, of which each has the part that its clients give.

    Example:
        >>> sum_over_devices(jnp.ones(2), None, 2).tolist()
        [1.0, 1.0]
    """
    if axes is None:
        return part
    if axes.coordinates is None:
        return lax.psum(part, axes.names)
    # Among zeros, so that one sum over all devices adds clients and puts parts side by side.
    start = lax.axis_index(axes.coordinates.names) * jnp.int32(part.size)
    nothing = varying(jnp.zeros(part.size * axes.coordinates.size, part.dtype), axes)
    placed = lax.dynamic_update_slice_in_dim(nothing, part, start, 0)
    return lax.psum(placed, axes.all_names)[:length]
