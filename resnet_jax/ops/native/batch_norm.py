"""Calls of oneDNN's batch normalisation."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from resnet_jax.ops.native.conv import register
from resnet_jax.ops.native.library import BatchNormProblem, Library, state

_FORWARD, _BACKWARD = "batch_norm", "batch_norm_gradient"


def forward(
    x: Array, scale: Array, bias: Array, *, epsilon: float
) -> tuple[Array, Array, Array] | None:
    """Normalise maps [n, h, w, c] by their statistics.

    Args:
        x: float32 or bfloat16.
        scale, bias: float32 [c].
        epsilon: added to variances.

    Returns:
        The normalised maps, of the type of `x`; means and biased variances, float32 [c]. None if
        XLA has to compute them: the library isn't used, or oneDNN has no kernel.
    """
    library = _library_for(x, scale, epsilon, backward=False)
    if library is None:
        return None
    return call(library, (x, scale, bias), epsilon=epsilon, backward=False)


def backward(
    x: Array, dy: Array, mean: Array, var: Array, scale: Array, *, epsilon: float
) -> tuple[Array, Array, Array] | None:
    """The gradients of `x`, `scale` and `bias` from the gradient of the normalised maps.

    Args:
        x, dy: maps, of one type.
        mean, var: the statistics of `x`.
        scale, epsilon: as in `forward`, as is the result None.
    """
    library = _library_for(x, scale, epsilon, backward=True) if x.dtype == dy.dtype else None
    if library is None:
        return None
    return call(library, (x, dy, mean, var, scale), epsilon=epsilon, backward=True)


def _library_for(x: Array, scale: Array, epsilon: float, *, backward: bool) -> Library | None:
    library = state().library
    known = x.dtype in (jnp.float32, jnp.bfloat16) and scale.dtype == jnp.float32
    if library is None or not known:
        return None
    problem = BatchNormProblem(backward, x.dtype == jnp.bfloat16, x.shape, epsilon)
    return library if library.supports(problem) else None


def call(
    library: Library, operands: tuple[Array, ...], *, epsilon: float, backward: bool
) -> tuple[Array, Array, Array]:
    """Call the library from XLA; the library must support the problem."""
    register(library)
    x = operands[0]

    def result(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.typeof(x).mat)

    channels = result(x.shape[-1:], jnp.float32)
    target = jax.ffi.ffi_call(
        f"resnet_jax_{_BACKWARD if backward else _FORWARD}",
        (result(x.shape, x.dtype), channels, channels),
        vmap_method="sequential",
    )
    first, second, third = target(*operands, epsilon=BatchNormProblem.units(epsilon))
    return first, second, third
