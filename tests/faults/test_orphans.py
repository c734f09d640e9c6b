"""Nothing outlives a run: no process, no shared memory, no lock, no temporary folder."""

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.data.readers.test_folders import write
from tests.runs import ROOT, TINY, streamed, train

_PR_SET_CHILD_SUBREAPER = 36


def _children():
    """Processes whose parent is this one, because it started them or because theirs has ended."""
    found = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = status.read_text(errors="replace").rpartition(")")[2].split()[:2]
        except OSError:  # it has just ended
            continue
        if int(parent) == os.getpid() and state != "Z":
            found.add(f"process {status.parent.name}")
    return found


def _shared_memory():
    """Pieces of shared memory that no process uses; those of other programs are in use."""
    used = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):  # it has just ended, or isn't ours
            used.update(re.findall(r"/dev/shm/\S+", maps.read_text(errors="replace")))
    return {f"/dev/shm/{name}" for name in os.listdir("/dev/shm")} - used


@pytest.fixture
def remains(whole):
    """What has been left behind in the meantime, outside of the work directory."""
    system = ctypes.CDLL(None)
    assert system.prctl(_PR_SET_CHILD_SUBREAPER, 1) == 0  # of whom the parent dies, is ours

    def existing():
        return _children() | _shared_memory()

    before = existing()

    def left():
        deadline = time.monotonic() + 60  # Python tidies up behind the dead
        while (found := existing() - before) and time.monotonic() < deadline:
            time.sleep(0.05)
        return found

    yield left
    system.prctl(_PR_SET_CHILD_SUBREAPER, 0)


@pytest.mark.thorough
def test_nothing_is_left_behind(remains, whole, tmp_path):
    """When it is killed, fails or is stopped; what a kill leaves is gone after the next start."""
    workdir, temporary = tmp_path / "run", tmp_path / "temporary"
    temporary.mkdir()
    ends = (
        ({"fault": "files:71:kill"}, -signal.SIGKILL),
        ({"fault": "step:9:nan"}, 70),
        ({"arguments": "--stop_at_step=10"}, 75),
    )
    for how, code in ends:
        ended = train(
            workdir,
            *how.get("arguments", "").split(),
            fault=how.get("fault"),
            environment={"TMPDIR": str(temporary)},
        )
        assert ended.code == code, ended.said
        assert not remains()
        assert list(temporary.iterdir()) == []
        if code != -signal.SIGKILL:
            assert not list(workdir.glob(".*"))
            assert all(path.name.isdecimal() for path in (workdir / "checkpoints").iterdir())


@pytest.mark.thorough
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_processes_that_decode_images_end_with_the_run(remains, tmp_path, number):
    images = write(tmp_path / "images", {"cat": 40, "dog": 40}, shape=(12, 14))
    command = [sys.executable, "train.py", *TINY, f"--workdir={tmp_path / 'run'}"]
    command += streamed(images, **{"data.workers": 2, "duration": 32 * 10_000})
    # Not one of those that share what Python has for tidying up with this process.
    with subprocess.Popen(command, cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}) as process:
        record = tmp_path / "run" / "metrics.jsonl"
        deadline = time.monotonic() + 600
        while not (record.exists() and '"step": 4,' in record.read_text()):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
    assert process.returncode == (75 if number == signal.SIGTERM else -number)
    assert not remains()
