"""Variables converted for another network: scanned or unrolled, with other input channels."""

import re
from typing import Any

import jax
import jax.numpy as jnp
from flax.core import FrozenDict, unfreeze
from jaxtyping import Array, Float

from resnet_jax.errors import ConfigError

_BLOCK = re.compile(r"layer(\d+)_(\d+)")
_REST = re.compile(r"layer(\d+)_rest")


def stack_units(tree: Any) -> Any:
    """Convert variables of an unrolled network to variables of the scanned network.

    Wherever a mapping has "layer{s}_1", "layer{s}_2", …, these become one "layer{s}_rest" whose
    arrays have one more axis in front.

    Args:
        tree: variables, gradients, or an optimiser's state.
    """
    if not isinstance(tree, dict | FrozenDict):
        return _rebuild(tree, stack_units)
    rest: dict[int, list[tuple[int, Any]]] = {}
    stacked: dict[str, Any] = {}
    for name, child in unfreeze(tree).items():
        block = _BLOCK.fullmatch(name)
        if block and int(block[2]) > 0:
            rest.setdefault(int(block[1]), []).append((int(block[2]), child))
        else:
            stacked[name] = stack_units(child)
    for stage, blocks in rest.items():
        ordered = [child for _, child in sorted(blocks, key=lambda block: block[0])]
        stacked[f"layer{stage}_rest"] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *ordered)
    return stacked


def unstack_units(tree: Any) -> Any:
    """Convert variables of a scanned network to variables of the unrolled network.

    Args:
        tree: variables, gradients, or an optimiser's state.

    Raises:
        ConfigError: a "layer{s}_rest" has no arrays, as in the state of an optimiser that leaves
            its kernels alone.
    """
    if not isinstance(tree, dict | FrozenDict):
        return _rebuild(tree, unstack_units)
    unrolled: dict[str, Any] = {}
    for name, child in unfreeze(tree).items():
        rest = _REST.fullmatch(name)
        if rest is None:
            unrolled[name] = unstack_units(child)
            continue
        leaves = jax.tree.leaves(child)
        if not leaves:
            raise ConfigError(f"{name} has no arrays, so the number of its units isn't known.")
        for i in range(len(leaves[0])):
            unrolled[f"layer{rest[1]}_{i + 1}"] = jax.tree.map(lambda leaf, i=i: leaf[i], child)
    return unrolled


def _rebuild(tree: Any, convert: Any) -> Any:
    """Apply `convert` to the mappings inside a tree of another kind, such as an optax state."""
    return jax.tree.map(
        lambda leaf: convert(leaf) if isinstance(leaf, dict | FrozenDict) else leaf,
        tree,
        is_leaf=lambda node: isinstance(node, dict | FrozenDict),
    )


def adapt_input_channels(variables: Any, channels: int) -> Any:
    """Convert variables of a trained network for images with another number of channels.

    For one channel, the input channels of the first kernel are summed. For more, they are repeated
    in turn and scaled by old / new (timm's rule). Responses to grey images stay the same if the
    new number is 1 or a multiple of the old one, and the kernel isn't weight-standardised.

    Args:
        variables: of a network whose first convolution is "conv1" or "conv1_1", as a dict or
            Flax's FrozenDict.
        channels: number of channels of the new images.

    Raises:
        ConfigError: `channels` isn't positive, or there is no such convolution.
    """
    if channels < 1:
        raise ConfigError(f"channels is {channels}; it must be at least 1.")
    variables = unfreeze(variables)
    params = variables["params"]
    first = _first_convolution(params)
    kernel: Float[Array, "k k c f"] = params[first]["kernel"]
    if channels == 1:
        kernel = kernel.sum(axis=2, keepdims=True)
    else:
        before = kernel.shape[2]
        kernel = kernel[:, :, jnp.arange(channels) % before] * (before / channels)
    return variables | {"params": params | {first: params[first] | {"kernel": kernel}}}


def input_channels(variables: Any) -> int:
    """Return the number of channels of the images that a network takes.

    Args:
        variables: as for `adapt_input_channels`.

    Raises:
        ConfigError: there is no first convolution, conv1 or conv1_1.
    """
    params = variables["params"]
    return int(params[_first_convolution(params)]["kernel"].shape[2])


def _first_convolution(params: Any) -> str:
    for name in ("conv1", "conv1_1"):
        if name in params:
            return name
    raise ConfigError("There is no first convolution, conv1 or conv1_1, in these variables.")
