"""The device mesh: its axes, and how batches lie on it.

The axes are "data" and "fsdp". A batch is split over both; parameters and optimiser state are
split over "fsdp" (`resnet_jax.parallel.sharding`). XLA derives all communication from that.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from resnet_jax.errors import ConfigError

AXES = ("data", "fsdp")


def make_mesh(
    *, data: int = -1, fsdp: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """Arrange devices in a mesh with the axes "data" and "fsdp".

    Neighbours on an axis are neighbours on the interconnect where the platform tells. Several
    slices are connected by the slower network of the data centre: "data" goes across them.

    Args:
        data: devices along "data"; -1 takes as many as there are.
        fsdp: devices along "fsdp".
        devices: to arrange; None is all of them. In a single process `data` × `fsdp` may be
            fewer.

    Raises:
        ConfigError: so many devices don't exist, or don't make a rectangle.
    """
    devices = list(devices or jax.devices())
    have = f"the number of devices is {len(devices)} ({devices[0].device_kind})"
    if fsdp < 1 or (data == -1 and len(devices) % fsdp):
        divisors = [n for n in range(1, len(devices) + 1) if len(devices) % n == 0]
        raise ConfigError(
            f"mesh.fsdp is {fsdp}, but {have}; it can be {', '.join(map(str, divisors))}."
        )
    if data == -1:
        data = len(devices) // fsdp
    count = data * fsdp
    if not 1 <= count <= len(devices) or (jax.process_count() > 1 and count != len(devices)):
        product = f"{data} × mesh.fsdp {fsdp} = {count}" if fsdp > 1 else f"{data}"
        raise ConfigError(f"mesh.data is {product}, but {have}; use -1 for all of them.")
    slices = len({getattr(device, "slice_index", 0) for device in devices[:count]})
    if slices > 1 and data % slices:
        raise ConfigError(f"mesh.data is {data}, which {slices} slices can't share evenly.")
    if count < len(devices):
        # A part of a host's devices is no rectangle that JAX knows an order for.
        grid = np.array(devices[:count], dtype=object).reshape(data, fsdp)
    elif slices > 1:
        grid = mesh_utils.create_hybrid_device_mesh(
            (data // slices, fsdp), (slices, 1), devices[:count], allow_split_physical_axes=True
        )
    else:
        grid = mesh_utils.create_device_mesh(
            (data, fsdp), devices[:count], allow_split_physical_axes=True
        )
    return Mesh(grid, AXES)


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh, *, axis: int = 0) -> NamedSharding:
    """Sharding of an array whose dimension `axis` counts examples: split over all devices."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, AXES))


def place(tree: Any, shardings: Any) -> Any:
    """Copy arrays of the host to the devices; each process copies the parts of its own devices.

    Args:
        tree: arrays; every process has the same values.
        shardings: one for all arrays, or a tree of them.
    """

    def one(array: Any, sharding: NamedSharding) -> jax.Array:
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, sharding, lambda part: array[part])

    if isinstance(shardings, NamedSharding):
        return jax.tree.map(lambda array: one(array, shardings), tree)
    return jax.tree.map(one, tree, shardings)


def check_divisible(what: str, size: int, mesh: Mesh) -> None:
    """Refuse a batch that doesn't split evenly over the mesh.

    Raises:
        ConfigError: naming `what`, its size, and the nearest sizes that would do.
    """
    devices = mesh.size
    if size % devices:
        below = size - size % devices
        choices = f"{below} or {below + devices}" if below else str(devices)
        raise ConfigError(
            f"{what} is {size}, which {devices} devices can't share evenly; use {choices}."
        )
