"""Pooling of maps, padded as PyTorch pads."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float, Int8

from resnet_jax.ops.derivatives import differentiable

_WINDOW, _STRIDE, _BEFORE = 3, 2, 1


def max_pool(x: Float[Array, "n h w c"], *, zero_padded: bool = False) -> Float[Array, "n h2 w2 c"]:
    """3×3 maximum with stride 2 and padding 1, the second half of the ImageNet stem.

    Args:
        x: maps.
        zero_padded: pad with 0, as BiT does, where no activation comes before the pooling. PyTorch
            pads with -∞.
    """
    if zero_padded:
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        return nn.max_pool(x, (3, 3), strides=(2, 2), padding=((0, 0), (0, 0)))
    return lax.platform_dependent(x, cuda=max_pool_by_places, default=_plain)


def max_pool_by_places(x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c"]:
    """`max_pool` with a backward pass that needs only which place of a window had the maximum.

    XLA's, on a GPU, looks for the places again, keeps them as integers of 32 bits, and scatters.
    """
    return _by_places(x, x.shape[1:3])


def _plain(x: Array) -> Array:
    return nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


def _max_and_place(x: Array) -> tuple[Array, Int8[Array, "n h2 w2 c"]]:
    """Maxima of the windows, and the first of the nine places that has it, row by row."""
    width = x.shape[2]
    pixels = lax.broadcasted_iota(jnp.int32, x.shape, 1) * width
    pixels += lax.broadcasted_iota(jnp.int32, x.shape, 2)

    def larger(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
        is_a = (a[0] > b[0]) | ((a[0] == b[0]) & (a[1] < b[1])) | (a[0] != a[0])
        return lax.select(is_a, a[0], b[0]), lax.select(is_a, a[1], b[1])

    lowest = jnp.array(-jnp.inf, x.dtype), jnp.array(jnp.iinfo(jnp.int32).max, jnp.int32)
    padding = ((0, 0), (_BEFORE, 1), (_BEFORE, 1), (0, 0))
    window, strides = (1, _WINDOW, _WINDOW, 1), (1, _STRIDE, _STRIDE, 1)
    y, pixel = lax.reduce_window((x, pixels), lowest, larger, window, strides, padding)
    row = pixel // width - _STRIDE * lax.broadcasted_iota(jnp.int32, y.shape, 1) + _BEFORE
    column = pixel % width - _STRIDE * lax.broadcasted_iota(jnp.int32, y.shape, 2) + _BEFORE
    return y, (_WINDOW * row + column).astype(jnp.int8)


@jax.custom_jvp
def _maxima_of(x: Array, y: Array) -> Array:
    """The maxima `y` of `x`, already computed, with the derivatives of `_plain`."""
    del x
    return y


@_maxima_of.defjvp
def _maxima_of_jvp(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    x, y = primals
    return _maxima_of(x, y), jax.jvp(_plain, (x,), tangents[:1])[1]


def _forward_and_kept(x: Array, _: tuple[int, int]) -> tuple[Array, Array]:
    # JAX can't derive a reduction of pairs of which one is an integer.
    y, place = _max_and_place(lax.stop_gradient(x))
    return _maxima_of(x, y), place


def _backward(image: tuple[int, int], place: Array, dy: Array) -> tuple[Array]:
    """Put each gradient at the place of its window that had the maximum."""
    zero = jnp.zeros((), dy.dtype)
    dx = jnp.zeros((), dy.dtype)
    for number in range(_WINDOW**2):
        edges = [
            (offset - _BEFORE, size - _STRIDE * (windows - 1) - 1 - (offset - _BEFORE), _STRIDE - 1)
            for offset, size, windows in zip(
                divmod(number, _WINDOW), image, dy.shape[1:3], strict=True
            )
        ]
        chosen = jnp.where(place == number, dy, zero)
        dx += lax.pad(chosen, zero, ((0, 0, 0), *edges, (0, 0, 0)))
    return (dx,)


_by_places = differentiable(lambda x, _: _plain(x), _forward_and_kept, _backward, static=1)


def average_pool(x: Float[Array, "n h w c"], stride: int) -> Float[Array, "n h2 w2 c"]:
    """Average of each `stride` × `stride` block; a block cut by the edge averages what it has."""
    if stride == 1:
        return x
    padding = tuple((0, -size % stride) for size in x.shape[1:3])
    window = (stride, stride)
    return nn.avg_pool(x, window, strides=window, padding=padding, count_include_pad=False)
