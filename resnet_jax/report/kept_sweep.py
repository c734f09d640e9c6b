"""The page of a sweep of which the tables are kept, and not the directories of its runs."""

import contextlib
import csv
import io
import json
import math
from typing import Any

from etils import epath

from resnet_jax.errors import ConfigError, DataError
from resnet_jax.report.document import with_intervals
from resnet_jax.report.fields import made_by
from resnet_jax.report.reading import check_row, folder_name, without_folders
from resnet_jax.research.compare import find_runs
from resnet_jax.research.scores import DOCUMENT, SHOWN, TABLE, Row, group_rows
from resnet_jax.utils.paths import bucket_errors, read_document
from resnet_jax.utils.streams import escaped

_WHOLE = ("seed", "step", "examples", "params")
_TEXTS = ("run", "split", "weights")
_MEASURED = ("step", "loss", "wall_s")
_DAMAGED = (
    *(ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError),
    csv.Error,
)


def is_kept_sweep(folder: epath.Path) -> bool:
    """Whether the folder has the tables of a sweep, and neither is nor has a run's directory."""
    try:
        with bucket_errors(folder):
            has_tables = (folder / TABLE).exists() and (folder / DOCUMENT).exists()
    except (OSError, ImportError):  # `find_runs` says why
        return False
    if not has_tables:
        return False
    try:
        find_runs([folder])
    except ConfigError:
        return True
    return False


def sweep_document(folder: epath.Path) -> dict[str, Any]:
    """The document of a page, as from `report_document`, from sweep.csv and sweep.json.

    Raises:
        ConfigError: the sweep has no finished run.
        DataError: a table is damaged, or can't be read.
    """
    try:
        fields, rows = _read_rows(read_document(folder / TABLE).decode())
        if not rows:
            raise ConfigError(f"{folder / TABLE} has no finished run yet.")
        kept = json.loads(read_document(folder / DOCUMENT))
        origins = [("the sweep", dict(origin)) for origin in kept["made_by"]]
        groups = group_rows(rows, fields)
        labels = [str(group["label"]) for group in kept["groups"]]
        lines = [_line(group, rows, label) for group, label in zip(groups, labels, strict=True)]
        grid = [
            {"name": name, "values": [_number_or_text(group["fields"][name]) for group in groups]}
            for name in fields
            if len({group["fields"][name] for group in groups}) > 1
        ]
    except OSError as error:
        raise DataError(f"{folder} can't be read ({error.strerror or error}).") from None
    except _DAMAGED:
        raise DataError(
            f"{folder / TABLE} or {folder / DOCUMENT} is damaged; `resnet-jax sweep … --collect`"
            " writes them again."
        ) from None
    document: dict[str, Any] = escaped(
        {
            "title": folder_name(folder),
            "dates": None,
            "notes": [
                f"The directories of the runs aren't here: this page is of {TABLE} and {DOCUMENT},"
                " without curves, configs and mistakes."
            ],
            "shown": SHOWN,
            "lines": lines,
            "grid": grid,
            "fields": [],
            "made_by": made_by(origins),
            "times": [],
        }
    )
    return document


def _read_rows(text: str) -> tuple[list[str], list[Row]]:
    """The names of the overridden fields, and the rows with numbers where they are numbers."""
    table = csv.DictReader(io.StringIO(text))
    columns = list(table.fieldnames or ())
    fields = columns[1 : columns.index("seed")]
    texts = {*fields, *_TEXTS}
    rows = [
        {name: value if name in texts else _number(name, value) for name, value in row.items()}
        for row in table
    ]
    for row in rows:
        if None in [row[name] for name in _MEASURED]:
            raise ValueError("a score without its numbers")
        check_row({k: v for k, v in row.items() if k not in texts and v is not None})
    return fields, rows


def _number(name: str, text: str) -> int | float | None:
    """A number of the table; None for an empty cell."""
    if not text:
        return None
    return int(text) if name in _WHOLE else float(text)


def _number_or_text(text: str) -> float | str:
    with contextlib.suppress(ValueError):
        if math.isfinite(number := float(text)):
            return number
    return without_folders(text) or "None"


def _line(group: dict[str, Any], rows: list[Row], label: str) -> dict[str, Any]:
    """What the page says of a group of `group_rows`, as of a line of runs."""
    fields = group["fields"]
    own = [row for row in rows if all(row[name] == value for name, value in fields.items())]
    return {
        "label": label,
        "model": fields.get("model.name"),
        "data": fields.get("data.name"),
        "seeds": group["seeds"],
        "steps": max(row["step"] for row in own),
        "finished": True,
        "scores": with_intervals(group["scores"], own),
        "versus": group["versus"],
        "differs": {name: without_folders(text) or "None" for name, text in fields.items()},
        "wall_s": group["wall_s"],
        "params": group["params"],
        "curves": [],
        "examined": None,
    }
