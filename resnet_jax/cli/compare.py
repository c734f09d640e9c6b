"""resnet-jax compare RUN…: curves of several runs in one figure, and a table of their scores."""

# ruff: noqa: PLC0415 - JAX takes a second to import, which --help needn't wait for

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from rich.console import Console

from resnet_jax.cli.common.differences import show_differences
from resnet_jax.cli.common.pictures import check_picture
from resnet_jax.cli.common.tables import Table
from resnet_jax.errors import UsageError, WriteError
from resnet_jax.utils.files import local_path

HELP = "Draw the curves of several runs in one figure, and say what differs between them."
EXAMPLE = "resnet-jax compare runs/sweep --out=compare.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command line."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="directory of a run, or of runs")
    parser.add_argument(
        "--out",
        type=local_path,
        default=Path("compare.png"),
        help="default: compare.png; or .pdf, .svg",
    )
    parser.add_argument(
        "--metric",
        choices=["top1", "loss"],
        default="top1",
        help="metric of the held-out images (default: top1)",
    )
    parser.add_argument(
        "--labels", metavar="A,B,…", help="labels of the lines, in the order of the table"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Read the runs and draw the figure."""
    from etils import epath

    from resnet_jax.checkpoint.workdir import write_atomically
    from resnet_jax.logging.plots import picture_of
    from resnet_jax.research import compare
    from resnet_jax.research.figures import journal_style

    check_picture("--out", args.out)
    runs = [compare.read_run(folder) for folder in compare.find_runs(args.runs)]
    lines = compare.gather_lines(runs)
    if args.labels:
        lines = _relabelled(lines, args.labels.split(","))
    differing = compare.differing_fields(lines)
    figure = compare.draw(lines, metric=args.metric)
    try:
        with journal_style():
            write_atomically(
                epath.Path(args.out), picture_of(figure, args.out.suffix.removeprefix("."))
            )
    except OSError as error:
        raise WriteError(f"{args.out} can't be written: {error.strerror or error}.") from None
    return {
        "lines": [compare.describe(line, differing, first=lines[0]) for line in lines],
        "files": [str(args.out)],
    }


def _relabelled(lines: list[Any], labels: list[str]) -> list[Any]:
    if len(labels) != len(lines):
        raise UsageError(
            f"--labels names {len(labels)}, but there are {len(lines)} lines:"
            f" {', '.join(line.label for line in lines)}."
        )
    return [
        dataclasses.replace(line, label=label) for line, label in zip(lines, labels, strict=True)
    ]


def show(document: dict[str, Any], console: Console) -> None:
    """Print a row per line of the figure, and the fields that differ between the configs."""
    from resnet_jax.research.scores import (
        HEADING,
        SAMPLING,
        SHOWN,
        error_percent,
        loss_nats,
        sampling_percent,
    )

    lines = document["lines"]
    names = [name for name in SHOWN if any(name in line["scores"] for line in lines)]
    columns = ("run", "model", "seeds", "steps", "training loss")
    table = Table(*columns, *(SHOWN[name] for name in names), SAMPLING, title=HEADING)
    for line in lines:
        scores = line["scores"]
        table.add_row(
            line["label"],
            line["model"],
            str(len(line["seeds"])),
            f"{line['steps']:,}" + ("" if line["finished"] else " so far"),
            loss_nats(line["train_loss"]) if line["train_loss"] else "–",
            *(error_percent(scores[name]["top1"]) if name in scores else "–" for name in names),
            sampling_percent(scores),
        )
    console.print(table)
    show_differences(lines, console)
    if any(line["differs"] for line in lines):
        console.print("what differs:")
        for line in lines:
            fields = ", ".join(f"{name}={value}" for name, value in line["differs"].items())
            console.print(f"  {line['label']}: {fields}")
    console.print(f"figure: {document['files'][0]}")
