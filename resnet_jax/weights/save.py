"""Saving weights with the names and layouts of torchvision or timm, for PyTorch's users."""

import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from resnet_jax.errors import ConfigError
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.surgery import unstack_units
from resnet_jax.weights.architecture_note import architecture_note
from resnet_jax.weights.files import write_weights

_KINDS = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
# timm's deep stems and ResNet-RS's stem.
_STEM = {
    "conv1_1": "conv1.0",
    "bn1_1": "conv1.1",
    "conv1_2": "conv1.3",
    "bn1_2": "conv1.4",
    "conv1_3": "conv1.6",
    "pool_conv": "maxpool.0",
    "pool_bn": "maxpool.1",
}
_BIT_STEM = {"conv1": "stem.conv", "bn_final": "norm", "fc": "head.fc"}


def save_weights(
    path: str | os.PathLike[str],
    model: ResNet,
    variables: Mapping[str, Any],
    *,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a .safetensors file with torchvision's or timm's names and layouts.

    torchvision's modules load the file by `load_state_dict(strict=False)`; timm's modules load
    networks that torchvision doesn't have. Only the counters `num_batches_tracked` are missing.
    Pre-activation networks for CIFAR have torchvision's names, and "bn_final" before the
    classifier. The file also holds the model's fields: `load_weights` restores the same bits and
    refuses a model that would compute something else; `read_model` makes the model.

    Args:
        path: of the file. An existing file is replaced atomically.
        model: the network.
        variables: of the network, as `model.init` makes them; scanned or not.
        metadata: texts to store in the file, such as `Preprocessing.metadata()`.

    Raises:
        ConfigError: the model is no `ResNet` or has a branch without a name, or two variables would
            have one name in the file.
        DataError, WriteError: as for `write_weights`.
    """
    if not isinstance(model, ResNet):
        raise ConfigError(f"Weights of a ResNet can be saved, not of {type(model).__name__}.")
    leaves = traverse_util.flatten_dict(unstack_units(dict(variables)), sep="/")
    arrays = {torch_name(leaf, model): _torch_array(leaf, a, model) for leaf, a in leaves.items()}
    if len(arrays) < len(leaves):
        raise ConfigError(f"{_clash(leaves, model)} would have one name in the file.")
    # Last, because `metadata` may be of the file that these weights came from.
    notes = {"format": "pt"} | dict(metadata or {}) | architecture_note(model)
    write_weights(path, arrays, metadata=notes)


def _clash(leaves: Mapping[str, Any], model: ResNet) -> str:
    """The first two variables that have one name in the file."""
    first: dict[str, str] = {}
    pairs = ((leaf, first.setdefault(torch_name(leaf, model), leaf)) for leaf in leaves)
    return next(f"{other} and {leaf}" for leaf, other in pairs if other != leaf)


def torch_name(leaf: str, model: ResNet) -> str:
    """PyTorch's name of a variable: "layer1.0.conv1.weight" of "params/layer1_0/conv1/kernel"."""
    module, _, kind = leaf.partition("/")[2].rpartition("/")
    if _is_bit(model):
        module = _BIT_STEM.get(module, module)
        module = re.sub(
            r"layer(\d+)_(\d+)/", lambda m: f"stages.{int(m[1]) - 1}.blocks.{m[2]}.", module
        )
        module = module.replace("downsample_conv", "downsample.conv")
        module = re.sub(r"\.bn(\d)", r".norm\1", module)
    else:
        module = _STEM.get(module, module)
        module = re.sub(r"layer(\d+)_(\d+)/", r"layer\1.\2.", module)
        first = 1 if model.shortcut == "D" else 0  # average pooling comes before the projection
        module = module.replace("downsample_conv", f"downsample.{first}")
        module = module.replace("downsample_bn", f"downsample.{first + 1}")
    return f"{module.replace('/', '.')}.{_KINDS.get(kind, kind)}"


def _is_bit(model: ResNet) -> bool:
    return not model.stem_norm


def _torch_array(leaf: str, array: Any, model: ResNet) -> np.ndarray:
    array = np.asarray(array)
    if not leaf.endswith("/kernel") or array.ndim < 2:
        return array
    # timm's squeeze-and-excitation layers and BiT's classifier are 1×1 convolutions.
    if array.ndim == 2 and ("/se/" in leaf or _is_bit(model)):
        array = array[None, None]
    axes = (array.ndim - 1, array.ndim - 2, *range(array.ndim - 2))
    return np.ascontiguousarray(array.transpose(axes))


def from_torch_array(leaf: str, array: np.ndarray, rank: int) -> np.ndarray:
    """Convert an array from the layout of `save_weights` to the layout of the variable.

    Args:
        leaf: path of the variable, such as "params/layer1_0/conv1/kernel".
        array: in the file's layout: a kernel is [out, in, h, w] or [out, in].
        rank: of the variable.

    Returns:
        The array; a kernel is [h, w, in, out] or [in, out].
    """
    if not leaf.endswith("/kernel") or array.ndim < 2:
        return array
    array = array.transpose((*range(2, array.ndim), 1, 0))
    return array[0, 0] if array.ndim > rank and array.shape[:2] == (1, 1) else array
