"""Convolution, classifier and pooling, with the initial values of the papers."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from resnet_jax.ops.conv import conv2d

_SMALLEST_DRAW = 2**16


@functools.partial(jax.jit, static_argnums=1)
def _draw(key: jax.Array, size: int) -> Float[Array, " n"]:
    return jax.random.normal(key, (size,), jnp.float32)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _cut(drawn: Float[Array, " n"], shape: tuple[int, ...], scale: float) -> Array:
    return scale * drawn[: math.prod(shape)].reshape(shape)


def _normal(key: jax.Array, shape: Sequence[int], scale: float) -> Float[Array, "..."]:
    """`scale * jax.random.normal(key, shape)`, without compiling a generator for every shape.

    Compiling the generator takes a second on CPU, and a network has dozens of shapes. But the
    n-th number of JAX's default generator (partitionable Threefry) doesn't depend on how many are
    drawn, so a few sizes can serve all shapes.
    """
    size = max(_SMALLEST_DRAW, 1 << (math.prod(shape) - 1).bit_length())
    return _cut(_draw(key, size), tuple(shape), scale)


def he_normal(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
    """He et al. 2015 (1502.01852), eq. 10: a Gaussian of standard deviation √(2 / n), not cut off.

    `shape` is [kh, kw, in, out]. Counting n by outputs, kh·kw·out, keeps the size of the
    *gradients*, which is what Torch's and torchvision's ResNets chose.
    """
    fan_out = math.prod(shape[:-2]) * shape[-1]
    return _normal(key, shape, math.sqrt(2 / fan_out)).astype(dtype)


def classifier_normal(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
    """Goyal et al. 2017 (1706.02677), section 5.1: a Gaussian of standard deviation 0.01.

    The first loss is then close to log(classes), and the first gradients are tame.
    """
    return _normal(key, shape, 0.01).astype(dtype)


class Conv(nn.Module):
    """2-D convolution, NHWC, square kernel, padded as PyTorch pads: dilation · (k - 1) / 2.

    The padding is explicit because "SAME" pads differently when the stride is 2 and the size even.
    With `weight_standardized` the kernel of each output channel is brought to mean 0 and variance
    1 before use (Qiao et al. 2019, 1903.10520), as in BiT: biased variance, 1e-10 added to it.
    """

    features: int
    kernel_size: int
    stride: int = 1
    groups: int = 1
    dilation: int = 1
    use_bias: bool = False
    initial_bias: float = 0.0
    gain: float = 1.0  # multiplies the initial kernel
    weight_standardized: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 f"]:
        """Return the convolution of `x`, of type `dtype`."""
        y = self.convolve(x, self.kernel(x.shape[-1]))
        if self.use_bias:
            init = nn.initializers.constant(self.initial_bias)
            bias = self.param("bias", init, (self.features,), self.param_dtype)
            y += bias.astype(y.dtype)
        return y

    def widens(self, x: Float[Array, "n h w c"]) -> bool:
        """Whether it's a plain product at each place, with at least four times the channels."""
        plain = self.kernel_size == self.groups == 1 and not self.use_bias
        return plain and self.features >= 4 * x.shape[-1]

    @nn.compact
    def factors(
        self, x: Float[Array, "n h w c"]
    ) -> tuple[Float[Array, "n h2 w2 c"], Float[Array, "c f"]]:
        """Those of the product, of type `dtype`, if the convolution is one."""
        kernel = self.kernel(x.shape[-1])[0, 0]
        return x[:, :: self.stride, :: self.stride].astype(self.dtype), kernel.astype(self.dtype)

    def kernel(self, channels: int) -> Float[Array, "k k c f"]:
        """The kernel as it is used, float32 or wider."""

        def init(key: jax.Array, shape: Sequence[int], dtype: Any) -> Array:
            drawn = he_normal(key, shape)
            return (drawn if self.gain == 1 else self.gain * drawn).astype(dtype)

        shape = (self.kernel_size, self.kernel_size, channels // self.groups, self.features)
        kernel = self.param("kernel", init, shape, self.param_dtype)
        if self.weight_standardized:
            kernel = kernel.astype(jnp.float32)
            kernel -= kernel.mean(axis=(0, 1, 2))
            kernel *= jax.lax.rsqrt(jnp.square(kernel).mean(axis=(0, 1, 2)) + 1e-10)
        return kernel

    def convolve(self, x: Array, kernel: Array) -> Array:
        """The convolution itself, without the bias."""
        pad = self.dilation * (self.kernel_size - 1) // 2
        return conv2d(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            strides=(self.stride, self.stride),
            padding=((pad, pad), (pad, pad)),
            feature_group_count=self.groups,
            dilation=(self.dilation, self.dilation),
        )


class SpaceToDepthConv(Conv):
    """A convolution of odd kernel and stride 2, computed on 2×2 blocks of pixels: equal to `Conv`.

    With three input channels a TPU's matrix unit stands mostly idle; with the four pixels of a
    block as twelve channels less so (MLPerf's ResNet-50). The parameters are those of `Conv`: the
    kernel gets a zero row and column in front and is folded in the same way as the image.
    """

    def convolve(self, x: Array, kernel: Array) -> Array:
        """The same sums as in `Conv`, over blocks."""
        n, h, w, c = x.shape
        x = jnp.pad(x.astype(self.dtype), ((0, 0), (0, h % 2), (0, w % 2), (0, 0)))
        h, w = x.shape[1] // 2, x.shape[2] // 2
        x = x.reshape(n, h, 2, w, 2, c).transpose(0, 1, 3, 2, 4, 5).reshape(n, h, w, 4 * c)

        k = (self.kernel_size + 1) // 2
        kernel = jnp.pad(kernel.astype(self.dtype), ((1, 0), (1, 0), (0, 0), (0, 0)))
        kernel = kernel.reshape(k, 2, k, 2, c, -1).transpose(0, 2, 1, 3, 4, 5)
        kernel = kernel.reshape(k, k, 4 * c, -1)
        # A window of k blocks around output o begins at block o - k/2.
        pad = (k // 2, (k - 1) // 2)
        return conv2d(x, kernel, padding=(pad, pad))


class Classifier(nn.Module):
    """Fully connected layer; its logits are float32, because bfloat16 ones spoil the loss."""

    num_classes: int
    zero_init: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n c"]) -> Float[Array, "n k"]:
        """Return float32 logits."""
        shape = (x.shape[-1], self.num_classes)
        init = nn.initializers.zeros if self.zero_init else classifier_normal
        kernel = self.param("kernel", init, shape, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.num_classes,), self.param_dtype)
        product = jnp.matmul(
            x.astype(self.dtype), kernel.astype(self.dtype), preferred_element_type=jnp.float32
        )
        return product + bias.astype(jnp.float32)


class SqueezeExcite(nn.Module):
    """Multiply each channel by a gate that sees all of them (Hu et al. 2017, 1709.01507, eq. 2-4).

    Attributes:
        ratio: hidden units per channel; the paper's r = 16 is a ratio of 1/16.
    """

    ratio: float
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        """Return the scaled `x`, of its type."""
        c = x.shape[-1]
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype, "kernel_init": he_normal}
        z = x.astype(jnp.float32).mean(axis=(1, 2))
        z = nn.relu(nn.Dense(max(1, round(c * self.ratio)), name="fc1", **kinds)(z))
        gate = nn.sigmoid(nn.Dense(c, name="fc2", **kinds)(z).astype(jnp.float32))
        return x * gate[:, None, None, :].astype(x.dtype)


def max_pool(x: Float[Array, "n h w c"], *, zero_padded: bool = False) -> Array:
    """3×3 maximum with stride 2 and padding 1, the second half of the ImageNet stem.

    PyTorch pads with -∞. `zero_padded` is BiT's: there no activation comes before the pooling.
    """
    padding = ((1, 1), (1, 1))
    if zero_padded:
        x, padding = jnp.pad(x, ((0, 0), *padding, (0, 0))), ((0, 0), (0, 0))
    return nn.max_pool(x, (3, 3), strides=(2, 2), padding=padding)


def average_pool(x: Float[Array, "n h w c"], stride: int) -> Float[Array, "n h2 w2 c"]:
    """Average of each `stride` × `stride` block; blocks cut by the edge count what they have."""
    if stride == 1:
        return x
    padding = tuple((0, -size % stride) for size in x.shape[1:3])
    window = (stride, stride)
    return nn.avg_pool(x, window, strides=window, padding=padding, count_include_pad=False)
