"""Variables of a network as a file that PyTorch's users can load: torchvision's or timm's names."""

import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from resnet_jax.errors import ConfigError
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.surgery import unstack_units
from resnet_jax.weights.architecture_note import behaviour_of
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
    """Write a .safetensors file with torchvision's names and layouts, or timm's.

    torchvision's modules, and timm's for networks that torchvision hasn't, take it by
    `load_state_dict`, but for the counters `num_batches_tracked` (`strict=False`). Pre-activation
    networks on CIFAR have torchvision's names with "bn_final" before the classifier. The file also
    holds the model's fields, so `load_weights` gives back the same bits, and refuses a model that
    would compute something else; `read_model` makes the model.

    Args:
        path: of the file; an existing one is replaced when all is written.
        model: the network.
        variables: of the network, as `model.init` makes them; scanned or not.
        metadata: texts to keep in the file, such as `Preprocessing.metadata()`.

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
    notes = {"format": "pt"} | dict(metadata or {}) | behaviour_of(model)
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
        first = 1 if model.shortcut == "D" else 0  # an average comes before the projection
        module = module.replace("downsample_conv", f"downsample.{first}")
        module = module.replace("downsample_bn", f"downsample.{first + 1}")
    return f"{module.replace('/', '.')}.{_KINDS.get(kind, kind)}"


def _is_bit(model: ResNet) -> bool:
    return not model.stem_norm


def _torch_array(leaf: str, array: Any, model: ResNet) -> np.ndarray:
    array = np.asarray(array)
    if not leaf.endswith("/kernel") or array.ndim < 2:
        return array
    # timm's squeeze-and-excitation and BiT's classifier are 1×1 convolutions.
    if array.ndim == 2 and ("/se/" in leaf or _is_bit(model)):
        array = array[None, None]
    axes = (array.ndim - 1, array.ndim - 2, *range(array.ndim - 2))
    return np.ascontiguousarray(array.transpose(axes))


def from_torch_array(leaf: str, array: np.ndarray, rank: int) -> np.ndarray:
    """The inverse of what `save_weights` does to an array.

    Args:
        leaf: path of the variable, such as "params/layer1_0/conv1/kernel".
        array: as the file has it.
        rank: of the variable.
    """
    if not leaf.endswith("/kernel") or array.ndim < 2:
        return array
    array = array.transpose((*range(2, array.ndim), 1, 0))
    return array[0, 0] if array.ndim > rank and array.shape[:2] == (1, 1) else array
