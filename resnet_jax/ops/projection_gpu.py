"""A 1×1 convolution and its batch normalisation in the form of which a GPU moves the fewest bytes.

The statistics of z = x·W come from the moments of x, as in projection.py. They are known before z
is, so the normalised convolution is a convolution with other weights and a bias: y = x·(W·f) + c
with f = scale / √(var + epsilon) and c = bias - mean·f. cuDNN adds the bias, a shortcut and the
ReLU while it writes y, and neither z nor the normalised z is written. The backward pass needs no z
either. Weights and bias are rounded to the type of `x`. With several groups each has weights of its
own: the convolution is a product of batches of matrices, and the sum and the ReLU follow it.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from resnet_jax.ops.conv import conv2d
from resnet_jax.ops.derivatives import differentiable
from resnet_jax.ops.projection_moments import (
    EXACT,
    Moments,
    gradients,
    product_moments,
    scale_factor,
)


def convolve_normalised(
    x: Float[Array, "n h w a"],
    kernel: Float[Array, "a b"],
    scale: Float[Array, " b"],
    bias: Float[Array, " b"],
    groups: int,
    epsilon: float,
) -> tuple[Float[Array, "n h w b"], Float[Array, "g b"], Float[Array, "g b"]]:
    """Maps times a kernel of their type, normalised over groups of neighbouring maps.

    Args:
        x: maps.
        kernel: weights.
        scale, bias: of the normalised result.
        groups: number of groups, a divisor of n.
        epsilon: added to variances.

    Returns:
        The result, of the type of `x`; means and biased variances of the product in each group,
        float32 or wider.
    """
    return _differentiable(x, kernel, scale, bias, groups, epsilon)


def _pointwise(x: Array, kernels: Float[Array, "g a b"]) -> Array:
    """Each group of maps times its kernel, of the type of `x`."""
    kernels = kernels.astype(x.dtype)
    if len(kernels) == 1:
        return conv2d(x, kernels[None], padding=((0, 0), (0, 0)))
    y = jnp.einsum("gka,gab->gkb", x.reshape(len(kernels), -1, x.shape[-1]), kernels)
    return y.reshape(*x.shape[:-1], -1)


def _sums(x: Array, y: Array, groups: int, precision: Any = None) -> Float[Array, "g a b"]:
    """Σ x·y over the pixels of each group, of sums in float32 or wider."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    x, y = (maps.reshape(groups, -1, maps.shape[-1]) for maps in (x, y))
    return jnp.einsum("gka,gkb->gab", x, y, precision=precision, preferred_element_type=wide)


def _total(x: Array, groups: int) -> Float[Array, "g a"]:
    """The sum of the pixels of each group, float32 or wider."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return x.astype(wide).reshape(groups, -1, *x.shape[1:]).sum(axis=(1, 2, 3))


def _by_map(values: Float[Array, "g a"], x: Array) -> Array:
    """[g, a] → [n, 1, 1, a] of the type of `x`, or [a] of a single group."""
    values = values.astype(x.dtype)
    if len(values) == 1:
        return values[0]
    return jnp.repeat(values, len(x) // len(values), axis=0)[:, None, None]


_Kept = tuple[Array, Array, Array, Array, Moments]


def _forward_and_kept(
    x: Array, kernel: Array, scale: Array, bias: Array, groups: int, epsilon: float
) -> tuple[tuple[Array, Array, Array], _Kept]:
    wide = jnp.promote_types(x.dtype, jnp.float32)
    w, size = kernel.astype(wide), x.size // x.shape[-1] // groups
    center = _total(x, groups) / size
    # Products of bfloat16 are exact in float32 anyway.
    precision = None if x.dtype == jnp.bfloat16 else EXACT
    moments = product_moments(center, _sums(x, x, groups, precision) / size, w)
    mean, var = moments.mean, moments.var
    factor = scale_factor(var, scale, epsilon)
    y = _pointwise(x, w * factor[:, None]) + _by_map(bias.astype(wide) - mean * factor, x)
    return (y, mean, var), (x, kernel, scale, bias, moments)


def _backward(
    groups: int, epsilon: float, kept: _Kept, grads: tuple[Array, Array, Array]
) -> tuple[Array, Array, Array, Array]:
    """The gradients of `x`, `kernel`, `scale` and `bias`."""
    x, kernel, scale, bias, moments = kept
    dy, dmean, dvar = grads
    w = kernel.astype(jnp.promote_types(x.dtype, jnp.float32))
    found = gradients(
        moments,
        w,
        scale,
        epsilon,
        size=x.size // x.shape[-1] // groups,
        sums=_sums(x, dy, groups),
        sum_dy=_total(dy, groups),
        dmean=dmean,
        dvar=dvar,
    )
    of_z = _pointwise(dy, (w * found.factor[:, None]).transpose(0, 2, 1))
    dx = _pointwise(x, found.slope) + _by_map(found.offset, x) + of_z
    return (
        dx,
        found.kernel.astype(kernel.dtype),
        found.scale.astype(scale.dtype),
        found.bias.astype(bias.dtype),
    )


def _forward(*args: Any) -> tuple[Array, Array, Array]:
    return _forward_and_kept(*args)[0]


_differentiable = differentiable(_forward, _forward_and_kept, _backward, static=2)
