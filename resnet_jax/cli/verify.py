"""resnet-jax verify WORKDIR: check a run's documents, and train parts of it again."""

# ruff: noqa: PLC0415 - JAX takes a second to import, which --help needn't wait for

import argparse
import dataclasses
from typing import Any

from rich.console import Console

from resnet_jax.cli.common.tables import Table
from resnet_jax.errors import DataError

HELP = "Check that a run's files belong together, train parts of it again and compare the bits."
EXAMPLE = "resnet-jax verify runs/digits --slices=3"

_MARKS = {True: "yes", False: "NO", None: "unknown"}
_OUTCOMES = {
    "equal": "equal",
    "differs": "DIFFERS",
    "other": "other machine or code",
    "": "not trained again",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command line."""
    parser.add_argument("workdir", help="directory of a run")
    parser.add_argument(
        "--slices",
        type=_count,
        default=3,
        metavar="N",
        help="slices to train again, evenly spread over the kept checkpoints; all: the whole run"
        " from its initial state; 0: none (default: 3)",
    )
    parser.add_argument("--data-dir", help="folder of the prepared data, or of images by class")


def _count(text: str) -> int | None:
    """Parse --slices."""
    if text == "all":
        return None
    if text.isdecimal():
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} isn't a number of slices, or all")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Verify the run; the exit code is 65 if something contradicts its record."""
    from resnet_jax.verification.verify import verify_run

    found = verify_run(args.workdir, slices=args.slices, data_dir=args.data_dir)
    document: dict[str, Any] = {
        "workdir": found.workdir,
        "verdict": found.verdict,
        "checks": [dataclasses.asdict(check) for check in found.checks],
        "slices": [],
    }
    for part in found.slices:
        row: dict[str, Any] = {"first": part.first, "last": part.last, "outcome": part.outcome}
        if part.replayed is None:
            row["reason"] = part.reason
        else:
            row["seconds"] = round(part.replayed.seconds, 1)
            row["differences"] = [
                dataclasses.asdict(difference) for difference in part.replayed.differences
            ]
            row["other"] = part.replayed.other
        document["slices"].append(row)
    if found.verdict == "differs":
        document["exit_code"] = DataError.exit_code
    return document


def show(document: dict[str, Any], console: Console) -> None:
    """Print the checks, the slices and the verdict."""
    checks = Table("check", "passed", "")
    for check in document["checks"]:
        checks.add_row(check["what"], _MARKS[check["passed"]], check["detail"])
    console.print(checks)
    slices = Table("steps", "result", "first difference", numbers=("s",))
    for row in document["slices"]:
        detail = row.get("reason", "") or _differences(row)
        seconds = f"{row['seconds']:.1f}" if "seconds" in row else ""
        steps = f"{row['first']:,} → {row['last']:,}"
        slices.add_row(steps, _OUTCOMES[row["outcome"]], detail, seconds)
    console.print(slices)
    for other in dict.fromkeys(row.get("other", "") for row in document["slices"]):
        if other:
            console.print(f"Trained again with {other}.")
    console.print(_verdict(document))


def _differences(row: dict[str, Any]) -> str:
    return "; ".join(
        f"step {difference['step']:,}: {difference['what']} {difference['detail']}"
        for difference in row["differences"]
    )


def _verdict(document: dict[str, Any]) -> str:
    counts = [sum(row["outcome"] == outcome for row in document["slices"]) for outcome in _OUTCOMES]
    equal, differs, other, unknown = counts
    if document["verdict"] == "differs":
        failed = [check["what"] for check in document["checks"] if check["passed"] is False]
        reasons = [f"{', '.join(failed)} failed"] if failed else []
        if differs:
            reasons.append(f"{differs} of {equal + differs + other} slices differ")
        return f"{document['workdir']} isn't what it says: {'; '.join(reasons)}."
    if document["verdict"] == "verified":
        rest = f"; {unknown} weren't trained again" if unknown else ""
        return f"{document['workdir']} is verified: {equal} slices have the same bits{rest}."
    if other:
        return (
            f"Nothing contradicts {document['workdir']}, but bits can't be compared: {other} slices"
            " were trained again by another machine or code."
        )
    return (
        f"The documents of {document['workdir']} belong together, but no slice was trained again;"
        " --slices=all trains all of the run, and config.keep_every keeps checkpoints for that."
    )
