"""Residual networks with units deleted or reordered (Veit et al. 2016, 1605.06431)."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from resnet_jax.models.block import ResidualBlock, pad_channels
from resnet_jax.models.resnet import ResNet


def units_of(model: ResNet) -> list[str]:
    """Names of the units in the order of computation."""
    sizes = enumerate(model.stage_sizes, start=1)
    return [f"layer{stage}_{i}" for stage, units in sizes for i in range(units)]


def apply_lesioned(
    model: ResNet, variables: Any, images: Float[Array, "n h w c"], kept: Bool[Array, " units"]
) -> Float[Array, "n k"]:
    """Logits of a network in which the identity replaces the units that aren't `kept`.

    Where a unit changes the shape, the identity is the shortcut of option A: it subsamples pixels
    and pads channels with zeros.
    """
    numbers = {name: number for number, name in enumerate(units_of(model))}

    def delete(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        y, unit = call(*args, **kwargs), context.module
        if not isinstance(unit, ResidualBlock) or context.method_name != "__call__":
            return y
        assert unit.name
        step = unit.stride
        identity = pad_channels(args[0][:, ::step, ::step], y.shape[-1])
        return jnp.where(kept[numbers[unit.name]], y, identity)

    with nn.intercept_methods(delete):
        return model.apply(variables, images)  # type: ignore[return-value]


def interchangeable(model: ResNet) -> list[list[str]]:
    """Groups of units with equal shapes: the units of each stage except the first."""
    names = units_of(model)
    stages = range(1, len(model.stage_sizes) + 1)
    of_stages = ([name for name in names if name.startswith(f"layer{s}_")] for s in stages)
    return [units[1:] for units in of_stages]


def reorder(variables: Any, order: Sequence[Sequence[str]], groups: Sequence[Sequence[str]]) -> Any:
    """Variables with the units of each group in the given order."""
    source = {
        place: unit
        for group, units in zip(groups, order, strict=True)
        for place, unit in zip(group, units, strict=True)
    }
    return {
        collection: {name: tree[source.get(name, name)] for name in tree}
        for collection, tree in variables.items()
    }
