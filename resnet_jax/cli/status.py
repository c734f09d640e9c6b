"""resnet-jax status WORKDIR: what a run is doing, from any machine that sees its directory."""

import argparse
import dataclasses
from typing import Any

from rich.console import Console

from resnet_jax.data.dataset_info import FROM_PYTHON
from resnet_jax.logging.display import age_text, clock_text, percent_text

HELP = "Say what a run is doing: where it runs, its step, scores, checkpoint and time left."
EXAMPLE = "resnet-jax status runs/cifar10"

_STATES = {
    "starting": "starting",
    "running": "running",
    "finished": "finished",
    "stopped": "stopped early; the same command goes on",
    "failed": "failed",
    "lost": "ended without a word (killed, stuck, or its host was lost); start it again",
    "unknown": "not running",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command line."""
    parser.add_argument("workdir", help="directory of a run, or of several runs, as of a sweep")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Read the files of the run, or of each run below the directory."""
    # JAX takes a second to import, which --help needn't wait for.
    from resnet_jax.errors import ConfigError  # noqa: PLC0415
    from resnet_jax.logging.status import read_status  # noqa: PLC0415
    from resnet_jax.research.compare import find_runs  # noqa: PLC0415
    from resnet_jax.utils.paths import as_path  # noqa: PLC0415

    workdir = as_path(args.workdir)
    try:
        return dataclasses.asdict(read_status(workdir))
    except ConfigError:
        runs = find_runs([workdir])  # the error of a folder without runs
    return {
        "workdir": args.workdir,
        "runs": [dataclasses.asdict(read_status(folder)) for folder in runs],
    }


def show(document: dict[str, Any], console: Console) -> None:
    """Print about five lines for a run, or a line for each of several."""
    if "runs" in document:
        for status in document["runs"]:
            console.print(f"{status['workdir']}: {one_line(status)}")
        return
    for line in (_doing(document), _progress(document), _scores(document), _saved(document)):
        if line:
            console.print(line)
    for problem in document["problems"]:
        console.print(f"problem: {problem}")


def one_line(status: dict[str, Any]) -> str:
    """The state of a run, its step, its last score and the time left."""
    scored = status["scores"].get("test") or status["scores"].get("validation")
    parts = [_state(status), _step(status)]
    if scored:
        parts.append(f"{scored['split']} {percent_text(scored)}")
    if status["eta_s"] is not None:
        parts.append(f"ETA {clock_text(status['eta_s'])}")
    if status["problems"]:
        parts.append(f"(problems: {len(status['problems'])})")
    return "  ".join(parts)


def _doing(status: dict[str, Any]) -> str:
    """Which run, its state and its process."""
    data = "data passed in Python" if status["data"] == FROM_PYTHON else status["data"]
    of = f"{status['model']} on {data}, " if status["model"] else ""
    on = f" on {status['devices']}" if status["devices"] and status["state"] == "running" else ""
    return f"{status['workdir']}: {of}{_state(status)}{on}"


def _state(status: dict[str, Any]) -> str:
    text = _STATES[status["state"]]
    if status["state"] in ("starting", "running"):
        text += f": {status['holder']}"
    if status["reason"]:
        text += f": {status['reason']}"
    return text


def _step(status: dict[str, Any]) -> str:
    total = status["total_steps"]
    if total is None:
        return f"step {status['step']:,}"
    share = f" ({status['step'] / total:.0%})" if total else ""
    return f"step {status['step']:,} of {total:,}{share}"


def _progress(status: dict[str, Any]) -> str:
    parts = [_step(status)]
    if status["epoch"] is not None:
        parts.append(f"epoch {status['epoch']:.2f}")
    if status["img_per_s"] is not None:
        parts.append(f"{status['img_per_s']:,.0f} img/s")
    if status["eta_s"] is not None:
        parts.append(f"ETA {clock_text(status['eta_s'])}")
    return "  ".join(parts)


def _scores(status: dict[str, Any]) -> str:
    parts = []
    if train := status["train"]:
        parts.append(f"training: loss {train['loss']:.4f}, top-1 {percent_text(train)}")
    for name, record in status["scores"].items():
        if name in ("validation", "test"):
            scored = f"{name}: loss {record['loss']:.4f}, top-1 {percent_text(record)}"
            parts.append(f"{scored} at step {record['step']:,}")
    if best := status["best"]:
        parts.append(f"best {percent_text(best)} at step {best['step']:,}")
    return "  ".join(parts)


def _saved(status: dict[str, Any]) -> str:
    """The newest checkpoint, the log and the lock."""
    checkpoint = status["checkpoint"]
    saved = "none" if checkpoint is None else f"step {checkpoint['step']:,}"
    if checkpoint and checkpoint["age_s"] is not None:
        saved += f", {age_text(checkpoint['age_s'])}"
    log = "none" if status["log_age_s"] is None else age_text(status["log_age_s"])
    lock = status["lock"]
    if lock != "free":
        lock += f" by {status['holder']}" if status["state"] not in ("starting", "running") else ""
        age_s = status["lock_age_s"]
        lock += "" if age_s is None else f", renewed {age_text(age_s)}"
    text = f"checkpoint: {saved}\nlast log line: {log}  lock: {lock}"
    if goodput := status["goodput"]:
        text += f"  goodput: {goodput['share']:.0%}, restarts: {goodput['restarts']}"
    return text
