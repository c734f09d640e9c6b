"""The text of a program that XLA has compiled, as instructions in computations.

    ENTRY %main (p: f32[64]) -> f32[64] {
      %p = f32[64]{0:T(128)} parameter(0)
      ROOT %all-reduce.7 = (f32[64]{0:T(128)}, bf16[3,3,64,64]{…S(1)}) all-reduce(%a, %b),
        replica_groups=[1,4]<=[4], to_apply=%add, metadata={op_name="jit(run)/…"}
    }

(An instruction is one line.) In braces behind a shape stand its layout, its tiling T and its
memory space S: none is the device's main memory, others are smaller and nearer.
"""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterator

NO_WORK = {
    "after-all",
    "bitcast",
    "constant",
    "get-tuple-element",
    "optimization-barrier",
    "parameter",
    "partition-id",
    "replica-id",
    "tuple",
}
"""Operations that only give names to memory that others write."""

_BITS = {"pred": 8, "token": 0, "opaque": 0, "c64": 64, "c128": 128}


@dataclasses.dataclass(frozen=True)
class Array:
    """Type, shape and memory space of one array; `space` is 0 for main memory."""

    dtype: str
    shape: tuple[int, ...]
    space: int = 0

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Size without padding."""
        bits = _BITS.get(self.dtype)
        if bits is None:  # f32, bf16, s8, u4, f8e4m3fn, …
            found = re.match(r"[a-z]+(\d+)", self.dtype)
            if not found:
                raise ValueError(f"HLO type {self.dtype!r} isn't known")
            bits = int(found[1])
        return self.size * bits // 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        name: without the "%".
        result: the arrays of its result, those of a tuple one after the other.
        opcode: such as "all-reduce-start".
        inside: the text between its parentheses: operands, or the number of a parameter.
        rest: the text after that.
        is_root: whether its result is that of the computation.
    """

    name: str
    result: tuple[Array, ...]
    opcode: str
    inside: str
    rest: str
    is_root: bool

    @property
    def operands(self) -> list[str]:
        """The instructions whose results it takes."""
        return re.findall(r"%([\w.\-]+)", self.inside)

    @property
    def callees(self) -> list[str]:
        """The computations that it names."""
        found = (match[1] for match in _CALLS.finditer(self.rest))
        return [name for names in found for name in re.findall(r"[\w.\-]+", names)]

    @property
    def trip_count(self) -> int:
        """Iterations of a loop, where the compiler knows them; otherwise 1."""
        found = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', self.rest)
        return int(found[1]) if found else 1

    def quoted(self, key: str) -> str:
        """The value in `key="value"`, or an empty string."""
        found = re.search(rf'{key}="([^"]*)"', self.rest)
        return found[1] if found else ""


_CALLS = re.compile(
    r"\b(?:calls|to_apply|body|condition|true_computation|false_computation"
    r"|branch_computations|called_computations)=(\{[^}]*\}|%?[\w.\-]+)"
)


@dataclasses.dataclass(frozen=True)
class Module:
    """A program: the instructions of each computation, and with which of these it begins."""

    computations: dict[str, list[Instruction]]
    entry: str

    @classmethod
    def parse(cls, text: str) -> "Module":
        """Read the text of `compiled.as_text()`.

        Raises:
            ValueError: it isn't the text of a program.
        """
        computations: dict[str, list[Instruction]] = {}
        entry, current = "", None
        for line in text.splitlines():
            head = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
            if head:
                current = computations.setdefault(head[2], [])
                if head[1]:
                    entry = head[2]
            elif current is not None and (found := re.match(r"\s+(ROOT )?%?([\w.\-]+) = ", line)):
                rest = line[found.end() :]
                current.append(_instruction(found[2], rest, is_root=bool(found[1])))
        if not entry:
            raise ValueError("this isn't the text of a compiled program: it has no ENTRY")
        return cls(computations, entry)

    def results(self) -> dict[str, tuple[Array, ...]]:
        """The result of each instruction by its name, which occurs only once in a program."""
        return {
            instruction.name: instruction.result
            for instructions in self.computations.values()
            for instruction in instructions
        }

    def executions(self, *, into_fusions: bool, repeat_loops: bool = True) -> Counter[str]:
        """How often each computation is executed.

        A loop whose number of iterations the compiler doesn't know, such as that over training
        steps, counts as one iteration. Of a conditional all branches count.

        Args:
            into_fusions: count what fusions consist of, too.
            repeat_loops: count iterations that the compiler knows; otherwise a body counts once.
        """
        times: Counter[str] = Counter()

        def visit(name: str, factor: int) -> None:
            times[name] += factor
            for instruction in self.computations[name]:
                if instruction.opcode in ("async-update", "async-done"):
                    continue  # they name what their async-start calls
                if instruction.opcode == "fusion" and not into_fusions:
                    continue
                inner = factor
                if instruction.opcode == "while" and repeat_loops:
                    inner *= instruction.trip_count
                for callee in instruction.callees:
                    if callee in self.computations:
                        visit(callee, inner)

        visit(self.entry, 1)
        return times


def _instruction(name: str, text: str, *, is_root: bool) -> Instruction:
    end = _closing(text, 0) + 1 if text.startswith("(") else text.find(" ")
    found = re.match(r" ([\w\-]+)\(", text[end:])
    if not found:
        raise ValueError(f"HLO instruction {name} isn't understood: {text[:80]}")
    start = end + found.end() - 1
    stop = _closing(text, start)
    return Instruction(
        name=name,
        result=tuple(_arrays(text[:end])),
        opcode=found[1],
        inside=text[start + 1 : stop],
        rest=text[stop + 1 :],
        is_root=is_root,
    )


def _closing(text: str, start: int) -> int:
    """Where the parenthesis that opens at `start` closes."""
    depth = 0
    for found in re.finditer(r"[()]", text[start:]):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return start + found.start()
    raise ValueError(f"unbalanced parentheses in {text[start : start + 80]!r}")


def _arrays(text: str) -> Iterator[Array]:
    """The arrays in a type such as (f32[64]{0:T(128)}, /*index=1*/bf16[]{:S(1)})."""
    for dtype, shape, layout in re.findall(r"\b([a-z]\w*)\[([^\]]*)\](\{[^}]*\})?", text):
        sizes = (size.removeprefix("<=") for size in shape.split(",") if size)
        space = re.search(r"S\((\d+)\)", layout)
        yield Array(dtype, tuple(map(int, sizes)), int(space[1]) if space else 0)
