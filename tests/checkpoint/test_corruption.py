"""Damaged and misplaced checkpoints are found, set aside and never restored."""

import errno
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.checkpoint import checkpointer
from resnet_jax.checkpoint.checkpointer import Checkpointer
from resnet_jax.errors import DataError, WriteError
from tests.checkpoint.states import make_state, save_three


def _flip_a_bit(path: Path, rng: np.random.Generator) -> None:
    data = bytearray(path.read_bytes())
    data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["99999999999", "9" * 40])
def test_a_folder_that_is_named_like_a_later_checkpoint_is_set_aside(name, tmp_path):
    save_three(tmp_path)
    (tmp_path / name).mkdir()
    like = {"w": jnp.zeros((50, 50)), "n": jnp.int32(0)}
    assert Checkpointer(tmp_path, keep=3).restore_newest(like)[0] == 3
    assert (tmp_path / f"{name}.corrupt").is_dir()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # TensorStore's
def test_a_flipped_bit_is_never_restored_and_the_checkpoint_kept(tmp_path, caplog):
    """In any file of any checkpoint; the restored state has the same bits as the saved one."""
    save_three(tmp_path / "original")
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
    save_three(tmp_path)
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
        checkpoints.save(step, make_state(float(step)), progress={}, metrics=None)
    checkpoints.close()
    # Neither is verified, so neither is deleted.
    assert Checkpointer(tmp_path, keep=1).steps() == [0, 1]
