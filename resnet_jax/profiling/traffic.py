"""How many bytes a compiled program moves to and from a device's main memory.

XLA's own count of "bytes accessed" includes what stays in on-chip memory, on a TPU a third or more,
and both ends of each copy between the two. Here every instruction counts the arrays that it reads
and writes in main memory, without padding, so that the sum is what must be moved at least.
"""

from resnet_jax.profiling.hlo import Array, Instruction, Module

# These give names to memory that others write.
_FREE = {
    "after-all",
    "bitcast",
    "call",
    "conditional",
    "constant",
    "get-tuple-element",
    "optimization-barrier",
    "parameter",
    "partition-id",
    "replica-id",
    "tuple",
    "while",
}
_FREE_CALLS = {"AllocateBuffer", "ConcatBitcast"}
_PARTS = {"dynamic-slice", "gather", "slice"}  # read as much of their operand as they return


def main_memory_bytes(module: Module) -> int:
    """Bytes read and written, per iteration of the loops whose length isn't known."""
    times = module.executions(into_fusions=False)
    results = {
        instruction.name: instruction.result
        for instructions in module.computations.values()
        for instruction in instructions
    }
    total = 0
    for computation, instructions in module.computations.items():
        if times[computation]:
            moved = (_moved(instruction, results, module) for instruction in instructions)
            total += times[computation] * sum(moved)
    return total


def _moved(instruction: Instruction, results: dict[str, tuple[Array, ...]], module: Module) -> int:
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
    names = {int(one.inside): one.name for one in body if one.opcode == "parameter"}
    total = 0
    for number, operand in enumerate(operands):
        users = [one for one in body if names[number] in one.operands]
        if users and all(user.opcode in _PARTS for user in users):
            total += sum(_part(user.result, operand) for user in users)
        elif not (users and all(_is_target(user, names[number]) for user in users)):
            total += _held(operand)  # whole; a target is only written, in place
    root = next(one for one in body if one.is_root)
    if root.opcode == "dynamic-update-slice":
        update = next(one.result for one in body if one.name == root.operands[1])
        return total + _part(update, fusion.result)
    return total + _held(fusion.result)


def _is_target(user: Instruction, name: str) -> bool:
    """Whether an instruction writes a part of the array with that name."""
    return user.opcode == "dynamic-update-slice" and user.operands[0] == name


def _held(arrays: tuple[Array, ...]) -> int:
    """Bytes of those of the arrays that lie in main memory."""
    return sum(array.bytes for array in arrays if array.space == 0)


def _part(part: tuple[Array, ...], whole: tuple[Array, ...]) -> int:
    """Bytes of a part, if that of which it is one lies in main memory."""
    if any(array.space for array in whole):
        return 0
    return sum(array.bytes for array in part)
