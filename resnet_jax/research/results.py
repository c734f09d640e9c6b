"""Running a reproduction and writing its files: JSON, CSV and the figure."""

import contextlib
import csv
import dataclasses
import io
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from etils import epath

from resnet_jax.checkpoint.stop import StopRequest
from resnet_jax.checkpoint.workdir import write_atomically
from resnet_jax.errors import DataError, WriteError
from resnet_jax.logging.plots import picture_of
from resnet_jax.logging.provenance import provenance
from resnet_jax.logging.summary import read_summary
from resnet_jax.research.figures import journal_style
from resnet_jax.research.reproduction import Reproduction, Row, overall
from resnet_jax.research.runner import Runner, Size
from resnet_jax.research.table6 import SEEDS

COMMITTED = Path(__file__).parents[2] / "benchmarks" / "results" / "papers"
"""The committed results. An installed package doesn't have the folder."""

_COLUMNS = (
    "artefact",
    "size",
    "what",
    "published",
    "source",
    "data",
    "mean",
    "std",
    "low",
    "high",
    "n",
    "sampling_error",
    "accepts",
    "verdict",
)


def reproduce(
    reproduction: Reproduction,
    workdir: Path,
    *,
    size: Size,
    seeds: tuple[int, ...],
    runs: Path | None = None,
    budget_pflop: float | None = None,
    stop: StopRequest | None = None,
) -> dict[str, Any]:
    """Run a reproduction, and write NAME.SIZE.json, .csv, .png and .pdf into `workdir`.

    Args:
        reproduction: what to run.
        workdir: the folder of the files.
        size: "cpu", "cifar" or "full".
        seeds: the seeds of the runs and of other random quantities.
        runs: the folder of the training runs; None is runs/SIZE in `workdir`.
        budget_pflop, stop: see `Runner`.

    Returns:
        The content of the JSON file, and under "files" the names of all files.

    Raises:
        WriteError: a file can't be written.
        ResnetJaxError: as `fit`.
    """
    began = time.monotonic()
    folder = runs or workdir / "runs" / size
    runner = Runner(folder, size=size, seeds=seeds, budget_pflop=budget_pflop, stop=stop)
    report = reproduction.runs[size](runner)
    table_rows = report.rows
    if size == "cifar":
        table_rows = tuple(_unfinished(row, seeds) for row in report.rows)
    rows = [row.to_json() for row in table_rows]
    result = {
        "artefact": reproduction.name,
        "title": reproduction.title,
        "paper": reproduction.paper,
        "claim": reproduction.claim,
        "size": size,
        "verdict": overall([row.verdict for row in table_rows]),
        "rows": rows,
        "seeds": list(seeds),
        **({"missing": runner.missing} if size == "cifar" else {}),
        "wall_s": round(time.monotonic() - began, 1),
        **provenance(),
        **({"trained_by": _trained_by(runner.used)} if runner.used else {}),
        "data": report.data,
    }
    files = text_files(result)
    with journal_style():
        for kind in ("png", "pdf"):
            files[kind] = picture_of(report.figure, kind)
    paths = [workdir / f"{reproduction.name}.{size}.{kind}" for kind in files]
    try:
        with stop.deferred() if stop else contextlib.nullcontext():
            workdir.mkdir(parents=True, exist_ok=True)
            for path, content in zip(paths, files.values(), strict=True):
                write_atomically(epath.Path(path), content)
    except OSError as error:
        raise WriteError(f"{workdir} can't be written: {error.strerror or error}.") from error
    return result | {"files": [str(path) for path in paths]}


def _trained_by(runs: Mapping[str, epath.Path]) -> dict[str, dict[str, Any]]:
    """Command, commit and wall time of the training of each run, which may be an earlier process's.

    Raises:
        DataError: a summary.json is damaged.
    """
    found = {}
    for name, folder in runs.items():
        with read_summary(folder) as summary:
            found[name] = {key: summary[key] for key in ("command", "commit", "wall_s")}
    return found


def _unfinished(row: Row, seeds: tuple[int, ...]) -> Row:
    """A row of the runs of `resnet_jax.research.table6`, open until all its seeds are there."""
    of_sweep = len({*seeds} & {*SEEDS})
    planned = of_sweep if row.planned is None else row.planned
    return dataclasses.replace(row, planned=planned, unmeasured="open")


def text_files(result: Mapping[str, Any]) -> dict[str, bytes]:
    """The JSON file of a result, and the CSV file of its rows, by the ending of the name."""
    table = io.StringIO()
    writer = csv.DictWriter(table, _COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in result["rows"]:
        low, high = row["interval"] or (None, None)
        about = {"artefact": result["artefact"], "size": result["size"], "low": low, "high": high}
        writer.writerow(about | row)
    return {
        "json": json.dumps(result, indent=1, allow_nan=False).encode() + b"\n",
        "csv": table.getvalue().encode(),
    }


def list_verdicts(reproductions: Mapping[str, Reproduction], workdir: Path) -> list[dict[str, Any]]:
    """Name, title, paper, and the verdict at each size, of each reproduction.

    The verdict is read from the results in `workdir`, or else from `COMMITTED`; "committed" lists
    the sizes whose verdict is read from `COMMITTED`.

    Raises:
        DataError: a result file is damaged.
    """
    listed = []
    for name, reproduction in reproductions.items():
        verdicts = {size: _verdict(reproduction, workdir, size) for size in get_args(Size)}
        committed = [size for size, (_, folder) in verdicts.items() if folder == COMMITTED]
        about = {"name": name, "title": reproduction.title, "paper": reproduction.paper}
        about |= {size: verdict for size, (verdict, _) in verdicts.items()}
        listed.append(about | {"committed": committed})
    return listed


def _verdict(reproduction: Reproduction, workdir: Path, size: Size) -> tuple[str, Path | None]:
    """The verdict, and the folder from which it was read."""
    if size not in reproduction.runs:
        return "–", None
    for folder in (workdir, COMMITTED):
        path = folder / f"{reproduction.name}.{size}.json"
        if not path.exists():
            continue
        try:
            return str(json.loads(path.read_bytes())["verdict"]), folder
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            raise DataError(
                f"{path} can't be used ({error}); remove it and run it again."
            ) from None
    if size == "full" and reproduction.runs["full"] is reproduction.runs["cpu"]:
        return "as cpu", None
    return {"cpu": "not run", "cifar": "open", "full": "not run: budget"}[size], None
