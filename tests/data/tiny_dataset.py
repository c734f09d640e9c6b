"""A small prepared TFDS data set, and fixtures for tests that read it."""

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnet_jax.data.datasets import load_dataset

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
