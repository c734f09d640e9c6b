"""Plans of runs on machines that fail: goodput, the best checkpoint interval, days, chip-hours."""

import dataclasses
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from resnet_jax.checkpoint.workdir import GOODPUT
from resnet_jax.errors import DataError, WriteError
from resnet_jax.logging.plots import new_figure
from resnet_jax.parallel.mesh import make_mesh
from resnet_jax.profiling.goodput import (
    Costs,
    best_interval_s,
    expected_wall_s,
    goodput,
    simulate_wall_s,
)
from resnet_jax.train.data_sizes import duration_unit
from resnet_jax.train.goodput import downtimes_s, read_starts, totals_of
from resnet_jax.train.spec import TrainSpec

_MOST_FAILURES = 2_000  # expected of a run that is simulated
_STARTS = 100_000  # simulated, over all runs
_RUNS = (50, 2_000)  # fewest and most simulated runs

_DAY_S = 86_400


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a run's goodput.json tells of the time that things take.

    Attributes:
        step_s: seconds of a training step.
        other_s: seconds per step of evaluation and of waiting for data.
        save_s: seconds that training halts for a checkpoint.
        restart_s: mean seconds from the beginning of a process to its first step, plus the mean
            seconds from the last record of a killed process to the beginning of the next, if one
            was killed.
    """

    step_s: float
    other_s: float
    save_s: float
    restart_s: float


def read_measured(workdir: epath.Path) -> Measured:
    """Read what a run measured.

    Raises:
        DataError: the run has no goodput.json with steps and checkpoints.
    """
    starts = read_starts(workdir / GOODPUT)
    totals = totals_of(starts)
    steps, seconds = totals["steps"], totals["seconds"]
    if not steps or not totals["saves"]:
        raise DataError(f"{workdir} has no {GOODPUT} of a run that has trained and saved.")
    # Without the starts that were killed before they saved: all of their time is lost.
    begun = [start["seconds"] for start in starts if start["seconds"]["step"]]
    restarts = [
        sum(phases[name] for name in ("start_up", "restore", "compile")) for phases in begun
    ]
    return Measured(
        step_s=seconds["step"] / steps,
        other_s=(seconds["evaluation"] + seconds["data_wait"]) / steps,
        save_s=seconds["save"] / totals["saves"],
        restart_s=statistics.mean(restarts) + statistics.mean(downtimes_s(starts) or [0.0]),
    )


@dataclasses.dataclass(frozen=True)
class Length:
    """The length of a run.

    Attributes:
        steps: of the run.
        per_unit: steps of a `config.duration_unit`.
        unit: name of the unit.
        interval: steps between checkpoints by the config: the smaller of `checkpoint_every` and,
            with a validation split, `eval_every`, because each evaluation saves a checkpoint.
        eval_interval: steps between evaluations; None without a validation split.
    """

    steps: int
    per_unit: float
    unit: str
    interval: int
    eval_interval: int | None

    @classmethod
    def of(cls, config: ConfigDict) -> "Length":
        """Return the length of the run of a config.

        Raises:
            ConfigError: the sizes of the data aren't known without reading them.
        """
        spec = TrainSpec.without_data(config, make_mesh(data=1))
        intervals = spec.intervals
        unit = duration_unit(config, intervals.train_examples)
        saves, evaluates = (
            min(max(1, round(examples / intervals.batch_size)), intervals.total_steps)
            for examples in (intervals.checkpoint_every, intervals.eval_every)
        )
        return cls(
            intervals.total_steps,
            unit / intervals.batch_size,
            config.duration_unit,
            interval=min(saves, evaluates) if config.data.validation else saves,
            eval_interval=evaluates if config.data.validation else None,
        )


def plan(name: str, chips: int, costs: Costs, length: Length) -> dict[str, Any]:
    """Return the plan of a run on one slice, as a JSON document.

    Args:
        name: of the slice.
        chips: of the slice.
        costs: of the run there.
        length: of the run.

    Returns:
        The costs; "best" and "configured", plans with Daly's interval and with the config's:
        "steps" and "checkpoint_every" between checkpoints, expected "goodput", "days" and
        "chip_hours", and "simulated" with the mean and the standard error of the goodput of
        simulated runs. Values are None where a run would never end; "simulated" where it would fail
        too often to be simulated.
    """
    interval_s = best_interval_s(costs)
    best = length.steps
    if math.isfinite(interval_s):
        best = min(max(1, round(interval_s / costs.work_s)), length.steps)
    intervals = {"best": best, "configured": length.interval}
    document = {
        "topology": name,
        "chips": chips,
        **{k: None if math.isinf(v) else v for k, v in dataclasses.asdict(costs).items()},
    }
    for what, interval in intervals.items():
        wall_s = expected_wall_s(costs, steps=length.steps, interval=interval)
        ends = math.isfinite(wall_s)
        document[what] = {
            "steps": interval,
            "checkpoint_every": interval / length.per_unit,
            "goodput": goodput(costs, wall_s, steps=length.steps),
            "days": wall_s / _DAY_S if ends else None,
            "chip_hours": wall_s / 3600 * chips if ends else None,
            "simulated": _simulated(costs, length.steps, interval, seed=0),
        }
    return document


def _simulated(costs: Costs, steps: int, interval: int, *, seed: int) -> dict[str, float] | None:
    starts = 1 + expected_wall_s(costs, steps=steps, interval=interval) / costs.mtbf_s
    if starts > _MOST_FAILURES:
        return None
    runs = int(np.clip(_STARTS / starts, *_RUNS))
    walls = simulate_wall_s(costs, steps=steps, interval=interval, runs=runs, seed=seed)
    # Of the mean wall time, as the formula's; not the mean of the runs' goodputs.
    mean = goodput(costs, float(walls.mean()), steps=steps)
    error = float(walls.std(ddof=1) / math.sqrt(runs) / walls.mean()) * mean
    return {"goodput": mean, "standard_error": error}


def draw_plans(path: Path, plans: Sequence[dict[str, Any]], length: Length) -> None:
    """Draw goodput over the checkpoint interval: the formula, simulations, and the best interval.

    Raises:
        WriteError: the picture can't be written.
    """
    figure = new_figure(7, 4.2)
    axes = figure.subplots()
    for number, document in enumerate(plans):
        costs = Costs(
            **{
                field.name: math.inf if document[field.name] is None else document[field.name]
                for field in dataclasses.fields(Costs)
            }
        )
        best, color = document["best"], f"C{number}"
        low, high = max(1, best["steps"] / 30), min(length.steps, best["steps"] * 30)
        intervals = np.unique(np.geomspace(low, high, 60).round().astype(int))
        shares = [
            goodput(
                costs,
                expected_wall_s(costs, steps=length.steps, interval=int(i)),
                steps=length.steps,
            )
            for i in intervals
        ]
        minutes = intervals * costs.work_s / 60
        axes.plot(minutes, shares, color=color, label=document["topology"])
        for i in intervals[::6]:
            if simulated := _simulated(costs, length.steps, int(i), seed=int(i)):
                x, error = i * costs.work_s / 60, 1.96 * simulated["standard_error"]
                axes.errorbar(x, simulated["goodput"], error, fmt="o", ms=4, capsize=2, color=color)
        axes.axvline(best["steps"] * costs.work_s / 60, color=color, ls=":", lw=1)
    axes.set(xscale="log", xlabel="minutes of training between checkpoints", ylabel="goodput")
    axes.set_title("lines: Daly's model; points: simulated, 95 %; dotted: Daly's interval", size=9)
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise WriteError(f"{path} can't be written: {error}") from None
