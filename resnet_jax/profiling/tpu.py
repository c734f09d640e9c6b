"""TPU slices as targets of XLA's TPU compiler, which runs on any host with libtpu."""

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Sequence
from typing import Any, ClassVar

from resnet_jax.errors import UsageError
from resnet_jax.profiling.interconnect import Path
from resnet_jax.utils.distribution import install_hint

EXTRA = "tpu"

HOP_S = 1e-6
"""Seconds for one hop between neighbouring chips: "1us per hop" in "How to Scale Your Model"
(Austin et al. 2025), section on sharding."""


@dataclasses.dataclass(frozen=True)
class Chip:
    """A generation of TPUs: what its data sheet says of one chip.

    Attributes:
        name: as in the name of a slice.
        kind: JAX's `device_kind`.
        devices: JAX devices per chip; several share what follows evenly.
        limit_gib: memory that libtpu 0.0.42's compiler gives a program on *one device*.
        hbm_gb_per_s: bandwidth of the memory, 10⁹ bytes per second.
        bf16_tflop_per_s: peak, 10¹² operations per second; a multiply-add is two.
        axis_gb_per_s: bandwidth of the interconnect along one axis of the torus, both directions.
        wraps: an axis closes to a ring if its length is a multiple of this.
        slices: the usual layouts, the smallest first.
        config: libtpu's name for the way in which its cores are used.
    """

    name: str
    kind: str
    devices: int
    limit_gib: float
    hbm_gb_per_s: float
    bf16_tflop_per_s: float
    axis_gb_per_s: float
    wraps: int
    slices: tuple[str, ...]
    config: str = "default"

    unit: ClassVar[str] = "chip"

    @property
    def smallest(self) -> str:
        """The smallest of the usual slices, such as "v5e:2x2"."""
        return f"{self.name}:{self.slices[0]}"

    def path(self, shape: Sequence[int], group_size: int, devices: int) -> Path:
        """The path of a collective among `group_size` of the `devices` of a slice of `shape`.

        Over all devices, each axis of the torus carries its share of the bytes. A group of fewer is
        taken as one ring along one axis.
        """
        if group_size == devices:
            axes = list(zip(shape, rings(self, shape), strict=True))
        else:
            axes = [(round(group_size / self.devices), True)]
        axes = [(length, ring) for length, ring in axes if length > 1]
        # Data go both ways round a ring; on a line, those for one end have to come from the other.
        hops = sum(length // 2 if ring else length - 1 for length, ring in axes)
        axis = self.axis_gb_per_s * 1e9
        bandwidth = sum(axis / (1 if ring else 2) for _, ring in axes)
        return Path(0.0, hops * HOP_S, bandwidth, axis / 2)


# Memory and peak: cloud.google.com/tpu/docs, pages v3, v4, v5e, v5p, v6e and tpu7x. Interconnect
# and the lengths that close to rings: "How to Scale Your Model" (Austin et al. 2025,
# jax-ml.github.io/scaling-book/tpus, section "TPU Specs"). The limits are libtpu's own, from its
# refusal of a program that is too large.
_FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBIC = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")
CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        Chip("v3", "TPU v3", 2, 15.48, 900, 123, 200, 32, ("2x2", "4x4", "4x8", "8x8")),
        Chip("v4", "TPU v4", 1, 30.75, 1200, 275, 90, 4, _CUBIC, "megacore"),
        Chip("v5e", "TPU v5 lite", 1, 15.75, 819, 197, 90, 16, _FLAT),
        Chip("v5p", "TPU v5", 1, 95.74, 2765, 459, 180, 4, _CUBIC),
        Chip("v6e", "TPU v6 lite", 1, 31.25, 1638, 918, 180, 16, _FLAT),
        Chip("tpu7x", "TPU7x", 2, 94.75, 7380, 2307, 180, 4, _CUBIC),
    )
}


def rings(chip: Chip, shape: Sequence[int]) -> tuple[bool, ...]:
    """Which axes of a slice of that shape close to rings.

    The flat ones close where they span the pod; the cubic ones only as a whole, if all axes are
    multiples of 4.
    """
    closed = tuple(length % chip.wraps == 0 for length in shape)
    return closed if len(shape) == 2 else (all(closed),) * len(shape)


def parse_shape(chip: Chip, layout: str) -> tuple[int, ...]:
    """The shape in a layout such as "16x16".

    Raises:
        UsageError: it isn't such a layout.
    """
    if not re.fullmatch(r"[1-9]\d{0,3}(x[1-9]\d{0,3}){1,2}", layout) or (
        layout.count("x") != chip.slices[0].count("x")
    ):
        known = ", ".join(f"{chip.name}:{shape}" for shape in chip.slices)
        raise UsageError(
            f"--topology '{chip.name}:{layout}' isn't a shape of {chip.name}; usual are {known}."
        )
    return tuple(map(int, layout.split("x")))


def prepare() -> None:
    """Keep libtpu from looking for a TPU, and quiet; it reads this when it is loaded.

    Raises:
        UsageError: libtpu isn't installed.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UsageError(
            "XLA's TPU compiler isn't installed; it is part of libtpu, which any Linux host can"
            f" have: {install_hint(EXTRA)}."
        )
    defaults = {
        "TPU_SKIP_MDS_QUERY": "1",  # there is no metadata server that knows a TPU
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no device is taken, so several may compile at once
        # Without these libtpu complains on standard error that it can't find them out.
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def describe_devices(chip: Chip, name: str, shape: Sequence[int]) -> Sequence[Any]:
    """Descriptions of the devices of a slice, which stand for them in a mesh.

    Raises:
        UsageError: libtpu knows no such slice.
    """
    from jax.errors import JaxRuntimeError  # noqa: PLC0415 - the environment must come before JAX
    from jax.experimental import topologies  # noqa: PLC0415

    host = [min(length, most) for length, most in zip((*shape, 1)[:3], (2, 2, 1), strict=True)]
    options: dict[str, Any] = {"chips_per_host_bounds": host}
    if chip.config != "default":
        options["chip_config_name"] = chip.config
    try:
        topology = topologies.get_topology_desc(name, "tpu", **options)
    except JaxRuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"--topology {name!r}: libtpu refuses it ({reason}).") from None
    return topology.devices


_NEEDED = re.compile(r"(?:Used|temporaries \()\s*\(?([\d.]+)([KMGT])", re.ASCII)


def out_of_memory(error: Exception) -> float | None:
    """Bytes per device that a program would need, if that is why the compiler refused it.

    Returns:
        The number that the message names, NaN if it names none; None for another error.
    """
    message = str(error)
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    found = _NEEDED.search(message)
    if not found:
        return math.nan
    return float(found[1]) * 1024 ** ("KMGT".index(found[2]) + 1)
