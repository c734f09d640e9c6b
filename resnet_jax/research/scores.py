"""The scores of finished runs as tidy rows, and means over seeds."""

import collections
import csv
import functools
import io
import itertools
import re
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from resnet_jax.checkpoint.workdir import read_config
from resnet_jax.config.io import from_json
from resnet_jax.config.schema import flatten, model_overrides
from resnet_jax.data.dataset_info import find_known
from resnet_jax.logging.summary import read_summary
from resnet_jax.models.presets import create_model
from resnet_jax.models.summary import summarize
from resnet_jax.research.differences import compare_rows
from resnet_jax.research.significance import sampling_error
from resnet_jax.research.sweep import PlannedRun, label_by_difference, overridden_fields
from resnet_jax.train.evaluate import Evaluation
from resnet_jax.train.metrics import METRICS
from resnet_jax.train.multi_seed import single_configs

TABLE, DOCUMENT = "sweep.csv", "sweep.json"
"""The files with the rows and with the groups of a sweep, in its folder."""

SHOWN = {
    "validation": "validation",
    "test": "test",
    "test_ema": "test, averages",
    "test_best": "test, best",
}
"""Scores → their headings in tables. "best" is the best checkpoint on the validation split."""
HEADING = "top-1 error in %, mean ± standard deviation over seeds"
SAMPLING = "± by images"
"""Heading of the standard error that comes from the choice of the images."""

Row = dict[str, Any]


def score_rows(summary: Mapping[str, Any], numbers: Sequence[int] | None = None) -> list[Row]:
    """One row per seed and evaluated split of a run's summary.json.

    A row has "seed", "split", "weights" ("raw", "ema", or "best" for the best checkpoint), "step",
    "examples", and the metrics: "loss" (nats), "top1", "top5" (shares in 0…1), and others.

    Args:
        summary: content of the file.
        numbers: the positions of some seeds among those of the run; None is all.
    """
    of_seeds = _rows_of_seeds(summary)
    if numbers is not None:
        of_seeds = [of_seeds[number] for number in numbers]
    return list(itertools.chain(*of_seeds))


def _rows_of_seeds(summary: Mapping[str, Any]) -> list[list[Row]]:
    seeds = summary["seeds"] if "seeds" in summary else [summary["seed"]]
    scored = [(name, summary["steps"], scores) for name, scores in summary["final"].items()]
    if best := summary["best"]:
        scored.append(("validation_best", best["step"], best))
        if "test" in best:
            scored.append(("test_best", best["step"], best["test"]))
    rows: list[list[Row]] = [[] for _ in seeds]
    for number, seed in enumerate(seeds):
        for name, step, scores in scored:
            split, _, weights = name.partition("_")
            about = {"seed": seed, "split": split, "weights": weights or "raw", "step": step}
            rows[number].append(about | _of_seed(scores, number))
    return rows


def _of_seed(scores: Mapping[str, Any], number: int) -> Row:
    """The scores of one seed of a run."""
    evaluation = Evaluation.from_scalars(scores)
    return (evaluation.seeds[number] if evaluation.seeds else evaluation).scalars()


def sweep_rows(runs: Sequence[PlannedRun], workdir: epath.Path) -> list[Row]:
    """The rows of the finished runs, with their names, overridden fields, times and sizes.

    Raises:
        DataError: a summary.json is damaged, or can't be read.
    """
    fields = overridden_fields(runs)
    rows = []
    for run in runs:
        if not run.is_finished(workdir):
            continue
        with read_summary(workdir / run.name) as summary:
            costs = {name: summary[name] for name in ("wall_s", "img_per_s")}
            costs["params"] = count_params(read_config(workdir / run.name))
            singles = single_configs(run.config)
            for single, of_seed in zip(singles, _rows_of_seeds(summary), strict=True):
                flat = flatten(single)
                about = {"run": run.name, **{field: flat[field] for field in fields}}
                rows += [about | row | costs for row in of_seed]
    return rows


@functools.cache
def count_params(config: str) -> int | None:
    """The number of parameters of a config's network; None if its data set isn't a known one.

    Args:
        config: JSON text.
    """
    of = from_json(config)
    known = find_known(of.data.name, image_size=of.data.image_size)
    if known is None:
        return None
    model = create_model(of.model.name, **model_overrides(of), num_classes=known.num_classes)
    return summarize(model, known.image_shape).params


def as_csv(rows: Sequence[Row]) -> str:
    """The rows as CSV; cells of unknown values are empty."""
    text = io.StringIO()
    columns = list(dict.fromkeys(itertools.chain(*rows))) or ["run"]
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def mean_and_std(values: Sequence[float]) -> dict[str, float | None]:
    """The "mean" and standard deviation (n - 1) "std" of values; "std" is None for one value."""
    std = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "std": std}


def summarize_scores(rows: Iterable[Row]) -> dict[str, dict[str, Any]]:
    """Scores over rows that differ in the seed, by name: "test", "validation", "test_best"…

    Each has "step", "n", "examples", "mean" and "std" of every metric, and as "sampling_error" the
    standard error of the accuracy that comes from the choice of the images; see `sampling_error`.
    """
    return {name: _summary(of) for name, of in rows_by_name(rows).items()}


def rows_by_name(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """The rows of each score: "test", "validation", "test_best"…"""
    by_name: dict[str, list[Row]] = {}
    for row in rows:
        name = row["split"] if row["weights"] == "raw" else f"{row['split']}_{row['weights']}"
        by_name.setdefault(name, []).append(row)
    return by_name


def _summary(rows: Sequence[Row]) -> dict[str, Any]:
    metrics = {
        metric: mean_and_std([row[metric] for row in rows])
        for metric in METRICS
        if all(metric in row for row in rows)
    }
    examples, accuracy = rows[0]["examples"], metrics["top1"]["mean"]
    assert accuracy is not None
    about = {"step": rows[0]["step"], "n": len(rows), "examples": examples}
    return about | metrics | {"sampling_error": sampling_error(accuracy, examples)}


def group_rows(
    rows: Sequence[Row], fields: Sequence[str], *, named: Collection[str] = ()
) -> list[dict[str, Any]]:
    """Group the rows of a sweep that differ only in the seed.

    Args:
        rows: the rows that `sweep_rows` returns.
        fields: the overridden fields except the seed.
        named: the names of the runs that the sweep names.

    Returns:
        For each group: "label", the common part of the names if the sweep gives all of them, or
        else the fields that differ from the other groups; "runs", the names; "fields" and their
        values; "seeds"; "scores" as from `summarize_scores`; "versus", the difference from the
        first group, as from `compare_rows`; "wall_s", the sum over its runs, of which seeds of
        other groups have their share; "params".
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(str([row[field] for field in fields]), []).append(row)
    names = {key: list(dict.fromkeys(row["run"] for row in of)) for key, of in groups.items()}
    values = [{field: of[0][field] for field in fields} for of in groups.values()]
    first = next(iter(groups.values()), [])
    labels = dict(zip(groups, label_by_difference(values) if values else (), strict=True))
    for key, of_group in names.items():
        if {*of_group} <= {*named}:
            several = any({*of_group} & {*other} for k, other in names.items() if k != key)
            parts = [labels[key]] if several else []
            labels[key] = ",".join((shared_name(of_group), *parts))
    # A run whose settings vary with its seeds is in several groups.
    rows_of_run = collections.Counter(row["run"] for row in rows)
    return [
        {
            "label": labels[key],
            "runs": names[key],
            "fields": {field: of[0][field] for field in fields},
            "seeds": list(dict.fromkeys(row["seed"] for row in of)),
            "scores": summarize_scores(of),
            "versus": compare_rows(first, of, fields=(first[0], of[0]))
            if of is not first
            else None,
            "wall_s": _wall_s(of, rows_of_run),
            "params": of[0]["params"],
        }
        for key, of in groups.items()
    ]


def _wall_s(rows: Sequence[Row], rows_of_run: Mapping[str, int]) -> float:
    """The training time of a group, with its share of runs that are in several groups."""
    own = collections.Counter(row["run"] for row in rows)
    walls = {row["run"]: row["wall_s"] for row in rows}
    return sum(wall_s * own[run] / rows_of_run[run] for run, wall_s in walls.items())


def shared_name(names: Sequence[str]) -> str:
    """A name for runs that differ in the seed: "a" for "a,seed=0" and "a,seed=1"."""
    if len(names) == 1:
        return names[0]
    without_seeds = {re.sub(r"(^|[,/_.-])seed=?\d+", "", name).strip(",/_.-") for name in names}
    if len(without_seeds) == 1 and without_seeds != {""}:
        return without_seeds.pop()
    return " + ".join(names)


def error_percent(top1: Mapping[str, float | None]) -> str:
    """The top-1 error in percent, such as `1.11 ± 0.28`, from "mean" and "std" of the accuracy."""
    assert top1["mean"] is not None
    spread = "" if top1["std"] is None else f" ± {100 * top1['std']:.2f}"
    return f"{100 * (1 - top1['mean']):.2f}{spread}"


def sampling_percent(scores: Mapping[str, Any]) -> str:
    """The standard error in points that comes from the choice of the images, such as `± 0.82`."""
    for name in ("test", "validation"):
        if name in scores:
            return f"± {100 * scores[name]['sampling_error']:.2f}"
    return "–"


def loss_nats(loss: Mapping[str, float | None]) -> str:
    """The loss in nats, such as `0.031 ± 0.002`."""
    spread = "" if loss["std"] is None else f" ± {loss['std']:.2g}"
    return f"{loss['mean']:.3g}{spread}"


def made_by(runs: Sequence[PlannedRun], workdir: epath.Path) -> list[dict[str, Any]]:
    """The distinct commands, commits, versions and hardware of the finished runs."""
    known: list[dict[str, Any]] = []
    for run in runs:
        if run.is_finished(workdir):
            with read_summary(workdir / run.name) as summary:
                origin = {k: summary[k] for k in ("command", "commit", "versions", "hardware")}
            if origin not in known:
                known.append(origin)
    return known
