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
from resnet_jax.logging.provenance import provenance
from resnet_jax.research.figures import journal_style
from resnet_jax.research.reproduction import Artefact, overall
from resnet_jax.research.runner import Lab, Size

COMMITTED = Path(__file__).parents[2] / "benchmarks" / "results" / "papers"
"""Results that a checkout has; an installed package doesn't have the folder."""

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
    """Name, title, paper, and the verdict at each size.

    A verdict is that of the results in `workdir`, else of those in `COMMITTED`; "committed" lists
    the sizes of the latter.

    Raises:
        DataError: a result file is damaged.
    """
    listed = []
    for name, artefact in artefacts.items():
        verdicts = {size: _verdict(artefact, workdir, size) for size in get_args(Size)}
        committed = [size for size, (_, folder) in verdicts.items() if folder == COMMITTED]
        about = {"name": name, "title": artefact.title, "paper": artefact.paper}
        about |= {size: verdict for size, (verdict, _) in verdicts.items()}
        listed.append(about | {"committed": committed})
    return listed


def _verdict(artefact: Artefact, workdir: Path, size: Size) -> tuple[str, Path | None]:
    """The verdict, and the folder of the results it is of."""
    if size not in artefact.runs:
        return "–", None
    for folder in (workdir, COMMITTED):
        path = folder / f"{artefact.name}.{size}.json"
        if not path.exists():
            continue
        try:
            return str(json.loads(path.read_bytes())["verdict"]), folder
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise DataError(
                f"{path} can't be used ({error}); remove it and run it again."
            ) from None
    if size == "full" and artefact.runs["full"] is artefact.runs["cpu"]:
        return "as cpu", None
    return ("not run: budget" if size == "full" else "not run"), None
