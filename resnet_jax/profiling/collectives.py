"""What a compiled program communicates, read from its HLO text.

Asynchronous collectives come as a pair, `all-reduce-start` and `all-reduce-done`, or as
`async-start` that calls a computation with the instruction in it. Each is counted once, times the
iterations of the loops around it where the compiler knows them.
"""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from resnet_jax.profiling.hlo import Array, Instruction, Module
from resnet_jax.profiling.traffic import moved_bytes

KINDS = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)


@dataclasses.dataclass(frozen=True)
class Collective:
    """One instruction that communicates.

    Attributes:
        kind: one of `KINDS`.
        arrays: what is communicated, whole: for an all-gather what comes out, for a
            reduce-scatter what goes in.
        group_size: devices that take part in it together.
        asynchronous: other instructions can run between its start and its end.
        times: how often it is executed per iteration of the loops whose length isn't known.
        overlapped_bytes: of main memory, moved by other instructions between its start and its end.
        source: path of the operation in the Python program, as JAX notes it.
    """

    kind: str
    arrays: tuple[Array, ...]
    group_size: int
    asynchronous: bool
    times: int
    overlapped_bytes: int
    source: str

    @property
    def bytes(self) -> int:
        """Size of all arrays, once."""
        return sum(array.bytes for array in self.arrays)


def find_collectives(module: Module, *, devices: int) -> list[Collective]:
    """The collective instructions of a program that is compiled for so many devices.

    Raises:
        ValueError: one has a form that isn't known.
    """
    times = module.executions(into_fusions=True)
    results = module.results()
    wrapped = {
        callee: instruction.name
        for instructions in module.computations.values()
        for instruction in instructions
        if instruction.opcode == "async-start"
        for callee in instruction.callees
    }
    overlapped: dict[str, int] = {}
    for instructions in module.computations.values():
        overlapped |= _overlapped(instructions, results, module)
    found = []
    for computation, instructions in module.computations.items():
        for instruction in instructions if times[computation] else []:
            kind = instruction.opcode.removesuffix("-start")
            if kind not in KINDS:
                continue
            group = _group_size(instruction.rest, devices)
            arrays = _communicated(instruction, kind, group)
            if kind == "all-reduce" and "all-reduce-scatter" in computation:
                kind = "reduce-scatter"  # XLA:TPU's fused form: each device keeps its part
            found.append(
                Collective(
                    kind=kind,
                    arrays=arrays,
                    group_size=group,
                    asynchronous=computation in wrapped or instruction.opcode.endswith("-start"),
                    times=times[computation],
                    overlapped_bytes=overlapped.get(wrapped.get(computation, instruction.name), 0),
                    source=instruction.quoted("op_name"),
                )
            )
    return found


def _overlapped(
    instructions: Iterable[Instruction], results: dict[str, tuple[Array, ...]], module: Module
) -> dict[str, int]:
    """Bytes that are moved between the start and the end of each asynchronous instruction."""
    total = 0
    starts: dict[str, str] = {}  # an async-update is another name of its start
    before: dict[str, int] = {}
    overlapped: dict[str, int] = {}
    for instruction in instructions:
        if instruction.opcode.endswith("-start"):
            starts[instruction.name] = instruction.name
            before[instruction.name] = total
        elif instruction.opcode.endswith("-update"):
            starts[instruction.name] = starts[instruction.operands[0]]
        elif instruction.opcode.endswith("-done"):
            start = starts[instruction.operands[0]]
            overlapped[start] = total - before[start]
        else:
            total += moved_bytes(instruction, results, module)
    return overlapped


def summarize(collectives: Iterable[Collective]) -> list[dict[str, Any]]:
    """Count and bytes, in all, by kind, size of the groups and whether they are asynchronous."""
    count: Counter[tuple[str, int, bool]] = Counter()
    size: Counter[tuple[str, int, bool]] = Counter()
    for collective in collectives:
        key = (collective.kind, collective.group_size, collective.asynchronous)
        count[key] += collective.times
        size[key] += collective.times * collective.bytes
    names = ("kind", "group_size", "asynchronous")
    return [
        dict(zip(names, key, strict=True)) | {"count": count[key], "bytes": size[key]}
        for key in sorted(count)
    ]


def _communicated(instruction: Instruction, kind: str, group: int) -> tuple[Array, ...]:
    """What is communicated, whole, from the type of the instruction's result."""
    arrays = instruction.result
    if instruction.opcode.endswith("-start"):
        if kind == "collective-permute":  # (operand, result, context, context)
            arrays = arrays[1:2]
        elif kind != "all-reduce":  # (operands, results)
            arrays = arrays[len(arrays) // 2 :]
    if kind == "reduce-scatter":  # the result is one device's part
        arrays = tuple(Array(a.dtype, (group, *a.shape), a.space) for a in arrays)
    return arrays


def _group_size(rest: str, devices: int) -> int:
    """Devices per group, from any of the forms in which groups are written.

    {{0,1},{2,3}} lists them, {} are all devices, [2,4]<=[8] are 2 groups of 4, and
    mesh['a'=2,'b'=4] {'b'} are the devices along the axes in braces, in whatever order.
    """
    if "source_target_pairs=" in rest:
        return 2
    notations = r"\{\{[^}]*\}|\{\}|\[[\d,]+\]<=|mesh\[[^\]]*\][^{]*\{[^}]*\}"
    found = re.search(f"replica_groups=({notations})", rest)
    if not found:
        raise ValueError(f"replica groups aren't understood: {rest[:120]}")
    groups = found[1]
    if groups == "{}":
        return devices
    if groups.startswith("mesh"):
        shape, _, axes = groups.partition("{")
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", shape)}
        parts = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", axes)
        return math.prod(int(part) if part else sizes[name] for name, part in parts)
    if groups.startswith("["):
        return int(groups[1:].partition("]")[0].split(",")[-1])
    return groups.count(",") + 1
