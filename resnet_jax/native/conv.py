"""Calls of the compiled convolutions, and when they are to be preferred."""

import ctypes
import functools
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from resnet_jax.native.build import LIBRARY

Pair = tuple[int, int]

_FUNCTIONS = ("forward", "input_gradient", "kernel_gradient")
_CHOICE = "RESNET_JAX_NATIVE"  # the path of a library; "0" for none


@functools.cache
def is_loaded() -> bool:
    """Whether the library is there and this process can use it."""
    path = os.environ.get(_CHOICE, str(LIBRARY))
    if path == "0" or not os.path.exists(path):
        return False
    # Threads that wait for work by spinning would take the cores from XLA's.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        library = ctypes.cdll.LoadLibrary(path)
    except OSError:  # oneDNN was removed, or is another version now
        return False
    for name in _FUNCTIONS:
        symbol = getattr(library, f"resnet_jax_{name}")
        jax.ffi.register_ffi_target(_target(name), jax.ffi.pycapsule(symbol), platform="cpu")
    return True


def _target(name: str) -> str:
    return f"resnet_jax_{name}"


def serves(x: Array, kernel: Array, *, groups: int) -> bool:
    """Whether a convolution on CPU is for the library.

    Not on several devices: XLA would bring a batch together for a call whose inside it can't see.
    """
    plain = groups == 1 and x.dtype == kernel.dtype and x.dtype in (jnp.float32, jnp.bfloat16)
    return plain and is_loaded() and len(jax.devices("cpu")) == 1


def _call(name: str, shape: tuple[int, ...], operands: tuple[Array, Array], **window: Any) -> Array:
    (above, below), (left, right) = window["padding"]
    result = jax.ShapeDtypeStruct(shape, operands[0].dtype)
    return jax.ffi.ffi_call(_target(name), result, vmap_method="sequential")(
        *operands,
        strides=np.array(window["strides"]),
        padding=np.array((above, below, left, right)),
        dilation=np.array(window["dilation"]),
    )


def forward(
    x: Array, kernel: Array, *, strides: Pair, padding: tuple[Pair, Pair], dilation: Pair
) -> Array:
    """Images [n, h, w, ci] and a kernel [kh, kw, ci, co] → features [n, ho, wo, co]."""
    sizes = [
        (x.shape[axis + 1] + sum(padding[axis]) - dilation[axis] * (kernel.shape[axis] - 1) - 1)
        // strides[axis]
        + 1
        for axis in (0, 1)
    ]
    shape = (x.shape[0], *sizes, kernel.shape[-1])
    window = {"strides": strides, "padding": padding, "dilation": dilation}
    return _call("forward", shape, (x, kernel), **window)


def input_gradient(kernel: Array, gradient: Array, shape: tuple[int, ...], **window: Any) -> Array:
    """The gradient of images of that shape, given that of the features."""
    return _call("input_gradient", shape, (kernel, gradient), **window)


def kernel_gradient(x: Array, gradient: Array, shape: tuple[int, ...], **window: Any) -> Array:
    """The gradient of a kernel of that shape, given that of the features."""
    return _call("kernel_gradient", shape, (x, gradient), **window)
