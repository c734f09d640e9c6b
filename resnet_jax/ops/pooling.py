"""Pooling of maps, padded as PyTorch pads."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float


def max_pool(x: Float[Array, "n h w c"], *, zero_padded: bool = False) -> Float[Array, "n h2 w2 c"]:
    """3×3 maximum with stride 2 and padding 1, the second half of the ImageNet stem.

    Args:
        x: maps.
        zero_padded: pad with 0, as BiT does, where no activation comes before the pooling. PyTorch
            pads with -∞.
    """
    padding = ((1, 1), (1, 1))
    if zero_padded:
        x, padding = jnp.pad(x, ((0, 0), *padding, (0, 0))), ((0, 0), (0, 0))
    return nn.max_pool(x, (3, 3), strides=(2, 2), padding=padding)


def average_pool(x: Float[Array, "n h w c"], stride: int) -> Float[Array, "n h2 w2 c"]:
    """Average of each `stride` × `stride` block; a block cut by the edge averages what it has."""
    if stride == 1:
        return x
    padding = tuple((0, -size % stride) for size in x.shape[1:3])
    window = (stride, stride)
    return nn.avg_pool(x, window, strides=window, padding=padding, count_include_pad=False)
