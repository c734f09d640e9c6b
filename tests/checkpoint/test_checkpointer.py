"""Saving from donated buffers, restoring onto other devices, and saves that fail."""

import contextlib
import errno
import logging
import resource
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.checkpoint import checkpointer
from resnet_jax.checkpoint.checkpointer import Checkpointer
from resnet_jax.checkpoint.reader import CheckpointReader
from resnet_jax.checkpoint.retention import Manager
from resnet_jax.errors import WriteError
from tests.checkpoint.states import make_state


def test_a_save_is_not_disturbed_by_donating_the_state(tmp_path):
    """The step reuses the state's buffers while the save still runs in the background."""
    checkpoints = Checkpointer(tmp_path, keep=20)
    overwrite = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    state = make_state(0.0)
    for step in range(10):
        checkpoints.save(step, state, progress={"at": step}, metrics=None)
        state = overwrite(state)
    checkpoints.close()
    again = Checkpointer(tmp_path, keep=20)
    for step in range(10):
        restored, progress = again.restore(step, make_state(-1.0))
        np.testing.assert_array_equal(restored["w"], np.full((300, 300), step))
        assert int(restored["step"]) == 7 + step
        assert progress == {"at": step}


def test_a_state_of_eight_devices_is_restored_on_one_and_back(tmp_path):
    checkpoints = Checkpointer(tmp_path, keep=2)
    checkpoints.save(1, make_state(3.0, devices=8), progress={}, metrics=None)
    checkpoints.close()
    for devices in (1, 2, 8):
        restored, _ = Checkpointer(tmp_path, keep=2).restore(1, make_state(0.0, devices=devices))
        assert len(restored["w"].devices()) == devices
        np.testing.assert_array_equal(restored["w"], np.full((300, 300), 3.0))
    alone, _ = CheckpointReader(tmp_path).restore_on_one_device(1)
    np.testing.assert_array_equal(alone["w"], np.full((300, 300), 3.0))


@pytest.mark.parametrize("restarts", [False, True])
def test_the_best_survives_and_ties_go_to_the_later(restarts, tmp_path):
    checkpoints = Checkpointer(tmp_path, keep=1)
    scores = [(0.5, 1.0), (0.9, 0.4), (0.9, 0.3), (0.7, 0.2), None, (0.8, 0.1)]
    for step, score in enumerate(scores):
        metrics = score and {"top1": score[0], "loss": score[1]}
        checkpoints.save(step, make_state(float(step)), progress={}, metrics=metrics)
        if restarts:
            checkpoints.close()
            checkpoints = Checkpointer(tmp_path, keep=1)
            assert checkpoints.restore_newest(make_state(0.0))[0] == step
    checkpoints.close()
    # When 5 was saved, 4 was the newest verified checkpoint.
    assert Checkpointer(tmp_path, keep=1).steps() == [2, 4, 5]


@pytest.mark.parametrize("restarts", [False, True])
def test_the_first_checkpoint_of_each_period_is_never_deleted(restarts, tmp_path):
    def period(step):
        return step // 4

    checkpoints = Checkpointer(tmp_path, keep=1, period=period)
    for step in (1, 3, 5, 6, 7, 9, 11, 12, 14):
        checkpoints.save(step, make_state(float(step)), progress={}, metrics=None)
        checkpoints.settle()
        if restarts:
            checkpoints.close()
            checkpoints = Checkpointer(tmp_path, keep=1, period=period)
            assert checkpoints.restore_newest(make_state(0.0))[0] == step
    checkpoints.close()
    # When 14 was saved, 12 was the newest verified checkpoint.
    assert Checkpointer(tmp_path, keep=1).steps() == [5, 9, 12, 14]


@contextlib.contextmanager
def _small_files_only():
    """The system refuses to write more than 10 kB into any file."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_save_that_fails_is_known_at_once_and_leaves_nothing(tmp_path):
    states = [{"w": jax.random.normal(jax.random.key(i), (300, 300))} for i in range(3)]
    checkpoints = Checkpointer(tmp_path, keep=2)
    checkpoints.save(0, states[0], progress={}, metrics=None)
    checkpoints.settle()
    assert not checkpoints.has_failed()
    with _small_files_only():
        checkpoints.save(1, states[1], progress={}, metrics=None)
        while not checkpoints.has_failed():
            time.sleep(0.01)
    with pytest.raises(WriteError, match="File too large.*; checkpoints 0 are intact"):
        checkpoints.settle()
    while [p.name for p in tmp_path.iterdir()] != ["0"]:  # its files are removed in the background
        time.sleep(0.01)
    checkpoints.save(1, states[2], progress={}, metrics=None)
    checkpoints.close()
    restored, _ = Checkpointer(tmp_path, keep=2).restore(1, states[0])
    np.testing.assert_array_equal(restored["w"], states[2]["w"])


@pytest.mark.parametrize(("keep", "left"), [(5, [1, 2, 3]), (2, [3])])
def test_a_full_disk_deletes_what_the_next_save_would_and_no_more(
    keep, left, tmp_path, monkeypatch
):
    checkpoints = Checkpointer(tmp_path, keep=5)
    for step in (1, 2, 3):
        checkpoints.save(step, make_state(float(step)), progress={}, metrics=None)
    checkpoints.settle()
    checkpoints._keep = keep

    def no_room(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Manager, "save", no_room)
    with pytest.raises(WriteError, match="No space left on device"):
        checkpoints.save(4, make_state(4.0), progress={}, metrics=None)
    assert checkpoints.steps() == left


def test_a_checkpoint_that_cannot_be_verified_ends_no_run(tmp_path, monkeypatch, caplog):
    """For lack of memory, say; the checkpoint may be good, and isn't the newest verified one."""

    def no_memory(*_):
        raise MemoryError

    checkpoints = Checkpointer(tmp_path, keep=5)
    monkeypatch.setattr(checkpointer, "read_back", no_memory)
    checkpoints.save(1, make_state(1.0), progress={}, metrics=None)
    assert checkpoints.settle()
    assert checkpoints.steps() == [1]
    assert not checkpoints._verified
    assert "couldn't be verified" in caplog.text


def test_orbax_warns_users_of_nothing_that_is_meant(tmp_path, caplog):
    caplog.set_level(logging.WARNING, "absl")
    checkpoints = Checkpointer(tmp_path, keep=1)
    checkpoints.save(1, {"w": jnp.zeros(3)}, progress={}, metrics=None)
    checkpoints.close()
    assert CheckpointReader(tmp_path).steps() == [1]
    assert [r.getMessage() for r in caplog.records if r.name == "absl"] == []
