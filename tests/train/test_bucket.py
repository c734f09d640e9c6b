"""Work directories in a bucket; see tests/fake_bucket.py."""

import json

import jax
import numpy as np
import pytest
from etils import epath

import resnet_jax
from resnet_jax.cli.main import main
from resnet_jax.errors import ConfigError, WriteError
from resnet_jax.logging.metrics_log import read_metrics
from tests.fake_bucket import BucketFileSystem, ClientError


@pytest.mark.thorough
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


@pytest.mark.thorough
def test_training_does_not_wait_for_the_lock_in_the_bucket(bucket, tiny_config, monkeypatch):
    reads = []

    def fault(call, path):
        if call == "rb" and path.endswith(".lock"):
            reads.append(path)

    monkeypatch.setattr(BucketFileSystem, "fault", staticmethod(fault))
    tiny_config.steps_per_dispatch = 1
    tiny_config.trackers = ()
    counts = []
    for steps in (2, 12):
        reads.clear()
        resnet_jax.fit(tiny_config, f"gs://bucket/runs/{steps}", stop_at_step=steps)
        counts.append(len(reads))
    assert counts[1] <= counts[0] + 1


def test_a_client_that_fails_ends_the_run_with_one_line(bucket, tiny_config, monkeypatch):
    """Its errors aren't OSErrors, and come when the checks at the start have passed."""

    def fault(call, path):
        if call == "wb" and path.endswith("config.json"):
            raise ClientError("Quota exceeded,\n  429")

    monkeypatch.setattr(BucketFileSystem, "fault", staticmethod(fault))
    workdir = "gs://bucket/runs/refused"
    with pytest.raises(WriteError) as raised:
        resnet_jax.fit(tiny_config, workdir)
    assert str(raised.value) == f"{workdir} can't be written: Quota exceeded, 429."


def test_a_run_that_cannot_be_read_is_refused_with_one_line(bucket, monkeypatch, capsys):
    def fault(call, path):
        raise ClientError("Invalid Credentials,\n  401")

    monkeypatch.setattr(BucketFileSystem, "fault", staticmethod(fault))
    assert main(["eval", "gs://bucket/runs/secret"]) == ConfigError.exit_code
    (line,) = capsys.readouterr().err.splitlines()
    assert "gs://bucket/runs/secret/config.json can't be read: Invalid Credentials, 401." in line
