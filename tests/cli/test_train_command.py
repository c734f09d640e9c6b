"""train.py as a process: exit codes and one clear line for each mistake."""

import json
import signal
import subprocess
import sys

import pytest

from tests.runs import ROOT, TINY, Ended, Running, train

DIGITS = "--config=configs/digits.py"


def _command(*arguments: str, folder) -> Ended:
    return Running(*arguments, workdir=folder / "run").end()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([DIGITS, "--config.modle.name=resnet56"], 78, "Did you mean 'model.name'"),
        ([DIGITS, "--config.batch_size=many"], 78, "--config.batch_size=many"),
        (["--config=configs/cfar.py"], 78, "there is no file configs/cfar.py"),
        (["--config=configs/cifar10.py:resnet20,gpu"], 78, "There is no recipe 'gpu'"),
        ([DIGITS, "--wrkdir=x"], 64, "Did you mean: workdir"),
        ([DIGITS, "digits"], 64, "'digits' isn't a flag"),
        (
            [DIGITS, "--config.model=resnet56"],
            78,
            "model is a section of the config; its fields: model.",
        ),
        (["--noworkdir_given"], 64, "noworkdir_given"),
        (["--flagfile=no/such/file"], 64, "--flagfile: Unable to open flagfile: [Errno 2]"),
        (["--flagfile={tmp_path}/latin-1"], 64, "--flagfile: 'utf-8' codec can't decode byte"),
        (["--config="], 64, "--config is empty"),
        ([DIGITS, "-v"], 64, "--verbosity"),
        ([DIGITS, "-f"], 64, "Unknown command line flag 'f'"),
        ([DIGITS, "--stop_at_step=nan"], 64, "--stop_at_step=nan"),
        ([DIGITS, "--stop_at_step=-1"], 64, "stop_at_step is -1; it must be at least 1"),
        ([DIGITS, "--profile=9:3"], 64, "--profile is '9:3'; it must be START:STOP"),
        ([DIGITS, "--config.duration=nan"], 78, "duration is nan; it must be finite"),
        ([DIGITS, "--config.hang_timeout_s=inf"], 78, "hang_timeout_s is inf"),
        ([DIGITS, "--config.schedule.base_lr=-inf"], 78, "schedule.base_lr is -inf"),
        (["--config={tmp_path}/typo.py"], 78, "typo.py, line 5: "),
        (["--config={tmp_path}/type.py"], 78, "type.py, line 5: TypeError"),
    ],
)
def test_a_wrong_command_line_is_one_line(arguments, code, message, tmp_path):
    for name, line in {"typo": "batchsize = 3", "type": "batch_size = 'three'"}.items():
        (tmp_path / f"{name}.py").write_text(
            "from resnet_jax.config.schema import default_config\n\ndef get_config():\n"
            f"    config = default_config()\n    config.{line}\n    return config\n"
        )
    (tmp_path / "latin-1").write_bytes(b"--config=l\xe4ufe.py\n")
    workdir = tmp_path / "run"
    arguments = [argument.format(tmp_path=tmp_path) for argument in arguments]
    ended = _command(*arguments, f"--workdir={workdir}", folder=tmp_path)
    assert ended.code == code
    assert message in ended.said
    assert ended.said.startswith("error: ")
    assert ended.said.count("\n") == 1
    assert not workdir.exists()


@pytest.mark.thorough
def test_a_run_is_trained_stopped_resumed_and_bound_to_its_config(tmp_path):
    """Exit codes 75, 78 and 0, plain lines without a terminal, and the files that remain."""
    workdir = tmp_path / "run"
    command = [sys.executable, "train.py", *TINY, f"--workdir={workdir}", "--stop_at_step=6"]
    stopped = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert stopped.returncode == 75, stopped.stderr
    assert "stopped at step 6 of 12" in stopped.stdout
    config = (workdir / "config.json").read_text()

    other = train(workdir, "--config.schedule.base_lr=0.2")
    assert other.code == 78
    assert "schedule.base_lr: 0.1 → 0.2" in other.last_line
    assert (workdir / "config.json").read_text() == config

    done = train(workdir, "--config.log_every=3")
    assert done.code == 0, done.said
    assert f"resuming {workdir} at step 6" in done.said
    assert "top-1" in done.said
    assert "img/s" in done.said
    assert "ETA" in done.said
    assert "\x1b" not in done.said
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["final"]["test"]["examples"] == 100
    assert summary["steps"] == 12
    assert summary["hardware"]["platform"] == "cpu"
    assert str(workdir) not in summary["command"]
    assert (workdir / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((workdir / "tensorboard").glob("events.*"))


def test_help_succeeds_and_a_missing_flag_is_named(tmp_path):
    assert _command("--help", folder=tmp_path).code == 0
    done = _command(DIGITS, folder=tmp_path)
    assert (done.code, done.said.count("\n")) == (64, 1)
    assert "--workdir is missing" in done.said


def test_an_interrupt_while_starting_is_heard(tmp_path):
    """Libraries are still being imported; the run ends before anything was lost."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-X",
            "importtime",
            "train.py",
            *TINY,
            "--config.duration=160000",
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
        _, errors = process.communicate(timeout=600)
    finally:
        process.kill()
    assert process.returncode == 75, errors[-2000:]
    assert "nothing was lost" in errors
    assert "Traceback" not in errors


def test_an_unwritable_workdir_is_found_before_anything_else(tmp_path):
    (tmp_path / "file").write_text("in the way")
    workdir = tmp_path / "file" / "run"
    ended = _command(DIGITS, f"--workdir={workdir}", folder=tmp_path)
    assert ended.code == 73
    assert ended.said.startswith("error: ")
    assert "can't be written" in ended.last_line
