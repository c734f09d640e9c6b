"""process.json: which process trains a run, and how it ended."""

import json
import os
import socket
import time

import pytest
from etils import epath

import resnet_jax
from resnet_jax.errors import DataError, PeerError, StoppedEarly
from resnet_jax.logging.process import recorded_process
from tests.conftest import make_tiny_config


def _recorded(workdir, check=lambda: None):
    return recorded_process(epath.Path(workdir), start_step=4, total_steps=12, check_workdir=check)


def _read(workdir):
    return json.loads((workdir / "process.json").read_text())


def test_a_process_is_on_record_from_its_beginning(tmp_path):
    with _recorded(tmp_path):
        process = _read(tmp_path)
        assert (process["host"], process["pid"]) == (socket.gethostname(), os.getpid())
        assert (process["start_step"], process["steps"], process["processes"]) == (4, 12, 1)
        assert time.time() - 60 < process["started"] <= time.time()
        assert (process["ended"], process["error"]) == (None, None)
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


@pytest.mark.thorough
def test_a_finished_run_keeps_the_record_of_the_process_that_trained_it(tmp_path):
    resnet_jax.fit(make_tiny_config(), tmp_path)
    before = _read(tmp_path)
    assert (before["start_step"], before["steps"], before["error"]) == (0, 12, None)
    resnet_jax.fit(make_tiny_config(), tmp_path)
    assert _read(tmp_path) == before
