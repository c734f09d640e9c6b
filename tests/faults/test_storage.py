"""Storage that loses files or parts of them, that is slow, or that doesn't answer any more."""

import contextlib
import json
import os
import shutil
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

import resnet_jax
from resnet_jax.checkpoint.checkpointer import Checkpointer
from resnet_jax.checkpoint.lock_file import read_lock
from resnet_jax.checkpoint.reader import CheckpointReader
from resnet_jax.checkpoint.workdir import read_config
from resnet_jax.cli.main import main
from resnet_jax.config.io import from_json
from resnet_jax.errors import ConfigError, DataError
from resnet_jax.logging.metrics_log import read_metrics
from resnet_jax.logging.recorded_goodput import read_goodput
from resnet_jax.logging.summary import read_summary
from tests.runs import digest, start, steps_on_record, train

pytestmark = pytest.mark.filterwarnings(  # TensorStore's
    "ignore::pytest.PytestUnraisableExceptionWarning"
)

_SCORES = {"top1": 0.5, "loss": 1.0}


def _state(step: int):
    return {"w": jax.random.normal(jax.random.key(step), (20, 20)), "n": jnp.int32(step)}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Checkpoints of steps 1 and 2."""
    directory = tmp_path_factory.mktemp("saved") / "checkpoints"
    checkpoints = Checkpointer(directory, keep=2)
    for step in (1, 2):
        checkpoints.save(step, _state(step), progress={"at": step}, metrics=_SCORES)
    checkpoints.close()
    return directory


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("config.json", lambda path: read_config(path.parent)),
        ("metrics.jsonl", read_metrics),
        ("summary.json", lambda path: read_summary(path.parent).__enter__()),
        (".lock", read_lock),
    ],
)
def test_a_pipe_among_the_files_of_a_run_is_an_error(name, read, tmp_path):
    """Opening the pipe would wait for a writer, for ever."""
    os.mkfifo(tmp_path / name)
    with pytest.raises((ConfigError, DataError, OSError), match=f"{name} is a pipe or a device"):
        read(epath.Path(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("config.json", lambda path: read_config(path.parent)),
        ("metrics.jsonl", read_metrics),
        ("summary.json", lambda path: read_summary(path.parent).__enter__()),
        ("goodput.json", lambda path: read_goodput(path.parent)),
    ],
)
def test_a_file_of_a_run_of_terabytes_is_an_error(name, read, tmp_path):
    """It is sparse, and reading it would take the memory of any host."""
    (tmp_path / name).touch()
    os.truncate(tmp_path / name, 2**41)
    with pytest.raises((ConfigError, DataError), match=f"{name} can't be read.*File too large"):
        read(epath.Path(tmp_path / name))


def test_a_lock_of_terabytes_is_that_of_an_unknown_process(tmp_path):
    (tmp_path / ".lock").touch()
    os.truncate(tmp_path / ".lock", 2**41)
    assert str(read_lock(epath.Path(tmp_path / ".lock"))) == "a process that isn't known"


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _halve(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _empty(path: Path) -> None:
    os.truncate(path, 0)


@pytest.mark.thorough
@pytest.mark.parametrize("damage", [_remove, _halve, _empty])
def test_any_file_of_a_checkpoint_may_be_lost(damage, saved, tmp_path, record_property):
    """The run goes on from a state that was saved, and who only reads gets it or one line."""
    parts = sorted(p for p in (saved / "2").rglob("*") if damage is _remove or p.is_file())
    record_property("tries", len(parts))
    went_back = 0
    for number, part in enumerate(parts):
        directory = tmp_path / str(number)
        shutil.copytree(saved, directory)
        damage(directory / part.relative_to(saved))
        with contextlib.suppress(DataError):
            state, progress = CheckpointReader(directory).restore_on_one_device(2)
            np.testing.assert_array_equal(state["w"], _state(2)["w"], err_msg=str(part))
            assert progress == {"at": 2}

        checkpoints = Checkpointer(directory, keep=2)
        step, state, progress = checkpoints.restore_newest(_state(0))
        np.testing.assert_array_equal(state["w"], _state(step)["w"], err_msg=str(part))
        assert (int(state["n"]), progress) == (step, {"at": step}), part
        assert (directory / "2.corrupt").exists() == (step == 1), part
        went_back += step == 1
        checkpoints.save(3, _state(3), progress={"at": 3}, metrics=_SCORES)
        checkpoints.close()
    assert went_back > len(parts) / 3  # the others aren't needed, or are but in one of two copies


@pytest.mark.parametrize(
    "content",
    [b"", b'{"top1": 0.5, "lo', b"{}", b"[]", b"3", b'{"top1": "", "loss": 1}', b"\xff"],
)
def test_damaged_scores_cost_no_checkpoint_but_their_own(content, saved, tmp_path):
    """They are read when the directory is opened, and say which checkpoint is the best."""
    directory = tmp_path / "checkpoints"
    shutil.copytree(saved, directory)
    (directory / "1" / "metrics" / "metrics").write_bytes(content)
    checkpoints = Checkpointer(directory, keep=1)
    assert checkpoints.restore_newest(_state(0))[0] == 2
    for step in (3, 4):
        scores = _SCORES | {"loss": float(step)}
        checkpoints.save(step, _state(step), progress={}, metrics=scores)
    checkpoints.close()
    assert Checkpointer(directory, keep=1).steps() == [2, 3, 4]


@pytest.mark.thorough
@pytest.mark.parametrize(
    "content",
    [b"", b'{"final": {"te', b"{}", b"[]", b'{"final": {"test": {"top1": "x"}}}', b"\xff"],
)
def test_a_damaged_summary_is_one_line(content, whole, tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    (workdir / "summary.json").write_bytes(content)
    # Scoring would take seconds.
    monkeypatch.setattr("resnet_jax.train.fit.finish_run", lambda *_, **__: {})
    config = from_json((workdir / "config.json").read_text())
    with pytest.raises(DataError, match=r"summary\.json is damaged.* remove it") as error:
        resnet_jax.fit(config, workdir)
    assert "\n" not in str(error.value)
    assert (workdir / "summary.json").read_bytes() == content


@pytest.mark.thorough
def test_a_damaged_summary_can_be_made_anew(whole, tmp_path, record_property):
    """As its error says: by removing it."""
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    os.truncate(workdir / "summary.json", 100)
    ended = train(workdir)
    record_property("saw", ended.last_line)
    assert (ended.code, ended.said.count("error: ")) == (65, 1), ended.said
    assert "Traceback" not in ended.said
    (workdir / "summary.json").unlink()
    assert train(workdir).code == 0
    summaries = (json.loads((each / "summary.json").read_text()) for each in (workdir, whole))
    assert next(summaries)["final"] == next(summaries)["final"]


@pytest.mark.thorough
def test_files_of_a_run_are_as_private_as_its_umask(tiny_config, tmp_path):
    """Checkpoints too, whose files Orbax's C++ threads write; and what is made of the run."""
    tiny_config.trackers = ("tensorboard",)
    tiny_config.duration = tiny_config.diagnostics.every = 4 * 32.0
    tiny_config.diagnostics.what = ("bn_drift",)
    workdir, out = tmp_path / "run", tmp_path / "out"
    before = os.umask(0o077)
    try:
        out.mkdir()
        resnet_jax.fit(tiny_config, workdir)
        export = ["export", str(workdir), str(out / "w.safetensors"), "--format=safetensors"]
        assert main(export) == 0
        assert main(["report", str(workdir), f"--out={out / 'report.html'}"]) == 0
    finally:
        os.umask(before)
    written = [path for folder in (workdir, out) for path in folder.rglob("*")]
    names = {path.name for path in written}
    assert {"metrics.jsonl", "summary.json", "curves.png", "diagnostics.png", "4"} <= names
    assert {"w.safetensors", "report.html", "manifest.ocdbt"} <= names
    assert [path for path in written if path.lstat().st_mode & 0o077] == []


@pytest.mark.thorough
def test_slow_storage_loses_and_reorders_nothing(whole, tmp_path):
    """Every change of a file takes a while, so that saves are due while others are under way."""
    running = start(tmp_path / "run", fault="files:1:slow").says("training images")
    most = 0
    while running.alive():
        most = max(most, len([*(tmp_path / "run" / "checkpoints").glob("*.orbax-checkpoint-tmp")]))
        time.sleep(0.005)
    ended = running.end()
    assert ended.code == 0, ended.said
    assert most == 1  # save at a time
    assert steps_on_record(tmp_path / "run") == steps_on_record(whole)
    assert digest(tmp_path / "run") == digest(whole)


@pytest.mark.thorough
@pytest.mark.parametrize("nth", [60, 80, 100])
def test_storage_that_never_answers_ends_the_run_in_time(nth, whole, tmp_path, record_property):
    """From some change of a file on, whichever thread makes it; the next start goes on."""
    ended = train(tmp_path / "run", "--config.hang_timeout_s=10", fault=f"files:{nth}:hang")
    record_property("saw", ended.last_line)
    assert ended.code == 71, ended.said
    assert "where each thread is" in ended.said
    assert "no progress for 10 s (hang_timeout_s) while" in ended.last_line
    assert ended.seconds < 300
    assert train(tmp_path / "run").code == 0
    assert digest(tmp_path / "run") == digest(whole)
