"""The model of scaling of docs/scaling.md, and its tables, from benchmarks/results/tpu_compile/.

A step takes what a chip needs on its own, and then its collectives, which XLA schedules
synchronously. On its own a chip needs the longer of arithmetic and main memory, per image as in the
program compiled for a large batch. Collectives take a latency per hop and a time for their bytes
(`resnet_jax.profiling.roofline`). Nothing is fitted.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from published_speeds import V4_POINTS

from resnet_jax.profiling.roofline import collective_time
from resnet_jax.profiling.tpu import CHIPS, Chip

RESULTS = Path(__file__).resolve().parent / "results" / "tpu_compile"

WEAK = {
    "v5e": [(2, 2), (4, 4), (8, 8), (16, 16)],
    "v5p": [(2, 2, 1), (2, 2, 4), (4, 4, 4), (8, 8, 8)],
}
STRONG_BATCH = 8192
STRONG = {
    "v5e": [(4, 8), (8, 8), (8, 16), (16, 16)],
    "v5p": [(2, 2, 4), (4, 4, 4), (4, 8, 8), (8, 8, 8)],
}


def load(name: str) -> dict[str, Any] | None:
    """A result file; None if it isn't there."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


class OnChip(NamedTuple):
    """What a chip needs for a step on its own, as compiled for a large and for a small batch."""

    chip: Chip
    large: dict[str, Any]
    small: dict[str, Any] | None

    @classmethod
    def load(cls, model: str, chip: str) -> "OnChip | None":
        """The programs of a model, for four chips; None if there is none."""
        paths = RESULTS.glob(f"{model}_{chip}-4_*.json")
        programs = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
        programs.sort(key=lambda program: program["batch_per_chip"])
        if not programs:
            return None
        return cls(CHIPS[chip], programs[-1], programs[0] if len(programs) > 1 else None)

    def seconds(self, batch: float) -> float:
        """For so many images, each of which takes as long as in the large batch."""
        return self._seconds(self.large) * batch / self.large["batch_per_chip"]

    def seconds_at_best(self, batch: float) -> float | None:
        """By a line through both programs: of a small batch more stays on the chip."""
        if not self.small or batch > self.large["batch_per_chip"]:
            return None
        x0, x1 = self.small["batch_per_chip"], self.large["batch_per_chip"]
        y0, y1 = self._seconds(self.small), self._seconds(self.large)
        return max(y0 + (y1 - y0) * (batch - x0) / (x1 - x0), self.compute(batch))

    def compute(self, batch: float) -> float:
        """Seconds of arithmetic alone."""
        flops = batch * self.large["gflop_per_image"] * 1e9
        return flops / (self.chip.bf16_tflop_per_s * 1e12)

    def largest(self) -> int:
        """The largest batch that seems to fit."""
        return int(self.large["largest_batch_per_chip"])

    def _seconds(self, program: dict[str, Any]) -> float:
        """A step of the batch that was compiled."""
        size = program["batch_per_chip"] * program["mb_per_image"] * 1e6
        return max(size / (self.chip.hbm_gb_per_s * 1e9), self.compute(program["batch_per_chip"]))


class Step(NamedTuple):
    """Seconds of one step."""

    batch: float  # per chip
    chips: int
    on_chip: float
    at_best: float | None  # the same, if less of a small batch goes through main memory
    statistics: float
    gradients: float

    @property
    def total(self) -> float:
        """All of it, one after the other."""
        return self.on_chip + self.statistics + self.gradients

    @property
    def img_per_s(self) -> float:
        """Of the slice."""
        return self.batch * self.chips / self.total


def predict(
    on_chip: OnChip,
    shape: Iterable[int],
    batch: float,
    *,
    whole_batch: bool = True,
    gradient_bytes: int = 2,
    overlap: bool = False,
) -> Step:
    """The time of a step.

    Args:
        on_chip: what was compiled.
        shape: of the slice.
        batch: images per chip.
        whole_batch: statistics of normalisation are those of the whole batch.
        gradient_bytes: per parameter, when gradients are summed.
        overlap: gradients are summed while the backward pass goes on.
    """
    shape = tuple(shape)
    chips = 1
    for length in shape:
        chips *= length
    sums, size = _all_reduces(on_chip.large)
    few, _ = _all_reduces(_with_groups())
    gradients_size = on_chip.large["gradient_reduction"]["bytes"]  # compiled for two per parameter
    statistics_size = size - gradients_size

    def seconds(count: int, size: float) -> float:
        latency, transfer = collective_time(
            on_chip.chip, shape, "all-reduce", size, group_size=chips, devices=chips
        )
        return count * latency + transfer

    alone = on_chip.seconds(batch)
    gradients = seconds(few, gradients_size * gradient_bytes / 2)
    if overlap:  # two thirds of a step are backward
        gradients = max(0.0, gradients - alone * 2 / 3)
    statistics = seconds(sums - few, statistics_size) if whole_batch else 0.0
    return Step(batch, chips, alone, on_chip.seconds_at_best(batch), statistics, gradients)


def _with_groups() -> dict[str, Any]:
    """The program in which only gradients and running statistics are summed."""
    found = load("resnet50_v5e-256_256_groups")
    if found is None:
        raise FileNotFoundError(f"{RESULTS} lacks the program with groups")
    return found


def _all_reduces(program: dict[str, Any]) -> tuple[int, int]:
    """Their number and bytes in a step."""
    rows = [row for row in program["collectives"] if row["kind"] == "all-reduce"]
    return sum(row["count"] for row in rows), sum(row["bytes"] for row in rows)


def programs_table() -> str:
    """What was compiled."""
    lines = [
        "| model, slice | images per chip | statistics of | GFLOP per image | MB per image"
        " | peak memory, of | all-reduces | their MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for path in sorted(RESULTS.glob("resnet*.json"), key=lambda p: _order(p.stem)):
        program = json.loads(path.read_text(encoding="utf-8"))
        memory = program["memory"]
        count, size = _all_reduces(program)
        scope = program["bn_group_size"]
        lines.append(
            f"| [{program['model']}, {program['topology']}]"
            f"(../benchmarks/results/tpu_compile/{path.name})"
            f" | {program['batch_per_chip']} | {f'groups of {scope}' if scope else 'whole batch'}"
            f" | {program['gflop_per_image']:.2f}"
            f" | {program['mb_per_image']:.0f} ({program['accessed_mb_per_image']:.0f})"
            f" | {memory['peak_bytes'] / 2**30:.1f} GiB, {memory['limit_bytes'] / 2**30:.1f}"
            f" | {count} | {size / 1e6:.1f} |"
        )
    return "\n".join(lines)


def _order(name: str) -> tuple[str, str, int, str]:
    model, place, batch, *rest = name.split("_")
    return f"{model:>9}", place, int(batch), "".join(rest)


def weak_table() -> str:
    """More chips, the same number of images on each."""
    lines = _heading("model, chips", "images per chip")
    for model, chip, batch in _weak_cases():
        on_chip = OnChip.load(model, chip)
        assert on_chip
        first = predict(on_chip, WEAK[chip][0], batch)
        for shape in WEAK[chip]:
            step = predict(on_chip, shape, batch)
            lines.append(_row(model, chip, shape, step, first))
    return "\n".join(lines)


def _weak_cases() -> list[tuple[str, str, int]]:
    """256 images per chip, or else the largest batch that was compiled."""
    cases = []
    for model in ("resnet50", "resnet152"):
        for chip in WEAK:
            on_chip = OnChip.load(model, chip)
            if on_chip:
                cases.append((model, chip, min(256, on_chip.large["batch_per_chip"])))
    return cases


def strong_table() -> str:
    """More chips, the same batch in all."""
    lines = _heading("model, chips", "images per chip")
    for model, chip, _ in _weak_cases():
        on_chip = OnChip.load(model, chip)
        assert on_chip
        first = None
        for shape in STRONG[chip]:
            step = predict(on_chip, shape, STRONG_BATCH / _size(shape))
            if step.batch <= on_chip.largest():
                first = first or step
                lines.append(_row(model, chip, shape, step, first))
    return "\n".join(lines)


def _size(shape: Iterable[int]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


def _heading(*names: str) -> list[str]:
    columns = [
        *names,
        "on chip",
        "statistics",
        "gradients",
        "img/s per chip",
        "img/s",
        "efficiency",
        "at best",
    ]
    return [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]


def _row(model: str, chip: str, shape: tuple[int, ...], step: Step, first: Step) -> str:
    per_chip = step.img_per_s / step.chips
    efficiency = per_chip / (first.img_per_s / first.chips)
    best = ""
    if step.at_best:
        seconds = step.total - step.on_chip + step.at_best
        best = f"{step.batch * step.chips / seconds:,.0f}"
    return (
        f"| {model}, {step.chips} {chip} ({'×'.join(map(str, shape))}) | {step.batch:.0f}"
        f" | {1e3 * step.on_chip:.1f} ms | {1e3 * step.statistics:.2f} ms"
        f" | {1e3 * step.gradients:.2f} ms | {per_chip:,.0f} | {step.img_per_s:,.0f}"
        f" | {efficiency:.0%} | {best} |"
    )


def limits_table() -> str:
    """From how few images per chip on the sums of statistics are felt."""
    lines = [
        "| model, chips | one sum | all of a step | 5 % of a step below | 20 % of a step below |",
        "|---|---|---|---|---|",
    ]
    for model, chip, _ in _weak_cases():
        on_chip = OnChip.load(model, chip)
        assert on_chip
        for shape in WEAK[chip]:
            step = predict(on_chip, shape, 256)
            one, _ = collective_time(
                on_chip.chip, shape, "all-reduce", 0, group_size=step.chips, devices=step.chips
            )
            cells = [f"{_batch_at(on_chip, shape, share):.0f} images" for share in (0.05, 0.2)]
            lines.append(
                f"| {model}, {step.chips} {chip} | {1e6 * one:.0f} µs"
                f" | {1e3 * step.statistics:.2f} ms | {' | '.join(cells)} |"
            )
    return "\n".join(lines)


def _batch_at(on_chip: OnChip, shape: tuple[int, ...], share: float) -> float:
    """Images per chip at which statistics take that share of a step, by bisection."""
    low, high = 0.0, 1e5
    for _ in range(60):
        middle = (low + high) / 2
        step = predict(on_chip, shape, middle)
        low, high = (middle, high) if step.statistics > share * step.total else (low, middle)
    return high


def changes_table() -> str:
    """What can be changed where it hurts: a batch of 8,192 on the largest slice."""
    lines = [
        "| 8,192 images of resnet50 on | change | step | img/s | gain |",
        "|---|---|---|---|---|",
    ]
    for chip, shape in (("v5e", (16, 16)), ("v5p", (8, 8, 8))):
        on_chip = OnChip.load("resnet50", chip)
        if not on_chip:
            continue
        batch = STRONG_BATCH / _size(shape)
        base = predict(on_chip, shape, batch)
        changes: dict[str, Step] = {
            "none: statistics of the whole batch, gradients in bfloat16": base,
            "gradients in float32": predict(on_chip, shape, batch, gradient_bytes=4),
            "gradients summed during the backward pass": predict(
                on_chip, shape, batch, overlap=True
            ),
            "`bn_group_size` within a chip": predict(on_chip, shape, batch, whole_batch=False),
            "both of these": predict(on_chip, shape, batch, whole_batch=False, overlap=True),
            "4 times the images per chip": predict(on_chip, shape, 4 * batch),
        }
        for name, step in changes.items():
            lines.append(
                f"| {step.chips} {chip}, {batch:.0f} per chip | {name} | {1e3 * step.total:.2f} ms"
                f" | {step.img_per_s:,.0f} | {step.img_per_s / base.img_per_s - 1:+.0%} |"
            )
    return "\n".join(lines)


def published_table() -> str:
    """The model against what was measured."""
    lines = [
        "| hardware | images per chip | measured, img/s per chip | model, statistics of the whole"
        " batch | error | model, statistics within a chip | error | source |",
        "|---|---|---|---|---|---|---|---|",
    ]
    # What others trained kept every convolution's output, as the package once did.
    on_chip = OnChip.load("before_resnet50", "v4")
    for point in V4_POINTS if on_chip else []:
        assert on_chip
        # Where it isn't published, one that keeps the whole batch at 65,536 or less.
        batch = point.batch or min(256, 65_536 // _size(point.shape))
        cells = []
        for whole_batch in (True, False):
            step = predict(on_chip, point.shape, batch, whole_batch=whole_batch)
            cells += _compared(step.img_per_s / step.chips, point.img_per_s)
        mark = "" if point.batch else " (assumed)"
        lines.append(
            f"| TPU v4, {point.what} | {batch}{mark} | {point.img_per_s:,.0f}"
            f" | {' | '.join(cells)} | {point.source} |"
        )
    return "\n".join(lines)


def _compared(model: float, measured: float) -> list[str]:
    """Two cells: what the model says, and by how much that is off."""
    return [f"{model:,.0f}", f"{model / measured - 1:+.0%}"]


def same_bytes_table() -> str:
    """The same step compiled for 4 and for 256 chips."""
    lines = [
        "| slice | MB per image | GFLOP per image | peak memory | all-reduces | their MB |",
        "|---|---|---|---|---|---|",
    ]
    for name in ("resnet50_v5e-4_256", "resnet50_v5e-256_256"):
        program = load(name)
        if program:
            count, size = _all_reduces(program)
            lines.append(
                f"| {program['topology']} | {program['mb_per_image']:.1f}"
                f" | {program['gflop_per_image']:.2f}"
                f" | {program['memory']['peak_bytes'] / 2**30:.2f} GiB | {count}"
                f" | {size / 1e6:.1f} |"
            )
    return "\n".join(lines)


TABLES: dict[str, Callable[[], str]] = {
    "scaling-programs": programs_table,
    "scaling-same": same_bytes_table,
    "scaling-weak": weak_table,
    "scaling-strong": strong_table,
    "scaling-limits": limits_table,
    "scaling-changes": changes_table,
    "scaling-published": published_table,
}

if __name__ == "__main__":
    for title, table in TABLES.items():
        print(f"{title}\n\n{table()}\n")
