"""benchmarks/publish.py: weights and model card of a run."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import resnet_jax
from resnet_jax.research.configs import digits

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def publish(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import publish

    yield publish
    for name in ("publish", "table_text"):
        sys.modules.pop(name, None)


def test_published_weights_are_not_overwritten(publish, tmp_path):
    for file in ("a.digits.safetensors", "b.digits.json"):
        (tmp_path / file).write_text("published")
    for name in ("a.digits", "b.digits"):
        with pytest.raises(SystemExit, match="exists. Choose another name"):
            publish.publish(tmp_path / "run", name, "", tmp_path)
    assert sorted(path.read_text() for path in tmp_path.iterdir()) == ["published"] * 2


def test_a_failure_leaves_no_file(publish, tmp_path, monkeypatch):
    """Neither of a data set without a licence, nor after the weights are written."""
    run, out = tmp_path / "run", tmp_path / "out"
    run.mkdir()
    out.mkdir()
    (run / "summary.json").write_text('{"data": {"name": "mine"}}')
    with pytest.raises(SystemExit, match="The licence and intended use of mine aren't listed"):
        publish.publish(run, "resnet20.mine", "", out)

    def fail(run, name, note, folder):
        (folder / f"{name}.safetensors").write_bytes(b"weights")
        raise SystemExit("The file classifies 3 images, the run 4.")

    monkeypatch.setattr(publish, "_write", fail)
    with pytest.raises(SystemExit, match="classifies 3"):
        publish.publish(run, "resnet20.mine", "", out)
    assert list(out.iterdir()) == []


@pytest.mark.thorough
def test_a_run_is_published_with_its_log_and_its_scores(publish, tmp_path, monkeypatch):
    fields = {"model.stage_sizes": (1, 1), "model.width": 4, "model.stem_width": 4}
    fields |= {"duration": 1280.0, "eval_every": 1280.0, "checkpoint_every": 1280.0}
    run, out = tmp_path / "run", tmp_path / "out"
    out.mkdir()
    resnet_jax.fit(digits("resnet20", fields), run)
    monkeypatch.setattr(publish, "ROOT", tmp_path)
    monkeypatch.setattr(publish, "RESULTS", tmp_path / "results")
    with pytest.raises(SystemExit, match="has the log of .*Copy config.json"):
        publish.publish(run, "tiny.digits", "forty steps", out)
    (tmp_path / "results" / "mine").mkdir(parents=True)
    shutil.copy(run / "metrics.jsonl", tmp_path / "results" / "mine")
    card = publish.publish(run, "tiny.digits", "forty steps", out)
    assert card == json.loads((out / "tiny.digits.json").read_text())
    assert card["log"] == "results/mine"
    summary = json.loads((run / "summary.json").read_text())
    assert card["scores"]["correct"] == round(360 * summary["final"]["test"]["top1"])
    assert card["recipe"].startswith("40 steps of 32, SGD with momentum 0.9, constant schedule")
    assert card["preprocessing"].startswith("grey; the shorter side is scaled to 8 pixels")
    images = list(np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), np.uint8))
    found = resnet_jax.pretrained(out / "tiny.digits.safetensors").predict(images)
    expected = resnet_jax.restore_run(run).predict(images)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    summary["final"]["test"]["top1"] += 1 / 360
    (run / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(SystemExit, match="The file classifies"):
        publish.publish(run, "tiny.digits_other", "forty steps", out)
