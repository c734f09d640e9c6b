"""Output that can't be written: a run goes on or ends as it would have, with the same exit code."""

import contextlib
import json
import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest

from resnet_jax.logging.console import TrainingConsole
from resnet_jax.utils.streams import LossyStream

ROOT = Path(__file__).parents[2]
TINY = (
    "--config=configs/digits.py",
    "--config.model.stage_sizes=(1,1)",
    "--config.model.width=4",
    "--config.schedule.warmup=0",
    "--config.mesh.data=1",
)
LOST = ("full disk", "broken pipe", "dead terminal")


@contextlib.contextmanager
def _lost_output(how):
    """A file number for output that can't be written."""
    if how == "full disk":
        reader, writer = None, os.open("/dev/full", os.O_WRONLY)
    elif how == "broken pipe":
        reader, writer = os.pipe()
    else:
        reader, writer = pty.openpty()
    if reader is not None:
        os.close(reader)
    try:
        yield writer
    finally:
        os.close(writer)


def _exit_code(program, how, *arguments):
    """Exit code of a Python program whose standard output and error are lost."""
    command = [sys.executable, "-c", program, *arguments]
    if how == "closed":
        closing = ["sh", "-c", 'exec "$0" "$@" >&- 2>&-']
        return subprocess.run([*closing, *command], cwd=ROOT, timeout=300, check=False).returncode
    with _lost_output(how) as output:
        done = subprocess.run(
            command, cwd=ROOT, stdout=output, stderr=output, timeout=300, check=False
        )
    return done.returncode


_ASKED_TO_STOP = """
import os, signal, sys
from resnet_jax.checkpoint.stop import StopRequest

with StopRequest() as stop:
    os.kill(os.getpid(), signal.SIGHUP)
    sys.exit(75 if stop.requested else 2)
"""


@pytest.mark.parametrize("how", [*LOST, "closed"])
def test_a_signal_is_heard(how):
    assert _exit_code(_ASKED_TO_STOP, how) == 75


_FAILS = """
import concurrent.futures, sys, time
from resnet_jax.cli.common.exits import exit_code_of, show_progress
from resnet_jax.errors import WriteError

show_progress()
concurrent.futures.ThreadPoolExecutor().submit(time.sleep, 600)

def run():
    if sys.argv[1] == "exit":  # as code of the user's may do
        sys.exit(0)
    raise {"write": WriteError("The disk is full."), "bug": ZeroDivisionError()}[sys.argv[1]]

sys.exit(exit_code_of(run))
"""


@pytest.mark.parametrize(
    ("how", "error", "code"),
    [
        ("full disk", "write", 73),
        ("dead terminal", "bug", 1),
        ("closed", "write", 73),
        ("broken pipe", "exit", 78),
    ],
)
def test_a_failure_keeps_its_exit_code_and_waits_for_no_thread(how, error, code):
    """Such as one that reads a checkpoint back, from a file system that doesn't answer."""
    assert _exit_code(_FAILS, how, error) == code


def test_a_failure_with_a_stuck_thread_is_told_before_the_end():
    done = subprocess.run(
        [sys.executable, "-c", _FAILS, "write"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stderr) == (73, "error: The disk is full.\n")


_HANGS = """
import sys, time
from resnet_jax.cli.common.exits import end_with
from resnet_jax.train.watchdog import Watchdog

with Watchdog(0.2, end_with).watching():
    if sys.argv[1:]:
        print("x" * 2**20)
    time.sleep(600)
"""


@pytest.mark.parametrize("how", [*LOST, "closed"])
def test_a_stuck_run_is_ended(how):
    assert _exit_code(_HANGS, how) == 71


@pytest.mark.thorough
def test_a_run_that_is_stuck_in_its_output_is_ended():
    """As in a pager that is left open, or a terminal halted by Ctrl-S."""
    reader, writer = os.pipe()
    try:
        done = subprocess.run(
            [sys.executable, "-c", _HANGS, "prints"],
            cwd=ROOT,
            stdout=writer,
            stderr=writer,
            timeout=300,
            check=False,
        )
    finally:
        os.close(reader)
        os.close(writer)
    assert done.returncode == 71


_OPENS = """
import sys
from resnet_jax.cli.common.exits import outlive_terminal

outlive_terminal()
with open(sys.argv[1], "w") as file:
    assert file.fileno() > 2
    print("output", flush=True)
    print("error", file=sys.stderr, flush=True)
sys.exit(75)
"""


@pytest.mark.parametrize("how", [*LOST, "closed"])
def test_output_neither_gets_into_a_file_of_the_run_nor_changes_its_exit_code(how, tmp_path):
    assert _exit_code(_OPENS, how, str(tmp_path / "file")) == 75
    assert (tmp_path / "file").read_text() == ""


@pytest.mark.parametrize("how", LOST)
def test_a_console_falls_silent(how, monkeypatch):
    record = {"step": 5, "epoch": 0.5, "examples": 50, "loss": 1.0, "top1": 0.5, "img_per_s": 9.0}
    with _lost_output(how) as output:
        monkeypatch.setattr(sys, "stdout", open(os.dup(output), "w", encoding="utf-8"))  # noqa: SIM115
        with TrainingConsole(total_steps=10, start_step=0) as console:
            console.train(record)
            console.say("a line")
        monkeypatch.undo()


def test_what_a_stream_cannot_encode_is_written_in_escapes(tmp_path):
    with open(tmp_path / "log", "w", encoding="ascii") as file:
        print("2 × cpu", file=LossyStream(file))
    assert (tmp_path / "log").read_text() == "2 \\xd7 cpu\n"


def test_a_stream_that_can_be_written_again_is(tmp_path):
    """A disk isn't full for ever."""

    class Disk:
        full, text = True, ""

        def write(self, text):
            if self.full:
                raise OSError(28, "No space left on device")
            self.text += text

    disk = Disk()
    print("lost", file=LossyStream(disk))
    disk.full = False
    print("kept", file=LossyStream(disk))
    assert disk.text == "kept\n"


def test_a_wrong_command_line_keeps_its_exit_code():
    with _lost_output("full disk") as output:
        command = [sys.executable, "train.py", "--config=configs/none.py", "--workdir=none"]
        assert subprocess.run(command, cwd=ROOT, stderr=output, check=False).returncode == 78


@pytest.mark.thorough
def test_a_run_whose_reader_ends_is_trained_to_its_end(tmp_path):
    """As by `train.py … | head -1`."""
    command = [sys.executable, "train.py", *TINY, "--config.duration=2", "--config.log_every=4"]
    process = subprocess.Popen(
        [*command, f"--workdir={tmp_path}"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        assert b"training images" in process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=600) == 0
    finally:
        process.kill()
    assert json.loads((tmp_path / "summary.json").read_text())["steps"] == 40


# Makes its input the terminal that controls this process, as a login does.
_LOGIN = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


@pytest.mark.thorough
def test_a_run_whose_terminal_is_closed_saves(tmp_path):
    """The kernel sends SIGHUP, and writing to the terminal is an error from then on."""
    arguments = ["train.py", *TINY, "--config.duration=5000", "--config.log_every=4"]
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", _LOGIN, *arguments, f"--workdir={tmp_path}"],
        cwd=ROOT,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    try:
        deadline = time.monotonic() + 600
        shown = b""
        while b"img/s" not in shown and time.monotonic() < deadline:
            shown += os.read(ours, 4096)  # a bar is drawn, by a thread
        os.close(ours)
        assert process.wait(timeout=300) == 75, shown
    finally:
        process.kill()
    assert any(path.name.isdecimal() for path in (tmp_path / "checkpoints").iterdir())
