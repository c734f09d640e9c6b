"""A network comes back from a weight file with the preprocessing of its images."""

import dataclasses

import jax
import numpy as np
import pytest

import resnet_jax
from resnet_jax.config.schema import default_config
from resnet_jax.data.images.normalization import measure_normalization
from resnet_jax.errors import DataError
from resnet_jax.inference.network import TrainedNetwork

RNG = np.random.default_rng(0)


def _network(shape, kind):
    model = resnet_jax.create_model("resnet20", stage_sizes=(1, 1), width=4, num_classes=3)
    config = default_config()
    config.model.name, config.data.normalize = "resnet20", kind
    images = RNG.integers(0, 256, (20, *shape), np.uint8)
    return TrainedNetwork(
        config=config,
        step=1,
        model=model,
        variables=resnet_jax.init_variables(model, jax.random.key(0), shape),
        normalization=measure_normalization(images, kind),
        class_names=("a", "b", "c"),
        image_shape=shape,
    )


@pytest.mark.parametrize("kind", ["channel", "pixel_mean"])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_file_predicts_as_the_run_does(kind, channels, tmp_path):
    network = _network((8, 8, channels), kind)
    path = tmp_path / "weights.safetensors"
    metadata = network.preprocessing().metadata()
    resnet_jax.save_weights(path, network.model, network.variables, metadata=metadata)
    found = resnet_jax.pretrained(path)
    assert found.preprocessing.class_names == network.class_names
    assert (found.preprocessing.mean_image is not None) == (kind == "pixel_mean")
    images = list(RNG.integers(0, 256, (3, 8, 8, channels), np.uint8))
    np.testing.assert_allclose(found.predict(images), network.predict(images), rtol=1e-5)
    mean = np.asarray(found.preprocessing.normalization["mean"])
    np.testing.assert_allclose(mean, network.normalization["mean"], rtol=1e-6)


def test_a_network_is_shown_in_a_line(tmp_path):
    network = _network((8, 8, 3), "channel")
    path = tmp_path / "weights.safetensors"
    metadata = network.preprocessing().metadata()
    resnet_jax.save_weights(path, network.model, network.variables, metadata=metadata)
    count = sum(leaf.size for leaf in jax.tree.leaves(network.variables["params"]))
    assert repr(resnet_jax.pretrained(path)) == (
        f"<PretrainedNetwork {path}: ResNet, {count:,} parameters, images of 8×8×3>"
    )


def test_a_file_without_preprocessing_is_refused(tmp_path):
    network = _network((8, 8, 3), "channel")
    path = tmp_path / "weights.safetensors"
    resnet_jax.save_weights(path, network.model, network.variables)
    with pytest.raises(DataError, match="doesn't say how images are prepared"):
        resnet_jax.pretrained(path)


def test_images_that_are_not_square_have_no_preprocessing():
    assert _network((8, 6, 3), "channel").preprocessing() is None
    assert _network((8, 8, 2), "channel").preprocessing() is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_names": ("a", "b")}, "names 2 classes, and its network has 3"),
        ({"mean": (0.5,), "std": (0.2,)}, "images of 1 channels are prepared, and its network tak"),
    ],
)
def test_a_note_that_does_not_fit_the_network_is_refused(changes, message, tmp_path):
    network = _network((8, 8, 3), "channel")
    note = dataclasses.replace(network.preprocessing(), **changes)
    path = tmp_path / "weights.safetensors"
    resnet_jax.save_weights(path, network.model, network.variables, metadata=note.metadata())
    with pytest.raises(DataError, match=message):
        resnet_jax.pretrained(path)
