"""Which checkpoint of a run is restored."""

import errno
import os
from pathlib import Path

import pytest

from resnet_jax.checkpoint import reader
from resnet_jax.errors import DataError
from resnet_jax.inference.restore import _find_step
from tests.cli.mistakes import assert_one_line
from tests.research.fake_run import write_run


class _Checkpoints:
    """Checkpoints of the steps 4 and 8; `best` is the record of the best one."""

    def __init__(self, best, steps=(4, 8)):
        self._best, self._steps = best, list(steps)

    def steps(self):
        return self._steps

    def progress(self, step):
        assert step == 8  # the last
        return {"best": self._best}


@pytest.mark.parametrize(
    ("checkpoint", "best", "step"),
    [
        ("last", {"step": 4}, 8),
        ("best", {"step": 4}, 4),
        ("best", None, 8),  # a run without validation scores
        ("4", None, 4),
        (4, None, 4),
    ],
)
def test_the_step_of_a_checkpoint(checkpoint, best, step):
    assert _find_step(_Checkpoints(best), checkpoint, Path("run")) == step


@pytest.mark.parametrize(
    ("checkpoint", "steps", "message"),
    [
        ("5", (4, 8), "run has no checkpoint '5'; it has last, best and the steps 4, 8."),
        ("first", (4, 8), "run has no checkpoint 'first'"),
        ("last", (), "run has no finished checkpoint yet."),
    ],
)
def test_a_checkpoint_that_is_not_there_is_refused(checkpoint, steps, message):
    with pytest.raises(DataError, match=message):
        _find_step(_Checkpoints(None, steps), checkpoint, Path("run"))


@pytest.mark.parametrize("command", ["predict", "verify"])
def test_checkpoints_that_cannot_be_read_are_one_line(command, tmp_path, monkeypatch, capsys):
    """Of another user, or in a bucket that doesn't answer."""
    write_run(tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "4").mkdir(parents=True)

    def refuse(*arguments, **options):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(reader, "Manager", refuse)
    images = ["a.png"] if command == "predict" else []
    message = "run/checkpoints can't be read (Permission denied)"
    assert_one_line([command, str(tmp_path / "run"), *images], 65, message, capsys)
