"""How long a step takes at best on a slice: a model of arithmetic, memory and interconnect.

A chip can't be faster than its arithmetic or its memory allows, whichever is slower (Williams et
al. 2009, "Roofline"). Communication is modelled as in "How to Scale Your Model" (Austin et al.
2025, jax-ml.github.io/scaling-book/sharding): a time for the bytes, and a latency per hop.
"""

import dataclasses
from collections.abc import Iterable, Sequence

from resnet_jax.profiling.collectives import Collective
from resnet_jax.profiling.tpu import Chip, rings

HOP_S = 1e-6
"""Time for one hop between neighbouring chips; "1us per hop" in the book's section on sharding."""


@dataclasses.dataclass(frozen=True)
class StepTime:
    """Seconds of one step by what is waited for.

    Attributes:
        compute_s: arithmetic at the peak.
        memory_s: bytes of main memory at its bandwidth.
        latency_s: hops of all collectives.
        transfer_s: bytes of all collectives.
        exposed_s: of these two, the part that nothing else can hide: that of the collectives that
            the compiler has made synchronous.
    """

    compute_s: float
    memory_s: float
    latency_s: float
    transfer_s: float
    exposed_s: float

    @property
    def on_chip_s(self) -> float:
        """What a chip needs on its own."""
        return max(self.compute_s, self.memory_s)

    @property
    def exposed_total_s(self) -> float:
        """With nothing but asynchronous communication hidden, as compiled."""
        return self.on_chip_s + self.exposed_s

    @property
    def hidden_total_s(self) -> float:
        """With all communication hidden behind what the chips do."""
        return max(self.on_chip_s, self.latency_s + self.transfer_s)


def step_time(
    chip: Chip,
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
    latency = transfer = exposed = 0.0
    for one in collectives:
        hops, seconds = collective_time(
            chip, shape, one.kind, one.bytes, group_size=one.group_size, devices=devices
        )
        latency += one.times * hops
        transfer += one.times * seconds
        if not one.asynchronous:
            exposed += one.times * (hops + seconds)
    return StepTime(
        compute_s=flops * chip.devices / (chip.bf16_tflop_per_s * 1e12),
        memory_s=memory_bytes * chip.devices / (chip.hbm_gb_per_s * 1e9),
        latency_s=latency,
        transfer_s=transfer,
        exposed_s=exposed,
    )


def collective_time(
    chip: Chip, shape: Sequence[int], kind: str, size: float, *, group_size: int, devices: int
) -> tuple[float, float]:
    """Seconds of latency, and of transfer, of one collective.

    Over all devices of a slice, each axis of the torus carries its share of the bytes. A group of
    fewer is taken as one ring along one axis. An all-reduce is a reduce-scatter and an all-gather.

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
    if kind in ("collective-permute", "collective-broadcast"):
        return HOP_S, size / (chip.axis_gb_per_s * 1e9 / 2)
    passes = 2 if kind == "all-reduce" else 1
    if group_size == devices:
        axes = list(zip(shape, rings(chip, shape), strict=True))
    else:
        axes = [(round(chips), True)]
    axes = [(length, ring) for length, ring in axes if length > 1]
    # Data go both ways round a ring; on a line, those for one end have to come from the other.
    hops = sum(length // 2 if ring else length - 1 for length, ring in axes)
    bandwidth = sum(chip.axis_gb_per_s * 1e9 / (1 if ring else 2) for _, ring in axes)
    return passes * hops * HOP_S, passes * size * (chips - 1) / chips / bandwidth
