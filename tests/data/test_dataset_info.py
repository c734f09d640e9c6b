"""The shapes and sizes of well-known data sets equal those of the data."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from resnet_jax.data.dataset_info import KNOWN_SETS, find_known
from resnet_jax.data.datasets import load_dataset
from resnet_jax.data.prepare import cifar
from resnet_jax.data.readers.digits import Digits
from resnet_jax.errors import ConfigError


def test_digits():
    digits, known = Digits(), KNOWN_SETS["digits"]
    assert digits.lengths == known.lengths
    assert digits.image_shape == known.image_shape
    assert len(digits.class_names) == known.num_classes


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar(name):
    assert KNOWN_SETS[name].lengths == cifar.EXAMPLES
    assert KNOWN_SETS[name].image_shape == (32, 32, 3)


def test_imagenet_is_what_tfds_has_on_file():
    """TFDS contains the class names and the labels of the validation images."""
    folder = Path(find_spec("tensorflow_datasets").origin).parent / "datasets" / "imagenet2012"
    known = KNOWN_SETS["imagenet2012"]
    assert len((folder / "labels.txt").read_text().split()) == known.num_classes
    validation = (folder / "validation_labels.txt").read_text().split()
    assert len(validation) == known.lengths["validation"]


def test_names_with_version_or_config():
    assert find_known("imagenet2012:5.1.0") is KNOWN_SETS["imagenet2012"]
    assert find_known("cifar10/1.0.0") is KNOWN_SETS["cifar10"]
    assert find_known("cifar11") is None


def test_images_of_differing_sizes_are_refused_in_one_line():
    with pytest.raises(ConfigError, match="'imagenet2012' differ in size") as error:
        load_dataset("imagenet2012", splits={"train": "train"})
    assert "\n" not in str(error.value)
