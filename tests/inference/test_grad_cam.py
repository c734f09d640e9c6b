"""Grad-CAM as its definition has it: by the gradient of the logit that JAX finds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import resnet_jax
from resnet_jax.errors import ConfigError
from resnet_jax.inference.grad_cam import grad_cam

FIELDS = {"stage_sizes": (1, 1), "width": 4, "shortcut": "B"}


@pytest.mark.parametrize("order", ["original", "preact"])
def test_maps_are_weighed_by_the_gradient(order):
    model = resnet_jax.create_model("resnet20", num_classes=3, order=order, **FIELDS)
    variables = resnet_jax.init_variables(model, jax.random.key(1), (8, 8, 3))
    images = jax.random.normal(jax.random.key(2), (4, 8, 8, 3))
    classes = np.array([2, 0, 1, 2])
    maps = model.apply(variables, images, method="features")["stage2"]

    def logits(maps):
        fc = variables["params"]["fc"]
        every = maps.mean(axis=(1, 2)) @ fc["kernel"] + fc["bias"]
        return every[jnp.arange(4), classes]

    np.testing.assert_allclose(
        logits(maps), model.apply(variables, images)[np.arange(4), classes], rtol=1e-5, atol=1e-6
    )
    gradient = jax.grad(lambda maps: logits(maps).sum())(maps).mean(axis=(1, 2), keepdims=True)
    expected = np.maximum((maps * gradient).sum(axis=-1), 0)
    assert expected.max() > 0
    found = grad_cam(model, variables, images, classes)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)


def test_a_network_without_a_classifier_is_refused():
    model = resnet_jax.create_model("resnet20", num_classes=0, **FIELDS)
    variables = resnet_jax.init_variables(model, jax.random.key(1), (8, 8, 3))
    with pytest.raises(ConfigError, match="model.num_classes is 0"):
        grad_cam(model, variables, np.zeros((1, 8, 8, 3), np.float32), np.array([0]))
