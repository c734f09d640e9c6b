"""augment_batch: the defaults only normalise, and augmentations don't change each other's draws."""

import jax
import numpy as np
import pytest

from resnet_jax.data.augment.config import AugmentConfig, augment_batch, example_keys
from resnet_jax.data.images.normalization import normalize
from tests.data.hostile_images import pixels

IMAGES = np.stack([pixels(8, 8, seed=i) for i in range(6)])
TARGETS = np.eye(6, dtype=np.float32)
NORMALIZATION = {"mean": np.full(3, 100, np.float32), "std": np.full(3, 50, np.float32)}


def _augment(**fields):
    keys = example_keys(jax.random.key(0), np.arange(6), np.zeros(6, np.int32))
    config = AugmentConfig(**fields)
    inputs, targets = augment_batch(IMAGES, TARGETS, keys, config, normalization=NORMALIZATION)
    return np.asarray(inputs), np.asarray(targets)


def test_the_defaults_only_normalise():
    inputs, targets = _augment()
    np.testing.assert_array_equal(inputs, normalize(IMAGES, NORMALIZATION))
    np.testing.assert_array_equal(targets, TARGETS)


@pytest.mark.thorough
def test_an_augmentation_leaves_the_draws_of_others_alone():
    erased, _ = _augment(random_erasing=0.5)
    both, _ = _augment(random_erasing=0.5, crop_padding=2, flip=True)
    mask = (erased == 0).all(axis=-1)
    assert mask.any()
    assert (both[mask] == 0).all()
    _, targets = _augment(mixup=0.4)
    _, again = _augment(mixup=0.4, policy="trivial", flip=True)
    assert (targets != TARGETS).any()
    np.testing.assert_array_equal(targets, again)
