"""Inputs and evaluation of trained networks, whole or modified."""

import jax
from jaxtyping import Array, Float

from resnet_jax.data.datasets import ImageSet
from resnet_jax.data.images.normalization import normalize
from resnet_jax.inference.network import TrainedNetwork
from resnet_jax.parallel.mesh import make_mesh
from resnet_jax.train.evaluate import Apply, Evaluator
from resnet_jax.train.experiment import load_data

_BATCH = 500


def load_images(network: TrainedNetwork, split: str, *, most: int | None = None) -> ImageSet:
    """The first `most` images and labels of a split that the network's config names."""
    data = load_data(network.config).splits[split]
    return ImageSet(data.images[:most], data.labels[:most])


def load_inputs(network: TrainedNetwork, *, most: int) -> tuple[Float[Array, "n h w c"], Array]:
    """The first `most` test images, normalised for the network, and their labels [n]."""
    data = load_images(network, "test", most=most)
    images, labels = jax.device_put((data.images, data.labels))
    return normalize(images, network.normalization), labels


def make_evaluator(apply: Apply, data: ImageSet) -> Evaluator:
    """An evaluator on the first device, whose program is compiled once.

    Args:
        apply: from variables, which may hold what a modification depends on, and normalised
            images to logits.
        data: the images and labels.
    """
    return Evaluator(apply, data, batch_size=_BATCH, mesh=make_mesh(data=1))
