"""resnet-jax sweep: train the runs of a config file, and gather their scores in a table.

One command trains all runs on this machine, or `--task=N` trains the N-th run, so that a cluster's
scheduler starts the runs; `--collect` gathers the scores alone.
"""

# ruff: noqa: PLC0415 - JAX takes a second to import, which --help needn't wait for

import argparse
import contextlib
import dataclasses
import inspect
import json
import re
import runpy
import sys
from typing import TYPE_CHECKING, Any

from rich.console import Console

from resnet_jax.cli.common.config_errors import explain
from resnet_jax.cli.common.config_flag import CONFIG_MODULE, add_config_argument, load_config
from resnet_jax.cli.common.differences import show_differences
from resnet_jax.cli.common.exits import A_BUG, last_work
from resnet_jax.cli.common.tables import Table
from resnet_jax.cli.status import one_line
from resnet_jax.cli.sweep_console import SweepConsole
from resnet_jax.errors import STOPPED_EARLY, ConfigError, UsageError, WriteError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from etils import epath

    from resnet_jax.research.sweep import PlannedRun
    from resnet_jax.research.workers import Ended

HELP = "Train all runs that a config file's sweep() yields, and gather their scores."
EXAMPLE = "resnet-jax sweep --config=configs/digits_sweep.py --workdir=runs/sweep --processes=2"

_CHILD = [sys.executable, "-m", "resnet_jax.cli.fit_child"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command line."""
    add_config_argument(parser)
    parser.add_argument("--workdir", required=True, help="each run has a folder of its own there")
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--processes",
        type=int,
        default=1,
        help="runs at a time, each on a GPU or TPU chip of its own (default: 1, on all of them)",
    )
    how.add_argument(
        "--task",
        type=int,
        metavar="N",
        help="train the N-th run alone, counted from 0: for the tasks of a scheduler",
    )
    how.add_argument(
        "--collect", action="store_true", help="train nothing; gather the scores there are"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Train all runs, or the run of a task, or none; write the table unless it is a task."""
    import jax

    from resnet_jax.checkpoint.workdir import prepare_workdir
    from resnet_jax.research.sweep import check_runs, plan_runs
    from resnet_jax.utils.paths import as_path

    if args.processes < 1:
        raise UsageError(f"--processes is {args.processes}; it must be at least 1.")
    jax.config.update("jax_platforms", "cpu")  # the processes of the runs use the accelerators
    planned = plan_runs(load_config(args), _overrides(args))
    _refuse_what_the_sweep_sets(args, planned)
    workdir = as_path(args.workdir)
    if args.collect:
        return _collect(planned, workdir)
    runs = planned if args.task is None else _of_task(planned, args.task)
    check_runs(runs, workdir)
    prepare_workdir(workdir)
    # Several tasks of a sweep would overwrite the table with older ones.
    writes = args.task is None
    file = args.config.partition(":")[0]
    failed = _train(runs, workdir, file=file, processes=args.processes, writes=writes)
    document = _document(runs, workdir)
    if writes:
        _write(document, workdir)
    else:
        document |= {"task": args.task, "tasks": len(planned), "files": []}
    document["failed"] = {
        name: {"exit_code": ended.exit_code, "reason": _reason(ended)}
        for name, ended in failed.items()
    }
    if failed:
        document["exit_code"] = next(iter(failed.values())).exit_code
    elif document["finished"] < len(runs):
        document["exit_code"] = STOPPED_EARLY
    return document


def _of_task(runs: "tuple[PlannedRun, ...]", task: int) -> "tuple[PlannedRun, ...]":
    if not 0 <= task < len(runs):
        raise UsageError(
            f"--task is {task}; the sweep has {len(runs)} runs, --task=0 to {len(runs) - 1}."
        )
    return (runs[task],)


def _train(
    runs: "Sequence[PlannedRun]",
    workdir: "epath.Path",
    *,
    file: str,
    processes: int,
    writes: bool,
) -> "dict[str, Ended]":
    """Train the runs that aren't finished; with `writes`, write the table after each run.

    Returns:
        How the runs ended that failed, by name.
    """
    from resnet_jax.checkpoint.stop import StopRequest
    from resnet_jax.research.sweep import labels_of
    from resnet_jax.research.workers import Ended, environments_for, train_all

    left = [planned for planned in runs if not planned.is_finished(workdir)]
    failed: dict[str, Ended] = {}
    with (
        StopRequest() as stop,
        last_work(),
        SweepConsole(labels_of(runs)) as progress,
        contextlib.closing(
            train_all(
                left,
                workdir,
                command=[*_CHILD, file],
                environments=environments_for(processes) if left else [],
                stop=stop,
            )
        ) as events,
    ):
        if len(runs) > 1:
            progress.say(f"{len(runs)} runs, of which {len(runs) - len(left)} are finished")
        for planned, event in events:
            if not isinstance(event, Ended):
                progress.show(planned.name, event)
                continue
            if event.state == "failed":
                failed[planned.name] = event
                if event.exit_code == A_BUG:
                    progress.say(event.said.rstrip())
                progress.end(
                    planned.name, f"failed with exit code {event.exit_code}: {_reason(event)}"
                )
            else:
                progress.end(planned.name, f"{event.state} after {event.wall_s:.0f} s")
            if event.state == "finished" and writes:
                _write(_document(runs, workdir), workdir)
    return failed


def _collect(runs: "Sequence[PlannedRun]", workdir: "epath.Path") -> dict[str, Any]:
    """Read the status of the runs that aren't finished, and write the table of the others.

    If the folder can't be written, as on a machine that only watches, the document says so.
    """
    document = _document(runs, workdir)
    left = [planned for planned in runs if not planned.is_finished(workdir)]
    states = {planned.name: _status_of(workdir / planned.name) for planned in left}
    end: dict[str, Any] = {"exit_code": STOPPED_EARLY} if left else {}
    try:
        _write(document, workdir)
    except WriteError as error:
        if not workdir.exists():
            raise
        end = {"files": [], "error": str(error), "exit_code": error.exit_code}
    return document | {"left": states, "failed": {}} | end


def _status_of(folder: "epath.Path") -> dict[str, Any] | None:
    """The status of a run; None if it hasn't begun."""
    from resnet_jax.logging.status import read_status

    try:
        return dataclasses.asdict(read_status(folder))
    except ConfigError:
        return None


def _overrides(args: argparse.Namespace) -> list[Any]:
    """The overrides from the config file's sweep(), which may take the file's argument.

    Raises:
        ConfigError: the file has no sweep(), or an error.
    """
    file, _, argument = args.config.partition(":")
    try:
        # The file was imported under this name, to which the names that it registers belong.
        sweep = runpy.run_path(file, run_name=CONFIG_MODULE).get("sweep")
        if not callable(sweep):
            raise ConfigError(
                f"{file} has no function sweep(), which yields overrides, such as"
                ' {"model.name": "resnet56"}.'
            )
        given = [argument] if argument and inspect.signature(sweep).parameters else []
        return list(sweep(*given))
    except (Exception, SystemExit) as error:
        program = f"resnet-jax {args.subcommand}"
        explained = explain(error, [program, f"--config={args.config}"], program=program)
        if explained is None:
            raise
        raise explained from None


def _refuse_what_the_sweep_sets(args: argparse.Namespace, runs: "tuple[PlannedRun, ...]") -> None:
    """Refuse a field on the command line that the sweep overrides."""
    for override in args.config_overrides:
        field = re.sub(r"^--?(no)?config\.", "", override).partition("=")[0]
        for planned in runs:
            if field in planned.fields:
                raise UsageError(
                    f"--config.{field} is given, but {planned.name} of the sweep sets it."
                )


def _document(runs: "Sequence[PlannedRun]", workdir: "epath.Path") -> dict[str, Any]:
    """The scores of the finished runs, as a JSON-like document."""
    from resnet_jax.research.scores import DOCUMENT, TABLE, group_rows, made_by, sweep_rows
    from resnet_jax.research.sweep import overridden_fields

    rows = sweep_rows(runs, workdir)
    return {
        "workdir": str(workdir),
        "files": [str(workdir / name) for name in (TABLE, DOCUMENT)],
        "runs": [planned.name for planned in runs],
        "finished": len({row["run"] for row in rows}),
        "groups": group_rows(
            rows,
            overridden_fields(runs),
            named={planned.name for planned in runs if planned.is_named},
        ),
        "made_by": made_by(runs, workdir),
        "rows": rows,
    }


def _write(document: dict[str, Any], workdir: "epath.Path") -> None:
    from resnet_jax.checkpoint.workdir import write_atomically
    from resnet_jax.research.scores import DOCUMENT, TABLE, as_csv

    on_record = {k: v for k, v in document.items() if k not in ("workdir", "files", "rows")}
    try:
        write_atomically(workdir / TABLE, as_csv(document["rows"]))
        write_atomically(workdir / DOCUMENT, json.dumps(on_record, indent=1) + "\n")
    except OSError as error:
        raise WriteError(f"{workdir} can't be written: {error.strerror or error}.") from error


def _reason(ended: "Ended") -> str:
    """The reason of a failure: the line with the error, or else the last line of output."""
    lines = [line for line in ended.said.splitlines() if line.startswith("error: ")]
    return lines[-1].removeprefix("error: ") if lines else ended.last_line


def show(document: dict[str, Any], console: Console) -> None:
    """Print a row per group of runs that differ in the seed, and the number of finished runs.

    Raises:
        WriteError: the table couldn't be written.
    """
    from resnet_jax.research.scores import (
        HEADING,
        SAMPLING,
        SHOWN,
        error_percent,
        sampling_percent,
    )

    groups = document["groups"]
    names = [name for name in SHOWN if any(name in group["scores"] for group in groups)]
    if groups:
        columns = ("run", "seeds", *(SHOWN[name] for name in names), SAMPLING, "params", "s")
        table = Table(*columns, title=HEADING)
        for group in groups:
            table.add_row(
                group["label"],
                str(len(group["seeds"])),
                *(
                    error_percent(group["scores"][name]["top1"]) if name in group["scores"] else "–"
                    for name in names
                ),
                sampling_percent(group["scores"]),
                "–" if group["params"] is None else f"{group['params']:,}",
                f"{group['wall_s']:.0f}",
            )
        console.print(table)
        show_differences(groups, console)
    total, failed = len(document["runs"]), document["failed"]
    if "task" in document:
        state = "is finished" if document["finished"] else "isn't finished"
        of = f"run {document['task']} of 0 to {document['tasks'] - 1}"
        console.print(f"{of}, {document['runs'][0]}, {state}")
    else:
        console.print(f"{document['finished']} of {total} runs are finished")
    for name, status in document.get("left", {}).items():
        console.print(f"{name}: {one_line(status) if status else 'not begun'}")
    for name, failure in failed.items():
        code, reason = failure["exit_code"], failure["reason"]
        console.print(f"{name}: failed with exit code {code}: {reason}")
    if document["finished"] < total and "left" not in document:
        console.print("the same command goes on" + " with the others" * ("task" not in document))
    if document["files"]:
        console.print(f"scores: {document['files'][0]}")
    if "error" in document:
        raise WriteError(document["error"])
