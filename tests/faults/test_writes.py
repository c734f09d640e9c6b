"""Disks that are full, and saves that fail, in the middle of a run and at its end."""

import contextlib
import subprocess

import pytest

import resnet_jax
from resnet_jax.checkpoint.checkpointer import Checkpointer
from resnet_jax.checkpoint.reader import CheckpointReader
from resnet_jax.errors import WriteError
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


@pytest.mark.thorough
def test_a_full_disk_doesnt_end_the_run(disk, tmp_path, record_property):
    """Training goes on, and all of it is there once there is room."""
    running = start(disk / "run", *_SLOWLY)
    running.logs(4)
    ballast = _fill(disk)
    running.says("training goes on")
    ballast.unlink()
    ended = running.end()
    record_property("saw", next(x for x in ended.said.splitlines() if "training goes on" in x))
    assert ended.code == 0, ended.said
    assert steps_on_record(disk / "run") == list(range(2, 61, 2))
    assert train(tmp_path / "whole", *_SLOWLY).code == 0
    assert digest(disk / "run") == digest(tmp_path / "whole")


@pytest.mark.thorough
def test_a_disk_that_stays_full_ends_the_run(disk, whole, record_property):
    assert train(disk / "run", "--stop_at_step=4").code == 75
    ballast = _fill(disk)
    ended = train(disk / "run", "--config.save_attempts=3")
    record_property("saw", ended.last_line)
    assert ended.code == 73, ended.said
    ballast.unlink()
    assert train(disk / "run").code == 0
    assert digest(disk / "run") == digest(whole)


@pytest.mark.thorough
def test_what_couldnt_be_saved_isnt_success(tmp_path, record_property):
    arguments = ("--config.save_attempts=2", "--config.checkpoint_every=384")
    arguments += ("--config.eval_every=384",)
    ended = train(tmp_path / "run", *arguments, fault=f"{_SAVE}:1:ENOSPC")
    record_property("saw", ended.last_line)
    assert ended.code == 73, ended.said
    assert "No space left on device" in ended.last_line
    assert not (tmp_path / "run" / "summary.json").exists()


def test_a_step_that_was_scored_but_not_saved_isnt_the_best(tiny_config, tmp_path, monkeypatch):
    """The save of step 3 fails, step 4 is scored, and the next save is that of step 5."""
    tiny_config.model.stage_sizes, tiny_config.checkpoint_every = (1,), 32.0
    save = Checkpointer.save

    def failing(self, step, *args, **kwargs):
        if step == 3:
            raise WriteError("made up.")
        save(self, step, *args, **kwargs)

    monkeypatch.setattr(Checkpointer, "save", failing)
    result = resnet_jax.fit(tiny_config, tmp_path / "run", stop_at_step=5)
    assert 4 in [r["step"] for r in result.history if r["split"] == "validation"]
    checkpoints = CheckpointReader(tmp_path / "run" / "checkpoints")
    assert checkpoints.steps()[-1] == 5
    assert (checkpoints.progress(5)["best"], result.best) == (None, None)
