"""Table 6 of He et al. 2015 (1512.03385) on CIFAR-10, as far as the time allows.

Each network's run is an ordinary run of train.py, in table6/NAME/run beside the results. When the
time is over the run is asked to stop, and goes on there the next time. Of a finished run, log,
summary and weights are kept in table6/NAME.
"""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpu_task import NO_TIME, ROOT, MissingError, Postponed, Task

from resnet_jax.models.published import PUBLISHED

_NETWORKS = ("resnet20", "resnet56", "plain20", "plain56", "resnet110")
_KEPT = ("config.json", "metrics.jsonl", "summary.json")  # the last marks a finished network
_PAUSES = ("eval_every", "checkpoint_every")
_SAVING_S = 20  # to save and stop, or to write the weights


def table6(task: Task) -> Iterator[tuple[str, Any]]:
    """The networks in turn; test errors in percent of their last steps."""
    if not task.data and not task.toy:
        raise MissingError("it needs CIFAR-10; name its folder by --data")
    for name in _NETWORKS[:1] if task.toy else _NETWORKS:
        folder = task.folder / "table6" / name
        summary = folder / "summary.json"
        if not summary.exists():
            if task.seconds_left < 2 * _SAVING_S:
                yield name, NO_TIME
                continue
            stopped = _train(name, folder / "run", task)
            if stopped:
                yield name, stopped
                continue
            _keep(folder)
        yield name, _scores(name, json.loads(summary.read_text(encoding="utf-8")))


def _command(name: str, workdir: Path, task: Task) -> list[str]:
    command = [sys.executable, "train.py"]
    if task.data:
        command += [f"--config=configs/cifar10.py:{name}", f"--config.data.dir={task.data}"]
        # Each thousand steps, a second or two, would be too often.
        command += [f"--config.{what}={4000 * 128.0}" for what in _PAUSES]
    else:  # digits, at toy size
        command += ["--config=configs/digits.py", "--config.duration=2.0"]
        command += ["--config.schedule.warmup=0.5"]
    if task.toy:
        command += ["--config.model.stage_sizes=(1,1,1)", "--config.model.width=4"]
    if task.data and task.toy:
        command += ["--config.duration=2560.0"]
        command += ["--config.eval_every=2560.0", "--config.checkpoint_every=1280.0"]
        command += ["--config.steps_per_dispatch=5", "--config.log_every=5"]
    return [*command, f"--workdir={workdir}"]


def _train(name: str, workdir: Path, task: Task) -> Postponed | None:
    """Begin a run or go on with it; returns None when it has finished, otherwise why not."""
    process = subprocess.Popen(
        _command(name, workdir, task), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip
    try:
        said, _ = process.communicate(timeout=max(1, task.seconds_left - _SAVING_S))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate()
    if process.returncode == 0:
        return None
    if process.returncode == 75:
        return Postponed("stopped for lack of time, to be continued")
    raise RuntimeError(f"train.py ended with {process.returncode}: {said.strip()[-2000:]}")


def _keep(folder: Path) -> None:
    """Copy a finished run's log and summary, and write its weights."""
    run, weights = folder / "run", folder / "weights.safetensors"
    command = [sys.executable, "-m", "resnet_jax", "export", str(run), str(weights)]
    subprocess.run([*command, "--format=safetensors"], cwd=ROOT, check=True, capture_output=True)
    for kept in _KEPT:
        part = folder / f"{kept}.part"
        shutil.copyfile(run / kept, part)
        part.rename(folder / kept)


def _scores(name: str, summary: dict[str, Any]) -> dict[str, Any]:
    published = PUBLISHED.get(name) if summary["data"]["name"] == "cifar10" else None
    return {
        "error": 100 * (1 - summary["final"]["test"]["top1"]),
        "published_error": published.error if published else None,
        "steps": summary["steps"],
        "wall_s": summary["wall_s"],
        "img_per_s": summary["img_per_s"],
        "seed": summary["seed"],
    }
