"""The records of runs as far as they can be read; damage becomes a note on the page."""

import dataclasses
import itertools
import os
import re
from collections.abc import Sequence
from typing import Any

from etils import epath

from resnet_jax.checkpoint.workdir import CONFIG, METRICS, SUMMARY
from resnet_jax.errors import ConfigError, DataError
from resnet_jax.logging.metrics_log import salvage_metrics
from resnet_jax.logging.status import RunStatus, read_status
from resnet_jax.logging.summary import read_summary
from resnet_jax.research.compare import RecordedRun, read_fields, short_names
from resnet_jax.research.scores import score_rows, summarize_scores
from resnet_jax.utils.paths import exists

_NAMED = 3  # damaged lines in a note
_LARGEST = 1e100  # sums and squares of such numbers are finite
_ABSOLUTE = re.compile(r"(?<![^\s\"'(\[=,])(?:~?/|\w+://)(?:[^\s/\"']+/)+([^\s/\"']*)")


@dataclasses.dataclass(frozen=True, eq=False)
class ReportedRun:
    """What is known of a run.

    Attributes:
        name: its folder, relative to the folder that all runs of the page share.
        record: its config, metrics and summary.
        status: its state, times and goodput.
    """

    name: str
    record: RecordedRun
    status: RunStatus


def read_runs(folders: Sequence[epath.Path]) -> tuple[list[ReportedRun], list[str]]:
    """Read runs, finished or not.

    Returns:
        The runs whose config can be read, and a note for all that is missing or damaged.

    Raises:
        ConfigError: the config of no run can be read.
    """
    runs: list[ReportedRun] = []
    notes: dict[str, None] = {}
    reason = ""
    for folder, name in zip(folders, short_names(folders), strict=True):
        found: list[str] = []
        try:
            runs.append(_read_run(folder, name, found))
        except ConfigError as error:
            reason = reason or str(error)
            found.append(f"left out, because its config can't be used ({error})")
        texts = (without_folders(note, os.fspath(folder)) for note in found)
        notes |= dict.fromkeys(f"{name}: {text}" for text in texts)
    if not runs:
        raise ConfigError(reason)
    return runs, list(notes)


def _read_run(folder: epath.Path, name: str, notes: list[str]) -> ReportedRun:
    status = read_status(folder)
    summary = _read_summary(folder, notes)
    fields = read_fields(folder, summary)
    seeds = fields["seeds"] or (fields["seed"],)
    if not all(isinstance(seed, int) for seed in seeds):
        raise ConfigError(f"{CONFIG} has seeds that are no integers.")
    records = _read_metrics(folder, notes)
    read_here = (CONFIG, METRICS, SUMMARY)
    notes += [text for text in status.problems if not any(file in text for file in read_here)]
    if status.state == "failed":
        notes.append(f"failed: {status.reason}")
    elif status.state != "finished":
        notes.append(f"not finished ({status.state}), at step {status.step:,}")
    numbers = tuple(range(len(seeds)))
    return ReportedRun(name, RecordedRun(folder, fields, records, summary, numbers), status)


def _read_summary(folder: epath.Path, notes: list[str]) -> dict[str, Any] | None:
    if not exists(folder / SUMMARY):
        return None
    try:
        with read_summary(folder) as summary:
            rows = score_rows(summary)
            for row in rows:
                check_row(row)
            summarize_scores(rows)
            return summary
    except DataError:
        notes.append(f"{SUMMARY} is damaged, so that the run has no final scores here")
    return None


def check_row(row: dict[str, Any]) -> None:
    """Check the numbers of a row of `score_rows`.

    Raises:
        ValueError, LookupError, TypeError: they can't be those of a score.
    """
    numbers = [value for name, value in row.items() if name not in ("split", "weights")]
    if not all(abs(number) <= _LARGEST for number in numbers):  # NaN isn't either
        raise ValueError("no number that was measured")
    if not (isinstance(row["seed"], int) and row["examples"] >= 1 and 0 <= row["top1"] <= 1):
        raise ValueError("no score")


def _read_metrics(folder: epath.Path, notes: list[str]) -> list[dict[str, Any]]:
    try:
        records, damaged = salvage_metrics(folder / METRICS)
    except DataError as error:
        notes.append(f"no curves: {error}")
        return []
    if damaged:
        shown = "; ".join(f"line {n}: {why}" for n, why in list(damaged.items())[:_NAMED])
        more = f", and {len(damaged) - _NAMED:,} more" if len(damaged) > _NAMED else ""
        notes.append(f"damaged lines of {METRICS} are left out ({shown}{more})")
    possible = [record for record in records if _is_possible(record)]
    if len(possible) < len(records):
        count = len(records) - len(possible)
        notes.append(
            f"records of {METRICS} with numbers above {_LARGEST:g} are left out ({count:,})"
        )
    if not possible:
        notes.append(f"no curves, because {METRICS} has no records")
    return possible


def _is_possible(record: dict[str, Any]) -> bool:
    of_seeds = itertools.chain(*record.get("seeds", {}).values())
    numbers = [value for value in record.values() if isinstance(value, int | float)]
    return all(abs(number) <= _LARGEST for number in (*numbers, *of_seeds))


def folder_name(*folders: epath.Path) -> str:
    """The name of a folder, or of the folder that several share."""
    paths = [os.path.abspath(folder) for folder in folders]
    common = os.path.commonpath(paths) if len(paths) > 1 else paths[0]
    return os.path.basename(common) or "runs"


def without_folders(text: str, *known: str) -> str:
    """The text with the folders of absolute paths and URLs, which are private, left out.

    Args:
        text: a message or a value.
        known: paths that the text may contain, whose names may have spaces.
    """
    for path in sorted(filter(None, known), key=len, reverse=True):
        text = text.replace(path, _last_part(path))
    return _last_part(text) if text.startswith(("/", "~/")) else _ABSOLUTE.sub(r"…/\1", text)


def _last_part(path: str) -> str:
    return f"…/{path.rstrip('/').rpartition('/')[2]}"
