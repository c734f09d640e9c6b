"""Work directories and data in a bucket; see tests/fake_bucket.py."""

import json
import os

import jax
import numpy as np
import pytest
from etils import epath

import resnet_jax
from resnet_jax.cli.main import main
from resnet_jax.data import mirror
from resnet_jax.errors import ConfigError
from resnet_jax.train.metrics_log import read_metrics


def test_a_run_in_a_bucket_stops_resumes_and_is_scored(bucket, tiny_config, tmp_path, capsys):
    """To the bit what it is on a local file system."""
    tiny_config.checkpoint_every = 8 * 32.0
    workdir = "gs://bucket/runs/tiny"
    stopped = resnet_jax.fit(tiny_config, workdir, stop_at_step=7)
    assert stopped.stopped_early
    assert [r["step"] for r in read_metrics(f"{workdir}/metrics.jsonl")]
    result = resnet_jax.fit(tiny_config, workdir)
    expected = resnet_jax.fit(tiny_config, tmp_path / "local")
    for leaf, wanted in zip(*map(jax.tree.leaves, (result.state, expected.state)), strict=True):
        np.testing.assert_array_equal(leaf, wanted)
    names = {path.name for path in (tmp_path / "local").iterdir()}
    assert {path.name for path in (bucket / "runs" / "tiny").iterdir()} == names
    assert len(list((bucket / "runs" / "tiny" / "tensorboard").iterdir())) == 2  # two processes'
    summary = json.loads(epath.Path(f"{workdir}/summary.json").read_text())
    assert summary["final"]["test"]["examples"] == 100

    capsys.readouterr()
    assert main(["eval", workdir, "--checkpoint", "best", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["examples"] == 100
    tiny_config.label_smoothing = 0.5
    with pytest.raises(ConfigError, match=r"gs://bucket/runs/tiny is a run with another config"):
        resnet_jax.fit(tiny_config, workdir)


def test_a_folder_of_a_bucket_is_copied_once(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    data = bucket / "data" / "flowers" / "1.0.0"
    data.mkdir(parents=True)
    (data / "a").write_bytes(b"abc")
    (data / "b").write_bytes(b"d" * 10)
    folder = epath.Path("gs://bucket/data/flowers")
    copy = mirror.copy_here(folder)
    assert copy.name == "flowers"
    assert (copy / "1.0.0" / "a").read_bytes() == b"abc"
    (data / "a").write_bytes(b"abcd")
    changed = int((data / "b").stat().st_mtime)
    (copy / "1.0.0" / "b").write_bytes(b"m" * 10)  # to see whether it is copied again
    os.utime(copy / "1.0.0" / "b", (changed, changed))
    assert mirror.copy_here(folder) == copy
    assert (copy / "1.0.0" / "a").read_bytes() == b"abcd"
    assert (copy / "1.0.0" / "b").read_bytes() == b"m" * 10
    assert not list(copy.rglob("*.part"))
    with pytest.raises(FileNotFoundError):
        mirror.copy_here(epath.Path("gs://bucket/data/none"))
