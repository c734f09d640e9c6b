"""Configs, versions and times of runs as a page shows them, without private folders."""

import datetime
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from resnet_jax.config.schema import default_config, flatten
from resnet_jax.report.reading import ReportedRun, without_folders
from resnet_jax.research.compare import Line

_OF_SEEDS = ("seed", "seeds")
_LONGEST = 300  # characters of a value
_DESCRIBED = ("commit", "versions", "hardware", "convolutions")


def config_table(lines: Sequence[Line], differing: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each field: "name", "values", "differs" and "is_default".

    "values" has a text for each line, or a single one if they are all equal. Seeds are left out.
    """
    defaults = flatten(default_config())
    rows = []
    configs = [line.runs[0].config for line in lines]
    for name in dict.fromkeys(itertools.chain(*configs)):
        if name in _OF_SEEDS:
            continue
        values = [field_text(config.get(name)) for config in configs]
        is_default = all(config.get(name) == defaults.get(name) for config in configs)
        rows.append(
            {
                "name": name,
                "values": values if len({*values}) > 1 else values[:1],
                "differs": name in differing,
                "is_default": is_default,
            }
        )
    return rows


def field_text(value: Any) -> str:
    """A value of a config field as text; absolute paths are reduced to their last part."""
    text = value if isinstance(value, str) else repr(value)
    return without_folders(_short(text))


def made_by(summaries: Iterable[tuple[str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """The distinct commits, versions and hardware of finished runs, with their commands.

    Args:
        summaries: names of runs, and what their summary.json holds.

    Returns:
        Each with "runs" and "commands", and texts: "commit", "convolutions", and "versions" and
        "hardware" by name.
    """
    known: list[dict[str, Any]] = []
    for name, summary in summaries:
        origin = {part: _texts(summary.get(part)) for part in _DESCRIBED}
        same = next(
            (other for other in known if all(other[part] == origin[part] for part in origin)), None
        )
        if same is None:
            same = origin | {"runs": [], "commands": []}
            known.append(same)
        same["runs"].append(name)
        command = _texts(summary.get("command"))
        if command and command not in same["commands"]:
            same["commands"].append(command)
    return known


def _texts(value: Any) -> Any:
    """A text, or texts by name; None for None."""
    if value is None:
        return None
    if isinstance(value, list):
        return without_folders(_short(", ".join(map(str, value))))
    if isinstance(value, Mapping):
        return {_short(str(name)): without_folders(_short(str(v))) for name, v in value.items()}
    return without_folders(_short(str(value)))


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def dates(runs: Sequence[ReportedRun]) -> dict[str, str] | None:
    """The UTC times at which the first run "began" and the last one "ended"; None if unknown."""
    began = [run.status.started for run in runs if run.status.started is not None]
    ended = [run.status.ended for run in runs if run.status.ended is not None]
    if not began:
        return None
    return {"began": _utc(min(began)), "ended": _utc(max(ended, default=max(began)))}


def _utc(seconds: float) -> str:
    try:
        time = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    except (OverflowError, ValueError, OSError):  # no year that a clock has
        return "unknown"
    return time.strftime("%Y-%m-%d %H:%M UTC")


def times(runs: Sequence[ReportedRun]) -> list[dict[str, Any]]:
    """Where the wall time of each run went: "run", "share", "restarts", and "seconds" by phase."""
    return [
        {
            "run": run.name,
            "share": round(run.status.goodput.share, 4),
            "restarts": run.status.goodput.restarts,
            "seconds": run.status.goodput.seconds,
        }
        for run in runs
        if run.status.goodput
    ]
