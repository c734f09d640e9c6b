"""The residual unit of He et al. 2015 (1512.03385): relu(shortcut(x) + branch(x)).

A branch is a table row of (kernel size, width multiplier, stride); a shortcut is a choice of what
to do where the shape changes. Both are fields, so that one of them can be changed at a time.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from resnet_jax.models.layers import BatchNorm, Conv

Branch = Literal["basic", "bottleneck"]
Shortcut = Literal["A", "B"]
StrideOn = Literal["1x1", "3x3"]

EXPANSION: dict[str, int] = {"basic": 1, "bottleneck": 4}
"""Output channels of a unit, as a multiple of its width."""


def branch_layers(branch: Branch, stride: int, stride_on: StrideOn) -> list[tuple[int, int, int]]:
    """The convolutions of a branch as (kernel size, width multiplier, stride).

    Figure 5 of the paper. A bottleneck that shrinks the map has its stride on the first 1×1
    convolution in the paper ("v1") and on the 3×3 one in Torch's and most later code ("v1.5").
    """
    if branch == "basic":
        return [(3, 1, stride), (3, 1, 1)]
    on_1x1, on_3x3 = (stride, 1) if stride_on == "1x1" else (1, stride)
    return [(1, 1, on_1x1), (3, 1, on_3x3), (1, EXPANSION["bottleneck"], 1)]


def pad_shortcut(x: Float[Array, "n h w c"], features: int, stride: int) -> Array:
    """Option A: every `stride`-th pixel, new channels filled with zeros. No parameters."""
    x = x[:, ::stride, ::stride, :]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, features - x.shape[-1])))


class ResidualUnit(nn.Module):
    """One unit; children are named as in torchvision: conv1, bn1, …, downsample_conv."""

    width: int
    stride: int
    branch: Branch
    shortcut: Shortcut
    stride_on: StrideOn
    zero_init_scale: bool
    norm: Callable[..., BatchNorm]
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], *, train: bool, update_stats: bool
    ) -> Float[Array, "n h2 w2 f"]:
        """Return relu(shortcut(x) + branch(x)), of type `dtype`."""
        conv = functools.partial(Conv, dtype=self.dtype, param_dtype=self.param_dtype)
        stats = {"train": train, "update_stats": update_stats}

        y = x
        layers = branch_layers(self.branch, self.stride, self.stride_on)
        for i, (kernel_size, multiplier, stride) in enumerate(layers, start=1):
            last = i == len(layers)
            y = conv(self.width * multiplier, kernel_size, stride, name=f"conv{i}")(y)
            # Goyal et al. 2017, section 5.1: a zero scale makes each unit begin as the identity.
            zero = self.zero_init_scale and last
            y = self.norm(zero_init_scale=zero, name=f"bn{i}")(y, **stats)
            y = y if last else nn.relu(y)

        features = y.shape[-1]
        if self.stride == 1 and x.shape[-1] == features:
            shortcut = x
        elif self.shortcut == "A":
            shortcut = pad_shortcut(x, features, self.stride)
        else:
            shortcut = conv(features, 1, self.stride, name="downsample_conv")(x)
            shortcut = self.norm(name="downsample_bn")(shortcut, **stats)
        return nn.relu(shortcut.astype(y.dtype) + y)
