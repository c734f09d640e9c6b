"""Normalised training images have mean zero and standard deviation one."""

import numpy as np
import pytest

from resnet_jax.data.images.normalization import measure_normalization, normalize
from resnet_jax.errors import ConfigError

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)


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
