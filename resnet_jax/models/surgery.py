"""Variables of one network made to fit another: scanned or unrolled units, other input channels."""

import re
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from resnet_jax.errors import ConfigError

_UNIT = re.compile(r"layer(\d+)_(\d+)")
_REST = re.compile(r"layer(\d+)_rest")


def stack_units(tree: Any) -> Any:
    """Turn variables of an unrolled network into those of its scanned twin.

    Wherever a mapping has "layer{s}_1", "layer{s}_2", …, these become one "layer{s}_rest" whose
    arrays have one more axis in front. So it also takes gradients, or an optimiser's state.
    """
    if not isinstance(tree, dict):
        return _rebuild(tree, stack_units)
    rest: dict[int, list[tuple[int, Any]]] = {}
    stacked: dict[str, Any] = {}
    for name, child in tree.items():
        unit = _UNIT.fullmatch(name)
        if unit and int(unit[2]) > 0:
            rest.setdefault(int(unit[1]), []).append((int(unit[2]), child))
        else:
            stacked[name] = stack_units(child)
    for stage, units in rest.items():
        ordered = [child for _, child in sorted(units, key=lambda unit: unit[0])]
        stacked[f"layer{stage}_rest"] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *ordered)
    return stacked


def unstack_units(tree: Any) -> Any:
    """Turn variables of a scanned network into those of its unrolled twin."""
    if not isinstance(tree, dict):
        return _rebuild(tree, unstack_units)
    unrolled: dict[str, Any] = {}
    for name, child in tree.items():
        rest = _REST.fullmatch(name)
        if rest is None:
            unrolled[name] = unstack_units(child)
            continue
        for i in range(len(jax.tree.leaves(child)[0])):
            unit = jax.tree.map(lambda leaf, i=i: leaf[i], child)
            unrolled[f"layer{rest[1]}_{i + 1}"] = unit
    return unrolled


def _rebuild(tree: Any, convert: Any) -> Any:
    """Apply `convert` to the mappings inside a tree of another kind, such as an optax state."""
    return jax.tree.map(
        lambda leaf: convert(leaf) if isinstance(leaf, dict) else leaf,
        tree,
        is_leaf=lambda node: isinstance(node, dict),
    )


def adapt_input_channels(variables: Any, channels: int) -> Any:
    """Make a trained network take images of another number of channels.

    The first kernel's input channels are repeated in turn, and scaled so that an image that
    repeats its channels in the same way gives the same response; for one channel that is the sum.

    Args:
        variables: of a network whose first convolution is "conv1", "conv1_1", or in "tower".
        channels: of the new images.

    Raises:
        ConfigError: `channels` isn't positive, or there is no such convolution.
    """
    if channels < 1:
        raise ConfigError(f"channels is {channels}; it must be at least 1.")
    params = dict(variables["params"])
    first = next((name for name in ("conv1", "conv1_1", "tower") if name in params), None)
    if first is None:
        raise ConfigError("There is no first convolution, conv1 or conv1_1, in these variables.")
    if first == "tower":
        return variables | {"params": params | adapt_input_channels({"params": params[first]}, channels)}
    params[first] = params[first] | {"kernel": _repeat(params[first]["kernel"], channels)}
    return dict(variables) | {"params": params}


def _repeat(kernel: Float[Array, "k k c f"], channels: int) -> Float[Array, "k k d f"]:
    before = kernel.shape[2]
    if channels == 1:
        return kernel.sum(axis=2, keepdims=True)
    turns = jnp.arange(channels) % before
    counts = jnp.bincount(turns, length=before)
    missing = kernel[:, :, channels:].sum(axis=2, keepdims=True) / min(channels, before)
    return kernel[:, :, turns] / counts[turns][:, None] + (missing if channels < before else 0)
