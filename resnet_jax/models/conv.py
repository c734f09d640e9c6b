"""The one 2-D convolution of the package, with a backward pass that suits each platform.

TPUs and GPUs run XLA's own convolutions, forward and backward. On CPU, XLA's convolutions are fast
only in their plain form: NHWC images, HWIO kernel, a kernel no larger than the image, one group.
The weight gradient that XLA derives isn't of that form; inside a `while` loop it misses the fast
path and takes some 60 times longer, which rules out scanned training steps. The rules below write
every gradient either as a plain convolution or as matrix products; where oneDNN's convolutions were
compiled (`resnet_jax.native`), a single CPU device runs those. The choice is made when a program is
lowered, so lowering for a TPU on a CPU host gives what the TPU should run.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from resnet_jax.native import conv as native

Pair = tuple[int, int]
Padding = tuple[Pair, Pair]


class _Window(NamedTuple):
    """The static part of a convolution."""

    strides: Pair
    padding: Padding
    groups: int = 1
    dilation: Pair = (1, 1)

    def geometry(self) -> dict[str, Any]:
        """All but the groups."""
        return {"strides": self.strides, "padding": self.padding, "dilation": self.dilation}


def conv2d(
    x: Array,
    kernel: Array,
    *,
    strides: Pair = (1, 1),
    padding: Padding,
    feature_group_count: int = 1,
    dilation: Pair = (1, 1),
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
        dilation: distance between the taps of the kernel along h and w.

    Returns:
        Features [n, ho, wo, co] of the dtype of `x`.
    """
    return _conv(x, kernel, _Window(strides, padding, feature_group_count, dilation))


def _forward(x: Array, kernel: Array, window: _Window) -> Array:
    xla = partial(_xla_conv, window=window)
    if native.serves(x, kernel, groups=window.groups):
        cpu = partial(_native_forward, window)
    elif window.groups > 1 or not _prefers_products(x, kernel):
        return xla(x, kernel)
    else:
        cpu = partial(_product_conv, window=window)
    return lax.platform_dependent(x, kernel, cpu=cpu, default=xla)


# Jitted only so that a network of a thousand layers traces each kind of convolution once.
_differentiable = jax.custom_vjp(_forward, nondiff_argnums=(2,))
_conv = jax.jit(_differentiable, static_argnums=2, inline=True)


def _conv_fwd(x: Array, kernel: Array, window: _Window) -> tuple[Array, tuple[Array, Array]]:
    # Not `_conv`, which could not be differentiated in forward mode over reverse.
    return _forward(x, kernel, window), (x, kernel)


def _conv_bwd(window: _Window, operands: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    """Return the gradients of `x` and of `kernel`, given that of the output [n, ho, wo, co]."""
    x, kernel = operands
    cpu: Callable[..., tuple[Array, Array]]
    if native.serves(x, kernel, groups=window.groups):
        cpu = partial(_native_gradients, window=window)
    elif window.groups > 1 or _prefers_products(x, kernel):
        cpu = _transposed(_product_conv, window)
    else:
        cpu = partial(_plain_gradients, window=window)
    return lax.platform_dependent(x, kernel, grad, cpu=cpu, default=_transposed(_xla_conv, window))


_differentiable.defvjp(_conv_fwd, _conv_bwd)


def _transposed(conv: Callable[..., Array], window: _Window) -> Callable[..., tuple[Array, Array]]:
    """Return the backward pass that JAX derives from a formulation of the convolution."""

    def gradients(x: Array, kernel: Array, grad: Array) -> tuple[Array, Array]:
        return jax.vjp(partial(conv, window=window), x, kernel)[1](grad)

    return gradients


def _with_derivatives_of(plain: Callable[..., Array]) -> Callable[..., Any]:
    """Let a call that JAX can't differentiate have the derivatives of an equal function.

    Both take what is static first, then two arrays.
    """

    def decorate(call: Callable[..., Array]) -> Callable[..., Array]:
        derived = jax.custom_jvp(call, nondiff_argnums=(0,))

        def rule(static: Any, operands: Any, tangents: Any) -> tuple[Array, Array]:
            return call(static, *operands), jax.jvp(partial(plain, static), operands, tangents)[1]

        derived.defjvp(rule)
        return derived

    return decorate


@_with_derivatives_of(lambda window, x, kernel: _xla_conv(x, kernel, window))
def _native_forward(window: _Window, x: Array, kernel: Array) -> Array:
    return native.forward(x, kernel, **window.geometry())


def _native_gradients(
    x: Array, kernel: Array, grad: Array, *, window: _Window
) -> tuple[Array, Array]:
    return (
        _native_input_gradient((window, x.shape), kernel, grad),
        _native_kernel_gradient((window, kernel.shape), x, grad),
    )


@_with_derivatives_of(
    lambda static, kernel, grad: _input_gradient(
        jnp.zeros(static[1], grad.dtype), kernel, grad, static[0]
    )
)
def _native_input_gradient(static: tuple[_Window, Any], kernel: Array, grad: Array) -> Array:
    window, shape = static
    return native.input_gradient(kernel, grad, shape, **window.geometry())


@_with_derivatives_of(
    lambda static, x, grad: _kernel_gradient(x, jnp.zeros(static[1], x.dtype), grad, static[0])
)
def _native_kernel_gradient(static: tuple[_Window, Any], x: Array, grad: Array) -> Array:
    window, shape = static
    return native.kernel_gradient(x, grad, shape, **window.geometry())


def _xla_conv(x: Array, kernel: Array, window: _Window, **options: Any) -> Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        window.strides,
        window.padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=window.groups,
        rhs_dilation=window.dilation,
        **options,
    )


def _prefers_products(x: Array, kernel: Array) -> bool:
    """Say whether matrix products beat XLA:CPU's plain convolution.

    They do for 1×1 kernels, and for maps smaller than the kernel (3×3 on 2×2), where XLA swaps the
    roles of image and kernel and so leaves its fast path.
    """
    kernel_size = kernel.shape[0] * kernel.shape[1]
    return kernel_size == 1 or kernel_size > x.shape[1] * x.shape[2]


def _product_conv(x: Array, kernel: Array, window: _Window) -> Array:
    """Convolve by one matrix product per group: patches [n, ho, wo, kh·kw·ci] times kernel.

    The patches of a 1×1 kernel are the image itself; for other kernels they take kh·kw times its
    memory, which only small maps and groups (where XLA:CPU's own gradient is 50 to 200 times
    slower) are worth. Every gradient of this is again a matrix product. bfloat16 is
    widened to float32, so that the gradients, sums over taps and images, are rounded once.
    """
    (sh, sw), padding, groups, (dh, dw) = window
    kh, kw, ci, co = kernel.shape
    if groups > 1:
        per_group = partial(_product_conv, window=window._replace(groups=1))
        y = jax.vmap(per_group, in_axes=3, out_axes=3)(
            x.reshape(*x.shape[:3], groups, ci), kernel.reshape(kh, kw, ci, groups, co // groups)
        )
        return y.reshape(*y.shape[:3], co)
    dtype, wide = x.dtype, jnp.promote_types(x.dtype, jnp.float32)
    x, kernel = x.astype(wide), kernel.astype(wide)
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    ho = (x.shape[1] - (kh - 1) * dh - 1) // sh + 1
    wo = (x.shape[2] - (kw - 1) * dw - 1) // sw + 1
    shifted = [
        x[:, i : i + (ho - 1) * sh + 1 : sh, j : j + (wo - 1) * sw + 1 : sw]
        for i in range(0, kh * dh, dh)
        for j in range(0, kw * dw, dw)
    ]
    y = jnp.concatenate(shifted, axis=-1) @ kernel.reshape(kh * kw * ci, co)
    return y.astype(dtype)


def _plain_gradients(
    x: Array, kernel: Array, grad: Array, *, window: _Window
) -> tuple[Array, Array]:
    return _input_gradient(x, kernel, grad, window), _kernel_gradient(x, kernel, grad, window)


def _input_gradient(x: Array, kernel: Array, grad: Array, window: _Window) -> Array:
    """Convolve the output gradient, spread out by the strides, with the flipped kernel."""

    def pad(axis: int) -> Pair:
        reach = (kernel.shape[axis] - 1) * window.dilation[axis]
        low = reach - window.padding[axis][0]
        spread = (grad.shape[1 + axis] - 1) * window.strides[axis] + 1
        return low, x.shape[1 + axis] + reach - spread - low

    flipped = kernel[::-1, ::-1].swapaxes(2, 3)  # [kh, kw, co, ci]
    plain = _Window((1, 1), (pad(0), pad(1)), dilation=window.dilation)
    return _xla_conv(grad, flipped, plain, lhs_dilation=window.strides)


def _kernel_gradient(x: Array, kernel: Array, grad: Array, window: _Window) -> Array:
    """Correlate the image with the output gradient: one convolution in which they swap roles.

    The gradient at [i, j, a, b] is Σ x[n, i·d + p·s, j·d + q·s, a] · grad[n, p, q, b] over n, p, q.
    So ci plays the batch, the batch the channels, the output gradient a kernel whose taps lie the
    strides apart, and the dilation the stride. With the operands transposed explicitly that is a
    plain convolution.

    Large batches are summed in four blocks, so that what was transposed is still in the cache when
    it is used. The blocks are unrolled and strided over the batch: on a sharded batch each device
    transposes its own images, and the sums meet in a single all-reduce, in float32 also for
    bfloat16 operands.
    """

    def pad(axis: int) -> Pair:
        low = window.padding[axis][0]
        reach = (grad.shape[1 + axis] - 1) * window.strides[axis]
        reach += (kernel.shape[axis] - 1) * window.dilation[axis] + 1
        return low, reach - x.shape[1 + axis] - low

    transposed = _Window(window.dilation, (pad(0), pad(1)), dilation=window.strides)
    n, ho, wo, _ = grad.shape
    blocks = 4 if n % 64 == 0 and n * ho * wo >= 8192 else 1
    xs = x.reshape(n // blocks, blocks, *x.shape[1:])
    grads = grad.reshape(n // blocks, blocks, *grad.shape[1:])
    sums = [
        _xla_conv(
            xs[:, i].transpose(3, 1, 2, 0),  # [ci, h, w, n]
            grads[:, i].transpose(1, 2, 0, 3),  # [ho, wo, n, co]
            transposed,
            preferred_element_type=jnp.promote_types(x.dtype, jnp.float32),
        )
        for i in range(blocks)
    ]  # each [ci, kh, kw, co]
    return sum(sums[1:], sums[0]).transpose(1, 2, 0, 3).astype(kernel.dtype)
