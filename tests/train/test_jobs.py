"""Jobs of several processes on this host, connected by gloo: whole runs of train.py."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import portpicker
import pytest

from resnet_jax.train.metrics_log import read_metrics

ROOT = Path(__file__).parents[2]
TINY = (
    "--config=configs/digits.py",
    "--config.model.stage_sizes=(1,1)",
    "--config.model.width=4",
    "--config.duration=1",
    "--config.eval_every=0.5",
    "--config.schedule.warmup=0",
    "--config.log_every=4",
    "--config.steps_per_dispatch=4",
    "--config.checkpoint_every=0.3",
)


def _start(
    workdir, *arguments, processes, devices, own=(), own_devices=None
) -> list[subprocess.Popen]:
    """Start a job; `own` are arguments, `own_devices` devices of the last process alone."""
    port = portpicker.pick_unused_port()
    started = []
    for number in range(processes):
        command = [sys.executable, "train.py", *TINY, f"--workdir={workdir}", *arguments]
        if processes > 1:
            command += [
                f"--coordinator=127.0.0.1:{port}",
                f"--num_processes={processes}",
                f"--process_id={number}",
                "--coordinator_timeout_s=60",
            ]
        command += own if number == processes - 1 else ()
        last = number == processes - 1
        count = own_devices if last and own_devices else devices
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(count)}
        started.append(
            subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return started


def _finish(job: list[subprocess.Popen]) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of each process."""
    try:
        outcomes = [process.communicate(timeout=240) for process in job]
    finally:
        for process in job:
            process.kill()
    return [(process.returncode, *texts) for process, texts in zip(job, outcomes, strict=True)]


def _run(workdir, *arguments, **options) -> list[tuple[int, str, str]]:
    return _finish(_start(workdir, *arguments, **options))


def _codes(outcomes) -> list[int]:
    return [code for code, _, _ in outcomes]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    """The record of a run on one device that nothing interrupted."""
    workdir = tmp_path_factory.mktemp("one")
    outcomes = _run(workdir, processes=1, devices=1)
    assert _codes(outcomes) == [0], outcomes
    return workdir


def test_a_job_stopped_and_resumed_on_other_numbers_of_processes_is_the_same_run(
    one_process, tmp_path
):
    """Two processes of four devices, four of one, then one: order, augmentation, scores agree."""
    first = _run(tmp_path, "--stop_at_step=7", "--config.mesh.fsdp=2", processes=2, devices=4)
    assert _codes(first) == [75, 75], first
    assert "stopped at step 7 of 20" in first[0][1]
    # One process speaks for all; only gloo, which CPUs use, has a word of its own.
    assert not re.search("resnet|step|stopped", first[1][1])
    second = _run(tmp_path, "--stop_at_step=13", processes=4, devices=1)
    assert _codes(second) == [75] * 4, second
    assert "resuming" in second[0][1]
    last = _run(tmp_path, processes=1, devices=2)
    assert _codes(last) == [0], last

    records = read_metrics(tmp_path / "metrics.jsonl")
    expected = read_metrics(one_process / "metrics.jsonl")
    keys = ("step", "split", "examples", "weights")
    assert [[r.get(k) for k in keys] for r in records] == [
        [r.get(k) for k in keys] for r in expected
    ]
    losses, wanted = ([r["loss"] for r in each] for each in (records, expected))
    np.testing.assert_allclose(losses, wanted, rtol=1e-5)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["final"]["test"]["examples"] == 360


def test_a_job_of_two_processes_runs_to_its_end(one_process, tmp_path):
    """Exact evaluation and one writer, images sent from the hosts, kernels split over both."""
    fields = ("--config.data.resident=False", "--config.mesh.fsdp=4")
    outcomes = _run(tmp_path, *fields, processes=2, devices=2)
    assert _codes(outcomes) == [0, 0], outcomes
    records = read_metrics(tmp_path / "metrics.jsonl")
    expected = read_metrics(one_process / "metrics.jsonl")
    losses, wanted = ([r["loss"] for r in each] for each in (records, expected))
    np.testing.assert_allclose(losses, wanted, rtol=1e-5)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["hardware"]["processes"], summary["hardware"]["devices"]) == (2, 4)
    assert summary["final"]["test"]["examples"] == 360
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1


def test_a_damaged_part_that_one_process_alone_reads_is_set_aside_by_all(tmp_path):
    fields = ("--config.model.width=32", "--config.mesh.fsdp=2", "--config.checkpoint_every=0.09")
    outcomes = _run(tmp_path, "--stop_at_step=3", *fields, processes=2, devices=1)
    assert _codes(outcomes) == [75, 75], outcomes
    for part in (tmp_path / "checkpoints/3/state/ocdbt.process_1/d").iterdir():
        os.truncate(part, 10)
    outcomes = _run(tmp_path, "--stop_at_step=4", *fields, processes=2, devices=1)
    assert _codes(outcomes) == [75, 75], outcomes
    assert "The checkpoint of step 3 is damaged" in outcomes[0][2]
    assert "resuming" in outcomes[0][1]
    kept = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert {"2", "3.corrupt", "4"} <= kept


def test_a_signal_to_one_process_stops_all_of_them_at_the_same_step(tmp_path):
    job = _start(tmp_path, "--config.duration=3000", processes=2, devices=1)
    _wait_for_training(tmp_path)
    job[1].send_signal(signal.SIGTERM)
    outcomes = _finish(job)
    assert _codes(outcomes) == [75, 75], outcomes
    saved = max(int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdecimal())
    assert f"stopped at step {saved:,} of" in outcomes[0][1]


def test_different_numbers_of_devices_are_named(tmp_path):
    job = _start(tmp_path, processes=2, devices=1, own_devices=2)
    for code, _, errors in _finish(job):
        assert code == 78, errors
        assert "number of devices: 1 in process 0, 2 in process 1" in errors
        assert "Traceback" not in errors


def _wait_for_training(workdir) -> None:
    metrics = workdir / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_others_within_seconds(victim, tmp_path):
    """With exit code 71 and one line, whichever it was; what was saved is intact."""
    job = _start(tmp_path, "--config.duration=3000", processes=2, devices=1)
    _wait_for_training(tmp_path)
    job[victim].kill()
    killed = time.monotonic()
    other = job[1 - victim]
    try:
        _, errors = other.communicate(timeout=60)
    finally:
        for process in job:
            process.kill()
    assert time.monotonic() - killed < 15
    assert other.returncode == 71, errors
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert f"Process {victim} has ended: its connection broke." in line
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("own", "codes", "messages"),
    [
        (
            ["--config.schedule.base_lr=0.3"],
            [78, 78],
            ["Processes differ in schedule.base_lr: it is 0.1 in process 0"] * 2,
        ),
        (
            ["--workdir={other}"],
            [73, 73],
            ["Processes 1 don't see what process 0 writes to"] * 2,
        ),
        (
            ["--config.data.train=trian"],
            [71, 78],
            ["Process 1 ({host}) has failed: split 'trian'", "Did you mean 'train'"],
        ),
    ],
    ids=["config", "workdir", "failure"],
)
def test_processes_that_differ_end_before_the_first_step(own, codes, messages, tmp_path):
    own = [argument.format(other=tmp_path / "other") for argument in own]
    outcomes = _run(tmp_path / "run", processes=2, devices=1, own=own)
    assert _codes(outcomes) == codes, outcomes
    for (_, output, errors), message in zip(outcomes, messages, strict=True):
        assert "step" not in output
        lines = [line for line in errors.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, errors
        assert message.format(host=os.uname().nodename) in lines[0]
    assert not (tmp_path / "run" / "config.json").exists()
