"""How long a step takes at best: a model of arithmetic, memory and interconnect.

A chip (a TPU's or a GPU) can't be faster than its arithmetic or its memory allows, whichever is
slower (Williams et al. 2009, "Roofline"). Communication is modelled as in "How to Scale Your Model"
(Austin et al. 2025, jax-ml.github.io/scaling-book/sharding): a time for the bytes, and a latency.
"""

import dataclasses
from collections.abc import Iterable, Sequence

from resnet_jax.profiling.collectives import Collective
from resnet_jax.profiling.slices import Accelerator


@dataclasses.dataclass(frozen=True)
class StepTime:
    """Seconds of one step by what is waited for.

    Attributes:
        compute_s: arithmetic at the peak.
        memory_s: bytes of main memory at its bandwidth.
        latency_s: hops of all collectives.
        transfer_s: bytes of all collectives.
        exposed_s: of these two, the part that isn't hidden by memory traffic that the compiler has
            placed between the start and the end of a collective.
    """

    compute_s: float
    memory_s: float
    latency_s: float
    transfer_s: float
    exposed_s: float

    @property
    def on_chip_s(self) -> float:
        """Time of a chip on its own: of arithmetic or of memory, whichever is longer."""
        return max(self.compute_s, self.memory_s)

    @property
    def exposed_total_s(self) -> float:
        """With as much communication hidden as the compiled schedule hides."""
        return self.on_chip_s + self.exposed_s

    @property
    def hidden_total_s(self) -> float:
        """With all communication hidden behind what the chips do."""
        return max(self.on_chip_s, self.latency_s + self.transfer_s)


def step_time(
    chip: Accelerator,
    shape: Sequence[int],
    *,
    flops: float,
    memory_bytes: float,
    collectives: Iterable[Collective],
    devices: int,
) -> StepTime:
    """The roofline of one step.

    Args:
        chip, shape: of the slice.
        flops: per step and device.
        memory_bytes: to and from main memory, per step and device.
        collectives: of a step.
        devices: of the slice.
    """
    bandwidth = chip.hbm_gb_per_s * 1e9 / chip.devices  # of one device
    latency = transfer = exposed = 0.0
    for collective in collectives:
        hops, seconds = collective_time(
            chip,
            shape,
            collective.kind,
            collective.bytes,
            group_size=collective.group_size,
            devices=devices,
        )
        hidden = collective.overlapped_bytes / bandwidth
        latency += collective.times * hops
        transfer += collective.times * seconds
        exposed += collective.times * max(0.0, hops + seconds - hidden)
    return StepTime(
        compute_s=flops * chip.devices / (chip.bf16_tflop_per_s * 1e12),
        memory_s=memory_bytes / bandwidth,
        latency_s=latency,
        transfer_s=transfer,
        exposed_s=exposed,
    )


def collective_time(
    chip: Accelerator,
    shape: Sequence[int],
    kind: str,
    size: float,
    *,
    group_size: int,
    devices: int,
) -> tuple[float, float]:
    """Seconds of latency, and of transfer, of one collective.

    An all-reduce is a reduce-scatter and an all-gather.

    Args:
        chip, shape: of the slice.
        kind: of `resnet_jax.profiling.collectives.KINDS`.
        size: bytes, whole.
        group_size: devices that take part together.
        devices: of the slice.
    """
    chips = group_size / chip.devices  # those on one chip needn't send
    if chips <= 1:
        return 0.0, 0.0
    path = chip.path(shape, group_size, devices)
    if kind in ("collective-permute", "collective-broadcast"):
        return path.start_s + path.pass_s, size / path.neighbour_bytes_per_s
    passes = 2 if kind == "all-reduce" else 1
    latency = path.start_s + passes * path.pass_s
    return latency, passes * size * (chips - 1) / chips / path.bytes_per_s
