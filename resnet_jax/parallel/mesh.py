"""The device mesh: its axes, and the sharding of batches.

The axes are "data" and "fsdp". A batch is split over both; parameters and optimiser state are
split over "fsdp" (`resnet_jax.parallel.sharding`). XLA derives all communication from the
shardings.
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

    Neighbours on a mesh axis are neighbours on the interconnect, where the platform reports its
    topology. Several slices are connected by the slower data-centre network, so the axis "data"
    spans the slices.

    Args:
        data: number of devices along "data"; -1 uses all remaining devices.
        fsdp: number of devices along "fsdp".
        devices: devices to arrange; None uses all devices. With a single process, `data` × `fsdp`
            may be smaller than the number of devices.

    Raises:
        ConfigError: the devices can't form a mesh of this shape.
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
        raise ConfigError(f"mesh.data is {data}, which isn't divisible by {slices} slices.")
    if count < len(devices):
        # JAX orders only complete sets of devices by their topology.
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
    """Sharding of an array of which every device holds a full copy."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, *, axis: int = 0) -> NamedSharding:
    """Sharding of an array whose dimension `axis` is the batch: split over all devices."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, AXES))


def put_global(tree: Any, shardings: Any) -> Any:
    """Make global arrays from host arrays; each process copies the shards of its own devices.

    Args:
        tree: arrays on the host; every process has the same values.
        shardings: one sharding for all arrays, or a tree of shardings.
    """

    def put(array: Any, sharding: NamedSharding) -> jax.Array:
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    if isinstance(shardings, NamedSharding):
        return jax.tree.map(lambda array: put(array, shardings), tree)
    return jax.tree.map(put, tree, shardings)


def check_divisible(what: str, size: int, mesh: Mesh) -> None:
    """Check that a batch splits evenly over the mesh.

    Raises:
        ConfigError: it doesn't. The message names `what`, its size and the nearest valid sizes.
    """
    devices = mesh.size
    if size % devices:
        below = size - size % devices
        choices = f"{below} or {below + devices}" if below else str(devices)
        raise ConfigError(
            f"{what} is {size}, which isn't divisible by {devices} devices; use {choices}."
        )
