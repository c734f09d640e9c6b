"""Scores of trained networks that are interfered with, compiled once for each network."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from resnet_jax.data.images.normalization import normalize
from resnet_jax.inference.network import TrainedNetwork
from resnet_jax.train.experiment import load_data
from resnet_jax.train.losses import cross_entropy

_BATCH = 500

Apply = Callable[..., Array]
"""From variables, normalised images and what the interference depends on, to logits."""


def images_of(
    network: TrainedNetwork, split: str, *, most: int | None = None
) -> tuple[UInt8[np.ndarray, "n h w c"], Int[np.ndarray, " n"]]:
    """Images and labels of a split that the network's config names, the first `most` of them."""
    data = load_data(network.config).splits[split]
    return data.images[:most], data.labels[:most]


def make_scorer(
    apply: Apply, images: UInt8[np.ndarray, "n h w c"], labels: Int[np.ndarray, " n"]
) -> Callable[..., tuple[Float[Array, ""], Float[Array, ""]]]:
    """A jitted function: (variables, normalization, *rest) → (top-1 error in %, mean loss).

    Args:
        apply: given variables, images and `rest`, the logits.
        images, labels: to score.
    """
    batches = -(-len(images) // _BATCH)
    size = -(-len(images) // batches)
    padding = batches * size - len(images)

    def padded(array: np.ndarray) -> np.ndarray:
        array = np.pad(array, ((0, padding), *[(0, 0)] * (array.ndim - 1)))
        return array.reshape(batches, size, *array.shape[1:])

    counted = padded(np.ones(len(images), bool))
    split = tuple(map(jnp.asarray, (padded(images), padded(labels), counted)))

    @jax.jit
    def score(variables: Any, normalization: Any, *rest: Any) -> tuple[Array, Array]:
        def of_batch(batch: Any) -> Array:
            images, labels, counted = batch
            logits = apply(variables, normalize(images, normalization), *rest)
            wrong = logits.argmax(axis=-1) != labels
            sums = jnp.stack([wrong.astype(jnp.float32), cross_entropy(logits, labels)])
            return jnp.where(counted, sums, 0).sum(axis=-1)

        wrong, loss = jax.lax.map(of_batch, split).sum(axis=0) / len(images)
        return 100 * wrong, loss

    return score
