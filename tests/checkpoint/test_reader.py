"""What a reader of checkpoints refuses, and says of them."""

import re
import shutil
from pathlib import Path

import jax.numpy as jnp
import pytest

from resnet_jax.checkpoint import checkpointer
from resnet_jax.checkpoint.checkpointer import Checkpointer
from resnet_jax.checkpoint.reader import CheckpointReader
from resnet_jax.errors import ConfigError, DataError
from tests.checkpoint.states import make_state, save_three


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # TensorStore's
def test_a_missing_file_is_reported_with_the_step(tmp_path):
    checkpoints = Checkpointer(tmp_path, keep=1)
    checkpoints.save(4, make_state(1.0), progress={}, metrics=None)
    checkpoints.close()
    for file in (tmp_path / "4" / "state").rglob("*"):
        if file.is_file() and "manifest" in file.name:
            file.unlink()
    with pytest.raises(DataError, match="checkpoint of step 4 can't be restored .*there are: none"):
        Checkpointer(tmp_path, keep=1).restore(4, make_state(0.0))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # TensorStore's
@pytest.mark.parametrize("damage", ["_METADATA", "manifest.ocdbt", "state", "progress"])
def test_damage_is_reported_to_those_who_only_read(damage, tmp_path):
    checkpoints = Checkpointer(tmp_path, keep=1)
    checkpoints.save(4, make_state(1.0), progress={"a": 1}, metrics=None)
    checkpoints.close()
    for path in [*(tmp_path / "4").rglob(damage)]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.write_bytes(b"\0garbage")
    with pytest.raises(DataError, match="checkpoint of step 4 can't be restored .*there are: none"):
        CheckpointReader(tmp_path).restore_on_one_device(4)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # TensorStore's
def test_another_shape_is_refused(tmp_path):
    checkpoints = Checkpointer(tmp_path, keep=1)
    checkpoints.save(4, make_state(1.0), progress={}, metrics=None)
    checkpoints.close()
    again = Checkpointer(tmp_path, keep=1)
    for other in (jnp.zeros((4, 4)), jnp.zeros((300, 300), jnp.bfloat16)):
        wanted = f"w is float32[300, 300] there, {other.dtype}{list(other.shape)} here"
        with pytest.raises(ConfigError, match=re.escape(wanted)):
            again.restore_newest(make_state(0.0) | {"w": other})
    with pytest.raises(ConfigError, match="more is missing there"):
        again.restore(4, make_state(0.0) | {"more": jnp.zeros(3)})
    assert again.steps() == [4]


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("how", [shutil.copytree, Path.symlink_to, Path.rename])
def test_a_checkpoint_under_the_name_of_another_step_isnt_believed(
    how, older, tmp_path, monkeypatch, caplog
):
    def seal_as_before(document):
        """As older versions did, which stored no step beside the state."""
        return seal({name: value for name, value in document.items() if name != "step"})

    seal = checkpointer.sealed
    with monkeypatch.context() as patch:
        if older:
            patch.setattr(checkpointer, "sealed", seal_as_before)
        checkpoints = Checkpointer(tmp_path, keep=3)
        for step in (2, 4, 5):
            state = make_state(float(step)) | {"step": jnp.int32(step)}
            checkpoints.save(step, state, progress={"at": step}, metrics=None)
        checkpoints.close()
    first, second = (tmp_path / "8", tmp_path / "5")
    how(*((second, first) if how is not Path.symlink_to else (first, second)))
    if not older:
        with pytest.raises(DataError, match="it is a copy of the checkpoint of step 5"):
            CheckpointReader(tmp_path).progress(8)
    with pytest.raises(
        DataError, match="step 8 can't be restored .*copy of the checkpoint of step 5"
    ):
        CheckpointReader(tmp_path).restore_on_one_device(8)
    step, state, progress = Checkpointer(tmp_path, keep=3).restore_newest(make_state(0.0))
    newest = 4 if how is Path.rename else 5
    assert (step, int(state["step"]), progress) == (newest, newest, {"at": newest})
    assert (tmp_path / "8.corrupt").exists()
    assert "step 8 is damaged (it is a copy of the checkpoint of step 5)" in caplog.text


def test_a_checkpoint_of_another_run_isnt_believed(tmp_path):
    """Copied in under the name of the same step. Older versions recorded no run."""
    runs = {"own": {"seed": 0, "model.stage_sizes": [1, 1]}, "other": {"seed": 1}, "older": None}
    for name, run in runs.items():
        checkpoints = Checkpointer(tmp_path / name, keep=3, run=run)
        for step in (2, 4, 6):
            state = make_state(float(step)) | {"step": jnp.int32(step)}
            checkpoints.save(step, state, progress={"of": name}, metrics=None)
        checkpoints.close()
    for step, name in ((6, "other"), (4, "older")):
        shutil.rmtree(tmp_path / "own" / str(step))
        shutil.copytree(tmp_path / name / str(step), tmp_path / "own" / str(step))

    said = "it is a checkpoint of another run: seed is 1 there, 0 here"
    reader = CheckpointReader(tmp_path / "own", run=runs["own"])
    for read in (reader.progress, reader.restore_on_one_device):
        with pytest.raises(DataError, match=f"step 6 can't be restored .{said}"):
            read(6)
    again = Checkpointer(tmp_path / "own", keep=3, run=runs["own"])
    with pytest.raises(DataError, match=f"step 6 can't be restored .{said}.*Move .*6 away"):
        again.restore_newest(make_state(0.0))
    assert again.steps() == [2, 4, 6]
    (tmp_path / "own" / "6").rename(tmp_path / "6")
    again = Checkpointer(tmp_path / "own", keep=3, run=runs["own"])
    step, _, progress = again.restore_newest(make_state(0.0))
    assert (step, progress) == (4, {"of": "older"})


def test_a_checkpoint_that_isnt_there_is_named_as_missing(tmp_path):
    save_three(tmp_path)
    reader = CheckpointReader(tmp_path)
    shutil.rmtree(tmp_path / str(reader.steps()[-1]))
    for step in (reader.steps()[-1], 99):
        for read in (reader.progress, reader.restore_on_one_device):
            with pytest.raises(DataError, match=f"^There is no checkpoint {tmp_path}/{step}; "):
                read(step)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "name",
    ["123.txt", "7", "tmp", "-5", "1_0", "008", "٤٤", " 9", "9.orbax-checkpoint-tmp", "\udcff"],
)
def test_other_files_among_checkpoints_dont_matter(name, tmp_path):
    save_three(tmp_path)
    (tmp_path / name).write_bytes(b"mine") if name in ("123.txt", "7") else (
        tmp_path / name
    ).mkdir()
    checkpoints = Checkpointer(tmp_path, keep=3)
    like = {"w": jnp.zeros((50, 50)), "n": jnp.int32(0)}
    assert checkpoints.restore_newest(like)[0] == 3
    checkpoints.save(4, like, progress={}, metrics=None)
    checkpoints.close()
    assert Checkpointer(tmp_path, keep=3).steps() == [2, 3, 4]


@pytest.mark.parametrize("name", ["a%41b", "a#b", "a?b"])
def test_names_that_mean_something_in_urls_are_names(name, tmp_path):
    checkpoints = Checkpointer(tmp_path / name, keep=1)
    checkpoints.save(1, {"w": jnp.ones(3)}, progress={}, metrics=None)
    checkpoints.close()
    assert checkpoints._verified == {1}
    assert Checkpointer(tmp_path / name, keep=1).restore_newest({"w": jnp.zeros(3)})[0] == 1
