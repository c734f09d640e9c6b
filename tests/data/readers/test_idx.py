"""IDX files: images and labels to the byte, and one line for every kind of damage."""

import gzip
import os
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from resnet_jax.data import datasets
from resnet_jax.data.dataset_info import KNOWN_SETS
from resnet_jax.data.datasets import load_dataset
from resnet_jax.data.images.preprocessing import ScaleAndCrop
from resnet_jax.data.readers import idx
from resnet_jax.errors import ConfigError, DataError

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
NAMES = {
    ("train", "images"): "train-images-idx3-ubyte",
    ("train", "labels"): "train-labels-idx1-ubyte",
    ("test", "images"): "t10k-images-idx3-ubyte",
    ("test", "labels"): "t10k-labels-idx1-ubyte",
}


def _idx(values):
    """An IDX file written by hand: magic number, sizes, bytes."""
    header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    return header + values.astype(np.uint8).tobytes()


def _arrays(lengths):
    random = np.random.default_rng(0)
    return {
        (split, kind): random.integers(0, 256, (n, 5, 4)) if kind == "images" else np.arange(n) % 10
        for split, n in lengths.items()
        for kind in ("images", "labels")
    }


def _write(folder, arrays, *, compressed=()):
    folder.mkdir(exist_ok=True)
    for key, values in arrays.items():
        if key[0] in compressed:
            (folder / f"{NAMES[key]}.gz").write_bytes(gzip.compress(_idx(values)))
        else:
            (folder / NAMES[key]).write_bytes(_idx(values))
    return folder


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "no prepared sets"))
    return _write(tmp_path / "idx", _arrays({"train": 30, "test": 7}))


def _load(folder, name="fashion_mnist"):
    splits = {"train": "train[:20]", "validation": "train[20:]", "test": "test"}
    return load_dataset(name, splits=splits, data_dir=str(folder))


@pytest.mark.parametrize("compressed", [(), ("train",), ("train", "test")])
def test_images_and_labels_are_those_of_the_files(compressed, tmp_path):
    arrays = _arrays({"train": 30, "test": 7})
    data = _load(_write(tmp_path / "idx", arrays, compressed=compressed))
    assert data.image_shape == (5, 4, 1)
    assert (data.class_names[0], data.class_names[9]) == ("T-shirt/top", "Ankle boot")
    assert data.lengths == {"train": 20, "validation": 10, "test": 7}
    np.testing.assert_array_equal(
        data.splits["validation"].images[..., 0], arrays["train", "images"][20:]
    )
    np.testing.assert_array_equal(data.splits["test"].labels, arrays["test", "labels"])
    assert data.splits["test"].labels.dtype == np.int32


def test_mnist_has_digits_and_files_with_the_names_of_its_page(folder):
    for path in folder.iterdir():
        path.rename(path.with_name(path.name.replace("-idx", ".idx")))
    assert _load(folder, "mnist").class_names == tuple("0123456789")


def test_a_prepared_set_comes_first_and_no_set_is_one_line(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(idx, "_SYSTEM_FOLDERS", {"fashion_mnist": folder})
    assert len(load_dataset("fashion_mnist", splits={"test": "test"}).splits["test"]) == 7
    monkeypatch.setattr(idx, "_SYSTEM_FOLDERS", {})
    with pytest.raises(DataError, match="dataset-fashion-mnist") as caught:
        load_dataset("fashion_mnist", splits={"test": "test"})
    assert "\n" not in str(caught.value)
    (tmp_path / "no prepared sets" / "fashion_mnist").mkdir(parents=True)
    assert datasets._is_prepared("fashion_mnist", None)
    assert not datasets._is_prepared("fashion_mnist", str(folder))


def test_a_folder_name_that_is_too_long_is_one_line():
    assert idx.find_idx_folder("mnist", "a" * 300) is None
    with pytest.raises(DataError, match="doesn't exist") as caught:
        load_dataset("mnist", splits={"test": "test"}, data_dir="a" * 300)
    assert "\n" not in str(caught.value)


def test_images_cannot_be_scaled_or_streamed(folder):
    what = {"splits": {"test": "test"}, "data_dir": str(folder)}
    for crop in (ScaleAndCrop((4, 4), None), ScaleAndCrop((5, 4), (6, 6))):
        with pytest.raises(ConfigError, match="come as they are, 5×4 pixels of grey"):
            load_dataset("mnist", **what, crop=crop)
    unscaled = load_dataset("mnist", **what, crop=ScaleAndCrop((5, 4), None), channels=1)
    assert unscaled.image_shape == (5, 4, 1)
    with pytest.raises(ConfigError, match="arrays in memory"):
        load_dataset("mnist", splits={"t": "test"}, data_dir=str(folder), streamed=("t",))


def _header(*sizes, kind=8, zeros=0):
    return struct.pack(f">HBB{len(sizes)}I", zeros, kind, len(sizes), *sizes)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train-images-idx3-ubyte", b"", "isn't an IDX file of bytes with 3 dimensions"),
        ("train-images-idx3-ubyte", b"\x89PNG\r\n\x1a\n" * 9, "isn't an IDX file"),
        ("train-images-idx3-ubyte", _header(30, 5, 4, kind=13), "isn't an IDX file"),  # floats
        ("train-images-idx3-ubyte", _header(30, 5, 4, zeros=1), "isn't an IDX file"),
        ("train-images-idx3-ubyte", _header(30), "isn't an IDX file"),  # labels
        ("train-images-idx3-ubyte", _header(30, 5, 4)[:-1], "isn't an IDX file"),
        ("train-images-idx3-ubyte", _header(30, 0, 4), r"is empty: .* \(30, 0, 4\)"),
        ("train-images-idx3-ubyte", _header(30, 2**31, 4), "is too large: .* at most 1 GiB"),
        ("train-images-idx3-ubyte", _header(30, 5, 4) + bytes(599), "gives 600 bytes.* it has 599"),
        ("train-images-idx3-ubyte", _header(30, 5, 4) + bytes(601), "600 bytes, and it has more"),
        ("train-labels-idx1-ubyte", _header(29) + bytes(29), "30 images, and .* 29 labels"),
        ("train-labels-idx1-ubyte", _header(30) + bytes([10] * 30), "has label 10, which is not"),
        ("t10k-images-idx3-ubyte", _header(7, 4, 5) + bytes(140), r"\(5, 4\), for testing \(4, 5"),
        ("t10k-labels-idx1-ubyte", None, "has no t10k-labels-idx1-ubyte, nor t10k-labels.*gz"),
    ],
)
def test_damage_is_one_line_that_names_the_file(name, content, message, folder):
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        _load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda packed: packed[:-12], "is damaged"),  # truncated
        (lambda packed: packed[:9], "is damaged"),
        (lambda packed: b"no gzip" + packed, "is damaged"),
        (lambda packed: packed[:40] + b"\xff" * 20 + packed[60:], "is damaged"),
        (lambda _: gzip.compress(_header(30, 5, 4) + bytes(50 * 2**20)), "has more"),  # a bomb
        (lambda _: gzip.compress(_header(2**10, 2**10, 2**10)), "it has 0"),
    ],
)
def test_damaged_gzip_is_one_line_and_takes_no_memory(damage, message, folder):
    path = folder / NAMES["train", "images"]
    packed = path.with_name(f"{path.name}.gz")
    packed.write_bytes(damage(gzip.compress(path.read_bytes())))
    path.unlink()
    labels = 2**10 if message == "it has 0" else 30
    (folder / NAMES["train", "labels"]).write_bytes(_idx(np.zeros(labels)))
    (folder / NAMES["test", "images"]).write_bytes(
        _header(7, *(2**10,) * 2) if labels > 30 else _header(7, 5, 4) + bytes(140)
    )
    tracemalloc.start()
    with pytest.raises(DataError, match=message) as caught:
        _load(folder)
    assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    tracemalloc.stop()
    assert "\n" not in str(caught.value)


def test_a_pipe_is_not_waited_for(folder):
    path = folder / NAMES["train", "images"]
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DataError, match="can't be read"):
        _load(folder)


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="dataset-fashion-mnist isn't installed")
def test_fashion_mnist_of_debian():
    data = load_dataset(
        "fashion_mnist", splits={"train": "train", "test": "test"}, data_dir=str(DEBIAN)
    )
    known = KNOWN_SETS["fashion_mnist"]
    assert (data.lengths, data.image_shape) == (known.lengths, known.image_shape)
    for images in data.splits.values():
        assert np.bincount(images.labels).tolist() == [len(images) // 10] * 10
    # The mean and deviation of the training pixels that are in general use.
    pixels = data.splits["train"].images / 255
    assert (pixels.mean(), pixels.std()) == pytest.approx((0.2860, 0.3530), abs=5e-5)
