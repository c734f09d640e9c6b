"""Functions of constants and arrays, prepared for many calls."""

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.ops.conv import conv2d
from resnet_jax.ops.prepared import Prepared


def _constants():
    kernel = jax.random.normal(jax.random.key(0), (3, 3, 4, 8))
    return {"kernel": kernel, "bias": jnp.arange(8.0)}


def _images(n, size=6):
    return np.random.default_rng(n).normal(size=(n, size, size, 4)).astype(np.float32)


def _standardised(constants, images):
    kernel = constants["kernel"]
    kernel = (kernel - kernel.mean()) / kernel.std()
    y = conv2d(images, kernel, padding=((1, 1), (1, 1)))
    return {"y": jax.nn.relu(y + constants["bias"]), "images": images, "kernel": kernel}


def test_results_are_those_of_the_function_for_each_shape():
    constants = _constants()
    prepared = Prepared(_standardised, constants)
    for images in (_images(2), jnp.asarray(_images(3)), _images(2, size=5), _images(2)):
        found, wanted = prepared(images), jax.jit(_standardised)(constants, images)
        assert found.keys() == wanted.keys()
        for name in wanted:
            np.testing.assert_allclose(found[name], wanted[name], rtol=1e-5, atol=1e-5)


def test_what_depends_on_the_constants_alone_is_computed_once():
    computed = []

    def note(kernel):
        computed.append(kernel.shape)
        return kernel

    def function(constants, x, y):
        kernel = constants["kernel"]
        noted = jax.pure_callback(note, jax.ShapeDtypeStruct(kernel.shape, kernel.dtype), kernel)
        return x * noted.sum() + y

    constants, x = _constants(), np.ones((5,), np.float32)
    prepared = Prepared(function, constants)
    for y in (x, 2 * x, 3 * x):
        np.testing.assert_allclose(prepared(x, y), constants["kernel"].sum() + y, rtol=1e-5)
    assert computed == [constants["kernel"].shape]


def test_copies_of_constants_along_the_images_are_not_kept():
    prepared = Prepared(_standardised, _constants())
    prepared(_images(64))
    largest = max(array.nbytes for array in prepared._kept.values())
    assert largest <= 2 * _constants()["kernel"].nbytes  # oneDNN pads channels


def test_programs_for_other_shapes_share_what_they_keep():
    prepared = Prepared(_standardised, _constants())
    prepared(_images(1))
    kept = list(prepared._kept.values())
    prepared(_images(4))
    assert [id(array) for array in prepared._kept.values()] == [id(array) for array in kept]
