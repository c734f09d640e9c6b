"""load_dataset: fingerprints, labels, the limit of memory, unknown names, and imports."""

import io
import subprocess
import sys
import textwrap

import pytest
from PIL import Image

from resnet_jax.data import datasets
from resnet_jax.data.datasets import load_dataset
from resnet_jax.data.images.preprocessing import ScaleAndCrop
from resnet_jax.errors import ConfigError, DataError
from tests.data.tiny_dataset import (
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


def test_digits_keep_their_size():
    with pytest.raises(ConfigError, match="digits come as they are"):
        load_dataset("digits", splits={"train": "train"}, crop=ScaleAndCrop.square(16, resize=16))


def test_sets_too_large_for_memory_are_refused(tiny, monkeypatch):
    monkeypatch.setattr(datasets, "MEMORY_LIMIT_BYTES", 20 * 60)
    assert len(load(tiny).splits["train"]) == 20
    with pytest.raises(ConfigError, match="held in memory"):
        load(tiny, train="train", test="test")


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
