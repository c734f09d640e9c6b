"""The device mesh and how arrays lie on it.

Today there is one axis, "data": batches are split over it, everything else is replicated. XLA
derives all communication from these shardings.
"""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from resnet_jax.errors import ConfigError


def make_mesh(*, data: int = -1) -> Mesh:
    """Arrange devices in a mesh with the axis "data".

    Args:
        data: number of devices; -1 takes all of them. In a single process it may be fewer.

    Raises:
        ConfigError: there aren't so many devices.
    """
    devices = jax.devices()
    count = len(devices) if data == -1 else data
    if not 1 <= count <= len(devices) or (jax.process_count() > 1 and count != len(devices)):
        raise ConfigError(
            f"mesh.data is {data}, but the number of devices is {len(devices)}"
            f" ({devices[0].device_kind}); use -1 for all of them."
        )
    return Mesh(np.asarray(devices[:count]), ("data",))


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of parameters, optimiser state and data sets that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh, *, axis: int = 0) -> NamedSharding:
    """Sharding of an array whose dimension number `axis` is split over the "data" devices."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))


def check_divisible(what: str, size: int, mesh: Mesh) -> None:
    """Refuse a batch that doesn't split evenly over the mesh.

    Raises:
        ConfigError: naming `what`, its size, and the nearest sizes that would do.
    """
    devices = mesh.shape["data"]
    if size % devices:
        below = size - size % devices
        choices = f"{below} or {below + devices}" if below else str(devices)
        raise ConfigError(
            f"{what} is {size}, which {devices} devices can't share evenly; use {choices}."
        )
