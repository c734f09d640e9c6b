"""Initial values of the papers."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_SMALLEST_DRAW = 2**16


def he_normal(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
    """He et al. 2015 (1502.01852), eq. 10: a Gaussian of standard deviation √(2 / n), not cut off.

    `shape` is [kh, kw, in, out], or [in, out] of a dense layer (kh = kw = 1). Counting n by
    outputs, kh·kw·out, keeps the size of the *gradients*, which is what Torch's and torchvision's
    ResNets chose.
    """
    fan_out = math.prod(shape[:-2]) * shape[-1]
    return _normal(key, shape, math.sqrt(2 / fan_out)).astype(dtype)


CLASSIFIER_STD = 0.01
"""Standard deviation of a classifier's kernel of Goyal et al. 2017 (1706.02677), section 5.1.

The first loss is then close to log(classes), and the first gradients are small.
"""


def gaussian(std: float) -> Callable[..., Array]:
    """An initialiser: a Gaussian of mean 0 and standard deviation `std`."""

    def init(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        return _normal(key, shape, std).astype(dtype)

    return init


def _normal(key: jax.Array, shape: Sequence[int], scale: float) -> Float[Array, "..."]:
    """`scale * jax.random.normal(key, shape)`, without compiling a generator for every shape.

    Compiling the generator takes a second on CPU, and a network has dozens of shapes. But the
    n-th number of JAX's default generator (partitionable Threefry) doesn't depend on how many are
    drawn, so a few sizes can serve all shapes.
    """
    size = max(_SMALLEST_DRAW, 1 << (math.prod(shape) - 1).bit_length())
    return _cut(_draw(key, size), tuple(shape), scale)


@functools.partial(jax.jit, static_argnums=1)
def _draw(key: jax.Array, size: int) -> Float[Array, " n"]:
    return jax.random.normal(key, (size,), jnp.float32)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _cut(drawn: Float[Array, " n"], shape: tuple[int, ...], scale: float) -> Array:
    return scale * drawn[: math.prod(shape)].reshape(shape)
