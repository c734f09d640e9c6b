"""A run with all trackers at once, stopped and resumed, with the real clients."""

import json
from pathlib import Path

import pytest

import resnet_jax
from resnet_jax.logging.plots import confusion_png
from tests.logging.test_tensorboard import read_events


@pytest.fixture
def stores(monkeypatch, tmp_path):
    """Neither client talks to a server."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "home"))


def _tags(folder: Path) -> dict[str, list[int]]:
    """Tag → steps of the events in a folder."""
    tags: dict[str, list[int]] = {}
    for event in read_events(folder):
        for value in event.summary.value:
            tags.setdefault(value.tag, []).append(event.step)
    return tags


@pytest.mark.thorough
def test_the_default_shows_scores_first_and_pictures(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr("resnet_jax.train.records.confusion_png", confusion_png)
    tiny_config.diagnostics.every, tiny_config.diagnostics.what = 12 * 32.0, ("norms",)
    resnet_jax.fit(tiny_config, tmp_path)
    assert not (tmp_path / "trackers.json").exists()
    tags = _tags(tmp_path / "tensorboard")
    assert tags["z_pictures/augmented_inputs"] == [0]
    assert tags["z_pictures/confusion_test"] == tags["z_pictures/confusion_test_best"] == [12]
    assert tags["train/loss"] == [5, 10, 12]
    groups = sorted({tag.split("/")[0] for tag in tags if not tag.startswith("_hparams_")})
    assert groups.index("train") < groups.index("validation_raw") < groups.index("z_diagnostics")
    assert all(group.startswith("z_") for group in groups[groups.index("validation_raw") + 1 :])


@pytest.mark.thorough
@pytest.mark.usefixtures("stores")
def test_a_resumed_run_goes_on_in_the_same_runs(tiny_config, tmp_path):
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("wandb")
    from tests.logging.test_wandb_tracker import read_runs

    tiny_config.trackers = ("tensorboard", "wandb", "mlflow")
    workdir = tmp_path / "digits"
    resnet_jax.fit(tiny_config, workdir, stop_at_step=6)
    ids = json.loads((workdir / "trackers.json").read_text())
    assert ids.keys() == {"wandb", "mlflow"}
    client = mlflow.MlflowClient()
    assert client.get_run(ids["mlflow"]).info.status == "KILLED"
    result = resnet_jax.fit(tiny_config, workdir)
    assert json.loads((workdir / "trackers.json").read_text()) == ids

    run = client.get_run(ids["mlflow"])
    assert (run.info.status, run.data.params["model.width"]) == ("FINISHED", "4")
    assert run.data.metrics["test_raw/top1"] == pytest.approx(result.evaluation["test"].top1)
    losses = client.get_metric_history(ids["mlflow"], "train/loss")
    expected = [(r["step"], r["loss"]) for r in result.history if r["split"] == "train"]
    assert [(m.step, m.value) for m in losses] == expected
    pictures = {a.path for a in client.list_artifacts(ids["mlflow"], "z_pictures")}
    assert {"z_pictures/augmented_inputs.png", "z_pictures/confusion_test.png"} <= pictures
    runs = read_runs(workdir)
    assert {r.run.run_id for records in runs for r in records if r.HasField("run")} == {
        ids["wandb"]
    }
    assert [r.exit.exit_code for of in runs for r in of if r.HasField("exit")] == [75, 0]
    assert str(tmp_path) not in json.dumps(run.data.params)


@pytest.mark.thorough
def test_trackers_do_not_change_what_is_trained(tiny_config, tmp_path):
    tiny_config.trackers = ()
    plain = resnet_jax.fit(tiny_config, tmp_path / "plain")
    assert not (tmp_path / "plain" / "tensorboard").exists()
    tiny_config.trackers = ("tensorboard",)
    shown = resnet_jax.fit(tiny_config, tmp_path / "shown")
    left_out = ("img_per_s", "wall_s")
    plain, shown = (
        [{k: v for k, v in r.items() if k not in left_out} for r in result.history]
        for result in (plain, shown)
    )
    assert plain == shown
