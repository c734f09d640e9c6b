"""Sources: names and split expressions to arrays, and every way in which prepared data go wrong."""

import io
import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnet_jax.data import datasets as sources
from resnet_jax.data.datasets import load_dataset
from resnet_jax.data.images import fit
from resnet_jax.data.images.image_files import decode_image
from resnet_jax.data.images.preprocessing import ScaleAndCrop
from resnet_jax.data.readers import array_cache, decoding
from resnet_jax.errors import ConfigError, DataError
from tests.data.hostile_images import fitted

CLASSES = ["cat", "dog", "owl"]
COUNTS = {"train": 20, "test": 6}


def encode(pixels, format="PNG"):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format=format)
    return file.getvalue()


def pixels_of(split, index):
    rng = np.random.default_rng([len(split), index])
    return rng.integers(0, 256, (4, 5, 3), np.uint8)


def write_tfds(root, *, edit=None, shape=(4, 5, 3), features=None):
    """A TFDS folder `tiny/1.0.0`; `edit(split, index, example)` may change an example."""
    import tensorflow_datasets as tfds

    with tfds.core.registered.skip_registration():

        class Tiny(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")
            pkg_dir_path = Path(root)

            def _info(self):
                return tfds.core.DatasetInfo(
                    builder=self,
                    features=tfds.features.FeaturesDict(
                        features
                        or {
                            "image": tfds.features.Image(shape=shape),
                            "label": tfds.features.ClassLabel(names=CLASSES),
                        }
                    ),
                )

            def _split_generators(self, dl_manager):
                return {split: self._generate_examples(split) for split in COUNTS}

            def _generate_examples(self, split):
                for index in range(COUNTS[split]):
                    example = {"image": encode(pixels_of(split, index)), "label": index % 3}
                    yield index, edit(split, index, example) if edit else example

    Tiny(data_dir=str(root), file_format="array_record").download_and_prepare()
    return root / "tiny" / "1.0.0"


@pytest.fixture(scope="session")
def tiny_original(tmp_path_factory):
    return write_tfds(tmp_path_factory.mktemp("tfds"))


@pytest.fixture
def tiny(tiny_original, tmp_path):
    """The data_dir of a fresh copy of the tiny set."""
    shutil.copytree(tiny_original, tmp_path / "tfds" / "tiny" / "1.0.0")
    return tmp_path / "tfds"


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    return tmp_path / "cache"


def load(data_dir, **splits):
    return load_dataset("tiny", splits=splits or {"train": "train"}, data_dir=str(data_dir))


def same_sets(one, other):
    return one.splits.keys() == other.splits.keys() and all(
        np.array_equal(one.splits[role].images, other.splits[role].images)
        and np.array_equal(one.splits[role].labels, other.splits[role].labels)
        for role in one.splits
    )


# --- prepared TFDS sets ---------------------------------------------------------------------------


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


def test_second_load_decodes_nothing(tiny, monkeypatch, own_cache):
    first = load(tiny, train="train", test="test")
    assert not list(own_cache.rglob(".*"))  # temporary files
    monkeypatch.setattr(fit, "decode_image", None)  # calling it would fail
    assert same_sets(load(tiny, train="train", test="test"), first)


@pytest.mark.parametrize("victim", ["train-images.npy", "train-labels.npy", "train.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "remove"])
def test_damaged_cache_is_noticed_and_rebuilt(tiny, own_cache, victim, damage):
    first = load(tiny)
    (path,) = own_cache.rglob(victim)
    good = path.read_bytes()
    flipped = good[:-3] + bytes([good[-3] ^ 1]) + good[-2:]
    bad = {"flip": flipped, "cut": good[:-5], "empty": b"", "remove": None}[damage]
    path.unlink() if bad is None else path.write_bytes(bad)
    assert same_sets(load(tiny), first)
    assert path.read_bytes() == good


@pytest.mark.parametrize("position", range(10, 100, 6))
def test_damaged_cache_header_is_noticed(tiny, own_cache, position):
    first = load(tiny)
    (path,) = own_cache.rglob("train-labels.npy")
    content = bytearray(path.read_bytes())
    content[position] ^= 0x10
    path.write_bytes(content)
    assert same_sets(load(tiny), first)


def test_cached_images_of_another_shape_are_not_taken(tiny, own_cache):
    first = load(tiny)
    (path,) = own_cache.rglob("train-images.npy")
    good = path.read_bytes()
    path.write_bytes(good.replace(b"(20, 4, 5, 3)", b"(20, 5, 4, 3)"))
    assert path.read_bytes() != good
    assert same_sets(load(tiny), first)


def test_cache_that_cannot_be_written_is_done_without(tiny, own_cache):
    own_cache.write_text("a file where the folder should be")
    assert len(load(tiny).splits["train"]) == 20


def test_changed_data_have_another_fingerprint(tiny, tmp_path):
    first = load(tiny)

    def brighten(split, index, example):
        if (split, index) == ("train", 7):
            example["image"] = encode(pixels_of(split, index) | 1)
        return example

    changed = load(write_tfds(tmp_path / "other", edit=brighten).parents[1])
    assert changed.fingerprint != first.fingerprint
    assert not same_sets(changed, first)


def test_another_preparation_of_the_same_data_has_the_same_fingerprint(tiny, tmp_path):
    def pack_tighter(split, index, example):
        file = io.BytesIO()
        Image.fromarray(pixels_of(split, index)).save(file, format="PNG", compress_level=0)
        return {**example, "image": file.getvalue()}

    first, folder = load(tiny), write_tfds(tmp_path / "other", edit=pack_tighter)
    name = "tiny-train.array_record-00000-of-00001"
    assert (folder / name).read_bytes() != (tiny / "tiny" / "1.0.0" / name).read_bytes()
    again = load(folder.parents[1])
    assert again.fingerprint == first.fingerprint
    assert same_sets(again, first)


def edit_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(("label", "hint"), [(-1, "-1 marks an unlabelled example"), (2, "0 … 1")])
def test_label_out_of_range_is_named(tmp_path, label, hint):
    def mislabel(split, index, example):
        example["label"] = index % 2 if (split, index) != ("train", 11) else label
        return example

    folder = write_tfds(tmp_path / "tfds", edit=mislabel)
    if label == 2:  # TFDS itself refuses to write a label that it doesn't know
        features = folder / "features.json"
        features.write_text(features.read_text().replace('"numClasses": "3"', '"numClasses": "2"'))
        (folder / "label.labels.txt").write_text("cat\ndog\n")
    with pytest.raises(DataError) as caught:
        load(tmp_path / "tfds")
    message = str(caught.value)
    (position,) = (i for i in range(20) if f"example {i} of split 'train'" in message)
    assert f"has label {label}, which is not in 0" in message
    assert hint in message
    assert len(load(tmp_path / "tfds", test="test").splits["test"]) == 6
    rest = load(tmp_path / "tfds", train=f"train[:{position}]+train[{position + 1}:]")
    assert len(rest.splits["train"]) == 19


def damaged_image(kind):
    good = pixels_of("train", 4)
    grey = good[..., 0]
    return {
        "truncated": encode(good)[:-40],
        "not an image": b"<html>404</html>",
        "empty": b"",
        "palette": encode_mode(good, "P"),
        "alpha": encode_mode(good, "RGBA"),
        "grey": encode(grey),
        "16 bits": encode(grey.astype(np.uint16) * 257),
        "another size": encode(np.zeros((5, 4, 3), np.uint8)),
        "another format": encode(good, "BMP"),
    }[kind]


def encode_mode(pixels, mode):
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, format="PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    "kind",
    [
        *("truncated", "not an image", "empty", "palette", "alpha", "grey", "16 bits"),
        *("another size", "another format"),
    ],
)
def test_images_that_are_not_what_was_promised_raise(kind):
    with pytest.raises(DataError, match="^it "):
        decode_image(damaged_image(kind), (4, 5, 3))


def test_sixteen_bit_colour_is_not_cut_to_eight():
    import struct
    import zlib

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", 5, 4, 16, 2, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + bytes(range(30)) for _ in range(4)))
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    assert Image.open(io.BytesIO(png)).mode == "RGB"  # Pillow would cut it silently
    with pytest.raises(DataError, match="16 bits"):
        decode_image(png, (4, 5, 3))


def test_jpeg_and_grey_are_decoded_as_pillow_does():
    jpeg = encode(pixels_of("train", 0), "JPEG")
    expected = np.asarray(Image.open(io.BytesIO(jpeg)))
    np.testing.assert_array_equal(decode_image(jpeg, (4, 5, 3)), expected)
    grey = pixels_of("train", 1)[..., :1]
    np.testing.assert_array_equal(decode_image(encode(grey[..., 0]), (4, 5, 1)), grey)


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


def test_digits_keep_their_size():
    with pytest.raises(ConfigError, match="digits come as they are"):
        load_dataset("digits", splits={"train": "train"}, crop=ScaleAndCrop.square(16, resize=16))


def test_sets_that_are_not_image_classification_are_refused(tmp_path):
    import tensorflow_datasets as tfds

    write_tfds(
        tmp_path / "tfds",
        features={"text": tfds.features.Text()},
        edit=lambda split, index, example: {"text": f"{split}{index}"},
    )
    with pytest.raises(DataError, match="needs the features image and label, and has text"):
        load(tmp_path / "tfds")


def test_sets_too_large_for_memory_are_refused(tiny, monkeypatch):
    monkeypatch.setattr(sources, "MEMORY_LIMIT_BYTES", 20 * 60)
    assert len(load(tiny).splits["train"]) == 20
    with pytest.raises(ConfigError, match="held in memory"):
        load(tiny, train="train", test="test")


# --- sets that aren't there -----------------------------------------------------------------------


def test_unprepared_set_says_where_it_looked_and_what_to_do(tmp_path):
    (tmp_path / "here").mkdir()
    with pytest.raises(DataError) as caught:
        load_dataset("fashion_mnist", splits={"train": "train"}, data_dir=str(tmp_path / "here"))
    message = str(caught.value)
    assert "'fashion_mnist' isn't prepared in" in message
    for part in (str(tmp_path / "here"), "pip install", "array_record", "download_and_prepare()"):
        assert part in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("fashion_mnits", "Did you mean 'fashion_mnist'?"),
        ("digit", "Did you mean 'digits'?"),
        ("no such name!", "isn't a data set's name"),
    ],
)
def test_unknown_names(tmp_path, name, says):
    with pytest.raises(ConfigError) as caught:
        load_dataset(name, splits={"train": "train"}, data_dir=str(tmp_path))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


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


# --- imports --------------------------------------------------------------------------------------


def test_tensorflow_is_never_imported_and_importing_the_module_is_cheap(tiny):
    script = f"""
        import sys
        import resnet_jax
        before = set(sys.modules)
        from resnet_jax.data.datasets import load_dataset
        from resnet_jax.errors import ConfigError
        new = set(sys.modules) - before
        heavy = {{"tensorflow_datasets", "grain", "sklearn", "PIL"}}
        assert not heavy & new, heavy & new
        load_dataset("digits", splits={{"train": "train[:90%]"}})
        load_dataset("tiny", splits={{"train": "train"}}, data_dir={str(tiny)!r})
        try:
            load_dataset("mnits", splits={{"train": "train"}}, data_dir={str(tiny)!r})
        except ConfigError:
            pass
        assert "tensorflow_datasets" in sys.modules
        assert "tensorflow" not in sys.modules
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_cache_folder_is_safe_for_names_with_a_config(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    folder = array_cache.cache_folder("imagenet_resized/8x8:0.1.0", "abc")
    assert folder == Path.home() / ".cache/resnet_jax/datasets/imagenet_resized_8x8_0.1.0-abc"


# --- the real thing, where it is ------------------------------------------------------------------

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
