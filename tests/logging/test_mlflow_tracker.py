"""MLflow, with the real client and a store in files."""

import logging
import threading
import time

import numpy as np
import pytest
from etils import epath

from resnet_jax.logging import mlflow_tracker
from resnet_jax.logging.plots import contact_sheet_png
from resnet_jax.logging.trackers import Trackers

mlflow = pytest.importorskip("mlflow")

PNG = contact_sheet_png(np.zeros((1, 8, 8, 1), np.uint8))


@pytest.fixture
def client(monkeypatch, tmp_path):
    """A client of the store that the tracker uses."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    return mlflow.MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri())


def _open(tmp_path, run_id=None):
    return mlflow_tracker.MlflowTracker(epath.Path(tmp_path / "digits"), run_id=run_id)


def test_a_run_that_goes_on_is_one_run_with_all_numbers(client, tmp_path):
    first = _open(tmp_path)
    first.hyperparameters({"optimizer.name": "sgd", **{f"field{i}": i for i in range(150)}})
    first.scalars(2, {f"z_diagnostics/layer{i}/rms": float(i) for i in range(250)})
    first.scalars(2, {"train/loss": 2.5, "z_training/examples": 64})
    first.picture(0, "z_pictures/sheet", PNG)
    first.sync()
    first.end("stopped")
    assert client.get_run(first.run_id).info.status == "KILLED"

    second = _open(tmp_path, first.run_id)
    assert second.run_id == first.run_id
    assert client.get_run(first.run_id).info.status == "RUNNING"
    second.hyperparameters({"optimizer.name": "adamw"})  # parameters of a run can't change
    second.scalars(8, {"train/loss": 1.5})
    second.scalars(4, {"test_best/top1": 0.75})
    second.end("finished")
    until = time.monotonic() + 20
    while any(thread.name == "mlflow" for thread in threading.enumerate()):
        assert time.monotonic() < until
        time.sleep(0.01)
    run = client.get_run(first.run_id)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "digits")
    assert client.get_experiment(run.info.experiment_id).name == "resnet_jax"
    assert run.data.params["optimizer.name"] == "sgd"
    assert run.data.params["field149"] == "149"
    losses = client.get_metric_history(first.run_id, "train/loss")
    assert [(m.step, m.value) for m in losses] == [(2, 2.5), (8, 1.5)]
    assert run.data.metrics["test_best/top1"] == 0.75
    assert run.data.metrics["z_diagnostics/layer249/rms"] == 249
    (picture,) = client.list_artifacts(first.run_id, "z_pictures")
    assert picture.path == "z_pictures/sheet.png"


def test_a_run_that_is_gone_begins_anew(client, tmp_path):
    tracker = _open(tmp_path, "0123456789abcdef0123456789abcdef")
    assert tracker.run_id != "0123456789abcdef0123456789abcdef"
    tracker.hyperparameters({"seed": 1})
    tracker.end("failed")
    run = client.get_run(tracker.run_id)
    assert (run.info.status, run.data.params) == ("FAILED", {"seed": "1"})


def test_a_server_that_fails_while_the_run_trains_is_one_warning(client, tmp_path, caplog):
    tracker = _open(tmp_path)
    with caplog.at_level(logging.WARNING, "resnet_jax"), Trackers({"mlflow": tracker}) as trackers:
        client.delete_run(tracker.run_id)  # the next request fails
        until = time.monotonic() + 20
        while trackers:
            trackers.record({"step": 1, "epoch": 0.1, "split": "train", "loss": 1.0})
            assert time.monotonic() < until
            time.sleep(0.01)
    (warned,) = [r.getMessage() for r in caplog.records if r.name.startswith("resnet_jax")]
    assert warned.startswith("MLflow's copy of the record ends here (")


def test_a_server_that_does_not_answer_holds_nothing_up(client, tmp_path, monkeypatch):
    tracker = _open(tmp_path)
    monkeypatch.setattr(mlflow_tracker, "_END_S", 0.2)
    monkeypatch.setattr(tracker._client, "log_batch", lambda *_, **__: time.sleep(3))
    began = time.monotonic()
    for step in range(100):
        tracker.scalars(step, {"train/loss": 1.0})
    with pytest.raises(TimeoutError, match=r"no answer in 0.2 s"):
        tracker.end("finished")
    assert time.monotonic() - began < 2
