"""The curves of a page: per seed, and thinned so that the page stays small."""

from collections.abc import Sequence
from typing import Any

from resnet_jax.research.compare import Line, RecordedRun

_KINDS = (
    ("train", "raw"),
    ("validation", "raw"),
    ("validation", "ema"),
    ("test", "raw"),
    ("test", "ema"),
)
_METRICS = ("loss", "top1", "lr", "grad_norm")
_MOST_POINTS, _FEWEST_POINTS = 400, 40  # of a curve
_MOST_VALUES = 200_000  # of all curves of a page


def curves_of(lines: Sequence[Line]) -> list[list[dict[str, Any]]]:
    """The curves of each line.

    A curve has "split", "weights", "steps" and "epochs" [points], "recorded" (the number of points
    before thinning), and "values": metric → [seeds][points], None where a record lacks the metric.
    Its steps are those that all runs of the line have reached. Values have six digits.
    """
    series = sum(len(run.seeds) for line in lines for run in line.runs)
    most = _MOST_VALUES // (max(1, series) * len(_METRICS))
    most = max(_FEWEST_POINTS, min(_MOST_POINTS, most))
    return [
        [curve for kind in _KINDS if (curve := _curve(line.runs, *kind, most=most))]
        for line in lines
    ]


def _curve(
    runs: Sequence[RecordedRun], split: str, weights: str, *, most: int
) -> dict[str, Any] | None:
    by_step = [
        {
            r["step"]: r
            for r in run.records
            if r["split"] == split and r.get("weights", "raw") == weights
        }
        for run in runs
    ]
    steps = sorted(set.intersection(*map(set, by_step)))
    if not steps:
        return None
    kept = thin(steps, most)
    values = {}
    for metric in _METRICS:
        points = [
            [
                _of_seeds(of[step], metric)[number]
                for run, of in zip(runs, by_step, strict=True)
                for number in run.numbers
            ]
            for step in kept
        ]
        if any(value is not None for point in points for value in point):
            values[metric] = [list(map(rounded, seed)) for seed in zip(*points, strict=True)]
    return {
        "split": split,
        "weights": weights,
        "steps": kept,
        "epochs": [by_step[0][step]["epoch"] for step in kept],
        "recorded": len(steps),
        "values": values,
    }


def _of_seeds(record: dict[str, Any], metric: str) -> list[float | None]:
    """The value of a metric for each seed of a run."""
    seeds: dict[str, list[float | None]] = record.get("seeds", {})
    count = len(next(iter(seeds.values()), [None]))
    return seeds.get(metric) or [record.get(metric)] * count


def thin(steps: Sequence[int], most: int) -> list[int]:
    """At most so many of the steps, evenly spaced, with the first and the last."""
    if len(steps) <= most:
        return list(steps)
    return [steps[round(i * (len(steps) - 1) / (most - 1))] for i in range(most)]


def rounded(value: float | None) -> float | None:
    """The value with six significant digits."""
    return None if value is None else float(f"{value:.6g}")
