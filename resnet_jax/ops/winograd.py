"""3×3 convolutions as Winograd's F(2×2, 3×3), for CPUs (Lavin & Gray 2015, 1509.09308).

Each 2×2 tile of the result comes from a 4×4 tile of the image by 16 products instead of 36: sixteen
matrix products over all tiles, before and after sums of neighbours. Rounding errors are as small as
in the direct sum; larger tiles, F(4×4, 3×3), would lose digits.
"""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

Padding = tuple[tuple[int, int], tuple[int, int]]

# The kernel's transform, 4×3. The transforms of the image and of the result are written out below.
_KERNEL = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)


def convolve(x: Array, kernel: Array, padding: Padding) -> Array:
    """Images [n, h, w, ci], kernel [3, 3, ci, co], both float32 → features [n, ho, wo, co]."""
    ho, wo = (x.shape[1 + axis] + sum(padding[axis]) - 2 for axis in (0, 1))
    ci, co = kernel.shape[2:]
    weights = jnp.einsum("ai,bj,ijco->abco", _KERNEL, _KERNEL, kernel).reshape(16, ci, co)
    image = _image_tiles(x, padding, (ho, wo))
    products = lax.dot_general(image, weights, (((2,), (1,)), ((0,), (0,))))
    by_place = products.reshape(4, 4, x.shape[0], -(-ho // 2), -(-wo // 2), co)
    rows = [jnp.stack(_result(line), axis=3) for line in _result(by_place)]
    y = jnp.stack(rows, axis=2)  # [n, tiles, 2, tiles, 2, co]
    return y.reshape(x.shape[0], 2 * y.shape[1], 2 * y.shape[3], co)[:, :ho, :wo]


def kernel_gradient(x: Array, grad: Array, padding: Padding) -> Array:
    """The gradient of the kernel [3, 3, ci, co] from that of the features [n, ho, wo, co]."""
    _, ho, wo, co = grad.shape
    image = _image_tiles(x, padding, (ho, wo))
    to_even = ((0, 0, 0), (0, ho % 2, 0), (0, wo % 2, 0), (0, 0, 0))
    grad = lax.pad(grad, jnp.zeros((), grad.dtype), to_even)
    gradient = _by_both_axes(
        grad, lambda line, axis: _result_transposed(*_every_second(line, axis, 2))
    )
    products = lax.dot_general(image, gradient, (((1,), (1,)), ((0,), (0,))))
    by_place = products.reshape(4, 4, x.shape[-1], co)
    return jnp.einsum("ai,bj,abco->ijco", _KERNEL, _KERNEL, by_place)


def _image_tiles(x: Array, padding: Padding, size: tuple[int, int]) -> Array:
    """The transformed 4×4 tiles of images, by place within the tile: [16, tiles, ci]."""
    edges = [
        (low, size[axis] + size[axis] % 2 + 2 - x.shape[1 + axis] - low, 0)
        for axis, (low, _) in enumerate(padding)
    ]
    padded = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *edges, (0, 0, 0)))
    return _by_both_axes(padded, lambda line, axis: _image(*_every_second(line, axis, 4)))


def _by_both_axes(x: Array, transform: Callable[[Array, int], Sequence[Array]]) -> Array:
    """Transform along h, then along w: four times four arrays, stacked as [16, tiles, c]."""
    places = [place for line in transform(x, 1) for place in transform(line, 2)]
    return jnp.stack(places).reshape(16, -1, x.shape[-1])


def _every_second(x: Array, axis: int, count: int) -> list[Array]:
    """Along an axis: the first, second, … element of each tile; tiles begin two apart."""
    tiles = (x.shape[axis] - count) // 2 + 1
    return [
        lax.slice_in_dim(x, first, first + 2 * tiles - 1, 2, axis=axis) for first in range(count)
    ]


def _image(a: Array, b: Array, c: Array, d: Array) -> tuple[Array, Array, Array, Array]:
    return a - c, b + c, c - b, b - d


def _result(line: Array | Sequence[Array]) -> tuple[Array, Array]:
    a, b, c, d = line
    return a + b + c, b - c - d


def _result_transposed(a: Array, b: Array) -> tuple[Array, Array, Array, Array]:
    return a, a + b, a - b, -b
