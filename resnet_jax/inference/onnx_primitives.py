"""How each primitive of JAX is computed by operators of ONNX: the table `PRIMITIVES`."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.extend.core import JaxprEqn

from resnet_jax.inference.onnx_elementwise import ELEMENTWISE, number_like
from resnet_jax.inference.onnx_graph import Graph, Shape, Tensor, Value, result_of, unsupported

_NCHW, _OIHW = (0, 3, 1, 2), (3, 2, 0, 1)  # of NHWC maps and HWIO kernels


def _convert(graph: Graph, eqn: JaxprEqn, x: Tensor) -> Value:
    from onnx import helper  # noqa: PLC0415 - an extra

    kind = helper.np_dtype_to_tensor_dtype(np.dtype(eqn.params["new_dtype"]))
    return Tensor(graph.call("Cast", x.name, to=kind), x.shape, x.order)


def _same(graph: Graph, eqn: JaxprEqn, x: Value) -> Value:
    return x


def _transpose(graph: Graph, eqn: JaxprEqn, x: Tensor) -> Value:
    """Another name for each axis; the tensor stays as it is."""
    permutation = list(eqn.params["permutation"])
    order = tuple(permutation.index(axis) for axis in x.order)
    return Tensor(x.name, result_of(eqn).shape, order)


def _sizes(eqn: JaxprEqn, shape: Shape) -> list[int]:
    """A shape as Reshape takes it, where -1 stands for the size that depends on the batch's."""
    sizes = [-1 if jax.export.is_symbolic_dim(size) else size for size in shape]
    if sizes.count(-1) > 1:
        raise unsupported(eqn, "two sizes that depend on the batch size")
    return sizes


def _reshaped(graph: Graph, eqn: JaxprEqn, x: Value, shape: Shape) -> Tensor:
    sizes = graph.integers(_sizes(eqn, shape))
    name = graph.call("Reshape", graph.operand(x), sizes)
    return Tensor(name, shape, tuple(range(len(shape))))


def _reshape(graph: Graph, eqn: JaxprEqn, x: Value) -> Value:
    if eqn.params["dimensions"] is not None:
        raise unsupported(eqn, "with the axes in another order")
    return _reshaped(graph, eqn, x, result_of(eqn).shape)


def _broadcast(graph: Graph, eqn: JaxprEqn, x: Value) -> Value:
    """Axes of size 1 for the new ones; operators repeat those by themselves."""
    shape, axes = result_of(eqn).shape, eqn.params["broadcast_dimensions"]
    sizes: list[Any] = [1] * len(shape)
    for axis, size in zip(axes, x.shape, strict=True):
        sizes[axis] = size
    y = _reshaped(graph, eqn, x, tuple(sizes))
    if y.shape == shape:
        return y
    repeated = [1 if a == b else b for a, b in zip(sizes, shape, strict=True)]
    names = [_size(graph, eqn, size) for size in repeated]
    return Tensor(
        graph.call("Expand", y.name, graph.call("Concat", *names, axis=0)), shape, y.order
    )


def _size(graph: Graph, eqn: JaxprEqn, size: Any) -> str:
    """The name of a tensor with that size alone, which may be the batch size."""
    if not jax.export.is_symbolic_dim(size):
        return graph.integers([size])
    if str(size) != "n":
        raise unsupported(eqn, "of a size other than the batch size")
    return graph.call("Shape", "images", start=0, end=1)


def _without(order: Sequence[int], axes: Sequence[int]) -> tuple[int, ...]:
    """The order of the axes that stay when some are removed."""
    kept = [axis for axis in order if axis not in axes]
    return tuple(sorted(kept).index(axis) for axis in kept)


def _reduce(op: str, graph: Graph, eqn: JaxprEqn, x: Tensor) -> Value:
    axes, rank = eqn.params["axes"], len(x.shape)
    places = sorted(x.order.index(axis) for axis in axes)
    name = x.name
    if op == "ReduceSum":  # takes the axes as an input since opset 13, the others since 18
        # Axes apart one by one: ONNX Runtime adds their elements one after another, which rounds
        # sums of thousands of elements more than sums of sums.
        is_block = places == list(range(rank - len(places), rank))
        for step in [places] if is_block else [[place] for place in reversed(places)]:
            name = graph.call(op, name, graph.integers(step), keepdims=0)
    else:
        name = graph.call(op, name, axes=places, keepdims=0)
    return Tensor(name, result_of(eqn).shape, _without(x.order, axes))


def _squeeze(graph: Graph, eqn: JaxprEqn, x: Tensor) -> Value:
    axes = eqn.params["dimensions"]
    places = graph.integers(sorted(x.order.index(axis) for axis in axes))
    name = graph.call("Squeeze", x.name, places)
    return Tensor(name, result_of(eqn).shape, _without(x.order, axes))


def _concatenate(graph: Graph, eqn: JaxprEqn, *args: Value) -> Value:
    order = next(x.order for x in args if isinstance(x, Tensor))
    axis = order.index(eqn.params["dimension"])
    name = graph.call("Concat", *(graph.operand(x, order) for x in args), axis=axis)
    return Tensor(name, result_of(eqn).shape, order)


def _slice(graph: Graph, eqn: JaxprEqn, x: Tensor) -> Value:
    starts, limits = eqn.params["start_indices"], eqn.params["limit_indices"]
    steps = eqn.params["strides"] or (1,) * len(starts)
    sliced = [
        axis
        for axis, size in enumerate(x.shape)
        if (starts[axis], limits[axis], steps[axis]) != (0, size, 1)
    ]
    columns = [[column[axis] for axis in sliced] for column in (starts, limits)]
    columns += [[x.order.index(axis) for axis in sliced], [steps[axis] for axis in sliced]]
    name = graph.call("Slice", x.name, *map(graph.integers, columns))
    return Tensor(name, result_of(eqn).shape, x.order)


def _pad(graph: Graph, eqn: JaxprEqn, x: Tensor, value: Value) -> Value:
    below, above, between = zip(*eqn.params["padding_config"], strict=True)
    if any(between) or min(below + above) < 0:
        raise unsupported(eqn, "between elements, or by less than 0")
    pads = [sizes[axis] for sizes in (below, above) for axis in x.order]
    name = graph.call("Pad", x.name, graph.integers(pads), graph.operand(value))
    return Tensor(name, result_of(eqn).shape, x.order)


def _pool(op: str, graph: Graph, eqn: JaxprEqn, x: Tensor) -> Value:
    """Pooling over the axes 1 and 2 of NHWC maps."""
    params, shape = eqn.params, result_of(eqn).shape
    window, strides = params["window_dimensions"], params["window_strides"]
    padding, dilations = params["padding"], params["window_dilation"]
    rest = [(window[i], strides[i], *padding[i]) for i in (0, -1)]
    if len(shape) != 4 or rest != [(1, 1, 0, 0)] * 2 or set(params["base_dilation"]) != {1}:
        raise unsupported(eqn, "of other axes than height and width")
    attributes: dict[str, Any] = {
        "kernel_shape": window[1:3],
        "strides": strides[1:3],
        "pads": [padding[axis][side] for side in (0, 1) for axis in (1, 2)],
    }
    name = graph.operand(x, _NCHW)
    if op == "MaxPool":
        name = graph.call(op, name, dilations=dilations[1:3], **attributes)
        return Tensor(name, shape, _NCHW)
    if set(dilations) != {1}:
        raise unsupported(eqn, "of dilated windows")
    mean = graph.call("AveragePool", name, count_include_pad=1, **attributes)
    size = graph.operand(number_like(eqn, np.prod(window)))
    return Tensor(graph.call("Mul", mean, size), shape, _NCHW)


def _conv2d(graph: Graph, eqn: JaxprEqn, x: Value, kernel: Value) -> Value:
    """The package's own convolution of NHWC maps and HWIO kernels."""
    if eqn.params["missing"] != 2 or eqn.params["levels"]:
        raise unsupported(eqn, "a gradient of a convolution")
    window = eqn.params["window"]
    name = graph.call(
        "Conv",
        graph.operand(x, _NCHW),
        graph.operand(kernel, _OIHW),
        strides=window.strides,
        dilations=window.dilation,
        pads=[pad[side] for side in (0, 1) for pad in window.padding],
        group=window.groups,
    )
    return Tensor(name, result_of(eqn).shape, _NCHW)


def _convolution(graph: Graph, eqn: JaxprEqn, x: Value, kernel: Value) -> Value:
    """A convolution of `jax.lax`, whose dimension numbers are the orders of the axes."""
    params, numbers = eqn.params, eqn.params["dimension_numbers"]
    if set(params["lhs_dilation"]) != {1} or params["batch_group_count"] != 1:
        raise unsupported(eqn, "transposed, or with groups of images")
    name = graph.call(
        "Conv",
        graph.operand(x, numbers.lhs_spec),
        graph.operand(kernel, numbers.rhs_spec),
        strides=params["window_strides"],
        dilations=params["rhs_dilation"],
        pads=[pad[side] for side in (0, 1) for pad in params["padding"]],
        group=params["feature_group_count"],
    )
    return Tensor(name, result_of(eqn).shape, tuple(numbers.out_spec))


def _dot_general(graph: Graph, eqn: JaxprEqn, a: Value, b: Value) -> Value:
    numbers, shape = eqn.params["dimension_numbers"], result_of(eqn).shape
    (contracted, contracted_b), (batch, batch_b) = (tuple(map(tuple, pair)) for pair in numbers)
    names, order = (graph.operand(a), graph.operand(b)), tuple(range(len(shape)))
    if (len(a.shape), len(b.shape), contracted, contracted_b) == (2, 2, (1,), (0,)):
        return Tensor(graph.call("MatMul", *names), shape, order)
    letters_a = [chr(ord("a") + i) for i in range(len(a.shape))]
    letters_b = [chr(ord("A") + i) for i in range(len(b.shape))]
    for i, j in zip(batch + contracted, batch_b + contracted_b, strict=True):
        letters_b[j] = letters_a[i]
    result = [letters_a[i] for i in batch]
    result += [x for i, x in enumerate(letters_a) if i not in batch + contracted]
    result += [x for j, x in enumerate(letters_b) if j not in batch_b + contracted_b]
    equation = f"{''.join(letters_a)},{''.join(letters_b)}->{''.join(result)}"
    return Tensor(graph.call("Einsum", *names, equation=equation), shape, order)


_REDUCTIONS = {
    "reduce_max": "ReduceMax",
    "reduce_min": "ReduceMin",
    "reduce_prod": "ReduceProd",
    "reduce_sum": "ReduceSum",
}

PRIMITIVES: dict[str, Callable[..., Value]] = {
    **ELEMENTWISE,
    **{name: partial(_reduce, op) for name, op in _REDUCTIONS.items()},
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
    "conv_general_dilated": _convolution,
    "convert_element_type": _convert,
    "copy": _same,
    "dot_general": _dot_general,
    "name": _same,
    "pad": _pad,
    "reduce_window_max": partial(_pool, "MaxPool"),
    "reduce_window_sum": partial(_pool, "AveragePool"),
    "reshape": _reshape,
    "resnet_jax_conv": _conv2d,
    "slice": _slice,
    "squeeze": _squeeze,
    "stop_gradient": _same,
    "transpose": _transpose,
}
"""Name of a primitive → the function that adds its nodes: (graph, equation, *operands) → result."""
