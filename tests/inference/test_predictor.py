"""Images become probabilities and scores by one program per batch size."""

import jax
import numpy as np
import pytest

import resnet_jax
from resnet_jax.data.datasets import ImageSet
from resnet_jax.data.images.fit import Fit
from resnet_jax.data.images.preprocessing import ScaleAndCrop
from resnet_jax.errors import DataError, NumericalError
from resnet_jax.inference.predictor import Predictor
from tests.compilations import compilations
from tests.data.hostile_images import pixels

_NORMALIZATION = {"mean": np.full(3, 120.0), "std": np.full(3, 60.0)}


def _network():
    model = resnet_jax.create_model("resnet20", stage_sizes=(1,), width=4, num_classes=3)
    drawn = resnet_jax.init_variables(model, jax.random.key(0), (8, 8, 3))
    return model, jax.tree.map(lambda leaf: leaf + 0.3, drawn)


@pytest.fixture(scope="module")
def predictor():
    return Predictor(*_network(), _NORMALIZATION, Fit((8, 8, 3)))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(value):
    model, variables = _network()
    variables["params"]["bn1"]["bias"] = np.array([0, 0, value, 0], np.float32)
    with pytest.raises(NumericalError, match="weights aren't finite"):
        Predictor(model, variables, _NORMALIZATION, Fit((8, 8, 3)))


@pytest.mark.parametrize("library", ["XLA", pytest.param("oneDNN", marks=pytest.mark.thorough)])
def test_activations_that_overflow_give_no_probabilities(library, request):
    """The block's second convolution multiplies infinity by zero; ReLU follows."""
    if library == "oneDNN":
        request.getfixturevalue("onednn")
    model, variables = _network()
    params = variables["params"]
    params["conv1"]["kernel"] *= 1e30
    params["layer1_0"]["conv1"]["kernel"] *= 1e30
    params["layer1_0"]["conv2"]["kernel"] *= 0
    predictor = Predictor(model, variables, _NORMALIZATION, Fit((8, 8, 3)))
    with pytest.raises(NumericalError, match="logits aren't finite"):
        predictor([pixels(8, 8, seed=0)])


def test_programs_are_compiled_once_for_each_size_of_a_batch(predictor):
    with compilations() as first:
        for count in (3, 33):
            predictor.predict([pixels(seed=number) for number in range(count)])
    # For 4 images at a time, and for 32: a program of the variables alone, and one of the images.
    assert len(first) == 4
    with compilations() as others:
        for count in (3, 4, 40, 64):
            predictor.predict([pixels(seed=number) for number in range(count)])
    assert not others


@pytest.mark.parametrize("wrong", [np.zeros((1, 1, 3), np.uint8), np.zeros((8, 8, 3))])
def test_a_predictor_takes_images_of_its_shape_and_type_alone(wrong, predictor):
    with pytest.raises(DataError, match="the network takes uint8 of shape"):
        predictor([wrong])


def test_another_fit_prepares_other_images(predictor):
    image = pixels(20, 30, seed=1)
    scaling = predictor.with_fit(Fit((8, 8, 3), ScaleAndCrop((8, 8), (8, 8))))
    fitted = scaling.fit.apply(image)
    np.testing.assert_array_equal(scaling.predict([image]), predictor([fitted]))
    with pytest.raises(DataError, match=r"it is 20×30 \(height×width\), not 8×8"):
        predictor.predict([image])


def test_evaluation_agrees_with_the_probabilities(predictor):
    images = np.stack([pixels(8, 8, seed=number) for number in range(11)])
    labels = np.arange(11, dtype=np.int32) % 3
    scores = predictor.evaluate(ImageSet(images, labels), batch_size=4)
    probabilities = predictor.predict(list(images))
    assert scores.examples == 11
    assert scores.top1 == (probabilities.argmax(axis=-1) == labels).mean()
    loss = -np.log(probabilities[np.arange(11), labels]).mean()
    assert scores.loss == pytest.approx(loss, rel=1e-4)
