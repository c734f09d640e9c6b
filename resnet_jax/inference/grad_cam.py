"""Grad-CAM: which places of an image speak for a class (Selvaraju et al. 2017, 1610.02391)."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from resnet_jax.errors import ConfigError
from resnet_jax.models.resnet import ResNet


def grad_cam(
    model: ResNet, variables: Any, images: Float[Array, "n h w c"], classes: Int[Array, " n"]
) -> Float[Array, "n i j"]:
    """Return how much each place of the last stage's maps adds to the logit of a class.

    The channels of the maps are weighed by the mean gradient of the logit and added; negative sums
    become 0. Only a mean over the places and a linear layer follow the maps, so that the gradient
    is the column of the class in the classifier, divided by the number of places. The images may be
    larger than those of training.

    Args:
        model: the network, with a classifier.
        variables: its variables.
        images: float32, normalised as for `model.apply`.
        classes: a class for each image.

    Returns:
        float32 [n, h / stride, w / stride], not negative.

    Raises:
        ConfigError: the network has no classifier.
    """
    if not model.num_classes:
        raise ConfigError("Grad-CAM is of a logit, and model.num_classes is 0: there are none.")
    features: Any = model.apply(variables, images, method="features")
    maps = features[f"stage{len(model.stage_sizes)}"]
    weights = variables["params"]["fc"]["kernel"][:, classes]
    places = maps.shape[1] * maps.shape[2]
    return jnp.maximum(jnp.einsum("nijc,cn->nij", maps.astype(jnp.float32), weights) / places, 0.0)
