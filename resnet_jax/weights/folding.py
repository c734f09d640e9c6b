"""Folds biases of convolutions into the batch normalisations that follow them.

The networks of this package have no bias before a normalisation. Such a bias b only shifts the mean
m that the normalisation subtracts: BN(x + b) with mean m equals BN(x) with mean m - b. A
normalisation that was merged into a convolution's kernel and bias is replaced by a normalisation
that only adds the bias.
"""

import re
from collections.abc import Collection, Mapping

import numpy as np

Modules = dict[str, dict[str, np.ndarray]]
"""Arrays by path of the module, such as "layer1_0/bn1", and by name, such as "kernel"."""


def norm_after(conv: str, norms: Collection[str]) -> str | None:
    """Path of the normalisation whose only input is the output of a convolution, if there is one.

    Args:
        conv: path of the convolution.
        norms: paths of all normalisations of the network.
    """
    unit, slash, name = conv.rpartition("/")
    number = re.fullmatch(r"conv(\d+)", name)
    if unit and number and "bn_final" in norms:  # pre-activation
        name = f"bn{int(number[1]) + 1}"
    else:
        name = "bn1" if name == "conv1_3" else name.replace("conv", "bn")
    return f"{unit}{slash}{name}" if f"{unit}{slash}{name}" in norms else None


def merged_norm(bias: np.ndarray, *, epsilon: float) -> dict[str, np.ndarray]:
    """A batch normalisation with running statistics that only adds `bias`, [channels]."""
    zero = np.zeros_like(bias)
    scale = np.full_like(bias, np.sqrt(1 + epsilon))
    return {"scale": scale, "bias": bias, "mean": zero, "var": np.ones_like(bias)}


def fold_biases(modules: Modules, biases: Mapping[str, np.ndarray]) -> list[str]:
    """Subtract biases of convolutions from the means of the following normalisations, in place.

    In a pre-activation network, the last convolution of a unit and the convolution of its shortcut
    add to the residual sum. Their biases are folded into every later normalisation of that sum.

    Args:
        modules: of the whole network.
        biases: of convolutions, by path.

    Returns:
        Paths of the convolutions whose biases no normalisation can take.
    """
    norms = {path for path, arrays in modules.items() if "mean" in arrays}
    added: dict[str, np.ndarray] = {}  # by unit: sum of the biases that it adds to the residual sum
    unfolded = []
    for conv, bias in biases.items():
        norm = norm_after(conv, norms)
        unit = conv.rpartition("/")[0]
        if norm:
            modules[norm]["mean"] = modules[norm]["mean"] - bias
        elif unit and "bn_final" in norms:
            added[unit] = added.get(unit, np.float32(0)) + bias
        else:
            unfolded.append(conv)
    if added:
        _shift_means(modules, added)
    return unfolded


def _shift_means(modules: Modules, added: Mapping[str, np.ndarray]) -> None:
    """Subtract the accumulated biases from the mean of each normalisation of the residual sum."""
    units = sorted(
        {path.rpartition("/")[0] for path in modules if "/conv" in path},
        key=lambda unit: [int(number) for number in re.findall(r"\d+", unit)],
    )
    shift = np.zeros(1, np.float32)
    for unit in units:
        first = modules.get(f"{unit}/bn1")
        if first is not None and shift.any():
            first["mean"] = first["mean"] - shift
        last = max(path for path in modules if path.startswith(f"{unit}/conv"))
        width = modules[last]["kernel"].shape[-1]
        if f"{unit}/downsample_conv" in modules:  # the projection replaces the sum
            shift = np.zeros(width, np.float32)
        shift = np.pad(shift, (0, max(0, width - len(shift))))  # option A appends zeros
        shift = shift + added.get(unit, np.float32(0))
    modules["bn_final"]["mean"] = modules["bn_final"]["mean"] - shift
