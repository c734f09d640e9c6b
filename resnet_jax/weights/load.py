"""Loading the variables of a network from a weight file."""

import logging
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from resnet_jax.errors import ConfigError, DataError
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.surgery import stack_units
from resnet_jax.weights.architecture_note import check_architecture, is_ours, model_in
from resnet_jax.weights.arrays import FormatError, some
from resnet_jax.weights.conv_biases import Modules, fold_biases, merged_norm, norm_after
from resnet_jax.weights.files import read_file
from resnet_jax.weights.hub import local_file
from resnet_jax.weights.save import from_torch_array, torch_name
from resnet_jax.weights.structure import Module, find_modules, is_counter

_log = logging.getLogger(__name__)


def load_weights(model: ResNet, weights: str | os.PathLike[str]) -> dict[str, Any]:
    """Load the variables of a network from a weight file of this or another package.

    A file of `save_weights` is read by its names, and the model is compared with the model fields
    in the file (architecture_note.py). Other names and layouts are recognised as structure.py
    describes; biases of convolutions and merged normalisations are folded into batch
    normalisations (conv_biases.py). Such a file doesn't tell everything: the model decides the
    position of the stride in a bottleneck (v1 or v1.5), the kind of a shortcut without parameters,
    `norm_epsilon` and the order of input channels.

    Args:
        model: the network. With `num_classes=0` the file's classifier is ignored.
        weights: a .safetensors or .npz file (see `read_weights`); the name of weights of this
            package, such as "resnet20.digits" (see `list_weights`); or a model on the Hugging Face
            Hub: "timm/resnet50.a1_in1k" or "timm/resnet50.a1_in1k@COMMIT" (see `local_file`).

    Returns:
        {"params": …, "batch_stats": …} in float32, for `model.apply`; scanned if `model.scan`.

    Raises:
        DataError: the file can't be read, is damaged, or doesn't fit the model. The message lists
            arrays that are missing, unexpected or of another shape, or the field that differs.
        ConfigError: the model isn't a `ResNet`, or the extra [hub] isn't installed.
    """
    if not isinstance(model, ResNet):
        raise ConfigError(f"Weights can be loaded into a ResNet, not into {type(model).__name__}.")
    path = local_file(weights)
    arrays, metadata = read_file(path)
    check_architecture(model, metadata, arrays, path)
    flat = (_read_by_name if is_ours(metadata) else _recognise)(model, arrays, path)
    with np.errstate(over="ignore"):  # the result is infinite, which is refused below
        flat = {leaf: np.asarray(array, np.float32) for leaf, array in flat.items()}
    damaged = [leaf for leaf, array in flat.items() if not np.isfinite(array).all()]
    if damaged:
        raise DataError(f"{path} has values that aren't finite, in {some(damaged)}.")
    tree = traverse_util.unflatten_dict(flat, sep="/")
    return stack_units(tree) if model.scan else tree


def read_model(weights: str | os.PathLike[str]) -> ResNet:
    """Make the network of a weight file that `save_weights` wrote, from the fields in the file.

    Args:
        weights: as for `load_weights`.

    Returns:
        The model, with `dtype` float32 and not scanned; change it by `model.copy(dtype=…)`.

    Raises:
        DataError: the file can't be read, is damaged, or doesn't hold the fields of a model: files
            of other packages and of older versions of `save_weights` don't.
        ConfigError: the extra [hub] isn't installed.
    """
    path = local_file(weights)
    model = find_model(path)
    if model is None:
        raise DataError(f"{path} doesn't say which network it's of. Make it by create_model(NAME).")
    return model


def find_model(path: str) -> ResNet | None:
    """The network of a weight file on this machine; None if the file doesn't hold its fields.

    Raises:
        DataError: the file can't be read or is damaged.
    """
    arrays, metadata = read_file(path)
    return model_in(metadata, arrays, path)


def expected_leaves(model: ResNet, channels: int = 3) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of the variables of a network, by path, not scanned.

    Args:
        model: the network.
        channels: of its input images.
    """
    image = jax.ShapeDtypeStruct((1, 32, 32, channels), jnp.float32)
    # With scan, each stage traces one block for all equal blocks.
    tree = jax.eval_shape(model.copy(scan=True, remat=False).init, jax.random.key(0), image)
    leaves = {}
    for path, leaf in traverse_util.flatten_dict(tree, sep="/").items():
        first, rest, last = path.partition("_rest/")
        if not rest:
            leaves[path] = leaf
            continue
        block = jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)
        leaves |= {f"{first}_{i}/{last}": block for i in range(1, leaf.shape[0] + 1)}
    return leaves


class _Differences(NamedTuple):
    missing: list[str]
    unexpected: list[str]
    shapes: list[str]

    def __str__(self) -> str:
        kinds = (
            ("it lacks", self.missing),
            ("it also has", self.unexpected),
            ("of other shapes:", self.shapes),
        )
        return "; ".join(f"{kind} {some(names)}" for kind, names in kinds if names)


def _read_by_name(
    model: ResNet, arrays: Mapping[str, np.ndarray], file: str
) -> dict[str, np.ndarray]:
    """Variables by path, from the arrays of a file that `save_weights` wrote."""
    first = torch_name(f"params/conv1{'_1' if model.stem == 'deep' else ''}/kernel", model)
    shape = arrays[first].shape if first in arrays else ()
    leaves = expected_leaves(model, shape[1] if len(shape) == 4 else 3)
    names = {leaf: torch_name(leaf, model) for leaf in leaves}
    found = {
        leaf: from_torch_array(leaf, arrays[name], len(leaves[leaf].shape))
        for leaf, name in names.items()
        if name in arrays
    }
    left = set() if model.num_classes else {torch_name(leaf, model) for leaf in _HEAD}
    unexpected = sorted(set(arrays) - set(names.values()) - left)
    differences = _Differences(
        missing=[leaf for leaf in leaves if leaf not in found],
        unexpected=[name for name in unexpected if not is_counter(name)],
        shapes=_other_shapes(found, leaves),
    )
    if any(differences):
        classes = found["params/fc/kernel"].shape[-1] if "params/fc/kernel" in found else None
        hint = _hint_of_classes(differences.shapes, classes)
        raise DataError(f"{file} doesn't fit the model: {differences}.{hint}")
    return found


_HEAD = ("params/fc_shift/bias", "params/fc/kernel", "params/fc/bias")


def _other_shapes(
    found: Mapping[str, np.ndarray], leaves: Mapping[str, jax.ShapeDtypeStruct]
) -> list[str]:
    return [
        f"{leaf} is {found[leaf].shape} in the file, {leaves[leaf].shape} in the model"
        for leaf in leaves
        if leaf in found and found[leaf].shape != leaves[leaf].shape
    ]


def _recognise(model: ResNet, arrays: Mapping[str, np.ndarray], file: str) -> dict[str, np.ndarray]:
    """Variables by path, from the arrays of another package's file."""
    if model.shortcut == "A" and any(name.endswith("linear.weight") for name in arrays):
        _log.warning(
            "%s has the names of akamaster/pytorch_resnet_cifar10, whose shortcuts pad zeros on"
            " both sides: if the file is from that code, set the model's shortcut to 'A_middle'",
            file,
        )
    leaves = expected_leaves(model)
    wanted: dict[str, set[str]] = {}  # by module: names of its leaves
    for leaf in leaves:
        module, _, name = leaf.partition("/")[2].rpartition("/")
        wanted.setdefault(module, set()).add(name)
    kernels = {
        leaf.removeprefix("params/").removesuffix("/kernel"): value.shape
        for leaf, value in leaves.items()
        if leaf.endswith("/kernel")
    }
    try:
        found, unexpected = find_modules(arrays, wanted, kernels)
    except FormatError as error:
        raise DataError(f"{file} {error}") from None
    first = found.get("conv1_1" if "conv1_1" in wanted else "conv1")
    if first and first.kind == "conv" and "weight" in first.tensors:
        channels = arrays[first.tensors["weight"]].shape[2 if first.channels_last else 1]
        leaves = expected_leaves(model, channels)
    modules: Modules = {}
    biases: dict[str, np.ndarray] = {}
    for module, of_file in found.items():
        if module not in wanted:
            if not (module == "fc" and not model.num_classes):
                unexpected += of_file.tensors.values()
            continue
        taken = _take(of_file, arrays, dense=module == "fc" or "/se/" in module)
        if "bias" in taken and "bias" not in wanted[module] and of_file.kind == "conv":
            biases[module] = taken.pop("bias")
        modules[module] = {name: taken[name] for name in taken if name in wanted[module]}
        unexpected += [of_file.tensors[_KIND[name]] for name in taken if name not in wanted[module]]
    _add_merged(modules, biases, wanted, model)
    arrays_of = {leaf: a for leaf in leaves if (a := _array(modules, leaf)) is not None}
    missing = [leaf for leaf in leaves if leaf not in arrays_of]
    shapes = _other_shapes(arrays_of, leaves)
    shapes += [
        f"the bias of {conv} is {bias.shape} in the file"
        for conv, bias in biases.items()
        if (kernel := modules[conv].get("kernel")) is not None and bias.shape != kernel.shape[-1:]
    ]
    differences = _Differences(missing, unexpected, shapes)
    if any(differences):
        raise DataError(f"{file} doesn't fit the model: {differences}.{_hint(found, shapes)}")
    names = {conv: found[conv].tensors["bias"] for conv in biases}
    fold_biases(modules, biases, model, names=names, file=file)
    # Read again, because folding has changed some arrays.
    return {leaf: array for leaf in leaves if (array := _array(modules, leaf)) is not None}


_KIND = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "mean", "var": "var"}


def _take(
    module: Module, arrays: Mapping[str, np.ndarray], *, dense: bool
) -> dict[str, np.ndarray]:
    """Arrays of a module by the names and in the layouts of this package."""
    taken = {}
    for kind, name in module.tensors.items():
        array = arrays[name]
        if kind != "weight":
            taken[kind] = array.reshape(-1)
        elif module.kind == "norm":
            taken["scale"] = array.reshape(-1)
        else:
            if not module.channels_last:  # [out, in, h, w] or [out, in]
                array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
            # Some packages have 1×1 convolutions for fully connected layers.
            flat = dense and array.ndim == 4 and array.shape[:2] == (1, 1)
            taken["kernel"] = array[0, 0] if flat else array
    return taken


def _array(modules: Modules, leaf: str) -> np.ndarray | None:
    module, _, name = leaf.partition("/")[2].rpartition("/")
    return modules.get(module, {}).get(name)


def _add_merged(
    modules: Modules,
    biases: dict[str, np.ndarray],
    wanted: Mapping[str, set[str]],
    model: ResNet,
) -> None:
    """Add the normalisations that were merged into convolutions."""
    norms = {module for module, names in wanted.items() if "mean" in names}
    for conv in list(biases):
        norm = norm_after(conv, norms, model)
        if norm and norm not in modules:
            modules[norm] = merged_norm(biases.pop(conv), epsilon=model.norm_epsilon)


def _hint(found: Mapping[str, Module], shapes: list[str]) -> str:
    """A sentence that describes the network of the file, as far as known."""
    if hint := _hint_of_classes(shapes, found["fc"].width if "fc" in found else None):
        return hint
    blocks = [path for path in found if path.endswith("/conv1")]
    stages: dict[str, int] = {}
    for path in blocks:
        stages[path.split("_")[0]] = stages.get(path.split("_")[0], 0) + 1
    if not stages:
        return " It isn't a residual network."
    branch = sum(path.startswith("layer1_0/conv") for path in found)
    sizes = ", ".join(map(str, stages.values()))
    return f" It has stages of {sizes} blocks with {branch} convolutions each."


def _hint_of_classes(shapes: list[str], classes: int | None) -> str:
    """A sentence of advice if only the classifier has another size."""
    if classes is None or not shapes or not all("/fc/" in shape for shape in shapes):
        return ""
    return (
        f" It has {classes} classes: load into a model with as many, or without a classifier"
        " (num_classes=0)."
    )
