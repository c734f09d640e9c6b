"""Networks with units deleted or put in another order (Veit et al. 2016, 1605.06431)."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from resnet_jax.models.block import ResidualBlock, pad_channels
from resnet_jax.models.resnet import ResNet


def units_of(model: ResNet) -> list[str]:
    """Names of the units from the input on."""
    sizes = enumerate(model.stage_sizes, start=1)
    return [f"layer{stage}_{i}" for stage, units in sizes for i in range(units)]


def apply_lesioned(
    model: ResNet, variables: Any, images: Float[Array, "n h w c"], kept: Bool[Array, " units"]
) -> Float[Array, "n k"]:
    """Logits without those units that aren't `kept`: in their place is the identity.

    Where a unit changes the shape, that is the identity of option A: pixels are left out, and
    channels of zeros added. Of a residual unit with such a shortcut thereby nothing but the
    shortcut is left; of a plain network's, nothing.
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
    """Groups of units that have one shape: those of a stage but the first, which may change it."""
    names = units_of(model)
    stages = range(1, len(model.stage_sizes) + 1)
    of_stages = ([name for name in names if name.startswith(f"layer{s}_")] for s in stages)
    return [units[1:] for units in of_stages]


def reorder(variables: Any, order: Sequence[Sequence[str]], groups: Sequence[Sequence[str]]) -> Any:
    """Variables in which the units of each group are in another order."""
    source = {
        place: unit
        for group, units in zip(groups, order, strict=True)
        for place, unit in zip(group, units, strict=True)
    }
    return {
        collection: {name: tree[source.get(name, name)] for name in tree}
        for collection, tree in variables.items()
    }
