"""The contact sheet shows the inputs of the first step."""

import numpy as np
import pytest

from resnet_jax.train.experiment import Experiment
from resnet_jax.train.inputs import augmented_inputs


def _inputs(config):
    experiment = Experiment.make(config)
    batches = experiment.loader().take(0)
    shown = augmented_inputs(experiment.initial_state(), batches, experiment.spec)
    return experiment, shown


def _first_images(experiment, seed=0):
    ids, _ = experiment.spec.orders()[seed].take(0, 1)
    return experiment.dataset.splits["train"].images[ids[0]]


@pytest.mark.parametrize("resident", [True, False])
def test_without_augmentation_they_are_the_images_of_the_first_batch(tiny_config, resident):
    tiny_config.data.crop_padding, tiny_config.data.flip = 0, False
    tiny_config.data.resident = resident
    experiment, shown = _inputs(tiny_config)
    np.testing.assert_array_equal(shown, _first_images(experiment))


def test_a_flipped_image_is_the_image_or_its_mirror_image(tiny_config):
    tiny_config.data.crop_padding, tiny_config.data.flip = 0, True
    tiny_config.mesh.data = 4  # the sheet has the images of the first device
    experiment, shown = _inputs(tiny_config)
    images = _first_images(experiment)[:8]
    same = [(a == b).all() for a, b in zip(shown, images, strict=True)]
    mirrored = [(a[:, ::-1] == b).all() for a, b in zip(shown, images, strict=True)]
    assert all(a or b for a, b in zip(same, mirrored, strict=True))
    assert 0 < sum(same) < len(same)


@pytest.mark.parametrize("resident", [True, False])
def test_of_several_seeds_they_are_the_first_seeds(tiny_config, resident):
    tiny_config.data.crop_padding, tiny_config.data.flip = 0, False
    tiny_config.seeds, tiny_config.data.resident = (3, 4), resident
    experiment, shown = _inputs(tiny_config)
    np.testing.assert_array_equal(shown, _first_images(experiment, 0))
