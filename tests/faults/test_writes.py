"""Disks that are full, and saves that fail, in the middle of a run and at its end."""

import contextlib
import subprocess

import pytest

from tests.runs import digest, small_disk, start, steps_on_record, train

_SAVE = "orbax.checkpoint:CheckpointManager.save"
# Long enough to fill the disk meanwhile.
_SLOWLY = ("--config.duration=1920", "--config.steps_per_dispatch=1")


@pytest.fixture
def disk(tmp_path):
    """A disk of 8 MB."""
    with contextlib.ExitStack() as mounted:
        try:
            folder = mounted.enter_context(small_disk(tmp_path / "disk", megabytes=8))
        except subprocess.CalledProcessError:
            pytest.skip("needs the right to mount a file system")
        yield folder


def _fill(disk):
    """Take all the space there is; returns the file that has it."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    return ballast


def test_a_full_disk_doesnt_end_the_run(disk, tmp_path, record_property):
    """Training goes on, and all of it is there once there is room."""
    running = start(disk / "run", *_SLOWLY)
    running.logs(4)
    ballast = _fill(disk)
    running.says("training goes on", timeout_s=60)
    ballast.unlink()
    ended = running.end()
    record_property("saw", next(x for x in ended.said.splitlines() if "training goes on" in x))
    assert ended.code == 0, ended.said
    assert steps_on_record(disk / "run") == list(range(2, 61, 2))
    assert train(tmp_path / "whole", *_SLOWLY).code == 0
    assert digest(disk / "run") == digest(tmp_path / "whole")


def test_a_disk_that_stays_full_ends_the_run(disk, whole, record_property):
    assert train(disk / "run", "--stop_at_step=4").code == 75
    ballast = _fill(disk)
    ended = train(disk / "run", "--config.save_attempts=3")
    record_property("saw", ended.last_line)
    assert ended.code == 73, ended.said
    ballast.unlink()
    assert train(disk / "run").code == 0
    assert digest(disk / "run") == digest(whole)


def test_what_couldnt_be_saved_isnt_success(tmp_path, record_property):
    arguments = ("--config.save_attempts=2", "--config.checkpoint_every=384")
    arguments += ("--config.eval_every=384",)
    ended = train(tmp_path / "run", *arguments, fault=f"{_SAVE}:1:ENOSPC")
    record_property("saw", ended.last_line)
    assert ended.code == 73, ended.said
    assert "No space left on device" in ended.last_line
    assert not (tmp_path / "run" / "summary.json").exists()
