"""Running an artefact, and its files: JSON, CSV and the figure."""

import csv
import io
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from etils import epath

from resnet_jax.checkpoint.workdir import write_atomically
from resnet_jax.errors import DataError, WriteError
from resnet_jax.research.artefact import Artefact, overall
from resnet_jax.research.figures import journal_style
from resnet_jax.research.lab import Lab, Size
from resnet_jax.train.report import provenance

_COLUMNS = (
    "artefact",
    "size",
    "what",
    "published",
    "source",
    "data",
    "mean",
    "std",
    "n",
    "accepts",
    "verdict",
)


def reproduce(
    artefact: Artefact,
    workdir: Path,
    *,
    size: Size,
    seeds: tuple[int, ...],
    budget_pflop: float | None = None,
) -> dict[str, Any]:
    """Run an artefact, and write NAME.SIZE.json, .csv, .png and .pdf in `workdir`.

    Args:
        artefact: what to run.
        workdir: of the files, and in "runs" of the runs that are trained.
        size: "cpu" or "full".
        seeds: of what is random.
        budget_pflop: see `Lab`.

    Returns:
        What the JSON file holds, and "files", the names of all.

    Raises:
        WriteError: a file can't be written.
        ResnetJaxError: as `fit`.
    """
    began = time.monotonic()
    lab = Lab(workdir / "runs", size=size, seeds=seeds, budget_pflop=budget_pflop)
    report = artefact.runs[size](lab)
    rows = [row.to_json() for row in report.rows]
    result = {
        "artefact": artefact.name,
        "title": artefact.title,
        "paper": artefact.paper,
        "claim": artefact.claim,
        "size": size,
        "verdict": overall([row.verdict for row in report.rows]),
        "rows": rows,
        "seeds": list(seeds),
        "wall_s": round(time.monotonic() - began, 1),
        **provenance(),
        "data": report.data,
    }
    table = io.StringIO()
    writer = csv.DictWriter(table, _COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({"artefact": artefact.name, "size": size, **row} for row in rows)
    files = {
        "json": json.dumps(result, indent=1, allow_nan=False).encode() + b"\n",
        "csv": table.getvalue().encode(),
    }
    with journal_style():
        for kind in ("png", "pdf"):
            picture = io.BytesIO()
            report.figure.savefig(picture, format=kind)
            files[kind] = picture.getvalue()
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        for kind, content in files.items():
            write_atomically(epath.Path(workdir / f"{artefact.name}.{size}.{kind}"), content)
    except OSError as error:
        raise WriteError(f"{workdir} can't be written: {error.strerror or error}.") from error
    return result | {"files": [str(workdir / f"{artefact.name}.{size}.{kind}") for kind in files]}


def listing(artefacts: Mapping[str, Artefact], workdir: Path) -> list[dict[str, Any]]:
    """Name, title, paper, and the verdict at each size, of those that `workdir` has results of.

    Raises:
        DataError: a result file is damaged.
    """
    return [
        {"name": name, "title": artefact.title, "paper": artefact.paper}
        | {size: _verdict(artefact, workdir, size) for size in get_args(Size)}
        for name, artefact in artefacts.items()
    ]


def _verdict(artefact: Artefact, workdir: Path, size: Size) -> str:
    if size not in artefact.runs:
        return "–"
    path = workdir / f"{artefact.name}.{size}.json"
    if not path.exists():
        return "not run: budget" if size == "full" else "not run"
    try:
        return str(json.loads(path.read_bytes())["verdict"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(f"{path} can't be used ({error}); remove it and run it again.") from None
