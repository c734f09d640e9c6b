"""Confusions, confident mistakes and thumbnails, and where they are missing."""

import base64
import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from resnet_jax.config.io import to_json
from resnet_jax.errors import DataError
from resnet_jax.inference.restore import restore_run
from resnet_jax.report.examples import (
    Examiner,
    confident_mistakes,
    confusions,
    examine_best,
    thumbnail,
)
from resnet_jax.research.compare import gather_lines, read_run
from tests.research.fake_run import write_run

_NAMES = ("cat", "dog", "owl")


def _decoded(found):
    head, _, data = found["image"].partition(";base64,")
    picture = Image.open(io.BytesIO(base64.b64decode(data)))
    assert head == f"data:image/{picture.format.lower()}"
    assert picture.size == (found["width"], found["height"])
    return np.asarray(picture)


@pytest.mark.parametrize("channels", [1, 3])
def test_small_images_are_shown_pixel_for_pixel(channels):
    image = np.random.default_rng(0).integers(0, 256, (9, 12, channels), np.uint8)
    shown = _decoded(thumbnail(image))
    np.testing.assert_array_equal(shown.reshape(image.shape), image)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_large_images_are_small_files(channels):
    image = np.random.default_rng(0).integers(0, 256, (300, 600, channels), np.uint8)
    found = thumbnail(image)
    assert _decoded(found).shape[:2] == (56, 112)
    assert len(found["image"]) < 16_000


def test_the_most_confident_mistakes_come_first():
    probabilities = np.array([[0.9, 0.1, 0], [0.2, 0.8, 0], [0, 0.6, 0.4], [0.3, 0.3, 0.4]])
    labels = np.array([0, 2, 0, 1])
    images = np.zeros((4, 2, 2, 1), np.uint8)
    found = confident_mistakes(probabilities, images, labels, _NAMES, most=2)
    assert [(m["index"], m["true"], m["predicted"]) for m in found] == [
        (1, "owl", "dog"),
        (2, "cat", "dog"),
    ]
    assert [(m["of_true"], m["of_predicted"]) for m in found] == [(0.0, 0.8), (0.0, 0.6)]


def test_of_many_classes_the_most_frequent_confusions_are_listed():
    found = confusions(np.array([[5, 1, 0], [0, 4, 3], [0, 0, 9]]), _NAMES)
    assert found["confusion"] == [[5, 1, 0], [0, 4, 3], [0, 0, 9]]
    assert found["pairs"] == [["dog", "owl", 3], ["cat", "dog", 1]]
    many = np.eye(1000, dtype=int)
    many[7, 9] = 5
    found = confusions(many, [f"class {i}" for i in range(1000)])
    assert found == {"classes": [], "confusion": [], "pairs": [["class 7", "class 9", 5]]}


@pytest.mark.thorough
def test_a_trained_run_is_examined_as_it_is_evaluated(whole):
    (line,) = gather_lines([read_run(whole)])
    found = Examiner(mistakes=5).examine(line)
    network = restore_run(whole)
    scores = network.evaluate("test")
    np.testing.assert_array_equal(found["confusion"], scores.confusion)
    assert (found["split"], found["networks"], found["examples"]) == ("test", 1, 100)
    assert found["classes"] == list(network.class_names)
    assert len(found["mistakes"]) == 5
    assert found["notes"] == []
    shares = [m["of_predicted"] for m in found["mistakes"]]
    assert shares == sorted(shares, reverse=True)
    assert all(m["true"] != m["predicted"] for m in found["mistakes"])


def test_other_data_than_in_training_are_told(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "a")
    summary = json.loads((folder / "summary.json").read_text())
    summary["data"]["fingerprint"] = "another"
    (folder / "summary.json").write_text(json.dumps(summary))
    lines = gather_lines([read_run(folder)])
    found, notes = examine_best(lines, [0.5], mistakes=1, most=1)
    assert notes == ["a: the data here aren't those of the training"]
    assert len(found[0]["mistakes"]) == 1


def test_missing_checkpoints_and_data_are_a_note_without_folders(whole, tmp_path):
    write_run(tmp_path / "bare", top1=0.8)
    lines = gather_lines([read_run(tmp_path / "bare"), read_run(whole)])
    found, notes = examine_best(lines, [0.1, 0.2], mistakes=1, most=4)
    assert list(found) == [1]
    assert len(notes) == 1
    assert "bare has no checkpoints here" in notes[0]
    assert str(tmp_path) not in notes[0]
    found, notes = examine_best(lines, [0.1, 0.2], mistakes=1, most=1)  # the best has none
    assert (found, len(notes)) == ({}, 1)


def test_data_are_not_downloaded(whole, tmp_path, monkeypatch):
    network = restore_run(whole)
    config = network.config.copy_and_resolve_references()
    config.data.name, config.data.dir = "cifar10", str(tmp_path)
    monkeypatch.setattr(
        "resnet_jax.report.examples.restore_run",
        lambda *_, **__: type(network)(**vars(network) | {"config": config}),
    )
    folder = tmp_path / "a"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.json").write_text(to_json(config))
    (line,) = gather_lines([read_run(folder)])
    with pytest.raises(DataError, match="cifar10 isn't prepared on this machine"):
        Examiner(mistakes=1).examine(line)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
