"""The order of examples and their augmentation are functions of the seed and the position."""

import pickle

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet_jax.data.augment.config import example_keys
from resnet_jax.data.augment.crop_flip import crop_and_flip
from resnet_jax.data.images.normalization import measure_normalization, normalize
from resnet_jax.data.loaders import in_memory as loader
from resnet_jax.data.loaders.in_memory import ExampleStream, epoch_permutation
from resnet_jax.errors import ConfigError
from resnet_jax.train.multi_seed import SeedStreams


@settings(deadline=None, max_examples=50)
@given(n=st.integers(1, 60), batch=st.integers(1, 70), seed=st.integers(0, 2**32))
def test_each_epoch_visits_every_example_once(n, batch, seed):
    steps = -(-3 * n // batch)
    ids, epochs = ExampleStream(seed, n, batch).take(0, steps)
    for epoch in range(3):
        assert sorted(ids[epochs == epoch]) == list(range(n))


@settings(deadline=None, max_examples=50)
@given(start=st.integers(0, 40), first=st.integers(1, 5), second=st.integers(1, 5))
def test_the_stream_does_not_depend_on_how_it_is_cut(start, first, second):
    stream = ExampleStream(7, 23, 5)
    whole = stream.take(start, first + second)
    parts = stream.take(start, first), stream.take(start + first, second)
    for i in range(2):
        np.testing.assert_array_equal(whole[i], np.concatenate([part[i] for part in parts]))


@pytest.mark.parametrize("repeats", [1, 3])
def test_each_epoch_of_each_of_many_seeds_is_put_in_order_once(repeats, monkeypatch):
    asked = []

    def counted(seed, epoch, num_examples):
        asked.append((seed, epoch))
        return epoch_permutation(seed, epoch, num_examples)

    monkeypatch.setattr(loader, "epoch_permutation", counted)
    seeds = SeedStreams(tuple(ExampleStream(seed, 20, 6, repeats) for seed in range(8)))
    for step in range(0, 20, 2):  # 120 examples, which are 6 epochs or, repeated, 2
        seeds.take(step, 2)
    assert sorted(asked) == [(seed, epoch) for seed in range(8) for epoch in range(6 // repeats)]


def test_a_stream_is_the_same_in_another_process():
    stream = ExampleStream(7, 23, 5, repeats=2)
    before = stream.take(3, 2)
    again = pickle.loads(pickle.dumps(stream))
    assert again == stream
    for ours, wanted in zip(again.take(3, 2), before, strict=True):
        np.testing.assert_array_equal(ours, wanted)


def test_the_order_is_the_same_in_every_version():
    """Runs that were begun with another version of NumPy, or on another machine, must resume."""
    assert epoch_permutation(0, 0, 10).tolist() == [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]
    assert epoch_permutation(1, 2, 10).tolist() == [4, 2, 0, 6, 1, 5, 9, 8, 7, 3]


def test_epochs_and_seeds_differ():
    orders = {tuple(epoch_permutation(s, e, 100)) for s in range(5) for e in range(5)}
    assert len(orders) == 25


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
        counts[crop.tobytes()] += 1  # a KeyError would be a crop that is no window
    expected = n / len(windows)
    assert all(abs(c - expected) < 6 * np.sqrt(expected) for c in counts.values())


def test_without_padding_and_flip_images_stay():
    keys = example_keys(jax.random.key(0), np.arange(6), np.zeros(6, np.int32))
    x = IMAGES.astype(np.float32)
    np.testing.assert_array_equal(crop_and_flip(x, keys, pad=0, flip=False), x)


@pytest.mark.parametrize("kind", ["channel", "pixel_mean"])
def test_normalised_training_images_have_mean_zero_and_deviation_one(kind):
    x = np.asarray(normalize(IMAGES, measure_normalization(IMAGES, kind)), np.float64)
    axes = (0, 1, 2) if kind == "channel" else (0,)
    np.testing.assert_allclose(x.mean(axis=axes), 0, atol=1e-5)
    deviation = x.std(axis=axes) if kind == "channel" else x.std()
    np.testing.assert_allclose(deviation, 1, rtol=1e-5)


def test_an_unknown_normalisation_is_refused():
    with pytest.raises(ConfigError, match="data.normalize is 'pixel'"):
        measure_normalization(IMAGES, "pixel")
