"""A restored network takes images as they are in files, or says why it doesn't."""

import jax
import numpy as np
import pytest
from PIL import Image

import resnet_jax
from resnet_jax.config.schema import default_config
from resnet_jax.data.images.normalization import normalize
from resnet_jax.errors import ConfigError, DataError, NumericalError
from resnet_jax.inference.network import TrainedNetwork
from tests.data.hostile_images import fitted, pixels

CLASSES = ("cat", "dog", "owl")


@pytest.fixture(scope="module")
def model():
    return resnet_jax.create_model("resnet20", stage_sizes=(1,), width=4, num_classes=len(CLASSES))


@pytest.fixture(scope="module")
def variables(model):
    drawn = resnet_jax.init_variables(model, jax.random.key(0), (8, 8, 3))
    return jax.tree.map(lambda leaf: leaf + 0.3, drawn)


@pytest.fixture
def network(model, variables):
    """Of a run whose images were scaled to 8×8 pixels, from a folder."""
    config = default_config()
    config.data.name, config.data.image_size = "folder", 8
    return TrainedNetwork(
        config=config,
        step=1200,
        model=model,
        variables=variables,
        normalization={"mean": np.full(3, 120.0), "std": np.full(3, 60.0)},
        class_names=CLASSES,
        image_shape=(8, 8, 3),
        source="runs/pets",
    )


def test_images_of_any_size_are_prepared_as_in_training(network, model, variables):
    images = [pixels(20, 30, seed=1), pixels(8, 8, seed=2), pixels(50, 9, seed=3)]
    fit = np.stack([fitted(Image.fromarray(image), 8, 8) for image in images])
    expected = jax.nn.softmax(model.apply(variables, normalize(fit, network.normalization)))
    np.testing.assert_allclose(network.predict(images), expected, rtol=1e-3, atol=1e-5)
    assert network.predict([]).shape == (0, len(CLASSES))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_an_exported_run_prepares_images_as_the_run_does(network, interpolation):
    network.config.data.interpolation = interpolation
    image = pixels(21, 34)
    exported = network.preprocessing().apply(image)
    np.testing.assert_array_equal(exported, network.image_fit.apply(image))
    resized = Image.fromarray(image).resize(
        (12, 8), getattr(Image.Resampling, interpolation.upper())
    )
    np.testing.assert_array_equal(exported, np.asarray(resized.crop((2, 0, 10, 8))))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (
            np.zeros((8, 8, 3), np.float32),
            "image 1 can't be used: it is of type float32, not uint8",
        ),
        (np.zeros((8, 8), np.uint8), "it is 8×8, not height×width×3"),
        (np.zeros((8, 8, 1), np.uint8), "it is 8×8×1, not height×width×3"),
        (np.zeros((0, 8, 3), np.uint8), "it is 0×8×3, not height×width×3"),
        (np.zeros((8, 10**7, 3), np.uint8)[:1], "too long and narrow"),
    ],
)
def test_what_is_no_image_of_a_file_is_refused_in_a_line(network, image, message):
    with pytest.raises(DataError) as caught:
        network.predict([pixels(), image])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_run_that_scaled_nothing_refuses_other_sizes(network):
    network.config.data.name, network.config.data.image_size = "cifar10", None
    assert network.predict([pixels(8, 8)]).shape == (1, 3)
    with pytest.raises(DataError, match=r"it is 128×128 \(height×width\), not 8×8, and this run"):
        network.predict([pixels(128, 128)])


def test_numbers_that_are_not_finite_are_no_probabilities(network):
    broken = jax.tree.map(lambda leaf: leaf * np.nan, network.variables)
    network.__dict__["variables"] = broken
    with pytest.raises(NumericalError, match="weights aren't finite"):
        network.predict([pixels()])


@pytest.mark.parametrize("split", ["holdout", "name", "validation"])
def test_a_split_that_the_run_has_not_is_refused(network, split):
    with pytest.raises(ConfigError, match=f"names no {split} split, but train, test"):
        network.evaluate(split)


def test_a_network_is_shown_in_a_line(network):
    assert repr(network) == (
        "<TrainedNetwork resnet20: 435 parameters, 3 classes, uint8 images scaled to 8×8 and"
        " cropped (8×8×3), step 1,200 of runs/pets>"
    )
