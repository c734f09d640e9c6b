"""Convolutions with biases, and normalisations that were merged into them.

Networks here have no bias before a normalisation. There a bias b only shifts the mean m that the
normalisation subtracts: BN(x + b) with m is BN(x) with m - b. And a normalisation that its
publisher merged into a convolution's kernel and bias is one that only adds b.
"""

import re
from collections.abc import Collection, Mapping

import numpy as np

Modules = dict[str, dict[str, np.ndarray]]
"""Arrays of each module, by its path, such as "layer1_0/bn1", and by name: "kernel", "scale"."""


def norm_after(conv: str, norms: Collection[str]) -> str | None:
    """Path of the normalisation that takes what a convolution gives, and nothing else, if any.

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
    """Subtract biases of convolutions from the means that follow, in place.

    In a pre-activation network the last convolution of a unit, and that of its shortcut, give to
    the sum that all later units pass on. Their biases move into each normalisation of that sum.

    Args:
        modules: of the whole network.
        biases: of convolutions, by path.

    Returns:
        Paths of convolutions whose biases have nowhere to go.
    """
    norms = {path for path, arrays in modules.items() if "mean" in arrays}
    passed_on: dict[str, np.ndarray] = {}  # by unit: its convolutions' shares of the sum
    left = []
    for conv, bias in biases.items():
        norm = norm_after(conv, norms)
        unit = conv.rpartition("/")[0]
        if norm:
            modules[norm]["mean"] = modules[norm]["mean"] - bias
        elif unit and "bn_final" in norms:
            passed_on[unit] = passed_on.get(unit, np.float32(0)) + bias
        else:
            left.append(conv)
    if passed_on:
        _shift_sums(modules, passed_on)
    return left


def _shift_sums(modules: Modules, passed_on: Mapping[str, np.ndarray]) -> None:
    """Let each normalisation of the sum know by how much it was to be shifted before."""
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
        if f"{unit}/downsample_conv" in modules:  # the sum begins anew
            shift = np.zeros(width, np.float32)
        shift = np.pad(shift, (0, max(0, width - len(shift))))  # option A appends zeros
        shift = shift + passed_on.get(unit, np.float32(0))
    modules["bn_final"]["mean"] = modules["bn_final"]["mean"] - shift
