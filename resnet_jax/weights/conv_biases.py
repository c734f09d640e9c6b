"""Folds biases of convolutions into the batch normalisations that follow them.

The networks of this package have no bias before a normalisation. Such a bias b only shifts the mean
m that the normalisation subtracts: BN(x + b) with mean m equals BN(x) with mean m - b. A
normalisation that was merged into a convolution's kernel and bias is replaced by a normalisation
that only adds the bias.
"""

import re
from collections.abc import Collection, Iterator, Mapping

import numpy as np

from resnet_jax.errors import DataError
from resnet_jax.models.block_config import ORDERS
from resnet_jax.models.branches import Branch, convolutions, find_branch
from resnet_jax.models.resnet import ResNet
from resnet_jax.weights.arrays import some

Modules = dict[str, dict[str, np.ndarray]]
"""Arrays by path of the module, such as "layer1_0/bn1", and by name, such as "kernel"."""


def norm_after(conv: str, norms: Collection[str], model: ResNet) -> str | None:
    """Path of the normalisation whose only input is the output of a convolution, if there is one.

    Args:
        conv: path of the convolution.
        norms: paths of all normalisations of the network.
        model: the network.
    """
    if _reaches_sum(conv, model):
        return None
    unit, slash, name = conv.rpartition("/")
    number = re.fullmatch(r"conv(\d+)", name)
    if unit and number and model.order == "preact":
        name = f"bn{int(number[1]) + 1}"
    else:
        name = "bn1" if name == "conv1_3" else name.replace("conv", "bn")
    return f"{unit}{slash}{name}" if f"{unit}{slash}{name}" in norms else None


def merged_norm(bias: np.ndarray, *, epsilon: float) -> dict[str, np.ndarray]:
    """A batch normalisation with running statistics that only adds `bias`, [channels]."""
    zero = np.zeros_like(bias)
    scale = np.full_like(bias, np.sqrt(1 + epsilon))
    return {"scale": scale, "bias": bias, "mean": zero, "var": np.ones_like(bias)}


def fold_biases(
    modules: Modules,
    biases: Mapping[str, np.ndarray],
    model: ResNet,
    *,
    names: Mapping[str, str],
    file: str,
) -> None:
    """Subtract biases of convolutions from the means of the following normalisations, in place.

    In some orders, the last convolution of a block and the convolution of its shortcut reach the
    sum of the block without a normalisation. Their biases are folded into each normalisation of
    this sum: the block's own (order="bn_after_add"), or those of all later blocks up to the next
    projection ("preact").

    Args:
        modules: of the whole network.
        biases: of convolutions, by path; [channels] each.
        model: the network.
        names: of the biases in the file, by path of the convolution.
        file: the file's name, for messages.

    Raises:
        DataError: no normalisation follows a bias, or the bias passes a gate before it.
    """
    norms = {path for path, arrays in modules.items() if "mean" in arrays}
    added: dict[str, np.ndarray] = {}  # biases that reach a sum, by path of the convolution
    unfolded, gated = [], []
    for conv, bias in biases.items():
        if not bias.any():
            continue
        norm = norm_after(conv, norms, model)
        if norm:
            modules[norm]["mean"] = modules[norm]["mean"] - bias
        elif not norms or not _reaches_sum(conv, model):
            unfolded.append(names[conv])
        elif _is_gated(conv, model):
            gated.append(names[conv])
        else:
            added[conv] = bias
    if unfolded:
        raise DataError(
            f"{file} doesn't fit the model: no normalisation can take {some(unfolded)}."
        )
    if gated:
        raise DataError(
            f"{file} has biases that this model gates before it normalises them ({some(gated)});"
            " no normalisation can take them."
        )
    if added:
        _fold_into_sums(modules, added, model)


def _reaches_sum(conv: str, model: ResNet) -> bool:
    """Whether a convolution's output is added to another path before it is normalised."""
    unit, _, name = conv.rpartition("/")
    last = name in (f"conv{convolutions(model.branch)}", "downsample_conv")
    return bool(unit) and last and "norm" not in ORDERS[model.order].last


def _is_gated(conv: str, model: ResNet) -> bool:
    """Whether what follows a convolution multiplies its output by a function of the input."""
    own = type(find_branch(model.branch)).__call__ is not Branch.__call__
    in_branch = not conv.endswith("/downsample_conv")
    return model.merge != "add" or (in_branch and (model.se_ratio > 0 or own))


def _fold_into_sums(modules: Modules, added: Mapping[str, np.ndarray], model: ResNet) -> None:
    """Subtract the biases that each sum has accumulated from the means of its normalisations."""
    last = convolutions(model.branch)
    shift = np.zeros(model.feature_info()["stem"].channels, np.float32)  # of the block's input
    for unit, width, survival in _blocks(model):
        if f"{unit}/bn1" in modules and model.order == "preact":
            modules[f"{unit}/bn1"]["mean"] = modules[f"{unit}/bn1"]["mean"] - shift
        if model.shortcut == "none":
            shift = np.zeros(width, np.float32)
        elif f"{unit}/downsample_conv" in modules:  # it takes the normalised input
            shift = added.get(f"{unit}/downsample_conv", np.zeros(width, np.float32))
        else:  # option A pads with zeros
            more = width - len(shift)
            before = more // 2 if model.shortcut == "A_middle" else 0
            shift = np.pad(shift, (before, more - before))
        of_branch = added.get(f"{unit}/conv{last}", np.float32(0))
        shift = model.shortcut_scale * shift + model.branch_scale * survival * of_branch
        if model.order == "bn_after_add":
            modules[f"{unit}/bn{last}"]["mean"] = modules[f"{unit}/bn{last}"]["mean"] - shift
            shift = np.zeros(width, np.float32)
    if model.order == "preact":
        modules["bn_final"]["mean"] = modules["bn_final"]["mean"] - shift


def _blocks(model: ResNet) -> Iterator[tuple[str, int, float]]:
    """Path, output channels and factor of the branch at inference of each block."""
    info, depth, number = model.feature_info(), sum(model.stage_sizes), 0
    dropped = model.stochastic_depth if model.stochastic_depth_mode == "batch" else 0.0
    for stage, blocks in enumerate(model.stage_sizes, start=1):
        for i in range(blocks):
            number += 1
            survival = 1 - number / depth * dropped
            yield f"layer{stage}_{i}", info[f"stage{stage}"].channels, survival
