"""The one 2-D convolution of the package, with formulations that suit each platform.

TPUs and GPUs run XLA's own convolutions, forward and backward. On CPU, XLA's convolutions are fast
only in their plain form: NHWC images, HWIO kernel, a kernel no larger than the image, one group.
The weight gradient that XLA derives isn't of that form; inside a `while` loop it misses the fast
path and takes some 60 times longer, which rules out scanned training steps. There the rules below
write every gradient either as a plain convolution or as matrix products, and 3×3 convolutions as
Winograd's where that is faster; where oneDNN's convolutions were compiled (`resnet_jax.native`), a
single CPU device runs those. The choice is made when a program is lowered, so lowering for a TPU on
a CPU host gives what the TPU should run.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from resnet_jax.models import winograd
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
    elif window.groups > 1:
        return xla(x, kernel)
    else:
        cpu = partial(_conv_on_cpu, window=window)
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
    elif window.groups > 1 or _exceeds(kernel, x):
        cpu = _transposed(_product_conv, window)
    else:
        cpu = partial(_gradients_on_cpu, window=window)
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


def _conv_on_cpu(x: Array, kernel: Array, *, window: _Window) -> Array:
    if kernel.shape[:2] == (1, 1) or _exceeds(kernel, x):
        return _product_conv(x, kernel, window)
    if not _prefers_winograd(x, kernel, window, channels=32):
        return _xla_conv(x, kernel, window)
    wide = jnp.promote_types(x.dtype, jnp.float32)
    kernel = kernel.astype(wide)

    def convolve(images: Array) -> Array:
        y = winograd.convolve(images.astype(wide), kernel, window.padding)
        return y.astype(x.dtype)

    # The tiles take four times the memory of the image.
    at_once = _images_within(_TILES_BYTES, x, 16 * x.shape[1] * x.shape[2] * x.shape[3])
    if at_once == x.shape[0]:
        return convolve(x)
    y = lax.map(convolve, x.reshape(-1, at_once, *x.shape[1:]))
    return y.reshape(-1, *y.shape[2:])


def _exceeds(kernel: Array, x: Array) -> bool:
    """Whether a kernel has more taps than the maps have places, as 3×3 on 2×2.

    XLA then swaps the roles of image and kernel, and so leaves its fast path.
    """
    return kernel.shape[0] * kernel.shape[1] > x.shape[1] * x.shape[2]


def _prefers_winograd(x: Array, kernel: Array, window: _Window, *, channels: int) -> bool:
    """Say whether Winograd's formulation is possible and, with that many channels, faster.

    With fewer channels, sums of neighbours take longer than the products; with fewer tiles than
    channels, the transformed kernel.
    """
    plain = kernel.shape[:2] == (3, 3) and window.strides == window.dilation == (1, 1)
    if not plain or not isinstance(x.shape[0], int):  # an exported program's batch is a symbol
        return False
    tiles = x.shape[0] * x.shape[1] * x.shape[2] // 4
    ci, co = kernel.shape[2:]
    return min(ci, co) >= channels and tiles >= 2 * max(ci, co)


# So much of what is made from an image lies in the caches of a core or two when it is used.
_PATCHES_BYTES, _TILES_BYTES = 2 * 2**20, 64 * 2**20


def _images_within(limit: int, x: Array, bytes_of_one: int) -> int:
    """The largest divisor of the batch so that as many images' intermediates stay below a limit.

    All of them on several devices, between which the batch may be split.
    """
    n = x.shape[0]
    if not isinstance(n, int) or len(jax.devices("cpu")) > 1:
        return n
    return next((m for m in range(n, 1, -1) if n % m == 0 and m * bytes_of_one <= limit), 1)


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


def _gradients_on_cpu(
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
    if window.strides == (1, 1):
        return _conv_on_cpu(grad, flipped, window=plain)
    if kernel.shape[:2] == (1, 1):  # what isn't seen needs no products
        edges = [(pad(axis)[0], pad(axis)[1], window.strides[axis] - 1) for axis in (0, 1)]
        y = _product_conv(grad, flipped, _Window((1, 1), ((0, 0), (0, 0))))
        return lax.pad(y, jnp.zeros((), y.dtype), ((0, 0, 0), *edges, (0, 0, 0)))
    return _xla_conv(grad, flipped, plain, lhs_dilation=window.strides)


def _kernel_gradient(x: Array, kernel: Array, grad: Array, window: _Window) -> Array:
    """Sum products of the image and of the output gradient, some images at a time.

    The sums are float32 also for bfloat16 operands. On a batch that is split over devices they meet
    in one all-reduce.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    if _prefers_winograd(x, kernel, window, channels=128):
        within, size = _TILES_BYTES, 16 * x.shape[1] * x.shape[2] * x.shape[3]
    else:
        within, size = _PATCHES_BYTES, 4 * x.shape[1] * grad.shape[2] * math.prod(kernel.shape[1:3])

    def sum_over(images: Array, grads: Array) -> Array:
        images, grads = images.astype(wide), grads.astype(wide)
        if within == _TILES_BYTES:
            return winograd.kernel_gradient(images, grads, window.padding)
        return _correlate(images, grads, kernel.shape, window)

    # A 1×1 kernel has no patches: nothing is made that would have to stay in a cache.
    at_once = x.shape[0] if kernel.shape[:2] == (1, 1) else _images_within(within, x, size)
    if at_once == x.shape[0]:
        return sum_over(x, grad).astype(kernel.dtype)
    zero = jnp.zeros(kernel.shape, wide)
    parts = (a.reshape(-1, at_once, *a.shape[1:]) for a in (x, grad))
    total, _ = lax.scan(lambda total, part: (total + sum_over(*part), None), zero, tuple(parts))
    return total.astype(kernel.dtype)


def _correlate(x: Array, grad: Array, shape: tuple[int, ...], window: _Window) -> Array:
    """The kernel's gradient as matrix products of shifted columns and shifted rows.

    At [i, j, a, b] it is Σ x[n, p·s + i·d − t, q·s + j·d − l, a] · grad[n, p, q, b] over n, p, q.
    The taps j are laid beside one another in the channels of the image, shifted along w, and the
    taps i in those of the gradient, shifted along h: one product gives all taps, and three times
    the memory of both is needed, not nine times. With strides along h, rows of the image that lie a
    stride apart see the same taps, so there is a product for each place within the stride.
    """
    (sh, sw), ((top, _), (left, _)), _, (dh, dw) = window
    kh, kw, ci, co = shape
    h, wo = x.shape[1], grad.shape[2]

    def pad(a: Array, axis: int, low: int, size: int) -> Array:
        edges = [(0, 0, 0)] * 4
        edges[axis] = (low, size - low - a.shape[axis], 0)
        return lax.pad(a, jnp.zeros((), a.dtype), edges)

    padded = pad(x, 2, left, (wo - 1) * sw + (kw - 1) * dw + 1)
    shifted = [padded[:, :, j * dw : j * dw + (wo - 1) * sw + 1 : sw] for j in range(kw)]
    columns = jnp.concatenate(shifted, axis=-1)  # [n, h, wo, kw · ci]
    taps = [jnp.zeros((kw, ci, co), x.dtype)] * kh
    for first in range(min(sh, h)):
        seen = [i for i in range(kh) if (first + top - i * dh) % sh == 0]
        if not seen:
            continue
        image = columns[:, first::sh]
        rows = [pad(grad, 1, -((first + top - i * dh) // sh), image.shape[1]) for i in seen]
        product = lax.dot_general(
            image.reshape(-1, kw * ci),
            jnp.concatenate(rows, axis=-1).reshape(-1, len(seen) * co),
            (((0,), (0,)), ((), ())),
        )
        for place, i in enumerate(seen):
            taps[i] = product.reshape(kw, ci, len(seen), co)[:, :, place]
    return jnp.stack(taps)
