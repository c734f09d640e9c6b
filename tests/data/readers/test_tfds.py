"""Prepared TFDS data sets: read exactly, and every kind of damage is named."""

import json
import os
import pwd
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnet_jax.data.datasets import load_dataset
from resnet_jax.data.images.preprocessing import ScaleAndCrop
from resnet_jax.data.readers import decoding
from resnet_jax.errors import ConfigError, DataError
from tests.data.hostile_images import fitted
from tests.data.tiny_dataset import (
    CLASSES,
    COUNTS,
    encode,
    load,
    own_cache,
    pixels_of,
    same_sets,
    tiny,
    tiny_original,
    write_tfds,
)

__all__ = ["own_cache", "tiny", "tiny_original"]


def test_prepared_set_is_read_exactly(tiny):
    data = load(tiny, train="train", test="test")
    assert data.class_names == tuple(CLASSES)
    assert data.image_shape == (4, 5, 3)
    for split, count in COUNTS.items():
        found = {image.tobytes(): int(label) for image, label in pairs(data.splits[split])}
        assert found == {pixels_of(split, i).tobytes(): i % 3 for i in range(count)}
        assert data.splits[split].images.dtype == np.uint8
        assert data.splits[split].labels.dtype == np.int32


def pairs(one):
    return zip(one.images, one.labels, strict=True)


def test_blocks_join_in_order(tiny, monkeypatch):
    whole = load(tiny).splits["train"]
    monkeypatch.setattr(decoding, "_BLOCK_EXAMPLES", 3)
    shutil.rmtree(os.environ["XDG_CACHE_HOME"])
    again = load(tiny).splits["train"]
    np.testing.assert_array_equal(whole.images, again.images)
    np.testing.assert_array_equal(whole.labels, again.labels)
    part = load(tiny, train="train[:50%]", test="train[50%:]")
    np.testing.assert_array_equal(part.splits["test"].images, whole.images[10:])


def test_data_dir_comes_from_the_environment(tiny, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tiny))
    assert len(load_dataset("tiny", splits={"test": "test"}).splits["test"]) == 6


def edit_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_a_user_without_a_name_and_a_home_names_the_folder(tiny, monkeypatch):
    """As in a container; nothing is prepared in a folder called ~."""

    def unknown(*_):
        raise KeyError("no such user")

    for variable in ("HOME", "TFDS_DATA_DIR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(pwd, "getpwnam", unknown)
    message = "nobody knows where ~/tensorflow_datasets is; set data.dir, TFDS_DATA_DIR or HOME"
    with pytest.raises(DataError, match=message):
        load_dataset("cifar10", splits={"train": "train"})
    assert len(load(tiny).splits["train"]) == COUNTS["train"]


def test_damaged_image_is_named_by_split_and_index(tmp_path):
    def cut(split, index, example):
        if (split, index) == ("train", 11):
            example["image"] = example["image"][:-40]
        return example

    good = write_tfds(tmp_path / "good")
    bad = write_tfds(tmp_path / "bad", edit=cut)
    images = load(good.parents[1]).splits["train"].images
    (position,) = (i for i in range(20) if np.array_equal(images[i], pixels_of("train", 11)))
    with pytest.raises(DataError, match=f"example {position} of split 'train' of 'tiny'"):
        load(bad.parents[1])


def test_decay_inside_a_file_of_records_is_named(tiny):
    images = load(tiny).splits["train"].images
    path = tiny / "tiny" / "1.0.0" / "tiny-train.array_record-00000-of-00001"
    content = bytearray(path.read_bytes())
    spot = content.index(encode(images[13])) + 50
    content[spot] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError, match="example 13 of split 'train' of 'tiny'"):
        load(tiny)


@pytest.mark.parametrize("damage", ["missing", "truncated", "empty", "too few"])
def test_missing_or_truncated_records_are_named(tiny, damage):
    folder = tiny / "tiny" / "1.0.0"
    path = folder / "tiny-train.array_record-00000-of-00001"
    if damage == "missing":
        path.unlink()
    elif damage == "too few":
        shutil.copy(folder / "tiny-test.array_record-00000-of-00001", path)
    else:
        path.write_bytes(path.read_bytes()[:-1000] if damage == "truncated" else b"")
    with pytest.raises(DataError, match=path.name) as caught:
        load(tiny)
    assert "\n" not in str(caught.value)
    if damage == "too few":
        assert "6 examples where dataset_info.json promises 20" in str(caught.value)


def test_tfrecord_sets_are_explained(tiny):
    edit_json(
        tiny / "tiny" / "1.0.0" / "dataset_info.json",
        lambda info: info.update(fileFormat="tfrecord"),
    )
    with pytest.raises(DataError, match=r"tfrecord.*file_format='array_record'"):
        load(tiny)


@pytest.mark.parametrize("content", ["", "{", '{"name": 3}'])
def test_damaged_dataset_info_is_explained(tiny, content):
    (tiny / "tiny" / "1.0.0" / "dataset_info.json").write_text(content)
    with pytest.raises(DataError, match="'tiny'"):
        load(tiny)


def test_images_of_varying_size_are_refused_unless_they_are_made_to_fit(tmp_path):
    def wide(split, index, example):
        example["image"] = encode(np.full((6, 9 + index, 3), 7 * index, np.uint8))
        return example

    write_tfds(tmp_path / "tfds", shape=(None, None, 3), edit=wide)
    with pytest.raises(ConfigError, match=r"\(None, None, 3\); set data.image_size"):
        load(tmp_path / "tfds")
    data = load_dataset(
        "tiny",
        splits={"train": "train"},
        data_dir=str(tmp_path / "tfds"),
        crop=ScaleAndCrop.square(4, resize=4),
    )
    assert data.image_shape == (4, 4, 3)
    brightness = data.splits["train"].images[:, 0, 0, 0]
    assert sorted(brightness.tolist()) == [7 * index for index in range(20)]


def test_images_are_scaled_and_cropped_to_another_size(tiny, caplog):
    for size in (3, None, 2, 3):
        crop = ScaleAndCrop.square(size, resize=size) if size else None
        data = load_dataset("tiny", splits={"train": "train"}, data_dir=str(tiny), crop=crop)
        assert data.image_shape == ((size, size, 3) if size else (4, 5, 3))
    assert "decoding again" not in caplog.text  # the cache keeps the sizes apart
    original = load(tiny).splits["train"]
    for image, label, stored in zip(
        data.splits["train"].images, data.splits["train"].labels, original.images, strict=True
    ):
        np.testing.assert_array_equal(image, fitted(Image.fromarray(stored), 3, 3))
        assert 0 <= label < 3


def test_sets_that_are_not_image_classification_are_refused(tmp_path):
    import tensorflow_datasets as tfds

    write_tfds(
        tmp_path / "tfds",
        features={"text": tfds.features.Text()},
        edit=lambda split, index, example: {"text": f"{split}{index}"},
    )
    with pytest.raises(DataError, match="needs the features image and label, and has text"):
        load(tmp_path / "tfds")


def test_unprepared_set_says_where_it_looked_and_what_to_do(tmp_path):
    (tmp_path / "here").mkdir()
    with pytest.raises(DataError) as caught:
        load_dataset("fashion_mnist", splits={"train": "train"}, data_dir=str(tmp_path / "here"))
    message = str(caught.value)
    assert "'fashion_mnist' isn't prepared in" in message
    for part in (str(tmp_path / "here"), "pip install", "array_record", "download_and_prepare()"):
        assert part in message
    assert "\n" not in message


def test_a_set_in_a_bucket_is_copied_and_read(tiny, bucket, own_cache):
    shutil.copytree(tiny, bucket / "tfds")
    remote = load("gs://bucket/tfds")
    local = load(tiny)
    assert remote.fingerprint == local.fingerprint
    assert same_sets(remote, local)
    with pytest.raises(DataError, match="gs://bucket/tfds holds no data set 'mnist'"):
        load_dataset("mnist", splits={"train": "train"}, data_dir="gs://bucket/tfds")


def test_a_bucket_without_a_client_says_what_to_install():
    with pytest.raises(DataError, match="s3://bucket/tfds/mnist can't be read"):
        load_dataset("mnist", splits={"train": "train"}, data_dir="s3://bucket/tfds")


# --- the real data set, where it is available -----------------------------------------------------

REAL = os.environ.get("TFDS_DATA_DIR", "")


@pytest.mark.skipif(
    not (Path(REAL) / "cifar10").is_dir(), reason="TFDS_DATA_DIR holds no prepared cifar10"
)
def test_real_cifar10():
    data = load_dataset("cifar10", splits={"train": "train", "test": "test"}, data_dir=REAL)
    assert {role: len(one) for role, one in data.splits.items()} == {"train": 50000, "test": 10000}
    assert set(np.bincount(data.splits["train"].labels)) == {5000}
    mean = data.splits["train"].images.mean((0, 1, 2)) / 255
    np.testing.assert_allclose(mean, [0.49140, 0.48216, 0.44653], atol=2e-5)
