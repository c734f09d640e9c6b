"""A network of a weight file that describes its network and its images."""

import dataclasses
import functools
import math
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8

from resnet_jax.data.images.fit import Fit
from resnet_jax.data.images.preprocessing import Preprocessing
from resnet_jax.errors import DataError
from resnet_jax.inference.predictor import Predictor
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.surgery import input_channels
from resnet_jax.weights.hub import full_name, local_file
from resnet_jax.weights.load import load_weights, read_model
from resnet_jax.weights.preprocessing import read_preprocessing


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class PretrainedNetwork:
    """A network of a weight file, ready to classify images.

    Attributes:
        name: the file, or the full name of weights of this package.
        model: the linen module.
        variables: {"params", "batch_stats"} in float32, for `model.apply`.
        preprocessing: how images are prepared, and the names of the classes.
    """

    name: str
    model: ResNet
    variables: dict[str, Any]
    preprocessing: Preprocessing

    def __repr__(self) -> str:
        """Describe the network in a line, without its arrays."""
        count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(self.variables["params"]))
        height, width, channels = self.preprocessing.shape
        return (
            f"<PretrainedNetwork {self.name}: {type(self.model).__name__}, {count:,} parameters,"
            f" images of {height}×{width}×{channels}>"
        )

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """One name per logit; None if the file has none."""
        return self.preprocessing.class_names

    @functools.cached_property
    def predictor(self) -> Predictor:
        """The predictor that `predict` calls."""
        # Without scaling, a crop would show only the centre of a photograph.
        crop = self.preprocessing.crop if self.preprocessing.resize else None
        fit = Fit(self.preprocessing.shape, crop)
        return Predictor(self.model, self.variables, self.preprocessing.normalization, fit)

    def predict(self, images: Sequence[UInt8[np.ndarray, "h w c"]]) -> Float[np.ndarray, "n k"]:
        """Probabilities of the classes for images as they are in files; see `preprocessing`.

        Args:
            images: uint8 [h, w, c] each, upright, RGB (c = 3) or grey (c = 1) as the network takes.

        Raises:
            DataError: an image has another type, number of channels or size.
            NumericalError: the probabilities aren't finite.
        """
        return self.predictor.predict(images)


def pretrained(weights: str | os.PathLike[str]) -> PretrainedNetwork:
    """Load a trained network together with the preprocessing of its images.

        network = resnet_jax.pretrained("resnet20.cifar10_full")
        probabilities = network.predict(images)
        logits = network.model.apply(network.variables, network.preprocessing.normalize(crops))

    Args:
        weights: the name of weights of this package (`list_weights`); a file that `save_weights`
            or `resnet-jax export --format=safetensors` wrote with the preprocessing of its images;
            or a model on the Hugging Face Hub that holds such a file, as for `load_weights`.

    Raises:
        DataError: the file can't be read, is damaged, or doesn't describe its network and images.
        ConfigError: `weights` names a model on the Hub, and the extra [hub] isn't installed.
    """
    name = full_name(weights)
    path = local_file(name)
    model = read_model(path)
    preprocessing = read_preprocessing(path)
    if preprocessing is None:
        raise DataError(
            f"{name} doesn't say how images are prepared. Use load_weights, and"
            " prepare them yourself."
        )
    variables = load_weights(model, path)
    names, channels = preprocessing.class_names, input_channels(variables)
    if names is not None and len(names) != model.num_classes:
        raise DataError(
            f"{name} names {len(names)} classes, and its network has {model.num_classes}."
        )
    if preprocessing.shape[-1] != channels:
        raise DataError(
            f"{name} says how images of {preprocessing.shape[-1]} channels are prepared, and its"
            f" network takes {channels}."
        )
    return PretrainedNetwork(name, model, variables, preprocessing)
