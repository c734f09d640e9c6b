"""Runs of earlier commits are read and resumed.

An archive of tests/golden/runs/ holds `run`, stopped after six steps of `TINY` (tests/runs.py), and
what that commit made of it: probabilities of the first test images, and the record of all twelve
steps of a run that nobody stopped. A commit that changes what is written adds an archive; all stay.
"""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

import resnet_jax
from resnet_jax.config.io import from_json
from resnet_jax.data.readers.digits import Digits

ARCHIVES = sorted((Path(__file__).parents[1] / "golden" / "runs").glob("*.tar.gz"))


@pytest.fixture(scope="module", params=ARCHIVES, ids=lambda path: path.name.split(".tar")[0])
def older(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("older")
    with tarfile.open(request.param) as archive:
        archive.extractall(folder, filter="data")
    return folder


def _records(path: Path) -> list[dict]:
    records = map(json.loads, path.read_text().splitlines())
    return [{r["split"]: r["step"], "loss": r["loss"], "top1": r["top1"]} for r in records]


def test_an_archived_run_exists():
    assert ARCHIVES


def test_its_network_says_the_same(older):
    images = Digits().read("test").images
    network = resnet_jax.restore_run(older / "run")
    expected = np.load(older / "probabilities.npy")
    np.testing.assert_allclose(network.predict(images[: len(expected)]), expected, atol=1e-5)


@pytest.mark.thorough
def test_it_goes_on_where_it_stopped(older):
    config = from_json((older / "run" / "config.json").read_text())
    assert int(resnet_jax.fit(config, older / "run").state.step) == 12
    found, expected = (
        _records(older / name) for name in ("run/metrics.jsonl", "metrics_of_the_whole.jsonl")
    )
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3)  # of another JAX and another processor
