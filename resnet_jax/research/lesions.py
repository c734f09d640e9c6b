"""Residual networks with blocks deleted or reordered (Veit et al. 2016, 1605.06431)."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from resnet_jax.models.block import ResidualBlock, pad_channels
from resnet_jax.models.resnet import ResNet


def block_names(model: ResNet) -> list[str]:
    """Names of the blocks in the order of computation."""
    sizes = enumerate(model.stage_sizes, start=1)
    return [f"layer{stage}_{i}" for stage, blocks in sizes for i in range(blocks)]


def apply_lesioned(
    model: ResNet, variables: Any, images: Float[Array, "n h w c"], kept: Bool[Array, " blocks"]
) -> Float[Array, "n k"]:
    """Logits of a network in which the identity replaces the blocks that aren't `kept`.

    Where a block changes the shape, the identity is the shortcut of option A: it subsamples pixels
    and pads channels with zeros.
    """
    numbers = {name: number for number, name in enumerate(block_names(model))}

    def delete(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        y, block = call(*args, **kwargs), context.module
        if not isinstance(block, ResidualBlock) or context.method_name != "__call__":
            return y
        assert block.name
        step = block.stride
        identity = pad_channels(args[0][:, ::step, ::step], y.shape[-1])
        return jnp.where(kept[numbers[block.name]], y, identity)

    with nn.intercept_methods(delete):
        return model.apply(variables, images)  # type: ignore[return-value]


def interchangeable(model: ResNet) -> list[list[str]]:
    """Groups of blocks with equal shapes: the blocks of each stage except the first."""
    names = block_names(model)
    stages = range(1, len(model.stage_sizes) + 1)
    of_stages = ([name for name in names if name.startswith(f"layer{s}_")] for s in stages)
    return [blocks[1:] for blocks in of_stages]


def reorder(variables: Any, order: Sequence[Sequence[str]], groups: Sequence[Sequence[str]]) -> Any:
    """Variables with the blocks of each group in the given order."""
    source = {
        place: block
        for group, blocks in zip(groups, order, strict=True)
        for place, block in zip(group, blocks, strict=True)
    }
    return {
        collection: {name: tree[source.get(name, name)] for name in tree}
        for collection, tree in variables.items()
    }
