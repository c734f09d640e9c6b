"""Convolution, classifier, and squeeze-and-excitation."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from resnet_jax.models.initializers import CLASSIFIER_STD, gaussian, he_normal
from resnet_jax.ops.batch_norm import Maps, PointwiseProduct
from resnet_jax.ops.conv import conv2d


class Conv(nn.Module):
    """2-D convolution of NHWC images with a square kernel, padded as PyTorch pads.

    The padding is dilation · (kernel_size - 1) / 2 on each side. It is explicit because "SAME" pads
    differently when the stride is 2 and the size even.

    Attributes:
        features: output channels.
        kernel_size: height and width of the kernel.
        stride, dilation: along height and width.
        groups: number of groups into which the channels are split.
        use_bias: add a bias, which begins at `initial_bias`.
        gain: factor of the initial kernel.
        weight_standardized: bring the kernel of each output channel to mean 0 and variance 1 before
            use (Qiao et al. 2019, 1903.10520), as in BiT: biased variance, 1e-10 added to it.
        dtype, param_dtype: of the result and of the parameters.
    """

    features: int
    kernel_size: int
    stride: int = 1
    groups: int = 1
    dilation: int = 1
    use_bias: bool = False
    initial_bias: float = 0.0
    gain: float = 1.0
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
        elif self.has_variable("params", "folded_bias"):  # of a normalisation (folding.py)
            bias = self.get_variable("params", "folded_bias")
            y = (y.astype(bias.dtype) + bias).astype(y.dtype)
        return y

    def before_norm(self, x: Float[Array, "n h w c"]) -> Maps:
        """Return the convolution of `x` as batch normalisation in training takes it.

        A 1×1 convolution to at least twice the channels is left to the normalisation, which can do
        without the product in memory (`resnet_jax.ops.batch_norm`).
        """
        pointwise = self.kernel_size == self.groups == 1 and not self.use_bias
        is_expansion = pointwise and self.features >= 2 * x.shape[-1]
        return self.as_product(x) if is_expansion else self(x)

    @nn.compact
    def as_product(self, x: Float[Array, "n h w c"]) -> PointwiseProduct:
        """Return the operands of a 1×1 convolution without a bias, of type `dtype`."""
        kernel = self.kernel(x.shape[-1])[0, 0]
        return PointwiseProduct(x.astype(self.dtype), kernel.astype(self.dtype), self.stride)

    def kernel(self, channels: int) -> Float[Array, "k k c f"]:
        """The kernel for images of so many channels as it is used, float32 or wider."""

        def init(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> Array:
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
        """The convolution without the bias."""
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
    """A 7×7 convolution of stride 2, computed on 2×2 blocks of pixels: equal to `Conv`.

    With three input channels most of a TPU's matrix unit is idle; with the four pixels of a block
    as twelve channels, less of it (MLPerf's ResNet-50). The parameters are those of `Conv`: the
    kernel gets a row and a column of zeros in front and is folded in the same way as the image.
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
    """Fully connected layer; its logits are float32, because bfloat16 logits spoil the loss.

    Attributes:
        num_classes: number of logits.
        zero_init: the kernel begins at 0.
        dtype, param_dtype: of the operands of the product and of the parameters.
        std: standard deviation of the initial kernel.
    """

    num_classes: int
    zero_init: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    std: float = CLASSIFIER_STD

    @nn.compact
    def __call__(self, x: Float[Array, "n c"]) -> Float[Array, "n k"]:
        """Return float32 logits."""
        shape = (x.shape[-1], self.num_classes)
        init = nn.initializers.zeros if self.zero_init else gaussian(self.std)
        kernel = self.param("kernel", init, shape, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.num_classes,), self.param_dtype)
        product = jnp.matmul(
            x.astype(self.dtype), kernel.astype(self.dtype), preferred_element_type=jnp.float32
        )
        return product + bias.astype(jnp.float32)


class SqueezeExcite(nn.Module):
    """Multiply each channel by a gate that sees all channels (Hu et al. 2017, 1709.01507, eq. 2-4).

    Attributes:
        ratio: hidden units per channel; the paper's r = 16 is a ratio of 1/16.
        dtype, param_dtype: of the hidden layer and of the parameters.
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
