"""Crops and flips depend on the example alone, and are drawn uniformly."""

import jax
import numpy as np

from resnet_jax.data.augment.config import example_keys
from resnet_jax.data.augment.crop_flip import crop_and_flip

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)


def test_augmentation_depends_on_the_example_and_not_on_its_batch():
    key = jax.random.key(0)
    ids, epochs = np.arange(6), np.array([0, 0, 0, 1, 1, 1])
    x = IMAGES.astype(np.float32)
    whole = crop_and_flip(x, example_keys(key, ids, epochs), pad=2, flip=True)
    order = np.array([4, 0, 5])
    part = crop_and_flip(x[order], example_keys(key, ids[order], epochs[order]), pad=2, flip=True)
    np.testing.assert_array_equal(part, whole[order])
    again = crop_and_flip(x, example_keys(key, ids, epochs + 1), pad=2, flip=True)
    assert (np.asarray(again) != np.asarray(whole)).any()


def test_every_crop_is_a_window_of_the_padded_image_and_all_are_drawn():
    image = np.arange(1, 17, dtype=np.float32).reshape(4, 4, 1)
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)))
    windows = {
        (y, x, flip): padded[y : y + 4, x : x + 4][:, :: -1 if flip else 1].tobytes()
        for y in range(3)
        for x in range(3)
        for flip in (False, True)
    }
    n = 2000
    keys = example_keys(jax.random.key(3), np.arange(n), np.zeros(n, np.int32))
    crops = np.asarray(crop_and_flip(np.tile(image, (n, 1, 1, 1)), keys, pad=1, flip=True))
    counts = dict.fromkeys(windows.values(), 0)
    for crop in crops:
        counts[crop.tobytes()] += 1  # KeyError: the crop isn't a window
    expected = n / len(windows)
    assert all(abs(c - expected) < 6 * np.sqrt(expected) for c in counts.values())


def test_without_padding_and_flip_images_stay():
    keys = example_keys(jax.random.key(0), np.arange(6), np.zeros(6, np.int32))
    x = IMAGES.astype(np.float32)
    np.testing.assert_array_equal(crop_and_flip(x, keys, pad=0, flip=False), x)
