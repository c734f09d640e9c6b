"""Layers, parameters, multiply-adds and activations of a network."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer with parameters.

    Attributes:
        path: as in the parameter tree, such as "layer1_0/conv1".
        kind: name of the linen class.
        output_shape: of one image, (h, w, c) or (c,).
        params: number of parameters.
        macs: multiply-adds per image of convolutions and matrix products; papers call them FLOPs.
    """

    path: str
    kind: str
    output_shape: tuple[int, ...]
    params: int
    macs: int


@dataclasses.dataclass(frozen=True)
class Summary:
    """A network's layers in the order of their evaluation.

    Attributes:
        layers: the layers that have parameters.
        activation_bytes: size of the outputs of these layers for one image, in the compute type.
            Training stores about as much per image, unless blocks are recomputed.
    """

    layers: tuple[Layer, ...]
    activation_bytes: int

    @property
    def params(self) -> int:
        """Number of parameters."""
        return sum(layer.params for layer in self.layers)

    @property
    def macs(self) -> int:
        """Multiply-adds per image."""
        return sum(layer.macs for layer in self.layers)


def summarize(model: nn.Module, image_shape: tuple[int, int, int]) -> Summary:
    """Trace a network for one image, without computing anything.

    Multiply-adds are those of convolutions and fully connected layers: for each element of the
    output, the number of weights that it depends on, padding included. Biases, normalisation,
    activation, pooling and sums don't count, as in the papers.

    Args:
        model: a linen module that takes images; layers are modules that return one array.
        image_shape: (h, w, c).

    Returns:
        The layers with parameters in the order of their evaluation, for one image.
    """
    if getattr(model, "scan", False):
        model = model.copy(scan=False)  # a loop shows its layers once
    outputs: dict[str, tuple[str, Any]] = {}

    def record(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        output = call(*args, **kwargs)
        if context.method_name == "__call__" and isinstance(output, jax.Array):
            path = "/".join(context.module.path)
            outputs[path] = (type(context.module).__name__, output)
        return output

    with nn.intercept_methods(record):
        image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
        variables = jax.eval_shape(model.init, jax.random.key(0), image)

    layers, activation_bytes = [], 0
    params = _parents(variables["params"])
    for path, (kind, output) in outputs.items():
        if path not in params:
            continue
        shapes = {name: leaf.shape for name, leaf in params[path].items()}
        # Each element of the output takes one multiply-add per weight of its output channel.
        macs = math.prod(output.shape[:-1]) * math.prod(shapes.get("kernel", (0,)))
        layers.append(
            Layer(
                path=path,
                kind=kind,
                output_shape=output.shape[1:],
                params=sum(math.prod(shape) for shape in shapes.values()),
                macs=macs,
            )
        )
        activation_bytes += output.size * output.dtype.itemsize
    return Summary(tuple(layers), activation_bytes)


def _parents(params: Any) -> dict[str, dict[str, Any]]:
    """Path of each module that owns parameters → its own parameters by name."""
    owned: dict[str, dict[str, Any]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        *parent, name = (key.key for key in path)
        owned.setdefault("/".join(parent), {})[name] = leaf
    return owned
