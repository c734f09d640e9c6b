"""How JAX's elementwise primitives are computed by operators of ONNX: the table `ELEMENTWISE`."""

from collections.abc import Callable
from functools import partial

import numpy as np
from jax.extend.core import JaxprEqn

from resnet_jax.inference.onnx_graph import Constant, Graph, Tensor, Value, result_of, unsupported


def elementwise(op: str, graph: Graph, eqn: JaxprEqn, *args: Value) -> Value:
    """An operator on arrays of one rank, and on scalars."""
    shape = result_of(eqn).shape
    maps = [x for x in args if isinstance(x, Tensor) and x.shape == shape]
    order = maps[0].order if maps else tuple(range(len(shape)))
    names = [graph.operand(x, order if x.shape else ()) for x in args]
    return Tensor(graph.call(op, *names), shape, order)


def number_like(eqn: JaxprEqn, number: float) -> Constant:
    """A scalar of the type of the result."""
    return Constant(np.array(number, result_of(eqn).dtype))


def _is_scalar(value: Value, number: float) -> bool:
    return isinstance(value, Constant) and not value.shape and value.array.item() == number


def _maximum(graph: Graph, eqn: JaxprEqn, a: Value, b: Value) -> Value:
    for x, y in ((a, b), (b, a)):
        if _is_scalar(x, 0) and result_of(eqn).dtype == np.float32:
            return elementwise("Relu", graph, eqn, y)
    return elementwise("Max", graph, eqn, a, b)


def _product(graph: Graph, eqn: JaxprEqn, a: Value, b: Value) -> Value:
    for x, y in ((a, b), (b, a)):
        if _is_scalar(x, 1):
            return y
    return elementwise("Mul", graph, eqn, a, b)


def _square(graph: Graph, eqn: JaxprEqn, x: Value) -> Value:
    return elementwise("Mul", graph, eqn, x, x)


def _integer_power(graph: Graph, eqn: JaxprEqn, x: Value) -> Value:
    return elementwise("Pow", graph, eqn, x, number_like(eqn, eqn.params["y"]))


def _rsqrt(graph: Graph, eqn: JaxprEqn, x: Value) -> Value:
    return elementwise("Reciprocal", graph, eqn, elementwise("Sqrt", graph, eqn, x))


def _erfc(graph: Graph, eqn: JaxprEqn, x: Value) -> Value:
    return elementwise("Sub", graph, eqn, number_like(eqn, 1), elementwise("Erf", graph, eqn, x))


def _expm1(graph: Graph, eqn: JaxprEqn, x: Value) -> Value:
    return elementwise("Sub", graph, eqn, elementwise("Exp", graph, eqn, x), number_like(eqn, 1))


def _log1p(graph: Graph, eqn: JaxprEqn, x: Value) -> Value:
    return elementwise("Log", graph, eqn, elementwise("Add", graph, eqn, x, number_like(eqn, 1)))


def _not_equal(graph: Graph, eqn: JaxprEqn, a: Value, b: Value) -> Value:
    return elementwise("Not", graph, eqn, elementwise("Equal", graph, eqn, a, b))


def _select(graph: Graph, eqn: JaxprEqn, which: Value, *cases: Value) -> Value:
    if len(cases) != 2:
        raise unsupported(eqn, f"of {len(cases)} cases")
    return elementwise("Where", graph, eqn, which, cases[1], cases[0])


def _clamp(graph: Graph, eqn: JaxprEqn, low: Value, x: Value, high: Value) -> Value:
    return elementwise("Min", graph, eqn, elementwise("Max", graph, eqn, x, low), high)


_OPERATORS = {
    "abs": "Abs", "add": "Add", "ceil": "Ceil", "cos": "Cos", "div": "Div", "eq": "Equal",
    "erf": "Erf", "exp": "Exp", "floor": "Floor", "ge": "GreaterOrEqual", "gt": "Greater",
    "le": "LessOrEqual", "log": "Log", "logistic": "Sigmoid", "lt": "Less", "min": "Min",
    "neg": "Neg", "pow": "Pow", "sign": "Sign", "sin": "Sin", "sqrt": "Sqrt", "sub": "Sub",
    "tanh": "Tanh",
}  # fmt: skip

ELEMENTWISE: dict[str, Callable[..., Value]] = {
    **{name: partial(elementwise, op) for name, op in _OPERATORS.items()},
    "clamp": _clamp,
    "erfc": _erfc,
    "expm1": _expm1,
    "integer_pow": _integer_power,
    "log1p": _log1p,
    "max": _maximum,
    "mul": _product,
    "ne": _not_equal,
    "rsqrt": _rsqrt,
    "select_n": _select,
    "square": _square,
}
"""Name of a primitive → the function that adds its nodes, as in `onnx_primitives.PRIMITIVES`."""
