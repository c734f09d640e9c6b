"""Calls of oneDNN's convolutions."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.interpreters import mlir

from resnet_jax.ops.native.library import KINDS, Kind, Library, Problem, Shape, state


def devices_of(module: Any) -> int:
    """The number of devices over which a program that is being lowered splits its arrays.

    Within `jax.shard_map` a device computes its own part alone.

    Args:
        module: the module context of the lowering.
    """
    context = module.axis_context
    return 1 if isinstance(context, mlir.SPMDAxisContext) else context.num_devices


def is_allowed(module: Any) -> bool:
    """Whether a program for CPUs may call oneDNN: it isn't split over devices, nor exported."""
    return devices_of(module) == 1 and not module.lowering_parameters.for_export


def forward(
    x: Array,
    kernel: Array,
    window: Any,
    *,
    bias: Array | None = None,
    summand: Array | None = None,
    relu: bool = False,
    packed: bool = False,
) -> Array | None:
    """Features [n, ho, wo, co] of images [n, h, w, ci] and a kernel [kh, kw, ci, co].

    Args:
        x, kernel: float32 or bfloat16.
        window: `resnet_jax.ops.conv_cpu.Window`.
        bias: [co], added to the features.
        summand: of the shape and type of the features, added to them.
        relu: end with ReLU.
        packed: reorder the kernel in an operation of its own, of the kernel alone.

    Returns:
        None if XLA has to compute the features: the library isn't used, or oneDNN has no kernel.
    """
    y = (x.shape[0], *window.features(), kernel.shape[3])
    more = bias, summand, relu, packed
    return _call("forward", (x, kernel), (x.shape, kernel.shape, y), window, *more)


def input_gradient(kernel: Array, grad: Array, window: Any) -> Array | None:
    """The gradient of the images from the gradient of the features; otherwise as `forward`."""
    x = (grad.shape[0], *window.image, kernel.shape[2])
    return _call("input_gradient", (kernel, grad), (x, kernel.shape, grad.shape), window)


def kernel_gradient(x: Array, grad: Array, window: Any) -> Array | None:
    """The gradient of the kernel from the gradient of the features; otherwise as `forward`."""
    kernel = (*window.taps, x.shape[3], grad.shape[3])
    return _call("kernel_gradient", (x, grad), (x.shape, kernel, grad.shape), window)


def _call(
    kind: Kind,
    operands: tuple[Array, Array],
    shapes: tuple[Shape, Shape, Shape],
    window: Any,
    bias: Array | None = None,
    summand: Array | None = None,
    relu: bool = False,
    packed: bool = False,
) -> Array | None:
    first, second = operands
    known = first.dtype == second.dtype and first.dtype in (jnp.float32, jnp.bfloat16)
    library = state().library
    if library is None or window.groups > 1 or not known:
        return None
    rest = (window.strides, window.padding, window.dilation)
    more = (bias is not None, summand is not None, relu)
    problem = Problem(kind, first.dtype == jnp.bfloat16, shapes, *rest, *more)
    if not library.supports(problem):
        return None
    return call(library, problem, first, second, bias=bias, summand=summand, packed=packed)


def call(
    library: Library,
    problem: Problem,
    first: Array,
    second: Array,
    *,
    bias: Array | None = None,
    summand: Array | None = None,
    packed: bool = False,
) -> Array:
    """Call the library from XLA; the library must support the problem with these shapes."""
    _register(library)
    numbers = np.array(problem.numbers())
    size = library.packed_bytes(problem) if packed else 0
    static: dict[str, Any]
    if size:
        name, static = "forward_packed", {"problem": numbers}
        shape = jax.ShapeDtypeStruct((size,), jnp.uint8)
        second = jax.ffi.ffi_call(_target("pack"), shape)(second, problem=numbers)
    else:
        name = problem.kind
        static = {
            name: np.array(getattr(problem, name)).reshape(-1)
            for name in ("strides", "padding", "dilation")
        }
        if name == "forward":
            static |= {"has_bias": problem.has_bias, "relu": problem.relu}
    operands = [first, second]
    if bias is not None:
        operands.append(bias.astype(jnp.float32))
    aliases = {}
    if summand is not None:  # oneDNN adds to what is in the result's memory
        aliases = {len(operands): 0}
        operands.append(summand)
    varying = jax.typeof(first).mat
    result = jax.ShapeDtypeStruct(problem.result, first.dtype, manual_axis_type=varying)
    target = jax.ffi.ffi_call(
        _target(name),
        result,
        vmap_method="sequential",
        input_output_aliases=aliases,
    )
    return target(*operands, **static)


@functools.cache
def _register(library: Library) -> None:
    for name in (*KINDS, "pack", "forward_packed"):
        handler = jax.ffi.pycapsule(library.handler(name))
        jax.ffi.register_ffi_target(_target(name), handler, platform="cpu")


def _target(name: str) -> str:
    return f"resnet_jax_{name}"
