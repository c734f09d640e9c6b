"""Weights & Biases, with the real client, offline: what it writes is read back."""

import gc
import json
import os
import pty
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from resnet_jax.logging.plots import contact_sheet_png

pytest.importorskip("wandb")

from resnet_jax.logging import wandb_tracker
from resnet_jax.logging.wandb_tracker import WandbTracker

_BLOCK = 32_768


@pytest.fixture(autouse=True)
def _offline(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "home"))


def read_runs(folder: Path) -> list[list]:
    """The records of each run file below a folder, oldest first, once all runs have ended."""
    until = time.monotonic() + 30
    while True:  # the client's process closes a file after the end of its run
        runs = _read_files(folder)
        if all(records and records[-1].HasField("exit") for records in runs):
            return runs
        assert time.monotonic() < until
        time.sleep(0.05)


def _read_files(folder: Path) -> list[list]:
    """The records of the files so far.

    A file has LevelDB's log format: after seven bytes, blocks of 32 KiB of pieces of records.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    runs = []
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        data, at, records, pieces = path.read_bytes(), 7, [], b""
        while at + 7 <= len(data):
            left = _BLOCK - at % _BLOCK
            if left < 7:
                at += left
                continue
            _, length, kind = struct.unpack("<IHB", data[at : at + 7])
            pieces += data[at + 7 : at + 7 + length]
            at += 7 + length
            if kind in (1, 4):  # a whole record, or the last piece
                records.append(Record.FromString(pieces))
                pieces = b""
        runs.append(records)
    return runs


def _items(records) -> list[dict]:
    """What was logged, in order."""
    return [
        {
            (item.key or "/".join(item.nested_key)): json.loads(item.value_json)
            for item in r.history.item
        }
        for r in records
        if r.HasField("history")
    ]


def test_a_run_that_goes_on_is_one_run_with_all_numbers(tmp_path):
    workdir = epath.Path(tmp_path / "digits")
    workdir.mkdir()
    first = WandbTracker(workdir, run_id=None)
    first.hyperparameters({"optimizer.name": "sgd", "seed": 1})
    first.scalars(2, {"train/loss": 2.5, "train/top1": 0.5})
    first.picture(0, "z_pictures/sheet", contact_sheet_png(np.zeros((1, 8, 8, 1), np.uint8)))
    first.sync()
    first.end("stopped")
    second = WandbTracker(workdir, run_id=first.run_id)
    second.hyperparameters({"optimizer.name": "sgd", "seed": 1})
    second.scalars(8, {"train/loss": 1.5})
    second.scalars(4, {"test_best/top1": 0.75})  # the best checkpoint is of an earlier step
    second.end("finished")

    runs = read_runs(Path(workdir))
    assert len(runs) == 2
    for records in runs:
        (run,) = (r.run for r in records if r.HasField("run"))
        assert (run.run_id, run.project, run.display_name) == (
            first.run_id, "resnet_jax", "digits",
        )  # fmt: skip
    values = {
        (item.key or "/".join(item.nested_key)): json.loads(item.value_json)
        for record in runs[0]
        if record.HasField("config")
        for item in record.config.update
    }
    assert (values["optimizer.name"], values["seed"]) == ("sgd", 1)
    logged = _items(runs[0])
    picture = {k: v for k, v in logged[1].items() if k.startswith("z_pictures/sheet")}
    assert (logged[0]["step"], logged[0]["train/loss"], logged[0]["train/top1"]) == (2, 2.5, 0.5)
    assert picture["z_pictures/sheet/_type"] == "image-file"
    again = _items(runs[1])
    assert [(r["step"], r.get("train/loss")) for r in again] == [(8, 1.5), (4, None)]
    assert again[1]["test_best/top1"] == 0.75
    exits = [r.exit.exit_code for records in runs for r in records if r.HasField("exit")]
    assert exits == [75, 0]
    assert any(record.HasField("preempting") for record in runs[0])


def test_what_was_not_sent_of_a_run_in_a_bucket_stays_on_this_host(tmp_path, monkeypatch):
    monkeypatch.setattr(wandb_tracker, "is_remote", lambda path: True)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    tracker = WandbTracker(epath.Path(tmp_path / "digits"), run_id=None)
    tracker.scalars(2, {"train/loss": 2.5})
    tracker.end("finished")
    del tracker
    gc.collect()
    (folder,) = tmp_path.glob("resnet_jax-*")
    (records,) = read_runs(folder)
    assert _items(records)[0]["train/loss"] == 2.5


def test_a_run_of_the_caller_stays_as_it_is(tmp_path):
    import wandb

    with wandb.init(dir=tmp_path, settings=wandb.Settings(silent=True, console="off")) as own:
        tracker = WandbTracker(epath.Path(tmp_path), run_id=None)
        assert tracker.run_id != own.id
        tracker.end("finished")
        own.log({"mine": 1})


_WITHOUT_A_KEY = """
import sys
from etils import epath
from resnet_jax.logging.wandb_tracker import WandbTracker
try:
    WandbTracker(epath.Path(sys.argv[1]), run_id=None)
except Exception as error:
    print(error)
"""


def test_without_a_key_nothing_is_asked_in_a_terminal(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    terminal, end_of_process = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", _WITHOUT_A_KEY, str(tmp_path / "run")],
        stdin=end_of_process,
        stdout=subprocess.PIPE,
        stderr=end_of_process,
        text=True,
    )
    os.close(end_of_process)
    try:
        said, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        os.close(terminal)
    assert "No API key" in said
