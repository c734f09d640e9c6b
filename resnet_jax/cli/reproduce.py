"""resnet-jax reproduce NAME: reproduce a table or figure of a paper."""

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console

from resnet_jax.cli.common.exits import end_early, last_work
from resnet_jax.cli.common.tables import Table
from resnet_jax.errors import UsageError, did_you_mean
from resnet_jax.utils.files import local_path

HELP = "Run a table or figure of a paper again: measured beside published values, with verdicts."
EXAMPLE = "resnet-jax reproduce he2015-fig6 --workdir=runs/papers"

_STOPPED = "stopped; nothing was lost, and the same command goes on"
SEEDS = {"cpu": 3, "cifar": 3, "full": 5}
"""Default number of seeds by size."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command line."""
    parser.add_argument("artefact", nargs="*", help="names from --list, or all")
    parser.add_argument(
        "--list", action="store_true", help="list the reproductions and their verdicts"
    )
    parser.add_argument(
        "--workdir", type=local_path, default=Path("runs/papers"), help="default: runs/papers"
    )
    parser.add_argument(
        "--size",
        choices=list(SEEDS),
        default="cpu",
        help="cpu: small data or none, minutes on two cores; cifar: from the finished runs of"
        " configs/cifar10_table6.py, without training; full: CIFAR-10 at the papers' scale, for an"
        " accelerator",
    )
    parser.add_argument(
        "--runs",
        type=local_path,
        metavar="FOLDER",
        help="folder of the training runs (default: runs/SIZE in the workdir)",
    )
    parser.add_argument("--seeds", type=int, help="number of seeds (default: 3; size full 5)")
    parser.add_argument(
        "--budget", type=float, metavar="PFLOP", help="limit of the training, in 10¹⁵ operations"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Run the reproductions, or list them."""
    from resnet_jax.checkpoint.stop import StopRequest  # noqa: PLC0415
    from resnet_jax.research import results  # noqa: PLC0415 - imports JAX
    from resnet_jax.research.catalogue import REPRODUCTIONS  # noqa: PLC0415

    if args.seeds is not None and args.seeds < 1:
        raise UsageError(f"--seeds is {args.seeds}; it must be at least 1.")
    if args.budget is not None and not args.budget >= 0:
        raise UsageError(f"--budget is {args.budget}; it can't be negative.")
    workdir = args.workdir
    if args.list:
        return {"artefacts": results.list_verdicts(REPRODUCTIONS, workdir)}
    if not args.artefact:
        raise UsageError("Which one? `resnet-jax reproduce --list` names them.")
    names = args.artefact
    if names == ["all"]:
        names = [name for name, of in REPRODUCTIONS.items() if args.size in of.runs]
    if args.size == "cifar":
        if args.runs and not args.runs.is_dir():
            raise UsageError(f"--runs: there is no folder {args.runs}.")
        if args.budget is not None:
            raise UsageError("--budget limits training, and --size=cifar trains nothing.")
        if (args.seeds or 0) > SEEDS["cifar"]:
            raise UsageError(
                f"--seeds is {args.seeds}; the runs of --size=cifar have {SEEDS['cifar']} seeds."
            )
    for name in names:
        if name not in REPRODUCTIONS:
            hint = did_you_mean(name, REPRODUCTIONS)
            raise UsageError(f"There is no artefact {name!r}.{hint} --list names them.")
        if args.size not in REPRODUCTIONS[name].runs:
            raise UsageError(f"{name} has no size {args.size!r}.")
    seeds = tuple(range(args.seeds or SEEDS[args.size]))
    # Training saves on a signal; other computations start again.
    with StopRequest(end_early) as stop, last_work(), stop.interrupt_immediately(_STOPPED):
        done = [
            results.reproduce(
                REPRODUCTIONS[name],
                workdir,
                size=args.size,
                seeds=seeds,
                runs=args.runs,
                budget_pflop=args.budget,
                stop=stop,
            )
            for name in names
        ]
    return {"results": done}


def _missing(result: dict[str, Any]) -> str:
    """A sentence on the runs that a reproduction of the size "cifar" lacks."""
    from resnet_jax.research.table6 import CONFIG_FILE  # noqa: PLC0415 - imports JAX

    return (
        f"missing, or without weights where weights are needed: {', '.join(result['missing'])}\n"
        f"resnet-jax sweep --config={CONFIG_FILE} --workdir=FOLDER trains them; --runs=FOLDER then"
        " names the folder"
    )


def show(document: dict[str, Any], console: Console) -> None:
    """Print the table of each reproduction, or the list."""
    if "artefacts" in document:
        table = Table()
        table.add_column("artefact", no_wrap=True)
        for heading in ("what", "paper", *SEEDS):
            table.add_column(heading)
        committed = False
        for artefact in document["artefacts"]:
            verdicts = [artefact[size] + " *" * (size in artefact["committed"]) for size in SEEDS]
            committed |= bool(artefact["committed"])
            table.add_row(artefact["name"], artefact["title"], artefact["paper"], *verdicts)
        console.print(table)
        if committed:
            console.print("* of the results in benchmarks/results/papers")
        return
    for result in document["results"]:
        table = Table(
            *("what", "on", "published", "source", "measured", "n", "95 % interval"),
            *("accepted", "verdict"),
            title=result["title"],
        )
        for row in result["rows"]:
            table.add_row(*_cells(row))
        console.print(table)
        console.print(
            f"{result['claim']}\n{result['verdict']}; files: {', '.join(result['files'])}"
        )
        if result.get("missing"):
            console.print(_missing(result))


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    published, mean, std = row["published"], row["mean"], row["std"]
    measured = "–" if mean is None else _number(mean)
    if std is not None:
        measured += f" ± {_number(std)}"
    if row["sampling_error"] is not None:
        measured += f" (± {row['sampling_error']:.2f} by the choice of images)"
    interval = " … ".join(map(_number, row["interval"])) if row["interval"] else "–"
    shown = "–" if published is None else _number(published)
    n = "exact" if row["exact"] else str(row["n"])
    cells = (shown, row["source"], measured, n, interval, row["accepts"], row["verdict"])
    return row["what"], row["data"], *cells


def _number(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.4g}"
