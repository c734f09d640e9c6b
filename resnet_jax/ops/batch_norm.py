"""Batch normalisation, alone or fused with the operation before or after it.

The maths is that of Ioffe & Szegedy 2015 (1502.03167), section 3. The input is an array, or stands
for an operation that can be fused: a `PointwiseProduct` before the normalisation, or the pooling
after it, `MaxPooled`.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from resnet_jax.ops.conv import conv2d
from resnet_jax.ops.derivatives import differentiable
from resnet_jax.ops.pooling import max_pool
from resnet_jax.ops.projection import project_and_normalise
from resnet_jax.ops.projection_gpu import convolve_normalised


class PointwiseProduct(NamedTuple):
    """A 1×1 convolution that is still to be computed.

    TPUs and GPUs compute it together with its normalisation (projection.py, projection_gpu.py),
    CPUs before it.
    """

    x: Float[Array, "n h w a"]
    kernel: Float[Array, "a b"]  # of the dtype of `x`
    stride: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the product."""
        n, h, w, _ = self.x.shape
        return (n, -(-h // self.stride), -(-w // self.stride), self.kernel.shape[-1])

    @property
    def pixels(self) -> Float[Array, "n h2 w2 a"]:
        """The pixels of `x` that the kernel sees."""
        return self.x[:, :: self.stride, :: self.stride]


class MaxPooled(NamedTuple):
    """Maps of which `max_pool` is still to be taken.

    Statistics are those of the maps, and the normalised maps are pooled. The pooling is computed
    first, so that the normalised maps, four times as large, are neither written nor read.
    """

    x: Float[Array, "n h w c"]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the maps."""
        return self.x.shape


Maps = Array | PointwiseProduct | MaxPooled
"""Inputs of `batch_normalise`."""


def maps_of(x: Maps) -> Float[Array, "n h w c"]:
    """The maps whose statistics normalise `x`."""
    if isinstance(x, PointwiseProduct):
        strides = (x.stride, x.stride)
        return conv2d(x.x, x.kernel[None, None], strides=strides, padding=((0, 0), (0, 0)))
    return x.x if isinstance(x, MaxPooled) else x


# Jitted so that a network of a thousand layers traces the function once for each shape.
@functools.partial(jax.jit, static_argnums=(5, 6), inline=True)
def normalise(
    x: Array, mean: Array, var: Array, scale: Array, bias: Array, epsilon: float, dtype: Any
) -> Array:
    """(x - mean) / √(var + epsilon) · scale + bias, computed in float32, of type `dtype`."""
    factor = jax.lax.rsqrt(var + epsilon) * scale.astype(jnp.float32)
    # Not (x - mean) · factor: where the backward pass needs x - mean, too, XLA would store it.
    y = x.astype(jnp.float32) * factor + (bias.astype(jnp.float32) - mean * factor)
    return y.astype(dtype)


def batch_normalise(
    x: Maps,
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    *,
    groups: int,
    epsilon: float,
    dtype: Any,
) -> tuple[Float[Array, "n h2 w2 c"], Float[Array, "g c"], Float[Array, "g c"]]:
    """Normalise maps by the statistics of each group of neighbouring images.

    Args:
        x: maps, float32 or bfloat16.
        scale, bias: of the normalised maps.
        groups: number of groups, a divisor of n.
        epsilon: added to variances.
        dtype: of the result.

    Returns:
        The normalised maps; means and biased variances of each group, float32.
    """
    inputs = x.x if isinstance(x, PointwiseProduct | MaxPooled) else x
    grouped = inputs.reshape(groups, inputs.shape[0] // groups, *inputs.shape[1:])
    if isinstance(x, PointwiseProduct):
        y, mean, var = _normalise_product(x, scale, bias, groups, epsilon, dtype)
    elif isinstance(x, MaxPooled):
        y, mean, var = _normalise_pooled(grouped, scale, bias, epsilon, dtype)
    else:
        y, mean, var = _normalise_groups(grouped, None, scale, bias, epsilon, dtype)
    return y.reshape(inputs.shape[0], *y.shape[-3:]), mean, var


def _by_group(moments: Array) -> Array:
    """[groups, c] → [groups, 1, 1, 1, c]."""
    return moments[:, None, None, None]


def _moments(x: Array) -> tuple[Array, Array]:
    """Means and variances [g, c], float32, of groups [g, n, h, w, c]."""
    x = x.astype(jnp.float32)
    # E[x²] - E[x]² reads the activations once; float32 sums keep it exact enough.
    mean = x.mean(axis=(1, 2, 3))
    return mean, jnp.maximum(jnp.square(x).mean(axis=(1, 2, 3)) - jnp.square(mean), 0.0)


def _forward(
    x: Array, pooled: Array | None, scale: Array, bias: Array, epsilon: float, dtype: Any
) -> tuple[Array, Array, Array]:
    """Normalise groups [g, n, h, w, c], or the pooled groups, by the moments of the groups."""
    mean, var = _moments(x)
    moments = _by_group(mean), _by_group(var)
    values = x if pooled is None else pooled
    return normalise(values, *moments, scale, bias, epsilon, dtype), mean, var


def _forward_and_kept(
    x: Array, pooled: Array | None, scale: Array, bias: Array, epsilon: float, dtype: Any
) -> tuple[tuple[Array, Array, Array], tuple[Array | None, ...]]:
    y, mean, var = _forward(x, pooled, scale, bias, epsilon, dtype)
    return (y, mean, var), (x, pooled, scale, bias, mean, var)


def _backward(
    epsilon: float, _: Any, kept: tuple[Array, ...], grads: tuple[Array, Array, Array]
) -> tuple[Array, Array | None, Array, Array]:
    """The gradients of `x`, `pooled`, `scale` and `bias`."""
    x, pooled, scale, bias, mean, var = kept
    dy, dmean, dvar = grads
    x32, dy = x.astype(jnp.float32), dy.astype(jnp.float32)
    values = x32 if pooled is None else pooled.astype(jnp.float32)
    size = x.size // mean.size
    inverse = jax.lax.rsqrt(var + epsilon)
    factor = inverse * scale.astype(jnp.float32)
    sum_dy = dy.sum(axis=(1, 2, 3))
    # Σ dy · (x - mean), without an array x - mean, which XLA on CPU would write to memory.
    sum_product = (dy * values).sum(axis=(1, 2, 3)) - mean * sum_dy
    slope = (2 * dvar - factor * jnp.square(inverse) * sum_product) / size
    offset = (dmean - factor * sum_dy) / size - mean * slope
    dx, dvalues = x32 * _by_group(slope) + _by_group(offset), dy * _by_group(factor)
    dscale, dbias = (sum_product * inverse).sum(axis=0), sum_dy.sum(axis=0)
    of_parameters = dscale.astype(scale.dtype), dbias.astype(bias.dtype)
    if pooled is None:
        return (dx + dvalues).astype(x.dtype), None, *of_parameters
    return dx.astype(x.dtype), dvalues.astype(pooled.dtype), *of_parameters


# The rule that JAX derives stores both x and x - mean for the backward pass, and sums twice.
_normalise_groups = jax.jit(
    differentiable(_forward, _forward_and_kept, _backward, static=2),
    static_argnums=(4, 5),
    inline=True,
)


def _normalise_pooled(
    x: Array, scale: Array, bias: Array, epsilon: float, dtype: Any
) -> tuple[Array, Array, Array]:
    """Normalise the maximum of groups over windows: the maximum of the normalised groups.

    Normalisation keeps the order of values, or reverses it where the scale is negative.
    """
    sign = jnp.where(scale < 0, -1, 1)
    x = x * sign.astype(x.dtype)
    pooled = max_pool(x.reshape(-1, *x.shape[2:]))
    pooled = pooled.reshape(*x.shape[:2], *pooled.shape[1:])
    y, mean, var = _normalise_groups(x, pooled, scale * sign, bias, epsilon, dtype)
    return y, mean * sign, var


def _normalise_product(
    product: PointwiseProduct,
    scale: Array,
    bias: Array,
    groups: int,
    epsilon: float,
    dtype: Any,
) -> tuple[Array, Array, Array]:
    """Normalise groups of a product, on TPUs and GPUs without writing the product."""
    stride = product.stride
    channels, features = product.kernel.shape

    def plain(x: Array, kernel: Array, scale: Array, bias: Array) -> tuple[Array, Array, Array]:
        z = maps_of(PointwiseProduct(x, kernel, stride))
        grouped = z.reshape(groups, -1, *z.shape[1:])
        y, mean, var = _normalise_groups(grouped, None, scale, bias, epsilon, dtype)
        return y.reshape(z.shape), mean, var

    def tpu(x: Array, kernel: Array, scale: Array, bias: Array) -> tuple[Array, Array, Array]:
        x = PointwiseProduct(x, kernel, stride).pixels
        return project_and_normalise(x, kernel, scale, bias, groups, epsilon, dtype)

    def cuda(x: Array, kernel: Array, scale: Array, bias: Array) -> tuple[Array, Array, Array]:
        x = PointwiseProduct(x, kernel, stride).pixels
        y, mean, var = convolve_normalised(x, kernel, scale, bias, groups, epsilon)
        # Those of float64 are wider, and every platform's form must have results of one type.
        return y, mean.astype(jnp.float32), var.astype(jnp.float32)

    return jax.lax.platform_dependent(
        product.x,
        product.kernel,
        scale,
        bias,
        # To twice the channels, a TPU's form moves more bytes than it saves.
        tpu=tpu if features >= 4 * channels else plain,
        cuda=cuda if product.x.dtype == dtype else plain,
        # On CPU, XLA would write the product to memory all the same.
        default=plain,
    )
