"""Convolution, batch normalisation and classifier, with the initial values of the papers.

Statistics, scales and losses are float32 whatever the compute `dtype` is.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from resnet_jax.models.conv import conv2d

_SMALLEST_DRAW = 2**16


@functools.partial(jax.jit, static_argnums=1)
def _draw(key: jax.Array, size: int) -> Float[Array, " n"]:
    return jax.random.normal(key, (size,), jnp.float32)


def _standard_normal(key: jax.Array, shape: Sequence[int]) -> Float[Array, "..."]:
    """`jax.random.normal(key, shape)`, the same values, without a compilation for every shape.

    Compiling the generator takes a second on CPU, and a network has dozens of shapes. But the
    n-th number of JAX's default generator (partitionable Threefry) doesn't depend on how many are
    drawn, so a few sizes can serve all shapes.
    """
    n = math.prod(shape)
    size = max(_SMALLEST_DRAW, 1 << (n - 1).bit_length())
    return _draw(key, size)[:n].reshape(shape)


def he_normal(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
    """He et al. 2015 (1502.01852), eq. 10: a Gaussian of standard deviation √(2 / n), not cut off.

    `shape` is [kh, kw, in, out]. Counting n by outputs, kh·kw·out, keeps the size of the
    *gradients*, which is what Torch's and torchvision's ResNets chose.
    """
    fan_out = math.prod(shape[:-2]) * shape[-1]
    return (math.sqrt(2 / fan_out) * _standard_normal(key, shape)).astype(dtype)


def classifier_normal(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
    """Goyal et al. 2017 (1706.02677), section 5.1: a Gaussian of standard deviation 0.01.

    The first loss is then close to log(classes), and the first gradients are tame.
    """
    return (0.01 * _standard_normal(key, shape)).astype(dtype)


class Conv(nn.Module):
    """2-D convolution without bias, NHWC, square kernel, padded as PyTorch pads: (k - 1) / 2.

    The padding is explicit because "SAME" pads differently when the stride is 2 and the size even.
    """

    features: int
    kernel_size: int
    stride: int = 1
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 f"]:
        """Return the convolution of `x`, of type `dtype`."""
        k, pad = self.kernel_size, (self.kernel_size - 1) // 2
        shape = (k, k, x.shape[-1], self.features)
        kernel = self.param("kernel", he_normal, shape, self.param_dtype)
        return conv2d(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            strides=(self.stride, self.stride),
            padding=((pad, pad), (pad, pad)),
        )


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe & Szegedy 2015, 1502.03167) over the batch or over groups of it.

    `group_size=None` normalises over the whole batch, however it is sharded. With `group_size=n`
    every n consecutive examples of the batch are normalised on their own: the recipe of a paper
    that trained with n images per device, reproduced on any device mesh. Running statistics are
    those of the whole batch in both cases (law of total variance), so evaluation does not depend
    on the grouping either. The running variance is the biased one, as in Flax; PyTorch's is not.
    """

    group_size: int | None = None
    momentum: float = 0.9  # PyTorch writes the same thing as 0.1
    epsilon: float = 1e-5
    zero_init_scale: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], *, train: bool, update_stats: bool
    ) -> Float[Array, "n h w c"]:
        """Return the normalised `x`, of type `dtype`.

        Args:
            x: activations.
            train: normalise by the statistics of `x`; otherwise by the running ones.
            update_stats: with `train`, move the running statistics towards those of `x`.
                The collection "batch_stats" must be mutable then.

        Raises:
            ValueError: the batch doesn't split into groups of `group_size`.
        """
        n, c = x.shape[0], x.shape[-1]
        scale_init = nn.initializers.zeros if self.zero_init_scale else nn.initializers.ones
        scale = self.param("scale", scale_init, (c,), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (c,), self.param_dtype)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (c,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (c,), jnp.float32)

        if not train:
            return self._normalise(x, running_mean.value, running_var.value, scale, bias)

        size = self.group_size or n
        if n % size and not self.is_initializing():
            raise ValueError(f"a batch of {n} doesn't split into groups of {size} (bn_group_size)")
        groups = 1 if self.is_initializing() else n // size
        xg = x.reshape(groups, n // groups, *x.shape[1:])
        x32 = xg.astype(jnp.float32)
        # E[x²] − E[x]² reads the activations once; float32 sums keep it exact enough.
        mean = x32.mean(axis=(1, 2, 3))
        var = jnp.maximum(jnp.square(x32).mean(axis=(1, 2, 3)) - jnp.square(mean), 0.0)

        if update_stats and not self.is_initializing():
            batch_mean = mean.mean(axis=0)
            batch_var = var.mean(axis=0) + jnp.square(mean - batch_mean).mean(axis=0)
            keep = self.momentum
            running_mean.value = keep * running_mean.value + (1 - keep) * batch_mean
            running_var.value = keep * running_var.value + (1 - keep) * batch_var

        group = (slice(None), None, None, None)
        return self._normalise(xg, mean[group], var[group], scale, bias).reshape(x.shape)

    def _normalise(
        self, x: jax.Array, mean: jax.Array, var: jax.Array, scale: jax.Array, bias: jax.Array
    ) -> jax.Array:
        factor = jax.lax.rsqrt(var + self.epsilon) * scale.astype(jnp.float32)
        y = (x.astype(jnp.float32) - mean) * factor + bias.astype(jnp.float32)
        return y.astype(self.dtype)


class Classifier(nn.Module):
    """Fully connected layer; its logits are float32, because bfloat16 ones spoil the loss."""

    num_classes: int
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n c"]) -> Float[Array, "n k"]:
        """Return float32 logits."""
        shape = (x.shape[-1], self.num_classes)
        kernel = self.param("kernel", classifier_normal, shape, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.num_classes,), self.param_dtype)
        product = jnp.matmul(
            x.astype(self.dtype), kernel.astype(self.dtype), preferred_element_type=jnp.float32
        )
        return product + bias.astype(jnp.float32)


def max_pool(x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c"]:
    """3×3 maximum with stride 2 and padding 1, the second half of the ImageNet stem."""
    return nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
