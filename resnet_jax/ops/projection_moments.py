"""Moments of a product z = x·W from those of x, and what they add to the backward pass.

mean(z) = mean(x)·W and cov(z) = Wᵀ·cov(x)·W, and Σ z·dy = diag(Wᵀ · Σ x·dy): neither direction
needs z. projection.py and projection_gpu.py compute the sums over maps, each for its platform. All
arrays here are float32 or wider: g groups, a channels of x, b channels of z.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

EXACT = jax.lax.Precision.HIGHEST
"""For products that give statistics; by default TPUs round operands to bfloat16, GPUs to TF32."""


class Moments(NamedTuple):
    """Moments in each group.

    Attributes:
        center, covariance: of x, biased.
        mean, var: of z, biased.
    """

    center: Float[Array, "g a"]
    covariance: Float[Array, "g a a"]
    mean: Float[Array, "g b"]
    var: Float[Array, "g b"]


def product_moments(
    center: Float[Array, "g a"], second: Float[Array, "g a a"], w: Float[Array, "a b"]
) -> Moments:
    """The moments of x·W.

    Args:
        center: mean of x.
        second: mean of the products of the channels of x.
        w: W.
    """
    covariance = second - center[:, :, None] * center[:, None]
    mean = jnp.matmul(center, w, precision=EXACT)
    var = (w * jnp.matmul(covariance, w, precision=EXACT)).sum(axis=1)
    return Moments(center, covariance, mean, jnp.maximum(var, 0.0))


def scale_factor(
    var: Float[Array, "g b"], scale: Float[Array, " b"], epsilon: float
) -> Float[Array, "g b"]:
    """What the normalisation multiplies z by: scale / √(var + epsilon)."""
    return scale.astype(var.dtype) * jax.lax.rsqrt(var + epsilon)


class Gradients(NamedTuple):
    """Gradients of the parameters, and the coefficients of that of x.

    The gradient of x is dy·(W·factor)ᵀ + x·slope + offset: z depends on x, and so do the moments.

    Attributes:
        kernel, scale, bias: of the parameters, summed over the groups.
        factor: scale / √(var + epsilon).
        slope, offset: of the part that comes through the moments.
    """

    kernel: Float[Array, "a b"]
    scale: Float[Array, " b"]
    bias: Float[Array, " b"]
    factor: Float[Array, "g b"]
    slope: Float[Array, "g a a"]
    offset: Float[Array, "g a"]


def gradients(
    moments: Moments,
    w: Float[Array, "a b"],
    scale: Float[Array, " b"],
    epsilon: float,
    *,
    size: int,
    sums: Float[Array, "g a b"],
    sum_dy: Float[Array, "g b"],
    dmean: Float[Array, "g b"],
    dvar: Float[Array, "g b"],
) -> Gradients:
    """The backward pass of the normalised product, as far as it needs no maps.

    Args:
        moments: of the forward pass.
        w: W.
        scale, epsilon: of the normalisation.
        size: pixels of a group.
        sums: Σ x·dy over the pixels.
        sum_dy: Σ dy over the pixels.
        dmean, dvar: cotangents of the mean and of the variance of z.
    """
    center, covariance, mean, var = moments
    inverse = jax.lax.rsqrt(var + epsilon)
    factor = inverse * scale.astype(var.dtype)
    sum_product = (sums * w).sum(axis=1) - mean * sum_dy  # Σ dy · (z - mean)
    # y depends on z and on the moments of z, which depend on the moments of x.
    dvar = dvar - factor * jnp.square(inverse) * sum_product / 2
    dmean = dmean - factor * sum_dy
    dw = sums * factor[:, None] + center[:, :, None] * dmean[:, None]
    dw += 2 * jnp.matmul(covariance, w, precision=EXACT) * dvar[:, None]
    slope = jnp.matmul(w * dvar[:, None] * (2 / size), w.T, precision=EXACT)
    offset = jnp.matmul(dmean / size, w.T, precision=EXACT)
    offset -= jnp.einsum("ga,gab->gb", center, slope, precision=EXACT)
    return Gradients(
        kernel=dw.sum(axis=0),
        scale=(sum_product * inverse).sum(axis=0),
        bias=sum_dy.sum(axis=0),
        factor=factor,
        slope=slope,
        offset=offset,
    )
