"""A 1×1 convolution and its batch normalisation in the form of which a GPU moves the fewest bytes.

The statistics of z = x·W come from the moments of x, as in projection.py. They are known before z
is, so the normalised convolution is a convolution with other weights and a bias: y = x·(W·f) + c
with f = scale / √(var + epsilon) and c = bias - mean·f. cuDNN adds the bias, a shortcut and the
ReLU while it writes y, and neither z nor the normalised z is written. The backward pass needs no z
either. Weights and bias are rounded to the type of `x`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from resnet_jax.ops.conv import conv2d
from resnet_jax.ops.derivatives import differentiable

# Of the products that statistics come from; by default, GPUs round their operands to TF32.
_EXACT = jax.lax.Precision.HIGHEST


def convolve_normalised(
    x: Float[Array, "n h w a"],
    kernel: Float[Array, "a b"],
    scale: Float[Array, " b"],
    bias: Float[Array, " b"],
    epsilon: float,
) -> tuple[Float[Array, "n h w b"], Float[Array, "1 b"], Float[Array, "1 b"]]:
    """Maps times a kernel of their type, normalised over the batch.

    Args:
        x: maps.
        kernel: weights.
        scale, bias: of the normalised result.
        epsilon: added to variances.

    Returns:
        The result, of the type of `x`; means and biased variances of the product, float32 or
        wider.
    """
    return _differentiable(x, kernel, scale, bias, epsilon)


def _pointwise(x: Array, kernel: Array) -> Array:
    return conv2d(x, kernel.astype(x.dtype)[None, None], padding=((0, 0), (0, 0)))


def _sums(x: Array, y: Array, precision: Any = None) -> Array:
    """Σ x·y over all pixels, [channels of x, channels of y], of sums in float32 or wider."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return jnp.einsum("nhwa,nhwb->ab", x, y, precision=precision, preferred_element_type=wide)


def _forward_and_kept(
    x: Array, kernel: Array, scale: Array, bias: Array, epsilon: float
) -> tuple[tuple[Array, Array, Array], tuple[Array, ...]]:
    wide = jnp.promote_types(x.dtype, jnp.float32)
    w, size = kernel.astype(wide), x.size // x.shape[-1]
    center = x.astype(wide).mean(axis=(0, 1, 2))
    # Products of bfloat16 are exact in float32 anyway.
    precision = None if x.dtype == jnp.bfloat16 else _EXACT
    covariance = _sums(x, x, precision) / size - center[:, None] * center
    mean = jnp.matmul(center, w, precision=_EXACT)
    var = (w * jnp.matmul(covariance, w, precision=_EXACT)).sum(axis=0)
    var = jnp.maximum(var, 0.0)
    factor = scale.astype(wide) * jax.lax.rsqrt(var + epsilon)
    y = _pointwise(x, w * factor) + (bias.astype(wide) - mean * factor).astype(x.dtype)
    kept = (x, kernel, scale, bias, center, covariance, mean, var)
    return (y, mean[None], var[None]), kept


def _backward(
    epsilon: float, kept: tuple[Array, ...], grads: tuple[Array, Array, Array]
) -> tuple[Array, Array, Array, Array]:
    """The gradients of `x`, `kernel`, `scale` and `bias`."""
    x, kernel, scale, bias, center, covariance, mean, var = kept
    dy, dmean, dvar = grads[0], grads[1][0], grads[2][0]
    wide = jnp.promote_types(x.dtype, jnp.float32)
    w, size = kernel.astype(wide), x.size // x.shape[-1]
    inverse = jax.lax.rsqrt(var + epsilon)
    factor = inverse * scale.astype(wide)
    sum_dy = dy.astype(wide).sum(axis=(0, 1, 2))
    sums = _sums(x, dy)
    sum_product = (sums * w).sum(axis=0) - mean * sum_dy  # Σ dy · (z - mean)

    # y depends on z itself and on its moments, and these depend on the moments of x.
    dvar = dvar - factor * jnp.square(inverse) * sum_product / 2
    dmean = dmean - factor * sum_dy
    dw = sums * factor + center[:, None] * dmean
    dw += 2 * jnp.matmul(covariance, w, precision=_EXACT) * dvar
    slope = jnp.matmul(w * dvar * (2 / size), w.T, precision=_EXACT)  # [a, a]
    offset = jnp.matmul(dmean / size, w.T, precision=_EXACT)
    offset -= jnp.matmul(center, slope, precision=_EXACT)
    dx = _pointwise(x, slope) + offset.astype(x.dtype) + _pointwise(dy, (w * factor).T)
    return (
        dx,
        dw.astype(kernel.dtype),
        (sum_product * inverse).astype(scale.dtype),
        sum_dy.astype(bias.dtype),
    )


def _forward(*args: Any) -> tuple[Array, Array, Array]:
    return _forward_and_kept(*args)[0]


_differentiable = differentiable(_forward, _forward_and_kept, _backward, static=1)
