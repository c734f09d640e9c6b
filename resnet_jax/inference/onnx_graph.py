"""A graph of ONNX operators, written node by node."""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.extend.core import JaxprEqn

from resnet_jax.errors import ConfigError

if TYPE_CHECKING:
    import onnx

OPSET = 17
"""Version of ONNX's operators: ONNX Runtime 1.12 (2022) and later run it."""

_IR_VERSION = 8  # of the file format that came with this opset

Shape = tuple[Any, ...]
"""Sizes of an array; a size that depends on the batch size is symbolic (`jax.export`)."""


@dataclasses.dataclass(frozen=True, eq=False)
class Constant:
    """An array whose values are known.

    Attributes:
        array: the values.
        name: of the parameter, such as "params/conv1/kernel"; "" for other arrays.
    """

    array: np.ndarray
    name: str = ""

    @property
    def shape(self) -> Shape:
        """The array's shape."""
        return self.array.shape


@dataclasses.dataclass(frozen=True)
class Tensor:
    """An array that the graph computes.

    ONNX convolves NCHW maps with OIHW kernels. So the graph may hold an array with its axes in
    another order than the program, and most operators keep this order: a network has a
    transposition of its images, and none of its maps.

    Attributes:
        name: of the tensor in the graph.
        shape: of the array in the program.
        order: axis i of the tensor is axis order[i] of the array.
    """

    name: str
    shape: Shape
    order: tuple[int, ...]


Value = Constant | Tensor


@dataclasses.dataclass
class Node:
    """A call of an operator with one result."""

    op: str
    inputs: list[str]
    output: str
    attributes: dict[str, Any]


class Graph:
    """Nodes in the order of the computation, and the constants that they take."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.constants: dict[str, np.ndarray] = {}
        self._names: dict[tuple[Any, ...], str] = {}  # of constants, by content

    def call(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Append a node; returns the name of its result."""
        name = f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(Node(op, list(inputs), name, attributes))
        return name

    def constant(self, values: Any, name: str = "") -> str:
        """The name of a constant, which equal constants share."""
        array = np.ascontiguousarray(values).reshape(np.shape(values))  # a scalar stays a scalar
        key = (array.dtype, array.shape, hashlib.sha256(array.tobytes()).digest())
        if key not in self._names:
            wanted = name or "constant"
            taken = not name or wanted in self.constants
            self._names[key] = f"{wanted}_{len(self.constants)}" if taken else wanted
            self.constants[self._names[key]] = array
        return self._names[key]

    def integers(self, values: Sequence[int]) -> str:
        """The name of a constant of shapes, axes or indices."""
        return self.constant(np.array(values, np.int64))

    def operand(self, value: Value, order: Sequence[int] | None = None) -> str:
        """The name of a tensor with the axes of `value` in that order; None for the program's."""
        order = tuple(range(len(value.shape)) if order is None else order)
        if isinstance(value, Constant):
            return self.constant(value.array.transpose(order), value.name)
        if value.order == order:
            return value.name
        return self.call("Transpose", value.name, perm=[value.order.index(axis) for axis in order])

    def rename(self, before: str, after: str) -> None:
        """Give another name to the result of a node."""
        for node in self.nodes:
            node.inputs = [after if name == before else name for name in node.inputs]
            node.output = after if node.output == before else node.output

    def to_model(
        self,
        images: tuple[str, Shape, np.dtype],
        logits: tuple[str, Shape, np.dtype],
    ) -> "onnx.ModelProto":
        """The graph as ONNX has it.

        Args:
            images, logits: name, shape and type of the only input and of the only output.
        """
        import onnx  # noqa: PLC0415 - an extra
        from onnx import helper, numpy_helper  # noqa: PLC0415

        def info(name: str, shape: Shape, dtype: np.dtype) -> onnx.ValueInfoProto:
            sizes = [str(size) if jax.export.is_symbolic_dim(size) else size for size in shape]
            return helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(dtype), sizes
            )

        used = {name for node in self.nodes for name in node.inputs}
        graph = helper.make_graph(
            [
                helper.make_node(
                    node.op, node.inputs, [node.output], node.output, **node.attributes
                )
                for node in self.nodes
            ],
            "resnet_jax",
            [info(*images)],
            [info(*logits)],
            [
                numpy_helper.from_array(array, name)
                for name, array in self.constants.items()
                if name in used
            ],
        )
        opsets = [helper.make_opsetid("", OPSET)]
        return helper.make_model(
            graph, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="resnet_jax"
        )


def result_of(eqn: JaxprEqn) -> Any:
    """Shape and type of an equation's only result."""
    (result,) = eqn.outvars
    return result.aval


def unsupported(eqn: JaxprEqn, why: str = "") -> ConfigError:
    """The error for a primitive, or for a use of it, that has no counterpart here."""
    name = eqn.primitive.name
    result = eqn.outvars[0].aval.str_short()
    return ConfigError(
        f"The network can't be written as ONNX: its operation {name!r} with the result"
        f" {result} has no operator of ONNX{f' ({why})' if why else ''}."
        " Export StableHLO, which has every operation."
    )


def merge_biases(graph: Graph) -> None:
    """Make a constant that is added to a convolution's result the convolution's bias."""
    uses = Counter(name for node in graph.nodes for name in node.inputs)
    convolutions: dict[str, Node] = {}
    kept = []
    for node in graph.nodes:
        if node.op == "Conv":
            convolutions[node.output] = node
        conv = convolutions.get(node.inputs[0]) if node.op == "Add" else None
        if conv is None or not _is_bias(graph, conv, node.inputs[1]) or uses[conv.output] > 1:
            kept.append(node)
            continue
        bias = graph.constants[node.inputs[1]].reshape(-1)
        if uses[node.inputs[1]] == 1:
            graph.constants[node.inputs[1]] = bias
            conv.inputs.append(node.inputs[1])
        else:
            conv.inputs.append(graph.constant(bias))
        conv.output = node.output
    graph.nodes[:] = kept


def _is_bias(graph: Graph, conv: Node, name: str) -> bool:
    """Whether the tensor is a constant with a number for each channel of NCHW maps."""
    if name not in graph.constants or conv.inputs[1] not in graph.constants:
        return False
    features, bias = graph.constants[conv.inputs[1]].shape[0], graph.constants[name]
    return len(conv.inputs) == 2 and bias.shape == (1, features, *[1] * (bias.ndim - 2))
