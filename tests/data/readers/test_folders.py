"""Folders of images: located, divided, scaled, and refused in one line."""

import io
import logging
import os
import shutil
import time

import numpy as np
import pytest
from PIL import Image, ImageOps

from resnet_jax.data import datasets as sources
from resnet_jax.data.datasets import load_dataset
from resnet_jax.data.images import fit
from resnet_jax.data.images.preprocessing import Preprocessing, ScaleAndCrop
from resnet_jax.data.readers import decoding
from resnet_jax.data.readers.folders import ImageFile, spread_classes
from resnet_jax.doctor.run import check_data
from resnet_jax.errors import ConfigError, DataError
from tests.data.hostile_images import fitted, pixels, save
from tests.data.tiny_dataset import own_cache

__all__ = ["own_cache"]

COUNTS = {"cat": 12, "dog": 8, "owl": 4}


def write(root, counts=COUNTS, *, shape=(6, 5), seed=0):
    """Write different smooth random pictures to CLASS/number.png."""
    for label, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for number in range(count):
            picture = pixels(*shape, seed=1000 * seed + 100 * label + number)
            (root / name / f"{number}.png").write_bytes(save(picture))
    return root


@pytest.fixture
def animals(tmp_path):
    return write(tmp_path / "animals")


def load(root, *, image_size=None, corrupt="stop", **splits):
    return load_dataset(
        "folder",
        splits=splits or {"train": "train"},
        data_dir=str(root),
        crop=image_size and ScaleAndCrop.square(image_size, resize=image_size),
        corrupt=corrupt,
    )


def named(data, role="train"):
    """Pairs of an image's bytes and the name of its class."""
    one = data.splits[role]
    labels = [data.class_names[label] for label in one.labels]
    return list(zip([image.tobytes() for image in one.images], labels, strict=True))


def on_disk(root):
    """Pairs as in `named`, from the files."""
    return {
        np.asarray(Image.open(path)).tobytes(): path.parent.name for path in root.glob("*/*.png")
    }


# --- located --------------------------------------------------------------------------------------


def test_every_image_is_read_once_with_its_folder_as_its_class(animals):
    for extra in (".hidden", "LICENSE.txt", "labels.csv"):
        (animals / extra).write_text("no image")
    (animals / ".git" / "objects").mkdir(parents=True)
    (animals / "cat" / ".DS_Store").write_text("")
    data = load(animals)
    assert data.class_names == ("cat", "dog", "owl")
    assert data.image_shape == (6, 5, 3)
    assert len(data.splits["train"]) == 24
    assert dict(named(data)) == on_disk(animals)


def test_folders_of_splits_are_the_splits(tmp_path):
    root = tmp_path / "images"
    for seed, split in enumerate(("train", "val")):
        write(root / split, seed=seed)
    data = load(root, train="train", validation="val[:50%]", test="val[50%:]")
    assert {role: len(one) for role, one in data.splits.items()} == {
        "train": 24,
        "validation": 12,
        "test": 12,
    }
    assert dict(named(data)) == on_disk(root / "train")
    assert dict(named(data, "validation") + named(data, "test")) == on_disk(root / "val")
    with pytest.raises(ConfigError, match=r"no split 'vall'.*Did you mean 'val'"):
        load(root, train="train", validation="vall")
    with pytest.raises(ConfigError, match="both hold examples 10 to 11 of val"):
        load(root, train="train", validation="val[:12]", test="val[10:]")


@pytest.mark.parametrize("size", [7, 20, 50])
def test_any_slice_holds_each_class_by_its_share(size):
    counts = {0: 100, 1: 57, 2: 23, 3: 3}
    files = [
        ImageFile(f"{label}/{number}", label, f"{hash((label, number)):x}")
        for label, count in counts.items()
        for number in range(count)
    ]
    order = spread_classes(files)
    assert sorted(order, key=files.index) == files
    total = len(files)
    for start in range(total - size):
        found = np.bincount([file.label for file in order[start : start + size]], minlength=4)
        expected = np.array(list(counts.values())) * size / total
        assert np.abs(found - expected).max() <= 2, (start, found, expected)


def test_the_order_is_that_of_contents_not_of_names(animals, tmp_path):
    """Nor does it depend on dates, or on the order in which a file system lists files."""
    data = load(animals)
    other = tmp_path / "other"
    for number, path in enumerate(sorted(animals.glob("*/*.png"), reverse=True)):
        (other / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, other / path.parent.name / f"renamed {number}.PNG")
    again = load(other)
    assert again.fingerprint == data.fingerprint
    np.testing.assert_array_equal(again.splits["train"].images, data.splits["train"].images)
    labels = data.splits["train"].labels
    assert (labels != np.sort(labels)).any()  # not class after class


def _swap_classes(root):
    (root / "cat").rename(root / "tmp")
    (root / "dog").rename(root / "cat")
    (root / "tmp").rename(root / "dog")


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "cat" / "3.png").write_bytes(save(pixels(6, 5, seed=77))),
        lambda root: (root / "cat" / "3.png").unlink(),
        lambda root: (root / "cat" / "3.png").rename(root / "dog" / "new.png"),
        lambda root: (root / "cat").rename(root / "lynx"),
        _swap_classes,
    ],
)
def test_the_fingerprint_knows_pixels_labels_and_names(animals, change):
    before = load(animals).fingerprint
    change(animals)
    assert load(animals).fingerprint != before


# --- scaled and cropped ---------------------------------------------------------------------------


def test_images_of_any_size_and_kind_are_made_to_fit(tmp_path):
    """As in `resnet-jax predict`: scaled, cropped at the centre, upright, RGB."""
    original = Image.fromarray(pixels(40, 60))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side
    kinds = {
        "rgb.jpg": save(original, "JPEG", quality=95),
        "grey.png": save(original.convert("L")),
        "palette.png": save(original.convert("P")),
        "alpha.png": save(original.convert("RGBA")),
        "cmyk.jpeg": save(original.convert("CMYK"), "JPEG"),
        "turned.JPG": save(original, "JPEG", exif=exif, quality=95),
        "small.png": save(original.resize((5, 4))),
    }
    for number, (name, content) in enumerate(kinds.items()):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / name).write_bytes(content)
    data = load(tmp_path, image_size=16)
    assert data.image_shape == (16, 16, 3)
    found = dict(
        zip(data.splits["train"].labels.tolist(), data.splits["train"].images, strict=True)
    )
    for number, content in enumerate(kinds.values()):
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
        np.testing.assert_array_equal(found[number], fitted(image, 16, 16), list(kinds)[number])


def test_images_are_prepared_as_a_networks_publisher_says(tmp_path):
    image = pixels(40, 60)
    folder = tmp_path / "animals"
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        (folder / name / "1.png").write_bytes(save(image))
    prepare = Preprocessing((0.5,) * 3, (0.5,) * 3, size=8, resize=12, interpolation="bicubic")
    splits = {"test": "train"}
    data = load_dataset("folder", splits=splits, data_dir=str(folder), crop=prepare.crop)
    np.testing.assert_array_equal(data.splits["test"].images, [prepare.apply(image)] * 2)
    other = load(folder, image_size=8, test="train")
    assert other.fingerprint != data.fingerprint


def test_other_sizes_are_named_unless_there_is_one_to_fit(animals):
    (animals / "dog" / "wide.png").write_bytes(save(pixels(6, 9)))
    with pytest.raises(ConfigError, match=r"6×\d \(height×width\), not 6×\d as the first") as error:
        load(animals, corrupt="skip")  # it isn't damaged
    assert "set data.image_size" in str(error.value)
    assert "\n" not in str(error.value)
    assert len(load(animals, image_size=6).splits["train"]) == 25


def test_turned_images_have_one_size(tmp_path):
    """Sizes are compared after turning images upright."""
    exif = Image.Exif()
    exif[0x0112] = 8
    for name, content in {
        "a": save(pixels(6, 8), "JPEG"),
        "b": save(pixels(8, 6), "JPEG", exif=exif),
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").write_bytes(content)
    assert load(tmp_path).image_shape == (6, 8, 3)


def test_nothing_is_decoded_twice_nor_when_it_has_changed_taken_from_the_cache(
    animals, monkeypatch
):
    first = load(animals, image_size=4)
    load(animals, image_size=5)
    monkeypatch.setattr(fit, "open_upright", None)  # calling it would fail
    assert load(animals, image_size=4).fingerprint == first.fingerprint
    path = animals / "cat" / "3.png"
    before = path.stat()
    path.write_bytes(save(pixels(6, 5, seed=9)))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(TypeError):
        load(animals, image_size=4)


# --- refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"<html>", save(pixels(6, 5))[:-30]])
def test_a_damaged_image_is_named_or_left_out(animals, monkeypatch, caplog, content):
    (animals / "dog" / "broken.png").write_bytes(content)
    with pytest.raises(DataError, match=r"'dog/broken.png': it .*corrupt='skip'") as error:
        load(animals)
    assert "\n" not in str(error.value)
    with caplog.at_level(logging.WARNING, "resnet_jax"):
        data = load(animals, corrupt="skip")
    assert len(data.splits["train"]) == 24
    (skipped,) = data.skipped
    assert "dog/broken.png" in skipped.reason
    assert "1 of 25 examples" in caplog.text
    (animals / "cat" / "broken.png").write_bytes(b"\x89PNG")
    with pytest.raises(DataError, match="leaves out at most 1 of 26"):
        load(animals, corrupt="skip")


def test_the_size_is_that_of_the_first_image_that_is_whole(animals, monkeypatch):
    for path in (animals / "owl").iterdir():
        path.write_bytes(b"")
    monkeypatch.setattr("resnet_jax.data.readers.skipped.most_skipped", lambda examples: 4)
    data = load(animals, corrupt="skip")
    assert data.image_shape == (6, 5, 3)
    assert len(data.skipped) == 4
    for path in animals.glob("*/*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="no image in .* can be read .*it is empty"):
        load(animals)


def _only(root, *paths):
    shutil.rmtree(root)
    for path in paths:
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.mkdir() if path.endswith("/") else target.write_bytes(save(pixels(6, 5)))


LAYOUTS = {
    "nothing": ((), "holds no folders; images are found as CLASS/name.jpg or SPLIT/CLASS/name"),
    "images alone": (("1.png",), "holds no folders"),
    "one class": (("cat/1.png",), "holds one class only, 'cat'"),
    "an empty class": (("cat/1.png", "dog/"), "the class '.*dog' has no images"),
    "an empty split": (("train/cat/1.png", "train/dog/1.png", "val/"), "none in 'val'"),
    "images beside classes": (("cat/1.png", "dog/1.png", "1.png"), "1.png' lies outside"),
    "images beside splits": (("train/cat/1.png", "train/dog/1.png", "1.png"), "lies outside"),
    "images in a split": (("train/cat/1.png", "train/dog/1.png", "train/1.png"), "lies outside"),
    "folders in a class": (("train/cat/a/1.png", "train/dog/1.png"), "folder: 1"),
    "classes beside splits": (("train/cat/1.png", "dog/1.png"), "none in 'dog'"),
    "other files": (
        ("cat/1.png", "dog/1.png", "dog/2.webp", "dog/3.webp", "dog/notes"),
        r"holds 3 that aren't PNG or JPEG files \(.webp: 2, no suffix: 1; the first is '2.webp'",
    ),
    "a class that a split lacks": (
        ("train/cat/1.png", "train/dog/1.png", "val/cat/1.png"),
        "the class 'dog' is in 'train' but not in 'val'",
    ),
    "a class that only one split has": (
        ("train/cat/1.png", "train/dog/1.png", "val/cat/1.png", "val/dog/1.png", "val/dgo/1.png"),
        "the class 'dgo' is in 'val' but not in 'train'",
    ),
    "a name with a line break": (("cat\n/1.png", "dog/1.png"), r"'cat\\n' .*isn't text"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_other_layouts_are_refused_in_one_line(layout, tmp_path):
    paths, message = LAYOUTS[layout]
    root = tmp_path / "images"
    root.mkdir()
    _only(root, *paths)
    root.mkdir(exist_ok=True)
    with pytest.raises(DataError, match=message) as error:
        load(root)
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    ("folder", "error", "message"),
    [
        (None, ConfigError, "data.dir must name it"),
        ("gs://bucket/flowers", ConfigError, "copy them to this host"),
        ("missing", DataError, "'missing' can't be read: No such file"),
    ],
)
def test_a_folder_that_is_not_here_is_refused(folder, error, message):
    with pytest.raises(error, match=message):
        load_dataset("folder", splits={"train": "train"}, data_dir=folder)


def test_pipes_and_broken_links_are_no_images(animals):
    os.mkfifo(animals / "cat" / "pipe.png")
    with pytest.raises(DataError, match=r"\.png: 1; the first is 'pipe.png'"):
        load(animals)
    (animals / "cat" / "pipe.png").unlink()
    (animals / "dog" / "link.jpg").symlink_to("nowhere.jpg")
    with pytest.raises(DataError, match=r"the first is 'link.jpg'"):
        load(animals)
    (animals / "dog" / "link.jpg").unlink()
    (animals / "dog" / "link.png").symlink_to(animals / "dog" / "0.png")
    assert len(load(animals).splits["train"]) == 25


def test_a_file_that_is_no_image_by_its_size_isnt_read(animals):
    """A sparse file of terabytes takes no space on disk."""
    (animals / "cat" / "vast.jpg").touch()
    os.truncate(animals / "cat" / "vast.jpg", 2**42)
    began = time.monotonic()
    with pytest.raises(DataError, match=r"'cat/vast\.jpg': it has more than 32 MiB"):
        load(animals)
    assert time.monotonic() - began < 60


def test_copies_in_another_class_or_split_are_warned_of(animals, caplog):
    shutil.copyfile(animals / "cat" / "0.png", animals / "cat" / "same.png")
    load(animals)
    assert "has copies" not in caplog.text
    shutil.copyfile(animals / "cat" / "0.png", animals / "dog" / "copy.png")
    load(animals)
    assert "another split or class: 1, of which the first is 'dog/copy.png' of 'cat/0.png'" in (
        caplog.text
    )


def test_what_does_not_fit_in_memory_is_refused_before_it_is_decoded(animals, monkeypatch):
    monkeypatch.setattr(sources, "MEMORY_LIMIT_BYTES", 24 * 16 * 3)
    monkeypatch.setattr(decoding, "first_line", None)
    assert len(load(animals, image_size=4).splits["train"]) == 24
    with pytest.raises(ConfigError, match="held in memory"):
        load(animals, image_size=5)


# --- in a run -------------------------------------------------------------------------------------


def test_the_doctor_knows_folders(animals):
    (found,) = check_data("folder", data_dir=str(animals), splits={"train": "train[:50%]"})
    assert "train (train[:50%]) 12 images of 6×5×3, 3 classes" in found.message
