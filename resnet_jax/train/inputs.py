"""The inputs of the first training step as images, to see what augmentation does."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from resnet_jax.data.augment.config import augment_batch, example_keys
from resnet_jax.data.loaders.loader import DeviceBatches
from resnet_jax.train.spec import TrainSpec
from resnet_jax.train.state import TrainState

_IMAGES = 32


def augmented_inputs(
    state: TrainState, batches: DeviceBatches, spec: TrainSpec
) -> UInt8[np.ndarray, "n h w c"]:
    """Return at most 32 inputs of the first step of a dispatch, in grey levels.

    The inputs are those on the first device of this process and, with several seeds, those of the
    first seed. Nothing is exchanged with other processes: an image that is mixed with a neighbour
    is mixed with one of the images that are returned.

    Args:
        state: before the dispatch.
        batches: of the dispatch.
        spec: of the run.
    """
    images, labels, ids, epochs = (_first_shard(array) for array in batches)
    key, normalization = jax.tree.map(_first_shard, (state.key, state.normalization))
    if spec.seeds.stacked:
        ids, epochs, key = ids[0], epochs[0], key[0]
        normalization = {name: array[0] for name, array in normalization.items()}
        if not spec.resident:
            images, labels = images[0], labels[0]
    ids, epochs = (_first_examples(array, ()) for array in (ids, epochs))
    if spec.resident:
        images, labels = images[ids], labels[ids]
    else:
        images = _first_examples(images, images.shape[-3:])
        labels = _first_examples(labels, ())

    def augmented(images: Any, labels: Any) -> Float[Array, "n h w c"]:
        keys = example_keys(jax.random.wrap_key_data(key), ids, epochs)
        targets = jax.nn.one_hot(labels, spec.model.num_classes)
        inputs, _ = augment_batch(
            images, targets, keys, spec.step.augment, normalization=normalization
        )
        return inputs * normalization["std"] + normalization["mean"]

    grey = jax.jit(augmented)(images, labels)
    return np.asarray(jnp.clip(jnp.round(grey), 0, 255)).astype(np.uint8)


def _first_shard(array: jax.Array) -> jax.Array:
    """Return what the first device of this process holds of an array."""
    return array.addressable_shards[0].data


def _first_examples(array: jax.Array, of_example: tuple[int, ...]) -> jax.Array:
    """Return the first examples of the first step of an array [k, m, n, …]."""
    return array[0].reshape(-1, *of_example)[:_IMAGES]
