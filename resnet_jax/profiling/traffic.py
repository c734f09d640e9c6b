"""How many bytes a compiled program moves to and from a device's main memory.

XLA's own count of "bytes accessed" includes what stays in on-chip memory, on a TPU a third or more,
and both ends of each copy between the two. Here every instruction counts the arrays that it reads
and writes in main memory, without padding, so that the sum is what must be moved at least.
"""

import dataclasses
import re

from resnet_jax.profiling.hlo import NO_WORK, Array, Instruction, Module

_FREE = NO_WORK | {"call", "conditional", "while"}  # whose bodies count where they stand
_FREE_CALLS = {"AllocateBuffer", "ConcatBitcast"}
_LIBRARIES = {"__cudnn$": "cuDNN", "__cublas$": "cuBLAS", "__triton": "Triton"}
_PARTS = {"dynamic-slice", "gather", "slice"}  # read as much of their operand as they return


@dataclasses.dataclass
class Kernels:
    """The instructions of one kind.

    Attributes:
        kind: what computes them: "cuDNN", "cuBLAS", "Triton", "custom call", a kind of XLA's
            fusions such as "loop fusion", or the name of a single operation.
        count: executions, per iteration of the loops whose length isn't known.
        bytes: read from main memory and written there by all of them.
    """

    kind: str
    count: int = 0
    bytes: int = 0


def kernels_by_kind(module: Module) -> list[Kernels]:
    """Instructions that move something, by kind; the kind that moves most comes first."""
    times = module.executions(into_fusions=False)
    results = module.results()
    found: dict[str, Kernels] = {}
    for computation, instructions in module.computations.items():
        for instruction in instructions if times[computation] else []:
            if moved := moved_bytes(instruction, results, module):
                kind = _kind(instruction)
                kernels = found.setdefault(kind, Kernels(kind))
                kernels.count += times[computation]
                kernels.bytes += times[computation] * moved
    return sorted(found.values(), key=lambda kernels: -kernels.bytes)


def _kind(instruction: Instruction) -> str:
    """What computes an instruction (`Kernels.kind`)."""
    target = instruction.quoted("custom_call_target")
    if instruction.opcode == "fusion":
        custom = re.search(r'"fusion_backend_config":\{"kind":"([^"]*)"', instruction.rest)
        target = custom[1] if custom else ""
    for prefix, kind in _LIBRARIES.items():
        if target.startswith(prefix):
            return kind
    if instruction.opcode == "custom-call":
        return "custom call"
    if instruction.opcode == "fusion":
        found = re.search(r"\bkind=k(\w+)", instruction.rest)
        return f"{found[1].lower() if found else 'other'} fusion"
    return instruction.opcode.removesuffix("-start")


def moved_bytes(
    instruction: Instruction, results: dict[str, tuple[Array, ...]], module: Module
) -> int:
    """Bytes that one execution of an instruction reads from main memory and writes there.

    Args:
        instruction: of `module`.
        results: of all instructions, by name.
        module: the program.
    """
    opcode, result = instruction.opcode, instruction.result
    operands = [results.get(name, ()) for name in instruction.operands]
    if opcode in _FREE or opcode.endswith(("-done", "-update")) or opcode == "async-start":
        return 0  # what an async-start calls is counted where it stands
    if instruction.quoted("custom_call_target") in _FREE_CALLS:
        return 0
    if opcode == "copy-start":  # (copy, original, context)
        return _held(result[:2])
    if opcode in _PARTS:
        return _held(result) + _part(result, operands[0])
    if opcode in ("slice-start", "dynamic-slice-start"):  # (operands…, result, context)
        part = result[-2:-1]
        return _held(part) + _part(part, operands[0])
    if opcode == "dynamic-update-slice":  # in place
        return 2 * _held(operands[1])
    if opcode == "fusion":
        return _moved_by_fusion(instruction, operands, module)
    return _held(result) + sum(map(_held, operands))


def _moved_by_fusion(fusion: Instruction, operands: list[tuple[Array, ...]], module: Module) -> int:
    """What a fusion reads of its operands, and what it writes."""
    body = module.computations[fusion.callees[0]]
    names = {
        int(instruction.inside): instruction.name
        for instruction in body
        if instruction.opcode == "parameter"
    }
    total = 0
    for number, operand in enumerate(operands):
        users = [instruction for instruction in body if names[number] in instruction.operands]
        if users and all(user.opcode in _PARTS for user in users):
            total += sum(_part(user.result, operand) for user in users)
        elif not users or any(
            user.opcode != "dynamic-update-slice" or user.operands[0] != names[number]
            for user in users
        ):
            total += _held(operand)  # whole; what is updated is only written, in place
    root = next(instruction for instruction in body if instruction.is_root)
    if root.opcode == "dynamic-update-slice":
        update = next(
            instruction.result for instruction in body if instruction.name == root.operands[1]
        )
        return total + _part(update, fusion.result)
    return total + _held(fusion.result)


def _held(arrays: tuple[Array, ...]) -> int:
    """Bytes of those of the arrays that lie in main memory."""
    return sum(array.bytes for array in arrays if array.space == 0)


def _part(part: tuple[Array, ...], whole: tuple[Array, ...]) -> int:
    """Bytes of a part, if that of which it is one lies in main memory."""
    if any(array.space for array in whole):
        return 0
    return sum(array.bytes for array in part)
