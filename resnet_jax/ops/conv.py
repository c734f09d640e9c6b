"""The 2-D convolution of the package, with a formulation for each platform.

The sum over n, p, q, i, j, a, b of y[n, p, q, b] · x[n, p·s + i, q·s + j, a] · kernel[i, j, a, b]
is linear in each of its three arrays. Convolution is its derivative with respect to y, and the two
gradients of convolution are its derivatives with respect to x and to the kernel. Each of the three
is linear in both of its operands, and its derivatives are the other two. So one primitive, whose
parameter `missing` names the array to compute, has derivatives of every order, in forward and in
reverse mode.

TPUs and GPUs run XLA's own convolutions and gradients. CPUs run the formulas of `conv_cpu`, or
oneDNN's kernels (`resnet_jax.ops.native`). The choice is made when a program is lowered, so that
lowering for a TPU on a CPU host gives the TPU's program.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import JaxprEqn, Primitive
from jax.interpreters import ad, batching, mlir

from resnet_jax.ops import conv_cpu
from resnet_jax.ops.conv_cpu import Padding, Pair, Window, transposed, xla_conv
from resnet_jax.ops.derivatives import Levels, evaluate, mapped, result_types, vary_alike
from resnet_jax.ops.native import conv as native

# The three arrays; operands are in this order.
_X, _KERNEL, _Y = range(3)


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

    Differentiable any number of times, in forward and in reverse mode.

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
    return _conv(x, kernel, (strides, padding, feature_group_count, dilation))


# Jitted so that a network of a thousand layers traces each kind of convolution once.
@partial(jax.jit, static_argnums=2, inline=True)
def _conv(x: Array, kernel: Array, rest: tuple[Any, ...]) -> Array:
    (_, h, w, _), (kh, kw, _, _) = x.shape, kernel.shape
    window = Window((h, w), (kh, kw), *rest)
    return _conv_p.bind(*vary_alike(x, kernel), missing=_Y, window=window, levels=())


_conv_p = Primitive("resnet_jax_conv")


def is_forward(eqn: JaxprEqn) -> bool:
    """Whether an equation is the convolution of `conv2d`, not a gradient or a batch of them."""
    params = eqn.params
    return eqn.primitive is _conv_p and params["missing"] == _Y and not params["levels"]


def _formula(
    missing: int, levels: Levels, window: Window, functions: tuple[Callable[..., Array], ...]
) -> Callable[[Array, Array], Array]:
    """The function, of two arrays and the window, that computes the missing array."""
    levels = tuple(tuple(level[i] for i in _operands(missing)) for level in levels)
    return mapped(partial(functions[missing], window=window), levels)


def _operands(missing: int) -> list[int]:
    return [i for i in (_X, _KERNEL, _Y) if i != missing]


def _xla_input_gradient(kernel: Array, grad: Array, window: Window) -> Array:
    shape = (grad.shape[0], *window.image, kernel.shape[2] * window.groups)
    return transposed(lambda x: xla_conv(x, kernel, window), shape, grad)


def _xla_kernel_gradient(x: Array, grad: Array, window: Window) -> Array:
    shape = (*window.taps, x.shape[3] // window.groups, grad.shape[3])
    return transposed(lambda kernel: xla_conv(x, kernel, window), shape, grad)


def _by_xla(a: Array, b: Array, *, missing: int, window: Window, levels: Levels) -> Array:
    functions = (_xla_input_gradient, _xla_kernel_gradient, xla_conv)
    return _formula(missing, levels, window, functions)(a, b)


def _lower_on_cpu(ctx: Any, *operands: Any, missing: int, window: Window, levels: Levels) -> Any:
    """The lowering rule for CPUs, with oneDNN where a program may call it."""
    devices = native.devices_of(ctx.module_context)
    functions: list[Callable[..., Array]] = [
        partial(conv_cpu.input_gradient, whole_batch=devices > 1),
        partial(conv_cpu.kernel_gradient, whole_batch=devices > 1),
        conv_cpu.forward,
    ]
    if native.is_allowed(ctx.module_context):
        alternatives: tuple[Callable[..., Array | None], ...] = (
            native.input_gradient,
            native.kernel_gradient,
            native.forward,
        )
        functions = [
            partial(_preferring, alternative, function)
            for alternative, function in zip(alternatives, functions, strict=True)
        ]
    formula = _formula(missing, levels, window, tuple(functions))
    return mlir.lower_fun(formula, multiple_results=False)(ctx, *operands)


def _preferring(
    alternative: Callable[..., Array | None],
    function: Callable[..., Array],
    a: Array,
    b: Array,
    window: Window,
) -> Array:
    result = alternative(a, b, window)
    return function(a, b, window) if result is None else result


def _transpose(
    place: int,
    cotangent: Array,
    *operands: Any,
    missing: int,
    window: Window,
    levels: Levels,
) -> Array:
    """The cotangent of the first (0) or the second (1) of two operands."""
    arrays = _operands(missing)
    wanted = arrays[place]
    given = {missing: cotangent, arrays[1 - place]: operands[1 - place]}
    result = _conv_p.bind(
        *(given[i] for i in sorted(given)),
        missing=wanted,
        window=window,
        levels=tuple(tuple(has or i == wanted for i, has in enumerate(level)) for level in levels),
    )
    shared = tuple(i for i, level in enumerate(levels) if not level[wanted])
    return result.sum(shared) if shared else result


def _batch(
    operands: tuple[Array, Array],
    axes: tuple[int | None, int | None],
    *,
    missing: int,
    window: Window,
    levels: Levels,
) -> tuple[Array, int]:
    arrays = _operands(missing)
    has = {array: axis is not None for array, axis in zip(arrays, axes, strict=True)}
    at_front = [
        a if axis is None else jnp.moveaxis(a, axis, 0)
        for a, axis in zip(operands, axes, strict=True)
    ]
    bind = partial(_conv_p.bind, missing=missing, window=window)
    if missing != _KERNEL and not has[_KERNEL] and not levels:  # the axis only adds images
        images = arrays.index(_X + _Y - missing)
        size, n, *rest = at_front[images].shape
        at_front[images] = at_front[images].reshape(size * n, *rest)
        y = bind(*at_front, levels=())
        return y.reshape(size, n, *y.shape[1:]), 0
    level = tuple(has.get(i, True) for i in (_X, _KERNEL, _Y))
    return bind(*at_front, levels=(level, *levels)), 0


_conv_p.def_abstract_eval(
    lambda *avals, **params: result_types(partial(_by_xla, **params), *avals)[0]
)
evaluate(_conv_p, _by_xla, params=("missing", "window", "levels"))
mlir.register_lowering(_conv_p, mlir.lower_fun(_by_xla, multiple_results=False))
mlir.register_lowering(_conv_p, _lower_on_cpu, platform="cpu")
ad.defbilinear(_conv_p, partial(_transpose, 0), partial(_transpose, 1))
batching.primitive_batchers[_conv_p] = _batch
