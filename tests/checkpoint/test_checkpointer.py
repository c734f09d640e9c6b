"""Saving from donated buffers, restoring onto other devices, and damage."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.checkpoint.checkpointer import Checkpointer
from resnet_jax.checkpoint.workdir import write_atomically
from resnet_jax.errors import DataError
from resnet_jax.parallel.mesh import make_mesh, replicated


def _state(value: float, devices: int = 1):
    state = {"w": jnp.full((300, 300), value), "step": jnp.int32(7), "empty": None}
    return jax.device_put(state, replicated(make_mesh(data=devices)))


def test_a_save_is_not_disturbed_by_donating_the_state(tmp_path):
    """The step reuses the state's buffers while the save still runs in the background."""
    checkpoints = Checkpointer(tmp_path, keep=20)
    overwrite = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    state = _state(0.0)
    for step in range(10):
        checkpoints.save(step, state, progress={"at": step}, metrics=None)
        state = overwrite(state)
    checkpoints.close()
    again = Checkpointer(tmp_path, keep=20)
    for step in range(10):
        restored, progress = again.restore(step, _state(-1.0))
        np.testing.assert_array_equal(restored["w"], np.full((300, 300), step))
        assert int(restored["step"]) == 7 + step
        assert progress == {"at": step}


def test_a_state_of_eight_devices_is_restored_on_one_and_back(tmp_path):
    checkpoints = Checkpointer(tmp_path, keep=2)
    checkpoints.save(1, _state(3.0, devices=8), progress={}, metrics=None)
    checkpoints.close()
    for devices in (1, 2, 8):
        restored, _ = Checkpointer(tmp_path, keep=2).restore(1, _state(0.0, devices=devices))
        assert len(restored["w"].devices()) == devices
        np.testing.assert_array_equal(restored["w"], np.full((300, 300), 3.0))
    alone, _ = Checkpointer(tmp_path, keep=None).restore_on_one_device(1)
    np.testing.assert_array_equal(alone["w"], np.full((300, 300), 3.0))


@pytest.mark.parametrize("restarts", [False, True])
def test_the_best_survives_and_ties_go_to_the_later(restarts, tmp_path):
    checkpoints = Checkpointer(tmp_path, keep=1)
    scores = [(0.5, 1.0), (0.9, 0.4), (0.9, 0.3), (0.7, 0.2), None, (0.8, 0.1)]
    for step, score in enumerate(scores):
        metrics = score and {"top1": score[0], "loss": score[1]}
        checkpoints.save(step, _state(float(step)), progress={}, metrics=metrics)
        if restarts:
            checkpoints.close()
            checkpoints = Checkpointer(tmp_path, keep=1)
    checkpoints.close()
    assert Checkpointer(tmp_path, keep=1).steps() == [2, 5]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # TensorStore's
def test_a_missing_file_is_reported_with_the_step(tmp_path):
    checkpoints = Checkpointer(tmp_path, keep=1)
    checkpoints.save(4, _state(1.0), progress={}, metrics=None)
    checkpoints.close()
    for file in (tmp_path / "4" / "state").rglob("*"):
        if file.is_file() and "manifest" in file.name:
            file.unlink()
    with pytest.raises(DataError, match="checkpoint of step 4 can't be restored .*there are: none"):
        Checkpointer(tmp_path, keep=1).restore(4, _state(0.0))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # TensorStore's
@pytest.mark.parametrize("damage", ["_METADATA", "manifest.ocdbt", "state", "progress"])
def test_damage_is_reported_to_those_who_only_read(damage, tmp_path):
    checkpoints = Checkpointer(tmp_path, keep=1)
    checkpoints.save(4, _state(1.0), progress={"a": 1}, metrics=None)
    checkpoints.close()
    for path in [*(tmp_path / "4").rglob(damage)]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.write_bytes(b"\0garbage")
    with pytest.raises(DataError, match="checkpoint of step 4 can't be restored .*there are: none"):
        Checkpointer(tmp_path, keep=None).restore_on_one_device(4)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # TensorStore's
def test_another_shape_is_refused(tmp_path):
    checkpoints = Checkpointer(tmp_path, keep=1)
    checkpoints.save(4, _state(1.0), progress={}, metrics=None)
    checkpoints.close()
    other = _state(0.0) | {"w": jnp.zeros((4, 4))}
    with pytest.raises(DataError, match="checkpoint of step 4"):
        Checkpointer(tmp_path, keep=1).restore(4, other)


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    write_atomically(path, "old")

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]
