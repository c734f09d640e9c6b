"""resnet-jax report RUN…: one page to send, with all that the records of runs tell."""

# ruff: noqa: PLC0415 - JAX takes a second to import, which --help needn't wait for

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console

from resnet_jax.errors import UsageError, WriteError
from resnet_jax.utils.files import local_path

HELP = "Write a page of runs: curves, scores with intervals, configs, mistakes, times."
EXAMPLE = "resnet-jax report runs/sweep --out=report.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command line."""
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="directory of a run, or of runs, as of a sweep"
    )
    parser.add_argument(
        "--out", type=local_path, default=Path("report.html"), help="default: report.html"
    )
    parser.add_argument(
        "--mistakes",
        type=int,
        default=24,
        metavar="N",
        help="images of mistakes for each network (default: 24); 0 reads no checkpoints and no"
        " data, so that there is no confusion matrix either",
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Read the runs, and write the page."""
    if not 0 <= args.mistakes <= 200:
        raise UsageError(f"--mistakes is {args.mistakes}; it can be 0 to 200.")
    if args.out.suffix not in (".html", ".htm"):
        raise UsageError(f"--out is {args.out}; its name ends in .html.")

    from etils import epath

    from resnet_jax.checkpoint.workdir import write_atomically
    from resnet_jax.report.document import report_document
    from resnet_jax.report.kept_sweep import is_kept_sweep, sweep_document
    from resnet_jax.report.page import render_page
    from resnet_jax.research.compare import find_runs
    from resnet_jax.utils.paths import as_path

    if len(args.runs) == 1 and is_kept_sweep(as_path(args.runs[0])):
        document = sweep_document(as_path(args.runs[0]))
    else:
        document = report_document(find_runs(args.runs), mistakes=args.mistakes)
    page = render_page(document).encode()
    try:
        write_atomically(epath.Path(args.out), page)
    except OSError as error:
        raise WriteError(f"{args.out} can't be written: {error.strerror or error}.") from None
    return {
        "title": document["title"],
        "lines": [line["label"] for line in document["lines"]],
        "notes": document["notes"],
        "bytes": len(page),
        "files": [str(args.out)],
    }


def show(document: dict[str, Any], console: Console) -> None:
    """Print the notes, and the path of the page."""
    for note in document["notes"]:
        console.print(f"note: {note}")
    size = f"{document['bytes'] / 1e6:.1f} MB"
    console.print(f"report: {document['files'][0]} ({size})")
