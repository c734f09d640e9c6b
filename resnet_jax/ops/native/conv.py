"""Calls of oneDNN's convolutions."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from resnet_jax.ops.native.library import KINDS, Kind, Library, Problem, Shape, state


def forward(x: Array, kernel: Array, window: Any) -> Array | None:
    """Features [n, ho, wo, co] of images [n, h, w, ci] and a kernel [kh, kw, ci, co].

    Args:
        x, kernel: float32 or bfloat16.
        window: `resnet_jax.ops.conv_cpu.Window`.

    Returns:
        None if XLA has to compute the features: the library isn't used, or oneDNN has no kernel.
    """
    y = (x.shape[0], *window.features(), kernel.shape[3])
    return _call("forward", (x, kernel), (x.shape, kernel.shape, y), window)


def input_gradient(kernel: Array, grad: Array, window: Any) -> Array | None:
    """The gradient of the images from the gradient of the features; otherwise as `forward`."""
    x = (grad.shape[0], *window.image, kernel.shape[2])
    return _call("input_gradient", (kernel, grad), (x, kernel.shape, grad.shape), window)


def kernel_gradient(x: Array, grad: Array, window: Any) -> Array | None:
    """The gradient of the kernel from the gradient of the features; otherwise as `forward`."""
    kernel = (*window.taps, x.shape[3], grad.shape[3])
    return _call("kernel_gradient", (x, grad), (x.shape, kernel, grad.shape), window)


def _call(
    kind: Kind, operands: tuple[Array, Array], shapes: tuple[Shape, Shape, Shape], window: Any
) -> Array | None:
    first, second = operands
    known = first.dtype == second.dtype and first.dtype in (jnp.float32, jnp.bfloat16)
    library = state().library
    if library is None or window.groups > 1 or not known:
        return None
    rest = (window.strides, window.padding, window.dilation)
    problem = Problem(kind, first.dtype == jnp.bfloat16, shapes, *rest)
    return call(library, problem, first, second) if library.supports(problem) else None


def call(library: Library, problem: Problem, first: Array, second: Array) -> Array:
    """Call the library from XLA; the library must support the problem with these shapes."""
    _register(library)
    static = {
        name: np.array(getattr(problem, name)).reshape(-1)
        for name in ("strides", "padding", "dilation")
    }
    varying = jax.typeof(first).mat
    result = jax.ShapeDtypeStruct(problem.result, first.dtype, manual_axis_type=varying)
    target = jax.ffi.ffi_call(_target(problem.kind), result, vmap_method="sequential")
    return target(first, second, **static)


@functools.cache
def _register(library: Library) -> None:
    for kind in KINDS:
        handler = jax.ffi.pycapsule(library.handler(kind))
        jax.ffi.register_ffi_target(_target(kind), handler, platform="cpu")


def _target(kind: Kind) -> str:
    return f"resnet_jax_{kind}"
