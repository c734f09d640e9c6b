"""Saving from donated buffers, restoring onto other devices, and corruption."""

import contextlib
import errno
import logging
import re
import resource
import shutil
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.checkpoint import checkpointer
from resnet_jax.checkpoint.checkpointer import Checkpointer
from resnet_jax.checkpoint.reader import CheckpointReader
from resnet_jax.checkpoint.workdir import write_atomically
from resnet_jax.errors import ConfigError, DataError, WriteError
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
    alone, _ = CheckpointReader(tmp_path).restore_on_one_device(1)
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
            assert checkpoints.restore_newest(_state(0.0))[0] == step
    checkpoints.close()
    # When 5 was saved, 4 was the newest verified checkpoint.
    assert Checkpointer(tmp_path, keep=1).steps() == [2, 4, 5]


@pytest.mark.parametrize("restarts", [False, True])
def test_the_first_checkpoint_of_each_period_is_never_deleted(restarts, tmp_path):
    def period(step):
        return step // 4

    checkpoints = Checkpointer(tmp_path, keep=1, period=period)
    for step in (1, 3, 5, 6, 7, 9, 11, 12, 14):
        checkpoints.save(step, _state(float(step)), progress={}, metrics=None)
        checkpoints.settle()
        if restarts:
            checkpoints.close()
            checkpoints = Checkpointer(tmp_path, keep=1, period=period)
            assert checkpoints.restore_newest(_state(0.0))[0] == step
    checkpoints.close()
    # When 14 was saved, 12 was the newest verified checkpoint.
    assert Checkpointer(tmp_path, keep=1).steps() == [5, 9, 12, 14]


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
        CheckpointReader(tmp_path).restore_on_one_device(4)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # TensorStore's
def test_another_shape_is_refused(tmp_path):
    checkpoints = Checkpointer(tmp_path, keep=1)
    checkpoints.save(4, _state(1.0), progress={}, metrics=None)
    checkpoints.close()
    again = Checkpointer(tmp_path, keep=1)
    for other in (jnp.zeros((4, 4)), jnp.zeros((300, 300), jnp.bfloat16)):
        wanted = f"w is float32[300, 300] there, {other.dtype}{list(other.shape)} here"
        with pytest.raises(ConfigError, match=re.escape(wanted)):
            again.restore_newest(_state(0.0) | {"w": other})
    with pytest.raises(ConfigError, match="more is missing there"):
        again.restore(4, _state(0.0) | {"more": jnp.zeros(3)})
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
            state = _state(float(step)) | {"step": jnp.int32(step)}
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
    step, state, progress = Checkpointer(tmp_path, keep=3).restore_newest(_state(0.0))
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
            state = _state(float(step)) | {"step": jnp.int32(step)}
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
        again.restore_newest(_state(0.0))
    assert again.steps() == [2, 4, 6]
    (tmp_path / "own" / "6").rename(tmp_path / "6")
    again = Checkpointer(tmp_path / "own", keep=3, run=runs["own"])
    step, _, progress = again.restore_newest(_state(0.0))
    assert (step, progress) == (4, {"of": "older"})


def test_a_checkpoint_that_isnt_there_is_named_as_missing(tmp_path):
    _save_three(tmp_path)
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
    _save_three(tmp_path)
    (tmp_path / name).write_bytes(b"mine") if name in ("123.txt", "7") else (
        tmp_path / name
    ).mkdir()
    checkpoints = Checkpointer(tmp_path, keep=3)
    like = {"w": jnp.zeros((50, 50)), "n": jnp.int32(0)}
    assert checkpoints.restore_newest(like)[0] == 3
    checkpoints.save(4, like, progress={}, metrics=None)
    checkpoints.close()
    assert Checkpointer(tmp_path, keep=3).steps() == [2, 3, 4]


@pytest.mark.parametrize("name", ["99999999999", "9" * 40])
def test_a_folder_that_is_named_like_a_later_checkpoint_is_set_aside(name, tmp_path):
    _save_three(tmp_path)
    (tmp_path / name).mkdir()
    like = {"w": jnp.zeros((50, 50)), "n": jnp.int32(0)}
    assert Checkpointer(tmp_path, keep=3).restore_newest(like)[0] == 3
    assert (tmp_path / f"{name}.corrupt").is_dir()


def _flip_a_bit(path: Path, rng: np.random.Generator) -> None:
    data = bytearray(path.read_bytes())
    data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    path.write_bytes(data)


def _save_three(directory: Path) -> None:
    """Checkpoints of steps 1, 2, 3 with arrays that don't compress well."""
    checkpoints = Checkpointer(directory, keep=3)
    for step in (1, 2, 3):
        w = jax.random.normal(jax.random.key(step), (50, 50))
        checkpoints.save(step, {"w": w, "n": jnp.int32(step)}, progress={"at": step}, metrics=None)
    checkpoints.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # TensorStore's
def test_a_flipped_bit_is_never_restored_and_the_checkpoint_kept(tmp_path, caplog):
    """In any file of any checkpoint; the restored state has the same bits as the saved one."""
    _save_three(tmp_path / "original")
    rng = np.random.default_rng(0)
    files = [p.relative_to(tmp_path / "original") for p in (tmp_path / "original").rglob("*")]
    files = sorted(p for p in files if (tmp_path / "original" / p).is_file() and p.parts[0] == "3")
    set_aside = 0
    for trial in range(24):
        directory = tmp_path / f"trial{trial}"
        shutil.copytree(tmp_path / "original", directory)
        # Every other bit is in the file of the arrays.
        data = max(files, key=lambda p: (directory / p).stat().st_size)
        file = data if trial % 2 else files[rng.integers(len(files))]
        _flip_a_bit(directory / file, rng)
        checkpoints = Checkpointer(directory, keep=3)
        step, state, progress = checkpoints.restore_newest(
            {"w": jnp.zeros((50, 50)), "n": 0 * jnp.int32(0)}
        )
        assert step in (2, 3)
        wanted = jax.random.normal(jax.random.key(step), (50, 50))
        np.testing.assert_array_equal(state["w"], wanted)
        assert (int(state["n"]), progress) == (step, {"at": step})
        if step == 2:
            set_aside += 1
            assert checkpoints.steps() == [1, 2]
            assert (directory / "3.corrupt" / "state").is_dir()
            assert "The checkpoint of step 3 is damaged" in caplog.text
    assert set_aside >= 12  # bits of the arrays; some other bytes have no effect


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # TensorStore's
def test_without_a_good_checkpoint_nothing_is_guessed(tmp_path):
    _save_three(tmp_path)
    for step in (1, 2, 3):
        for file in (tmp_path / str(step)).rglob("manifest.ocdbt"):
            file.write_bytes(b"garbage")
    with pytest.raises(DataError, match="No checkpoint .* is good: 1.corrupt, 2.cor"):
        Checkpointer(tmp_path, keep=3).restore_newest({"w": jnp.zeros((50, 50)), "n": jnp.int32(0)})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1.corrupt", "2.corrupt", "3.corrupt"]
    # The same after a restart.
    with pytest.raises(DataError, match="1.corrupt, 2.corrupt, 3.corrupt are what is left"):
        Checkpointer(tmp_path, keep=3).restore_newest({"w": jnp.zeros((50, 50)), "n": jnp.int32(0)})


@pytest.mark.parametrize(
    "error",
    [
        ValueError("UNAVAILABLE: connection lost"),
        ValueError("OUT_OF_RANGE: Error reading: Input/output error [os_error_code='5']"),
        OSError(errno.ESTALE, "Stale file handle"),
        OSError(errno.EMFILE, "Too many open files"),
        OSError("Forbidden: token lacks storage.objects.get"),
        type("HttpError", (Exception,), {})("503"),
    ],
    ids=str,
)
@pytest.mark.parametrize("part", ["_states", "_progress"])
def test_a_checkpoint_that_cannot_be_reached_is_left_alone(part, error, tmp_path, monkeypatch):
    checkpoints = Checkpointer(tmp_path, keep=1)
    checkpoints.save(1, {"w": jnp.ones(3)}, progress={}, metrics=None)
    checkpoints.close()

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(getattr(checkpoints._reader, part), "restore", fail)
    with pytest.raises(DataError, match="step 1 can't be restored"):
        checkpoints.restore_newest({"w": jnp.zeros(3)})
    assert [p.name for p in tmp_path.iterdir()] == ["1"]


@pytest.mark.parametrize("name", ["a%41b", "a#b", "a?b"])
def test_names_that_mean_something_in_urls_are_names(name, tmp_path):
    checkpoints = Checkpointer(tmp_path / name, keep=1)
    checkpoints.save(1, {"w": jnp.ones(3)}, progress={}, metrics=None)
    checkpoints.close()
    assert checkpoints._verified == {1}
    assert Checkpointer(tmp_path / name, keep=1).restore_newest({"w": jnp.zeros(3)})[0] == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # TensorStore's
def test_what_was_written_badly_is_found_at_once_and_never_outlives_the_good(
    tmp_path, caplog, monkeypatch
):
    """The disk corrupts a checkpoint as it is written, and only one checkpoint is kept."""
    checkpoints = Checkpointer(tmp_path, keep=1)
    rng = np.random.default_rng(0)
    states = [{"w": jax.random.normal(jax.random.key(i), (50, 50))} for i in range(3)]
    checkpoints.save(0, states[0], progress={}, metrics=None)
    read_back = checkpointer.read_back

    def damaged(folder, names):
        for file in folder.rglob("d/*"):
            _flip_a_bit(Path(file), rng)
        monkeypatch.setattr(checkpointer, "read_back", read_back)
        return read_back(folder, names)

    assert checkpoints._verdict.result() == ""
    monkeypatch.setattr(checkpointer, "read_back", damaged)
    checkpoints.save(1, states[1], progress={}, metrics=None)
    checkpoints._reader.manager.wait_until_finished()
    assert checkpoints.steps() == [0, 1]  # the newest, and the newest verified one
    with pytest.raises(WriteError, match="step 1 isn't what was saved.* checkpoints 0 are intact"):
        checkpoints.save(2, states[2], progress={}, metrics=None)
    checkpoints.save(2, states[2], progress={}, metrics=None)  # can be tried again
    checkpoints.close()
    assert "checkpoint of step 1 is damaged" in caplog.text
    assert "though it was just written" in caplog.text
    assert Checkpointer(tmp_path, keep=1).steps() == [0, 2]
    assert (tmp_path / "1.corrupt").is_dir()


def test_a_last_checkpoint_that_was_written_badly_is_an_error(tmp_path, monkeypatch):
    checkpoints = Checkpointer(tmp_path, keep=1)
    w = jax.random.normal(jax.random.key(0), (50, 50))
    checkpoints.save(0, {"w": w}, progress={}, metrics=None)
    checkpoints.settle()
    monkeypatch.setattr(checkpointer, "read_back", lambda *_: {"w": np.asarray(w) + 1})
    checkpoints.save(1, {"w": w}, progress={}, metrics=None)
    with pytest.raises(WriteError, match="isn't what was saved"):
        checkpoints.close()


def test_a_read_that_fails_in_passing_condemns_nothing(tmp_path, monkeypatch):
    """A checkpoint that was just written can't be reached."""

    def unreachable(*_):
        raise DataError("an array can't be read") from ValueError("UNAVAILABLE: 503")

    monkeypatch.setattr(checkpointer, "read_back", unreachable)
    checkpoints = Checkpointer(tmp_path, keep=1)
    for step in (0, 1):
        checkpoints.save(step, _state(float(step)), progress={}, metrics=None)
    checkpoints.close()
    # Neither is verified, so neither is deleted.
    assert Checkpointer(tmp_path, keep=1).steps() == [0, 1]


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


def test_orbax_warns_users_of_nothing_that_is_meant(tmp_path, caplog):
    caplog.set_level(logging.WARNING, "absl")
    checkpoints = Checkpointer(tmp_path, keep=1)
    checkpoints.save(1, {"w": jnp.zeros(3)}, progress={}, metrics=None)
    checkpoints.close()
    assert CheckpointReader(tmp_path).steps() == [1]
    assert [r.getMessage() for r in caplog.records if r.name == "absl"] == []
