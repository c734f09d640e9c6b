"""All that a page shows of runs, as one JSON-like document."""

import json
import math
import sys
from collections.abc import Sequence
from typing import Any

from etils import epath

from resnet_jax.checkpoint.workdir import CONFIG, read_config
from resnet_jax.errors import ResnetJaxError
from resnet_jax.report.curves import curves_of
from resnet_jax.report.examples import examine_best
from resnet_jax.report.fields import config_table, dates, field_text, made_by, times
from resnet_jax.report.reading import folder_name, read_runs
from resnet_jax.research.compare import Line, RecordedRun, describe, differing_fields, gather_lines
from resnet_jax.research.scores import SHOWN, Row, count_params, rows_by_name
from resnet_jax.research.significance import mean_interval
from resnet_jax.utils.paths import exists
from resnet_jax.utils.streams import escaped

_MOST_EXAMINED = 4  # lines
_LONGEST_S = 1e12  # what takes longer is damage

_JUDGED = ("test", "validation")
"""Lines are ordered by the first of these scores that they have."""


def report_document(folders: Sequence[epath.Path], *, mistakes: int) -> dict[str, Any]:
    """Gather what a page shows of runs. The same runs give the same document.

    Args:
        folders: directories of runs, as from `find_runs`.
        mistakes: how many mistakes are shown of a line; 0 reads neither checkpoints nor data.

    Returns:
        "title"; "dates" as from `dates`; "notes", sentences on what is missing or damaged; "lines",
        runs that differ only in the seed, see `_line`; "fields", "made_by" and "times" as from
        `config_table`, `made_by` and `times`; "grid", the fields that differ between the lines as
        {"name", "values" by line}; "shown", heading by score.

    Raises:
        ConfigError: the config of no run can be read.
    """
    runs, notes = read_runs(folders)
    lines = gather_lines([run.record for run in runs])
    differing = differing_fields(lines)
    curves = curves_of(lines)
    described = [
        _line(line, differing, first=lines[0]) | {"curves": curve}
        for line, curve in zip(lines, curves, strict=True)
    ]
    examined: dict[int, dict[str, Any]] = {}
    if mistakes:
        errors = [_error(line["scores"]) for line in described]
        examined, more = examine_best(lines, errors, mistakes=mistakes, most=_MOST_EXAMINED)
        notes += more
    for number, line in enumerate(described):
        line["examined"] = examined.get(number)
    document: dict[str, Any] = escaped(
        {
            "title": folder_name(*(run.record.folder for run in runs)),
            "dates": dates(runs),
            "notes": notes,
            "shown": SHOWN,
            "lines": described,
            "grid": [
                {"name": name, "values": [_grid_value(line, name) for line in lines]}
                for name in differing
            ],
            "fields": config_table(lines, differing),
            "made_by": made_by(
                (run.name, run.record.summary) for run in runs if run.record.summary is not None
            ),
            "times": times(runs),
        }
    )
    return document


def _line(line: Line, differing: Sequence[str], *, first: Line) -> dict[str, Any]:
    """What the page says of a line: as from `describe`, without folders, and more.

    "scores" also have "values" (seed → top-1 accuracy) and "interval" (the 95 % confidence interval
    of the mean accuracy over seeds, or None for a single seed); "params" is the number of
    parameters, or None; "wall_s" is the sum over the finished runs, in seconds.
    """
    about = describe(line, differing, first=first)
    del about["runs"]
    about["differs"] = {name: field_text(value) for name, value in about["differs"].items()}
    about["scores"] = with_intervals(about["scores"], line.rows)
    about["wall_s"] = sum(_wall_s(run) for run in line.runs if run.summary)
    about["params"] = _params(line.runs[0])
    return about


def with_intervals(scores: dict[str, Any], rows: Sequence[Row]) -> dict[str, Any]:
    """Scores as from `summarize_scores` of the rows, with "values" and "interval"; see `_line`."""
    found = {}
    for name, of in rows_by_name(rows).items():
        top1 = {str(row["seed"]): row["top1"] for row in of}
        interval = mean_interval(list(top1.values()))
        found[name] = scores[name] | {
            "values": top1,
            "interval": None if interval is None else list(interval),
        }
    return found


def _wall_s(run: RecordedRun) -> float:
    """The training time of a finished run, or the share of the seeds of one of its settings."""
    assert run.summary is not None
    wall_s = run.summary.get("wall_s")
    if not isinstance(wall_s, int | float) or not 0 <= wall_s < _LONGEST_S:
        return 0.0
    return wall_s * len(run.numbers) / len(run.summary.get("seeds") or [None])


def _params(run: RecordedRun) -> int | None:
    try:
        if exists(run.folder / CONFIG):
            return count_params(read_config(run.folder))
        return count_params(json.dumps(run.summary["config"])) if run.summary else None
    except ResnetJaxError:  # a network of a module that isn't here
        return None


def _error(scores: dict[str, Any]) -> float:
    """The test or validation error of a line in 0…1; infinity without a score."""
    for name in _JUDGED:
        if name in scores:
            return 1 - float(scores[name]["top1"]["mean"])
    return math.inf


def _grid_value(line: Line, name: str) -> float | str:
    """The value of a field as a number if it is a number, or else as text."""
    value = line.runs[0].config.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return field_text(value)
    # JSON has no NaN, and JavaScript no integer beyond floats.
    return value if abs(value) <= sys.float_info.max else field_text(value)
