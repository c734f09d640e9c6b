"""A sweep whose runs a scheduler starts: 8 runs, 3 at a time, two of which are killed."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from resnet_jax.errors import WriteError
from resnet_jax.logging.metrics_log import read_metrics
from tests.runs import ROOT

_FILE = """
from tests.conftest import make_tiny_config

def get_config():
    config = make_tiny_config()
    config.model.stage_sizes = (1,)
    config.duration = config.eval_every = 120 * 32.0
    config.checkpoint_every = 5 * 32.0
    return config

def sweep():
    for seed in range(8):
        yield {"seed": seed}
"""
_RUNS, _AT_A_TIME = 8, 3
_TIMEOUT_S = 1200


class Task:
    """The process that a scheduler starts for one run of the sweep."""

    def __init__(self, number, arguments, log):
        self.number, self.log = number, log
        command = [sys.executable, "-m", "resnet_jax", "sweep", *arguments, f"--task={number}"]
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"},
                stdout=output,
                stderr=subprocess.STDOUT,
            )


def _trains(folder):
    """The process that trains in a folder, once a step is on record; None if there is none."""
    metrics, lock = folder / "metrics.jsonl", folder / ".lock"
    try:
        if metrics.read_text() and not (folder / "summary.json").exists():
            return json.loads(lock.read_text())["pid"]
    except FileNotFoundError:
        pass
    return None


@pytest.mark.thorough
def test_all_runs_finish_and_none_is_trained_twice_at_once(tmp_path):
    file, workdir = tmp_path / "tasks.py", tmp_path / "runs"
    file.write_text(_FILE)
    arguments = [f"--config={file}", f"--workdir={workdir}"]
    folders = [workdir / f"seed={seed}" for seed in range(_RUNS)]
    waiting, running = list(range(_RUNS)), []
    codes = {number: [] for number in range(_RUNS)}
    done_to = set()  # the runs that something was done to
    second = held = None  # the second task of run 0, and the process that trains it meanwhile

    def start(number):
        return Task(number, arguments, tmp_path / f"log{number}")

    end = time.monotonic() + _TIMEOUT_S
    try:
        while waiting or running:
            assert time.monotonic() < end, codes
            while waiting and len(running) < _AT_A_TIME:
                running.append(start(waiting.pop(0)))
            if held and second.process.poll() is not None:  # the other runs train meanwhile
                os.kill(held, signal.SIGCONT)
                assert second.process.returncode == WriteError.exit_code
                assert f"is in use by process {held} on " in second.log.read_text()
                held = None
            for task in list(running):
                number = task.number
                pid = _trains(folders[number]) if number in (0, 1, 4) else None
                if pid and number not in done_to:
                    done_to.add(number)
                    if number == 0:  # a second task of the same run
                        os.kill(pid, signal.SIGSTOP)
                        held, second = pid, Task(number, arguments, tmp_path / "second")
                    elif number == 1:
                        task.process.kill()  # the run's process ends with it
                    else:
                        os.kill(pid, signal.SIGKILL)
                code = task.process.poll()
                if code is not None:
                    running.remove(task)
                    codes[number].append(code)
                    if code:
                        waiting.insert(0, number)
            time.sleep(0.01)
    finally:
        for task in [*running, *([second] if second else [])]:
            task.process.kill()
    assert second
    assert not held
    kills = {1: [-signal.SIGKILL], 4: [128 + signal.SIGKILL]}
    assert codes == {number: [*kills.get(number, []), 0] for number in range(_RUNS)}
    for folder in folders:
        records = read_metrics(folder / "metrics.jsonl")
        assert [r["step"] for r in records if r["split"] == "train"] == list(range(5, 121, 5))
        assert not list(folder.glob(".lock*"))
    assert not list(workdir.glob("sweep.*"))

    collect = [sys.executable, "-m", "resnet_jax", "sweep", *arguments, "--collect", "--json"]
    done = subprocess.run(collect, cwd=ROOT, capture_output=True, check=True, text=True)
    document = json.loads(done.stdout)
    assert (document["finished"], len(document["runs"]), document["left"]) == (_RUNS, _RUNS, {})
    with (workdir / "sweep.csv").open() as table:
        rows = list(csv.DictReader(table))
    last = [row for row in rows if (row["split"], row["weights"]) == ("test", "raw")]
    assert [row["seed"] for row in last] == [str(seed) for seed in range(_RUNS)]
    for row, folder in zip(last, folders, strict=True):
        summary = json.loads((folder / "summary.json").read_text())
        assert float(row["top1"]) == summary["final"]["test"]["top1"]
