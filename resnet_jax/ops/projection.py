"""A 1×1 convolution fused with its batch normalisation, without the product in memory.

The moments of z = x·W follow from the moments of x: mean(z) = mean(x)·W and cov(z) = Wᵀ·cov(x)·W.
Where W expands x, as the last convolution of a bottleneck does by four, cov(x) takes a quarter of
the operations of the product, and z need not be written and read again: normalisation, sum and
activation follow while z is computed. The backward pass doesn't need z either, only x and the
gradient, since Σ z·dy = diag(Wᵀ · Σ x·dy), which is a factor of the kernel's gradient anyway.
Memory traffic bounds the training of a residual network, and these are its largest maps.
"""

import math
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from resnet_jax.ops.derivatives import differentiable
from resnet_jax.ops.projection_moments import (
    EXACT,
    Moments,
    gradients,
    product_moments,
    scale_factor,
)


def project_and_normalise(
    x: Float[Array, "n h w a"],
    kernel: Float[Array, "a b"],
    scale: Float[Array, " b"],
    bias: Float[Array, " b"],
    groups: int,
    epsilon: float,
    dtype: Any,
) -> tuple[Float[Array, "n h w b"], Float[Array, "g b"], Float[Array, "g b"]]:
    """Multiply maps by a kernel of their dtype and normalise groups of neighbouring maps.

    Args:
        x: maps.
        kernel: weights.
        scale, bias: of the normalised result.
        groups: number of groups, a divisor of n.
        epsilon: added to variances.
        dtype: of the result.

    Returns:
        The result; means and biased variances of the product in each group, float32.
    """
    return _differentiable(x, kernel, scale, bias, groups, epsilon, dtype)


_Kept = tuple[Array, Array, Array, Array, Moments]


def _project_fwd(
    x: Array, kernel: Array, scale: Array, bias: Array, groups: int, epsilon: float, dtype: Any
) -> tuple[tuple[Array, Array, Array], _Kept]:
    w, grouped = kernel.astype(jnp.float32), _grouped(x, groups)
    center = grouped.astype(jnp.float32).mean(axis=(1, 2, 3))
    second = _sums("gnhwa,gnhwb->gab", grouped, grouped, precision=EXACT)
    moments = product_moments(center, second / math.prod(grouped.shape[1:4]), w)
    mean, var = moments.mean, moments.var
    factor = scale_factor(var, scale, epsilon)
    # By maps, not by groups: XLA fuses operations on arrays of one shape.
    z = _sums("nhwa,ab->nhwb", x, kernel)
    y = z * _by_map(factor, x) + _by_map(bias.astype(jnp.float32) - mean * factor, x)
    return (y.astype(dtype), mean, var), (x, kernel, scale, bias, moments)


def _project_bwd(
    groups: int,
    epsilon: float,
    _: Any,
    kept: _Kept,
    grads: tuple[Array, Array, Array],
) -> tuple[Array, Array, Array, Array]:
    """The gradients of `x`, `kernel`, `scale` and `bias`."""
    x, kernel, scale, bias, moments = kept
    dy, dmean, dvar = grads
    w, grouped, dy_grouped = kernel.astype(jnp.float32), _grouped(x, groups), _grouped(dy, groups)
    found = gradients(
        moments,
        w,
        scale,
        epsilon,
        size=math.prod(grouped.shape[1:4]),
        sums=_sums("gnhwa,gnhwb->gab", grouped, dy_grouped),
        sum_dy=dy_grouped.astype(jnp.float32).sum(axis=(1, 2, 3)),
        dmean=dmean,
        dvar=dvar,
    )
    of_moments = _sums("gnhwa,gab->gnhwb", grouped, found.slope.astype(x.dtype))
    of_moments = of_moments.reshape(x.shape) + _by_map(found.offset, x)
    of_z = _sums("nhwb,ab->nhwa", (dy * _by_map(found.factor, x)).astype(x.dtype), kernel)
    return (
        (of_z + of_moments.astype(x.dtype)).astype(x.dtype),
        found.kernel.astype(kernel.dtype),
        found.scale.astype(scale.dtype),
        found.bias.astype(bias.dtype),
    )


def _project(*args: Any) -> tuple[Array, Array, Array]:
    return _project_fwd(*args)[0]


_differentiable = differentiable(_project, _project_fwd, _project_bwd, static=3)


def _sums(indices: str, a: Array, b: Array, **options: Any) -> Array:
    return jnp.einsum(indices, a, b, preferred_element_type=jnp.float32, **options)


def _grouped(x: Array, groups: int) -> Array:
    """[n, h, w, c] → [groups, n / groups, h, w, c]."""
    return x.reshape(groups, -1, *x.shape[1:])


def _by_map(moments: Array, x: Array) -> Array:
    """[groups, c] → [n, 1, 1, c], or [1, 1, 1, c] of a single group."""
    repeats = 1 if len(moments) == 1 else len(x) // len(moments)
    return jnp.repeat(moments, repeats, axis=0)[:, None, None]
