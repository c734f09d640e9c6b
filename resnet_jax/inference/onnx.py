"""Export of a network as ONNX: the program of `export_program`, primitive by primitive.

The program is traced by JAX with a symbolic batch size. Each of its primitives becomes a few
operators of ONNX (onnx_primitives.py, onnx_elementwise.py). Results that depend on parameters alone
are computed here.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

from resnet_jax.errors import ConfigError
from resnet_jax.inference.export import Inference, replace_program
from resnet_jax.inference.onnx_graph import (
    OPSET,
    Constant,
    Graph,
    Tensor,
    Value,
    merge_biases,
    unsupported,
)
from resnet_jax.inference.onnx_primitives import PRIMITIVES
from resnet_jax.models.network import Network
from resnet_jax.utils.distribution import install_hint

if TYPE_CHECKING:
    import onnx

# Primitives that call a program → the parameter that holds it.
_CALLS = {
    "checkpoint": "jaxpr",
    "closed_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "jit": "jaxpr",
    "remat2": "jaxpr",
}
# Primitives of constants that stay the same parameter.
_KEEP_NAME = ("broadcast_in_dim", "convert_element_type", "reshape", "squeeze")


def export_onnx(
    model: nn.Module,
    variables: Mapping[str, Any],
    image_shape: tuple[int, int, int],
    *,
    normalization: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
) -> "onnx.ModelProto":
    """Convert the inference of a network to ONNX, from images to logits.

    The input "images" [n, h, w, c] and the output "logits" [n, k] are those of `export_program`,
    and the logits are equal up to rounding. A `Network` computes in float32, whatever its `dtype`
    is: ONNX Runtime has no convolution of bfloat16 maps on CPUs.

    Args:
        model: a network, or any module of images [n, h, w, c] that gives logits [n, k].
        variables: the network's variables, which become constants, named by their paths.
        image_shape: (h, w, c).
        normalization: {"mean", "std"} in grey levels; the graph then takes uint8 images as they
            are in files. None: the graph takes normalised float32 images.
        batch_size: the batch size; None for any, a dimension named "n".

    Returns:
        The model, which `write_onnx` writes to a file.

    Raises:
        ConfigError: the extra [onnx] isn't installed; the module has an operation without a
            counterpart, which the message names; or as `export_program`.
    """
    _check_installed()
    if isinstance(model, Network):
        model = model.copy(dtype=jnp.float32)
    inference = Inference.of(model, variables, image_shape, normalization, batch_size)
    constants = [
        Constant(np.asarray(leaf), "/".join(str(entry.key) for entry in path))
        for path, leaf in jax.tree_util.tree_flatten_with_path(inference.variables)[0]
    ]
    program = jax.make_jaxpr(inference.logits)(inference.variables, inference.images)
    graph, images = Graph(), inference.images
    inputs = Tensor("images", images.shape, (0, 1, 2, 3))
    (result,) = _add_program(graph, program, [*constants, inputs])
    name = graph.operand(result)
    if name not in {node.output for node in graph.nodes}:
        name = graph.call("Identity", name)
    merge_biases(graph)
    graph.rename(name, "logits")
    (logits,) = program.out_avals
    return graph.to_model(
        ("images", images.shape, images.dtype), ("logits", logits.shape, logits.dtype)
    )


def describe_onnx(model: "onnx.ModelProto") -> dict[str, Any]:
    """The interface of a model; "n" in a shape is any number of images."""
    from onnx import helper  # noqa: PLC0415 - an extra

    def describe(info: "onnx.ValueInfoProto") -> dict[str, Any]:
        kind = info.type.tensor_type
        shape = [size.dim_param or size.dim_value for size in kind.shape.dim]
        return {"shape": shape, "dtype": helper.tensor_dtype_to_np_dtype(kind.elem_type).name}

    return {
        **{info.name: describe(info) for info in (*model.graph.input, *model.graph.output)},
        "opset": OPSET,
        "versions": {package: version(package) for package in ("flax", "jax", "onnx")},
    }


def write_onnx(
    path: str | os.PathLike[str],
    model: "onnx.ModelProto",
    *,
    notes: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write a file that ONNX Runtime reads, with its description as metadata.

    Args:
        path: a file on this machine; an existing file is replaced atomically.
        model: the model from `export_onnx`; its `metadata_props` become the description. Strings
            stay as they are there, other values are JSON.
        notes: more entries of the description, such as "class_names"; JSON-like.

    Returns:
        The description, with the file's "sha256" and "bytes".

    Raises:
        WriteError: the file can't be written; an existing file is intact.
    """
    from onnx import helper  # noqa: PLC0415 - an extra

    document = {**(notes or {}), **describe_onnx(model)}
    texts = {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in document.items()
    }
    helper.set_model_props(model, texts)
    data = model.SerializeToString()
    replace_program(Path(path), data)
    return document | {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def _check_installed() -> None:
    try:
        import onnx  # noqa: F401, PLC0415 - an extra
    except ImportError:
        raise ConfigError(
            f"ONNX is written with the package onnx, the extra [onnx]: {install_hint('onnx')}."
        ) from None


def _add_program(graph: Graph, program: ClosedJaxpr | Jaxpr, args: Sequence[Value]) -> list[Value]:
    """Add the nodes of a program; returns its results."""
    consts = program.consts if isinstance(program, ClosedJaxpr) else []
    jaxpr = program.jaxpr if isinstance(program, ClosedJaxpr) else program
    constants = [Constant(np.asarray(const)) for const in consts]
    inputs = zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *args], strict=True)
    values: dict[Var, Value] = dict(inputs)

    def read(atom: Any) -> Value:
        is_literal = isinstance(atom, Literal)
        return Constant(np.asarray(atom.val, atom.aval.dtype)) if is_literal else values[atom]

    for eqn in _needed(jaxpr):
        results = _add_equation(graph, eqn, [read(atom) for atom in eqn.invars])
        values.update(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _needed(jaxpr: Jaxpr) -> list[JaxprEqn]:
    """The equations on which the results depend."""
    needed = set(map(id, jaxpr.outvars))
    equations = []
    for eqn in reversed(jaxpr.eqns):
        if not needed.isdisjoint(map(id, eqn.outvars)):
            equations.append(eqn)
            needed.update(map(id, eqn.invars))
    return equations[::-1]


def _add_equation(graph: Graph, eqn: JaxprEqn, args: list[Value]) -> list[Value]:
    name, params = eqn.primitive.name, eqn.params
    if name in _CALLS:
        return _add_program(graph, params[_CALLS[name]], args)
    if name == "platform_index":  # of `lax.platform_dependent`
        return [Constant(np.array(params["platforms"].index(None), np.int32))]
    if name == "cond" and isinstance(args[0], Constant):
        branches = params["branches"]
        return _add_program(graph, branches[np.clip(args[0].array, 0, len(branches) - 1)], args[1:])
    if name == "scan":
        return _unroll(graph, eqn, args)
    if all(isinstance(arg, Constant) for arg in args) and not _depends_on_batch_size(eqn):
        arrays = [arg.array for arg in args if isinstance(arg, Constant)]
        results = eqn.primitive.bind(*arrays, **params)
        kept = args[0].name if name in _KEEP_NAME and isinstance(args[0], Constant) else ""
        return [
            Constant(np.asarray(array), kept)
            for array in (results if eqn.primitive.multiple_results else [results])
        ]
    if name not in PRIMITIVES:
        raise unsupported(eqn)
    return [PRIMITIVES[name](graph, eqn, *args)]


def _depends_on_batch_size(eqn: JaxprEqn) -> bool:
    results: list[Any] = [var.aval for var in eqn.outvars]
    sizes = jax.tree.leaves(([aval.shape for aval in results], list(eqn.params.values())))
    return any(map(jax.export.is_symbolic_dim, sizes))


def _unroll(graph: Graph, eqn: JaxprEqn, args: list[Value]) -> list[Value]:
    """The iterations of a loop one after another, as `ResNet.scan` needs them.

    The operands are those that all iterations share, those that an iteration gives to the next,
    and arrays of which each iteration takes a row. Results are of the second kind.
    """
    body, length = eqn.params["jaxpr"], eqn.params["length"]
    rows = [_rank(a) > _rank(b) for a, b in zip(eqn.invars, body.jaxpr.invars, strict=True)]
    stacked = [x for x, has_rows in zip(args, rows, strict=True) if has_rows]
    arrays = [x for x in stacked if isinstance(x, Constant)]
    results = zip(eqn.outvars, body.jaxpr.outvars, strict=True)
    collected = any(_rank(a) > _rank(b) for a, b in results)
    if len(arrays) < len(stacked) or collected or not isinstance(length, int):
        raise unsupported(eqn, "a loop over arrays that aren't parameters")
    first = len(args) - len(stacked) - len(eqn.outvars)
    shared, carry = args[:first], args[first : len(args) - len(stacked)]
    for i in reversed(range(length)) if eqn.params["reverse"] else range(length):
        taken = [Constant(x.array[i], x.name and f"{x.name}/{i}") for x in arrays]
        carry = _add_program(graph, body, [*shared, *carry, *taken])
    return carry


def _rank(variable: Any) -> int:
    return len(variable.aval.shape)
