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

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from resnet_jax.ops.derivatives import differentiable

# For products that give statistics; by default, TPUs round the operands to bfloat16.
_EXACT = jax.lax.Precision.HIGHEST


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


def _project_fwd(
    x: Array, kernel: Array, scale: Array, bias: Array, groups: int, epsilon: float, dtype: Any
) -> tuple[tuple[Array, Array, Array], tuple[Array, ...]]:
    w, grouped = kernel.astype(jnp.float32), _grouped(x, groups)
    center = grouped.astype(jnp.float32).mean(axis=(1, 2, 3))
    second = _sums("gnhwa,gnhwb->gab", grouped, grouped, precision=_EXACT)
    covariance = second / math.prod(grouped.shape[1:4]) - center[:, :, None] * center[:, None]
    mean = jnp.matmul(center, w, precision=_EXACT)
    var = (w * jnp.matmul(covariance, w, precision=_EXACT)).sum(axis=1)
    var = jnp.maximum(var, 0.0)
    factor = scale.astype(jnp.float32) * jax.lax.rsqrt(var + epsilon)
    # By maps, not by groups: XLA fuses operations on arrays of one shape.
    z = _sums("nhwa,ab->nhwb", x, kernel)
    y = z * _by_map(factor, x) + _by_map(bias.astype(jnp.float32) - mean * factor, x)
    return (y.astype(dtype), mean, var), (x, kernel, scale, bias, center, covariance, mean, var)


def _project_bwd(
    groups: int,
    epsilon: float,
    _: Any,
    kept: tuple[Array, ...],
    grads: tuple[Array, Array, Array],
) -> tuple[Array, Array, Array, Array]:
    """The gradients of `x`, `kernel`, `scale` and `bias`."""
    x, kernel, scale, bias, center, covariance, mean, var = kept
    dy, dmean, dvar = grads
    w, grouped, dy_grouped = kernel.astype(jnp.float32), _grouped(x, groups), _grouped(dy, groups)
    size = math.prod(grouped.shape[1:4])
    inverse = jax.lax.rsqrt(var + epsilon)
    factor = inverse * scale.astype(jnp.float32)
    sum_dy = dy_grouped.astype(jnp.float32).sum(axis=(1, 2, 3))
    sums = _sums("gnhwa,gnhwb->gab", grouped, dy_grouped)
    sum_product = (sums * w).sum(axis=1) - mean * sum_dy  # Σ dy · (z − mean)

    # y depends on z and on the moments of z, which depend on the moments of x.
    dvar = dvar - factor * jnp.square(inverse) * sum_product / 2
    dmean = dmean - factor * sum_dy
    dw = sums * factor[:, None] + center[:, :, None] * dmean[:, None]
    dw += 2 * jnp.matmul(covariance, w, precision=_EXACT) * dvar[:, None]
    slope = jnp.matmul(w * dvar[:, None] * (2 / size), w.T, precision=_EXACT)  # [g, a, a]
    offset = jnp.matmul(dmean / size, w.T, precision=_EXACT)
    offset -= jnp.einsum("ga,gab->gb", center, slope, precision=_EXACT)
    of_moments = _sums("gnhwa,gab->gnhwb", grouped, slope.astype(x.dtype))
    of_moments = of_moments.reshape(x.shape) + _by_map(offset, x)
    of_z = _sums("nhwb,ab->nhwa", (dy * _by_map(factor, x)).astype(x.dtype), kernel)
    return (
        (of_z + of_moments.astype(x.dtype)).astype(x.dtype),
        dw.sum(axis=0).astype(kernel.dtype),
        (sum_product * inverse).sum(axis=0).astype(scale.dtype),
        sum_dy.sum(axis=0).astype(bias.dtype),
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
