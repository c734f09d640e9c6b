"""A clock that is set, a day back or ten years ahead, while a run is under way or between two."""

import json
import math
import os
import time

import jax.numpy as jnp
import pytest
from etils import epath

from resnet_jax.checkpoint import lock, lock_file, lock_holder
from resnet_jax.checkpoint.checkpointer import Checkpointer
from resnet_jax.checkpoint.lock import LOCK, locked
from resnet_jax.errors import WriteError
from resnet_jax.logging.console import TrainingConsole
from resnet_jax.logging.metrics_log import read_metrics
from tests.runs import digest, steps_on_record, train

DAY_S = 86_400.0
JUMPS_S = (-DAY_S, 3650 * DAY_S, 0.0, -3650 * DAY_S)


@pytest.fixture
def set_clock(monkeypatch):
    """Sets this process's clock so many seconds ahead of the host's."""
    now, now_ns = time.time, time.time_ns

    def set_to(ahead_s):
        monkeypatch.setattr(time, "time", lambda: now() + ahead_s)
        monkeypatch.setattr(time, "time_ns", lambda: now_ns() + int(ahead_s * 1e9))

    return set_to


@pytest.mark.thorough
@pytest.mark.parametrize("jump", ["back", "ahead"])
def test_a_run_doesnt_notice(jump, whole, tmp_path):
    """Same bits, same record; times and rates come from a clock that nobody can set."""
    ended = train(tmp_path / "run", fault=f"resnet_jax.train.clock:Clock.lap:3:{jump}")
    assert ended.code == 0, ended.said
    assert digest(tmp_path / "run") == digest(whole)
    assert steps_on_record(tmp_path / "run") == steps_on_record(whole)
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    rates = [record["img_per_s"] for record in records if record["split"] == "train"]
    assert all(0 < rate < 1e6 for rate in rates), rates
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert 0 < summary["wall_s"] < ended.seconds


def test_the_newest_checkpoint_is_that_of_the_last_step(set_clock, tmp_path):
    """Each of them is older than the one before, by its own times and by those of its files."""
    for step, jump_s in enumerate(JUMPS_S, start=1):
        set_clock(jump_s)
        checkpoints = Checkpointer(tmp_path, keep=2)
        newest = checkpoints.restore_newest({"n": jnp.int32(0)})
        assert newest is None if step == 1 else newest[0] == step - 1
        scores = {"top1": 0.9 if step == 1 else 0.1, "loss": 1.0}
        checkpoints.save(step, {"n": jnp.int32(step)}, progress={}, metrics=scores)
        checkpoints.close()
        for path in (tmp_path / str(step), *(tmp_path / str(step)).rglob("*")):
            os.utime(path, (10**9 - step, 10**9 - step))
    last = len(JUMPS_S)
    assert Checkpointer(tmp_path, keep=2).steps() == [1, last - 1, last]  # the best, two newest


@pytest.mark.parametrize("where", ["file system", "bucket"])
def test_the_lock_is_neither_lost_nor_taken(where, set_clock, tmp_path, bucket, monkeypatch):
    monkeypatch.setattr(lock, "_RENEW_S", 0.02)
    monkeypatch.setattr(lock_file, "_POLL_S", 0.05)
    monkeypatch.setattr(lock, "_STALE_S", 30.0)
    (bucket / "clock").mkdir(exist_ok=True)
    folder, workdir = (
        (tmp_path, epath.Path(tmp_path))
        if where == "file system"
        else (bucket / "clock", epath.Path("gs://bucket/clock"))
    )
    said = []
    with locked(workdir, on_lost=said.append):
        for jump_s in JUMPS_S:
            set_clock(jump_s)
            with pytest.raises(WriteError, match="in use"), locked(workdir):
                pass
        # Nor by a host from which it can't be seen whether this process lives.
        monkeypatch.setattr(lock_holder, "_here", lambda: "another host")
        for jump_s in JUMPS_S:
            set_clock(jump_s)
            with pytest.raises(WriteError, match="in use"), locked(workdir):
                pass
    assert said == []
    assert not (folder / LOCK).exists()


def test_the_progress_bar_doesnt_notice(set_clock):
    with TrainingConsole(total_steps=10, start_step=0) as console:
        for step, jump_s in enumerate(JUMPS_S, start=1):
            time.sleep(0.01)
            set_clock(jump_s)
            record = {"step": step, "epoch": 0.5, "examples": 8, "loss": 1.0, "top1": 0.5}
            console.train(record | {"img_per_s": 9.0})
        (task,) = console._bar.tasks
        assert 0 < task.elapsed < 60
        assert math.isfinite(task.time_remaining)
        assert 0 < task.time_remaining < 60
