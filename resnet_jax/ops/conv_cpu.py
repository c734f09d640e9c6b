"""Convolutions and their gradients in the forms that XLA computes fast on a CPU.

XLA's convolutions are fast on a CPU only in their plain form: NHWC images, HWIO kernel, a kernel no
larger than the image, one group. The kernel's gradient that XLA derives doesn't have that form;
inside a `while` loop it misses the fast path and takes some 60 times longer, which rules out
scanned training steps. The formulas below write every gradient as a plain convolution or as matrix
products, and gradients of 3×3 convolutions by Winograd's algorithm where that is faster.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from resnet_jax.ops import winograd
from resnet_jax.ops.derivatives import vary_alike

Pair = tuple[int, int]
Padding = tuple[Pair, Pair]


class Window(NamedTuple):
    """The static part of a convolution.

    Attributes:
        image: height and width of the images.
        taps: height and width of the kernel.
        strides, dilation: along h and w.
        padding: zeros added ((above, below), (left, right)).
        groups: into which the channels are split.
    """

    image: Pair
    taps: Pair
    strides: Pair
    padding: Padding
    groups: int = 1
    dilation: Pair = (1, 1)

    def features(self) -> Pair:
        """Height and width of the result."""
        h, w = (
            (size + sum(pad) - dilation * (taps - 1) - 1) // stride + 1
            for size, taps, stride, pad, dilation in zip(
                self.image, self.taps, self.strides, self.padding, self.dilation, strict=True
            )
        )
        return h, w


def forward(x: Array, kernel: Array, window: Window) -> Array:
    """Features [n, ho, wo, co].

    Args:
        x: images [n, h, w, ci].
        kernel: [kh, kw, ci / groups, co], of the dtype of `x`.
        window: the static part of the convolution.
    """
    if window.groups == 1 and _is_product(window):
        return _product_conv(x, kernel, window)
    return xla_conv(x, kernel, window)


def input_gradient(kernel: Array, grad: Array, window: Window, *, whole_batch: bool) -> Array:
    """The gradient of the images from the gradient of the features; arguments as in `forward`.

    With `whole_batch`, compute all images at once, because they may be split over devices.
    """
    if window.groups > 1 or _exceeds(window):
        shape = (grad.shape[0], *window.image, kernel.shape[2] * window.groups)
        return transposed(lambda x: _product_conv(x, kernel, window), shape, grad)
    return _input_gradient(kernel, grad, window, whole_batch)


def kernel_gradient(x: Array, grad: Array, window: Window, *, whole_batch: bool) -> Array:
    """The gradient of the kernel from the gradient of the features; arguments as in `forward`."""
    if window.groups > 1 or _exceeds(window):
        shape = (*window.taps, x.shape[3] // window.groups, grad.shape[3])
        return transposed(lambda kernel: _product_conv(x, kernel, window), shape, grad)
    return _kernel_gradient(x, grad, window, whole_batch)


def transposed(linear: Callable[[Array], Array], shape: tuple[int, ...], y: Array) -> Array:
    """The transpose of a linear function of an array of that shape and of the dtype of `y`."""
    (zeros,) = vary_alike(jnp.zeros(shape, y.dtype), y)[:1]
    (result,) = jax.linear_transpose(linear, zeros)(y)
    return result


def xla_conv(x: Array, kernel: Array, window: Window, **options: Any) -> Array:
    """XLA's own convolution."""
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


def _is_product(window: Window) -> bool:
    """Whether a matrix product is faster than XLA's convolution."""
    return window.taps == (1, 1) or _exceeds(window)


def _conv(x: Array, kernel: Array, window: Window, whole_batch: bool) -> Array:
    if _is_product(window):
        return _product_conv(x, kernel, window)
    if not _prefers_winograd(x.shape, kernel.shape, window, channels=32):
        return xla_conv(x, kernel, window)
    wide = jnp.promote_types(x.dtype, jnp.float32)
    kernel = kernel.astype(wide)

    def convolve(images: Array) -> Array:
        y = winograd.convolve(images.astype(wide), kernel, window.padding)
        return y.astype(x.dtype)

    # The tiles take four times the memory of the image.
    size = 16 * x.shape[1] * x.shape[2] * x.shape[3]
    at_once = x.shape[0] if whole_batch else _images_within(_TILES_BYTES, x, size)
    if at_once == x.shape[0]:
        return convolve(x)
    y = lax.map(convolve, x.reshape(-1, at_once, *x.shape[1:]))
    return y.reshape(-1, *y.shape[2:])


def _exceeds(window: Window) -> bool:
    """Whether a kernel has more taps than the maps have places, as 3×3 on 2×2.

    XLA then swaps the roles of image and kernel, and so leaves its fast path.
    """
    return math.prod(window.taps) > math.prod(window.image)


def _prefers_winograd(
    x: tuple[int, ...], kernel: tuple[int, ...], window: Window, *, channels: int
) -> bool:
    """Whether Winograd's algorithm is possible and, from that many channels on, faster.

    With fewer channels, the sums of neighbours take longer than the products; with fewer tiles than
    channels, the transform of the kernel does.
    """
    plain = kernel[:2] == (3, 3) and window.strides == window.dilation == (1, 1)
    if not plain or not isinstance(x[0], int):  # an exported program's batch is a symbol
        return False
    tiles = x[0] * x[1] * x[2] // 4
    ci, co = kernel[2:]
    return min(ci, co) >= channels and tiles >= 2 * max(ci, co)


# Intermediates of this size stay in the caches of a core or two until they are used.
_PATCHES_BYTES, _TILES_BYTES = 2 * 2**20, 64 * 2**20


def _images_within(limit: int, x: Array, bytes_of_one: int) -> int:
    """The largest divisor of the batch for which the intermediates of the images fit the limit."""
    n = x.shape[0]
    if not isinstance(n, int):
        return n
    return next((m for m in range(n, 1, -1) if n % m == 0 and m * bytes_of_one <= limit), 1)


def _product_conv(x: Array, kernel: Array, window: Window) -> Array:
    """Convolve by one matrix product per group: patches [n, ho, wo, kh·kw·ci] times kernel.

    The patches of a 1×1 kernel are the image itself; for other kernels they take kh·kw times its
    memory, which pays only for small maps and for groups (where XLA:CPU's own gradient is 50 to 200
    times slower). Every gradient of the product is again a matrix product. bfloat16 is widened to
    float32, so that the gradients, sums over taps and images, are rounded once.
    """
    (sh, sw), (dh, dw), groups = window.strides, window.dilation, window.groups
    kh, kw, ci, co = kernel.shape
    if groups > 1:
        per_group = partial(_product_conv, window=window._replace(groups=1))
        y = jax.vmap(per_group, in_axes=3, out_axes=3)(
            x.reshape(*x.shape[:3], groups, ci), kernel.reshape(kh, kw, ci, groups, co // groups)
        )
        return y.reshape(*y.shape[:3], co)
    dtype, wide = x.dtype, jnp.promote_types(x.dtype, jnp.float32)
    x, kernel = x.astype(wide), kernel.astype(wide)
    x = jnp.pad(x, ((0, 0), *window.padding, (0, 0)))
    ho, wo = window.features()
    shifted = [
        x[:, i : i + (ho - 1) * sh + 1 : sh, j : j + (wo - 1) * sw + 1 : sw]
        for i in range(0, kh * dh, dh)
        for j in range(0, kw * dw, dw)
    ]
    y = jnp.concatenate(shifted, axis=-1) @ kernel.reshape(kh * kw * ci, co)
    return y.astype(dtype)


def _input_gradient(kernel: Array, grad: Array, window: Window, whole_batch: bool) -> Array:
    """Convolve the output gradient, spread out by the strides, with the flipped kernel."""

    def pad(axis: int) -> Pair:
        reach = (window.taps[axis] - 1) * window.dilation[axis]
        low = reach - window.padding[axis][0]
        spread = (grad.shape[1 + axis] - 1) * window.strides[axis] + 1
        return low, window.image[axis] + reach - spread - low

    flipped = kernel[::-1, ::-1].swapaxes(2, 3)  # [kh, kw, co, ci]
    plain = window._replace(
        image=window.features(), strides=(1, 1), padding=(pad(0), pad(1)), groups=1
    )
    if window.strides == (1, 1):
        return _conv(grad, flipped, plain, whole_batch)
    if window.taps == (1, 1):  # pixels that no output depends on need no products
        edges = [(pad(axis)[0], pad(axis)[1], window.strides[axis] - 1) for axis in (0, 1)]
        y = _product_conv(grad, flipped, plain._replace(padding=((0, 0), (0, 0))))
        return lax.pad(y, jnp.zeros((), y.dtype), ((0, 0, 0), *edges, (0, 0, 0)))
    return xla_conv(grad, flipped, plain, lhs_dilation=window.strides)


def _kernel_gradient(x: Array, grad: Array, window: Window, whole_batch: bool) -> Array:
    """Sum products of the image and of the output gradient, some images at a time.

    The sums are float32 also for bfloat16 operands. For a batch that is split over devices, one
    all-reduce adds them.
    """
    dtype, wide = x.dtype, jnp.promote_types(x.dtype, jnp.float32)
    shape = (*window.taps, x.shape[3], grad.shape[3])
    if _prefers_winograd(x.shape, shape, window, channels=128):
        within, size = _TILES_BYTES, 16 * x.shape[1] * x.shape[2] * x.shape[3]
    else:
        within, size = _PATCHES_BYTES, 4 * x.shape[1] * grad.shape[2] * math.prod(shape[1:3])

    def sum_over(images: Array, grads: Array) -> Array:
        images, grads = images.astype(wide), grads.astype(wide)
        if within == _TILES_BYTES:
            return winograd.kernel_gradient(images, grads, window.padding)
        return _correlate(images, grads, shape, window)

    # A 1×1 kernel has no patches: there are no intermediates.
    whole_batch |= window.taps == (1, 1)
    at_once = x.shape[0] if whole_batch else _images_within(within, x, size)
    if at_once == x.shape[0]:
        return sum_over(x, grad).astype(dtype)
    zero, _ = vary_alike(jnp.zeros(shape, wide), x)
    parts = (a.reshape(-1, at_once, *a.shape[1:]) for a in (x, grad))
    total, _ = lax.scan(lambda total, part: (total + sum_over(*part), None), zero, tuple(parts))
    return total.astype(dtype)


def _correlate(x: Array, grad: Array, shape: tuple[int, ...], window: Window) -> Array:
    """The kernel's gradient as matrix products of shifted columns and shifted rows.

    At [i, j, a, b] it is Σ x[n, p·s + i·d − t, q·s + j·d − l, a] · grad[n, p, q, b] over n, p, q.
    The taps j are laid beside one another in the channels of the image, shifted along w, and the
    taps i in those of the gradient, shifted along h: one product gives all taps, and three times
    the memory of both is needed, not nine times. With strides along h, rows of the image that lie a
    stride apart see the same taps, so there is a product for each place within the stride.
    """
    (sh, sw), ((top, _), (left, _)), (dh, dw) = window.strides, window.padding, window.dilation
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
