"""process.json: which process trains a run, and how it ended."""

import json
import os
import socket
import time

import pytest
from etils import epath

import resnet_jax
from resnet_jax.checkpoint.lock import LOCK
from resnet_jax.checkpoint.lock_holder import Holder
from resnet_jax.errors import DataError, PeerError, StoppedEarly
from resnet_jax.logging.process import ProcessRecord
from resnet_jax.logging.status import read_status
from tests import runs
from tests.conftest import make_tiny_config


def _recorded(workdir, check=lambda: None):
    return ProcessRecord(epath.Path(workdir), check)


def _read(workdir):
    return json.loads((workdir / "process.json").read_text())


def test_a_process_is_on_record_from_its_beginning(tmp_path):
    (tmp_path / LOCK).write_text(Holder(token="abc").to_json())
    with _recorded(tmp_path) as record:
        process = _read(tmp_path)
        assert (process["host"], process["pid"]) == (socket.gethostname(), os.getpid())
        assert (process["token"], process["processes"]) == ("abc", 1)
        assert (process["start_step"], process["steps"]) == (None, None)
        assert time.time() - 60 < process["started"] <= time.time()
        assert (process["ended"], process["error"]) == (None, None)
        record.trains(start_step=4, total_steps=12)
        assert _read(tmp_path) == process | {"start_step": 4, "steps": 12}
    process = _read(tmp_path)
    assert process["started"] <= process["ended"] <= time.time()
    assert process["error"] is None


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (DataError("Record 3 is damaged."), "Record 3 is damaged."),
        (ZeroDivisionError("a bug\nof two lines"), "ZeroDivisionError: a bug"),
        (KeyboardInterrupt(), "interrupted"),
        (StoppedEarly("before the first step"), None),
    ],
)
def test_how_a_process_ends_is_on_record(error, reason, tmp_path):
    with pytest.raises(type(error)), _recorded(tmp_path):
        raise error
    process = _read(tmp_path)
    assert process["error"] == reason
    assert process["ended"] is not None


def test_nothing_is_written_into_a_directory_that_another_run_has_taken_over(tmp_path):
    def lost():
        raise PeerError("held by another")

    with _recorded(tmp_path, lost):
        (tmp_path / "process.json").write_text("of another run")
    assert (tmp_path / "process.json").read_text() == "of another run"


def test_a_file_that_cannot_be_written_ends_no_run(tmp_path):
    (tmp_path / "process.json").mkdir()
    with _recorded(tmp_path):
        pass


def test_the_record_of_a_finished_run_stays_unless_the_run_is_trained_again(tmp_path):
    (tmp_path / "summary.json").write_text("{}")
    with _recorded(tmp_path):
        pass
    assert not (tmp_path / "process.json").exists()
    with _recorded(tmp_path) as record:
        record.trains(start_step=4, total_steps=12)
    assert _read(tmp_path)["ended"] is not None


def test_an_error_before_training_is_on_record(tiny_config, tmp_path, monkeypatch):
    def fail(*_):
        raise DataError("No checkpoint is good.")

    (tmp_path / "process.json").write_text("of an earlier process")
    monkeypatch.setattr("resnet_jax.train.opening.restore_or_begin", fail)
    with pytest.raises(DataError):
        resnet_jax.fit(tiny_config, tmp_path)
    process = _read(tmp_path)
    assert (process["error"], process["start_step"]) == ("No checkpoint is good.", None)
    status = read_status(epath.Path(tmp_path))
    assert (status.state, status.reason) == ("failed", "No checkpoint is good.")
    assert status.total_steps is None


@pytest.mark.thorough
@pytest.mark.parametrize(
    "where",
    ["checkpoint.checkpointer:Checkpointer.restore_newest", "train.dispatch:CompiledSteps.compile"],
    ids=["restore", "compile"],
)
def test_a_signal_before_the_first_step_is_a_stop_on_record(where, tmp_path):
    ended = runs.train(tmp_path, fault=f"resnet_jax.{where}:1:term")
    assert ended.code == 75, ended.said
    process = _read(tmp_path)
    assert process["error"] is None
    assert process["ended"] is not None
    assert read_status(epath.Path(tmp_path)).state == "stopped"
    if where.startswith("train"):
        (first,) = json.loads((tmp_path / "goodput.json").read_text())["starts"]
        assert first["ended"]


@pytest.mark.thorough
def test_a_finished_run_keeps_the_record_of_the_process_that_trained_it(tmp_path):
    resnet_jax.fit(make_tiny_config(), tmp_path)
    before = _read(tmp_path)
    assert (before["start_step"], before["steps"], before["error"]) == (0, 12, None)
    resnet_jax.fit(make_tiny_config(), tmp_path)
    assert _read(tmp_path) == before
