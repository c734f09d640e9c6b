"""train.py as a process: exit codes and one clear line for each mistake."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DIGITS = "--config=configs/digits.py"
TINY = [
    DIGITS,
    "--config.model.stage_sizes=(1,1)",
    "--config.model.width=4",
    "--config.duration=2",
    "--config.schedule.warmup=0",
    "--config.mesh.data=1",
]


def _train(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "train.py", *arguments]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([DIGITS, "--config.modle.name=resnet56"], 78, "Did you mean 'model.name'"),
        ([DIGITS, "--config.batch_size=many"], 78, "--config.batch_size=many"),
        (["--config=configs/cfar.py"], 78, "there is no file configs/cfar.py"),
        (["--config=configs/cifar10.py:resnet20,gpu"], 78, "no variant 'gpu', only 'cpu'"),
        ([DIGITS, "--wrkdir=x"], 64, "Did you mean: workdir"),
        ([DIGITS, "digits"], 64, "'digits' isn't a flag"),
        (
            [DIGITS, "--config.model=resnet56"],
            78,
            "model is a section of the config; its fields: model.",
        ),
        (["--noworkdir_given"], 64, "noworkdir_given"),
        (["--config={tmp_path}/typo.py"], 78, "typo.py, line 5: "),
        (["--config={tmp_path}/type.py"], 78, "type.py, line 5: TypeError"),
    ],
)
def test_a_wrong_command_line_is_one_line(arguments, code, message, tmp_path):
    for name, line in {"typo": "batchsize = 3", "type": "batch_size = 'three'"}.items():
        (tmp_path / f"{name}.py").write_text(
            "from resnet_jax.train.config import default_config\n\ndef get_config():\n"
            f"    config = default_config()\n    config.{line}\n    return config\n"
        )
    workdir = tmp_path / "run"
    arguments = [argument.format(tmp_path=tmp_path) for argument in arguments]
    done = _train(*arguments, f"--workdir={workdir}")
    assert done.returncode == code
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert not workdir.exists()


def test_a_run_is_trained_stopped_resumed_and_bound_to_its_config(tmp_path):
    """Exit codes 75, 78 and 0, plain lines without a terminal, and the files that remain."""
    stopped = _train(*TINY, f"--workdir={tmp_path}", "--stop_at_step=20")
    assert stopped.returncode == 75, stopped.stderr
    assert "stopped at step 20 of 40" in stopped.stdout
    config = (tmp_path / "config.json").read_text()

    other = _train(*TINY, "--config.schedule.base_lr=0.2", f"--workdir={tmp_path}")
    assert other.returncode == 78
    assert "schedule.base_lr: 0.1 → 0.2" in other.stderr
    assert (tmp_path / "config.json").read_text() == config

    done = _train(*TINY, "--config.log_every=10", f"--workdir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert f"resuming {tmp_path} at step 20" in done.stdout
    assert "top-1" in done.stdout
    assert "img/s" in done.stdout
    assert "ETA" in done.stdout
    assert "\x1b" not in done.stdout
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["final"]["test"]["examples"] == 360
    assert summary["steps"] == 40
    assert summary["hardware"]["platform"] == "cpu"
    assert str(tmp_path) not in summary["command"]
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((tmp_path / "tensorboard").glob("events.*"))


def test_help_succeeds_and_a_missing_flag_is_named():
    assert _train("--help").returncode == 0
    done = _train(DIGITS)
    assert (done.returncode, done.stderr.count("\n")) == (64, 1)
    assert "--workdir is missing" in done.stderr


def test_an_interrupt_while_starting_is_heard(tmp_path):
    """Libraries are still being imported; the run ends before anything was lost."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-X",
            "importtime",
            "train.py",
            *TINY,
            "--config.duration=5000",
            f"--workdir={tmp_path}",
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        for line in process.stderr:
            if line.rstrip().endswith(" jax"):  # after train.py's own imports
                break
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 75, errors[-2000:]
    assert "nothing was lost" in errors
    assert "Traceback" not in errors


def test_an_unwritable_workdir_is_found_before_anything_else(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    done = _train(*TINY, f"--workdir={blocked / 'run'}")
    assert done.returncode == 73
    assert "can't be written" in done.stderr
    assert done.stdout == ""


def test_sigterm_ends_the_process_with_75_and_nothing_is_lost(tmp_path):
    command = [sys.executable, "train.py", *TINY, "--config.duration=5000"]
    process = subprocess.Popen(
        [*command, f"--workdir={tmp_path}"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        metrics = tmp_path / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while not (metrics.exists() and metrics.read_text()) and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 75
    assert "saved in" in output
    assert any(path.name.isdecimal() for path in (tmp_path / "checkpoints").iterdir())
