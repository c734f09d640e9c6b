"""The one 2-D convolution of the package, with a backward pass that suits each platform.

TPUs and GPUs run XLA's own convolutions, forward and backward. On CPU, XLA's convolutions are fast
only in their plain form: NHWC images, HWIO kernel, a kernel no larger than the image, one group.
The weight gradient that XLA derives isn't of that form; inside a `while` loop it misses the fast
path and takes some 60 times longer, which rules out scanned training steps. The rules below write
every gradient either as a plain convolution or as matrix products. The choice is made when a
program is lowered, so lowering for a TPU on a CPU host gives what the TPU should run.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

Pair = tuple[int, int]
Padding = tuple[Pair, Pair]


class _Window(NamedTuple):
    """The static part of a convolution."""

    strides: Pair
    padding: Padding
    groups: int


def conv2d(
    x: Array,
    kernel: Array,
    *,
    strides: Pair = (1, 1),
    padding: Padding,
    feature_group_count: int = 1,
) -> Array:
    """Convolve images with a kernel (a cross-correlation, as everywhere in deep learning).

    Differentiable in reverse mode any number of times, and in forward mode over that
    (`jax.jvp` of `jax.grad`); `jax.jvp` of the convolution itself isn't defined.

    Args:
        x: images [n, h, w, ci], float32 or bfloat16.
        kernel: weights [kh, kw, ci / feature_group_count, co], of the dtype of `x`.
        strides: steps along h and w.
        padding: zeros added ((above, below), (left, right)).
        feature_group_count: number of groups into which ci and co are split.

    Returns:
        Features [n, ho, wo, co] of the dtype of `x`.
    """
    return _conv(x, kernel, _Window(strides, padding, feature_group_count))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv(x: Array, kernel: Array, window: _Window) -> Array:
    xla = partial(_xla_conv, window=window)
    if not _prefers_products(x.shape, kernel.shape, window):
        return xla(x, kernel)
    return lax.platform_dependent(
        x, kernel, cpu=partial(_product_conv, window=window), default=xla
    )


def _conv_fwd(x: Array, kernel: Array, window: _Window) -> tuple[Array, tuple[Array, Array]]:
    return _conv(x, kernel, window), (x, kernel)


def _conv_bwd(
    window: _Window, operands: tuple[Array, Array], grad: Array
) -> tuple[Array, Array]:
    def transposed(conv, x: Array, kernel: Array, grad: Array) -> tuple[Array, Array]:
        return jax.vjp(partial(conv, window=window), x, kernel)[1](grad)

    def plain(x: Array, kernel: Array, grad: Array) -> tuple[Array, Array]:
        return (
            _input_gradient(kernel, grad, x.shape, window),
            _kernel_gradient(x, grad, kernel.shape, window).astype(kernel.dtype),
        )

    x, kernel = operands
    products = _prefers_products(x.shape, kernel.shape, window)
    cpu = partial(transposed, _product_conv) if products else plain
    return lax.platform_dependent(
        x, kernel, grad, cpu=cpu, default=partial(transposed, _xla_conv)
    )


_conv.defvjp(_conv_fwd, _conv_bwd)


def _xla_conv(x: Array, kernel: Array, window: _Window, dilation: Pair = (1, 1), **kwargs) -> Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        window.strides,
        window.padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=window.groups,
        **kwargs,
    )


def _prefers_products(x_shape, kernel_shape, window: _Window) -> bool:
    kernel_size = kernel_shape[0] * kernel_shape[1]
    return kernel_size == 1 or kernel_size > x_shape[1] * x_shape[2] or window.groups > 1


def _product_conv(x: Array, kernel: Array, window: _Window) -> Array:
    (sh, sw), padding, groups = window
    kh, kw, ci, co = kernel.shape
    n = x.shape[0]
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    ho, wo = (x.shape[1] - kh) // sh + 1, (x.shape[2] - kw) // sw + 1
    taps = [
        x[:, i : i + (ho - 1) * sh + 1 : sh, j : j + (wo - 1) * sw + 1 : sw]
        for i in range(kh)
        for j in range(kw)
    ]
    if MODE == "sum":
        y = sum(
            jnp.einsum("nhwgi,igo->nhwgo", t.reshape(n, ho, wo, groups, ci), k.reshape(ci, groups, co // groups), preferred_element_type=jnp.float32)
            for t, k in zip(taps, kernel.reshape(-1, ci, co), strict=True)
        )
    else:
        patches = jnp.concatenate([t.reshape(n, ho, wo, groups, ci) for t in taps], -1)
        y = jnp.einsum("nhwgi,igo->nhwgo", patches, kernel.reshape(-1, groups, co // groups))
    return y.reshape(n, ho, wo, co).astype(x.dtype)

MODE = "sum"

def _input_gradient(kernel: Array, grad: Array, x_shape, window: _Window) -> Array:
    kh, kw, ci, co = kernel.shape
    sizes = zip(x_shape[1:3], kernel.shape, grad.shape[1:3], window.strides, window.padding)
    pads = tuple((k - 1 - low, size + low - (out - 1) * stride - 1) for size, k, out, stride, (low, _) in sizes)
    return _xla_conv(
        grad,
        kernel[::-1, ::-1].transpose(0, 1, 3, 2),
        _Window((1, 1), pads, 1),
        lhs_dilation=window.strides,
    )


def _kernel_gradient(x: Array, grad: Array, kernel_shape, window: _Window) -> Array:
    n, ho, wo, _ = grad.shape
    blocks = 4 if n % 64 == 0 and n * ho * wo >= 8192 else 1
    sizes = zip(x.shape[1:3], kernel_shape, grad.shape[1:3], window.strides, window.padding)
    pads = tuple((low, (out - 1) * stride + k - size - low) for size, k, out, stride, (low, _) in sizes)
    xs = x.reshape(n // blocks, blocks, *x.shape[1:])
    grads = grad.reshape(n // blocks, blocks, *grad.shape[1:])
    total = sum(
        _xla_conv(
            xs[:, i].transpose(3, 1, 2, 0),
            grads[:, i].transpose(1, 2, 0, 3),
            _Window((1, 1), pads, 1),
            rhs_dilation=window.strides,
            preferred_element_type=jnp.float32,
        )
        for i in range(blocks)
    )
    return total.transpose(1, 2, 0, 3)
