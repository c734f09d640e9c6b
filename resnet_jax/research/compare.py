"""Comparing runs: their curves in one figure, their scores, and the fields that differ."""

import dataclasses
import itertools
import json
import math
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal, Self

import numpy as np
from etils import epath
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from resnet_jax.checkpoint.workdir import CONFIG, METRICS, SUMMARY, no_client, read_config
from resnet_jax.config.fields import MAY_CHANGE
from resnet_jax.config.io import from_json
from resnet_jax.config.schema import flatten
from resnet_jax.errors import ConfigError
from resnet_jax.logging.metrics_log import read_metrics
from resnet_jax.logging.plots import figure_text
from resnet_jax.logging.summary import read_summary
from resnet_jax.research.differences import compare_rows
from resnet_jax.research.figures import COLORS, PAGE, journal_style, new_panels, plot_mean
from resnet_jax.research.scores import mean_and_std, score_rows, shared_name, summarize_scores
from resnet_jax.utils.paths import as_path, bucket_errors, exists, is_remote

Metric = Literal["top1", "loss"]
_DEEPEST = 3  # levels of folders that are searched for runs
_DASHES = ("-", "--", ":", "-.")


@dataclasses.dataclass(frozen=True, eq=False)
class RecordedRun:
    """The record of a run, or of those of its seeds that have the same settings.

    Attributes:
        folder: the run's directory.
        config: dotted field → value.
        records: the records of metrics.jsonl.
        summary: the content of summary.json; None if the run isn't finished.
        numbers: the positions of the seeds among all seeds of the run.
    """

    folder: epath.Path
    config: dict[str, Any]
    records: list[dict[str, Any]]
    summary: dict[str, Any] | None
    numbers: tuple[int, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds."""
        return self.config["seeds"] or (self.config["seed"],)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The scores of the seeds; see `score_rows`. Empty if the run isn't finished."""
        return score_rows(self.summary, self.numbers) if self.summary else []

    @property
    def settings(self) -> list[Self]:
        """The run in parts of the same settings: a part for each combination of `config.vary`."""
        varied = dict(self.config["vary"])
        if not varied:
            return [self]
        parts: dict[tuple[Any, ...], list[int]] = {}
        for number in self.numbers:
            parts.setdefault(tuple(values[number] for values in varied.values()), []).append(number)
        return [
            dataclasses.replace(
                self,
                config=self.config
                | dict(zip(varied, values, strict=True))
                | {"seeds": tuple(self.seeds[number] for number in numbers), "vary": ()},
                numbers=tuple(numbers),
            )
            for values, numbers in parts.items()
        ]

    def without_seed(self) -> dict[str, Any]:
        """The fields that change the result of the run, except the seed."""
        left_out = ("seed", "seeds", *MAY_CHANGE)
        return {name: value for name, value in self.config.items() if name not in left_out}


@dataclasses.dataclass(frozen=True, eq=False)
class Line:
    """Runs that differ only in the seed: a line of the figure, a row of the table."""

    label: str
    runs: tuple[RecordedRun, ...]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The scores of the finished runs; see `score_rows`."""
        return [row for run in self.runs for row in run.rows]

    def curve(self, split: str, metric: str) -> tuple[list[float], np.ndarray]:
        """(Epochs [points], values [seeds, points]) at the steps that all runs have reached."""
        of_runs = [
            {
                r["step"]: r
                for r in run.records
                if r["split"] == split and r.get("weights", "raw") == "raw"
            }
            for run in self.runs
        ]
        steps = sorted(set.intersection(*(set(by_step) for by_step in of_runs)))
        values = [  # [points, runs, seeds]
            [
                [r[step].get("seeds", {metric: [r[step][metric]]})[metric][n] for n in run.numbers]
                for run, r in zip(self.runs, of_runs, strict=True)
            ]
            for step in steps
        ]
        epochs = [of_runs[0][step]["epoch"] for step in steps]
        return epochs, np.array([list(itertools.chain(*point)) for point in values]).T


def find_runs(names: Iterable[epath.PathLike]) -> list[epath.Path]:
    """The runs' directories among these folders, and below folders that aren't runs, by name.

    Raises:
        UsageError: a name is a URL of an unknown kind.
        ConfigError: there is no run, or a folder can't be read.
    """
    found: list[epath.Path] = []
    for name in names:
        folder = as_path(name)
        try:
            with bucket_errors(folder):
                runs = list(_runs_below(folder, _DEEPEST))
        except ImportError:
            raise ConfigError(no_client(folder)) from None
        except OSError as error:
            raise ConfigError(f"{folder} can't be read ({error.strerror or error}).") from None
        if not runs:
            raise ConfigError(f"{folder} isn't the directory of a run, and has none below it.")
        found += runs
    return list(dict.fromkeys(found))


def _runs_below(folder: epath.Path, depth: int) -> Iterable[epath.Path]:
    if (folder / CONFIG).exists() or (folder / SUMMARY).exists():
        yield folder
    elif depth and folder.is_dir():

        def in_order(path: epath.Path) -> list[tuple[int, str]]:  # resnet8 before resnet20
            parts = re.split(r"(\d+)", path.name)
            return [(int(part) if part.isdecimal() else -1, part) for part in parts]

        for child in sorted(folder.iterdir(), key=in_order):
            yield from _runs_below(child, depth - 1)


def read_run(folder: epath.Path) -> RecordedRun:
    """Read the record of a run, finished or not.

    Raises:
        ConfigError: its config can't be used, or the folder can't be reached.
        DataError: metrics.jsonl or summary.json is damaged.
    """
    summary = None
    if exists(folder / SUMMARY):
        with read_summary(folder) as summary:
            score_rows(summary)  # raises if it is damaged
    fields = read_fields(folder, summary)
    numbers = tuple(range(len(fields["seeds"]) or 1))
    return RecordedRun(folder, fields, read_metrics(folder / METRICS), summary, numbers)


def read_fields(folder: epath.Path, summary: dict[str, Any] | None) -> dict[str, Any]:
    """The config of a run, dotted field → value, from config.json or else from its summary.

    Raises:
        ConfigError: the config can't be used.
    """
    # Committed results may have no config.json.
    source = folder / (CONFIG if exists(folder / CONFIG) else SUMMARY)
    try:
        in_summary = json.dumps(summary["config"]) if summary else ""
        config = read_config(folder) if source.name == CONFIG else in_summary
        fields = flatten(from_json(config))
        _check_vary(fields)
        return fields
    except (ConfigError, KeyError) as error:
        raise ConfigError(f"{source} can't be used: {error}") from None


def _check_vary(fields: dict[str, Any]) -> None:
    count = len(fields["seeds"])
    for pair in fields["vary"]:
        match pair:
            case (str(), (list() | tuple()) as values) if len(values) == count and all(
                isinstance(value, int | float) for value in values
            ):
                continue
        raise ConfigError("vary isn't pairs of a field and a number for each seed")


def gather_lines(runs: Sequence[RecordedRun]) -> list[Line]:
    """Gather runs that differ only in the seed into lines, labelled with their common name.

    A run that repeats a seed of a line begins another line. A run whose settings vary with its
    seeds (`config.vary`) has a line for each of its `settings`, labelled with their values, too.
    """
    names: dict[RecordedRun, str] = {}
    for run, name in zip(runs, short_names([run.folder for run in runs]), strict=True):
        for part in run.settings:
            values = [f"{field}={part.config[field]}" for field in dict(run.config["vary"])]
            names[part] = ",".join((name, *values))
    groups: dict[tuple[str, int], list[RecordedRun]] = {}
    for run in names:
        fields = json.dumps(run.without_seed())
        for repetition in itertools.count():
            group = groups.setdefault((fields, repetition), [])
            if not any(set(run.seeds) & set(other.seeds) for other in group):
                group.append(run)
                break
    return [
        Line(shared_name([names[run] for run in group]), tuple(group)) for group in groups.values()
    ]


def short_names(folders: Sequence[epath.Path]) -> list[str]:
    """The names of folders relative to their common parent."""
    names = [os.path.abspath(f"/{path}" if is_remote(path) else path) for path in folders]
    common = os.path.commonpath(names) if len(names) > 1 else os.path.dirname(names[0])
    return [os.path.relpath(name, common) for name in names]


def differing_fields(lines: Sequence[Line]) -> tuple[str, ...]:
    """The fields whose values differ between the lines."""
    configs = [line.runs[0].without_seed() for line in lines]
    names = dict.fromkeys(itertools.chain(*configs))  # a run may have fields of its extensions
    return tuple(
        name for name in names if any(c.get(name) != configs[0].get(name) for c in configs)
    )


def describe(line: Line, differing: Sequence[str], *, first: Line) -> dict[str, Any]:
    """A row of the table, as JSON values.

    "steps" is the number of recorded steps, the smallest over the runs; "scores" are those of the
    finished runs, as from `summarize_scores`; "versus" is the difference from the `first` line, as
    from `compare_rows`; "train_loss" is the last training loss.
    """
    steps = [max((r["step"] for r in run.records), default=0) for run in line.runs]
    _, losses = line.curve("train", "loss")
    config = line.runs[0].config
    fields = first.runs[0].config, config
    return {
        "label": line.label,
        "runs": [os.fspath(run.folder) for run in line.runs],
        "model": config["model.name"],
        "data": config["data.name"],
        "seeds": [seed for run in line.runs for seed in run.seeds],
        "steps": min(steps),
        "finished": all(run.summary for run in line.runs),
        "scores": summarize_scores(line.rows),
        "versus": None if line is first else compare_rows(first.rows, line.rows, fields=fields),
        "train_loss": mean_and_std(losses[:, -1].tolist()) if losses.size else None,
        "differs": {name: config.get(name) for name in differing},
    }


def draw(lines: Sequence[Line], *, metric: Metric) -> Figure:
    """Draw the training loss, and the error or loss on the validation split or else the test split.

    For several seeds, the mean is drawn with a band of ± one standard deviation.
    """
    with journal_style():
        longest = max(len(line.label) for line in lines)
        columns = max(1, min(len(lines), int(PAGE / (0.6 + 0.06 * longest))))
        rows = math.ceil(len(lines) / columns)
        figure, (losses, scores) = new_panels(2, height=2.3 + 0.17 * rows)
        for number, line in enumerate(lines):
            epochs, values = line.curve("train", "loss")
            if epochs:
                plot_mean(losses, epochs, values, label=figure_text(line.label), **_style(number))
        losses.set(xlabel="epoch", ylabel="training loss (nats)", yscale="log")
        _draw_scores(scores, lines, metric)
        if losses.lines:
            figure.legend(loc="outside lower center", ncols=columns)
    return figure


def _draw_scores(axes: Axes, lines: Sequence[Line], metric: Metric) -> None:
    splits = ["validation" if line.curve("validation", "loss")[0] else "test" for line in lines]
    curves = [line.curve(split, metric) for line, split in zip(lines, splits, strict=True)]
    if metric == "top1":
        curves = [(epochs, 100 * (1 - values)) for epochs, values in curves]
    highest = 0.0
    if all(len(epochs) <= 1 for epochs, _ in curves):  # the test split is evaluated at the end only
        for number, (_, values) in enumerate(curves):
            if values.size:
                std = values.std(ddof=1) if len(values) > 1 else None
                style = _style(number) | {"linestyle": ""}
                axes.errorbar(number, values.mean(), std, marker="o", capsize=2, **style)
        axes.set(xticks=[], xlim=(-0.5, len(lines) - 0.5))
    else:
        for number, (epochs, values) in enumerate(curves):
            if len(epochs) == 1:
                axes.plot(epochs, values.mean(axis=0), marker="o", **_style(number))
            elif epochs:
                plot_mean(axes, epochs, values, **_style(number))
                # The beginning of the curves doesn't determine the scale.
                highest = max(highest, values[:, len(epochs) // 4 :].max())
        axes.set_xlabel("epoch")
    drawn = [split for split, (epochs, _) in zip(splits, curves, strict=True) if epochs]
    what = " or ".join(dict.fromkeys(drawn)) or "test"
    if metric == "top1":
        axes.set(ylabel=f"{what} error (%)", ylim=(0, 1.05 * highest or None))
    else:
        axes.set(ylabel=f"{what} loss (nats)", yscale="log")


def _style(number: int) -> dict[str, Any]:
    """The colour and dashes of a line: colours first, which are easier to tell apart."""
    dashes = _DASHES[number // len(COLORS) % len(_DASHES)]
    return {"color": COLORS[number % len(COLORS)], "linestyle": dashes}
