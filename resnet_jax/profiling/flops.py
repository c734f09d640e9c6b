"""Floating-point operations of a compiled program, counted from its text.

XLA's GPU compiler reports none. This module counts convolutions and matrix products, in whatever
form the compiler calls them; a multiply-add counts as two. Products with padding and with the zeros
of a dilation are left out, as in XLA's own cost analysis. That analysis also counts elementwise
operations, some percent of a residual network's.
"""

import functools
import math
import re

from resnet_jax.profiling.hlo import Array, Instruction, Module


def count_flops(module: Module, *, repeat_loops: bool = True) -> float:
    """Operations per iteration of the loops whose length isn't known.

    Args:
        module: the program.
        repeat_loops: count iterations that the compiler knows; otherwise a body counts once.
    """
    times = module.executions(into_fusions=True, repeat_loops=repeat_loops)
    results = module.results()
    return sum(
        times[computation] * _flops(instruction, results)
        for computation, instructions in module.computations.items()
        for instruction in instructions
        if times[computation]
    )


def _flops(instruction: Instruction, results: dict[str, tuple[Array, ...]]) -> float:
    target = instruction.quoted("custom_call_target")
    is_product = instruction.opcode == "dot" or target.startswith("__cublas$")
    is_convolution = instruction.opcode == "convolution" or target.startswith("__cudnn$conv")
    if not (is_product or is_convolution):
        return 0
    first, second = (results[name][0].shape for name in instruction.operands[:2])
    result = instruction.result[0].shape
    if is_product:
        return 2 * math.prod(result) * _contracted(instruction.rest, first)
    if target == "__cudnn$convBackwardFilter":  # (images, gradient of the features) → kernel
        return _convolution(instruction.rest, first, result, second)
    if target == "__cudnn$convBackwardInput":  # (gradient of the features, kernel) → images
        return _convolution(instruction.rest, result, second, first)
    return _convolution(instruction.rest, first, second, result)


def _contracted(rest: str, shape: tuple[int, ...]) -> int:
    """Elements over which a product sums, from the shape of its first operand."""
    found = re.search(r'lhs_contracting_dim(?:s|ensions"):?=?[{\[]([\d,"]*)[}\]]', rest)
    if not found:
        raise ValueError(f"the dimensions of this product aren't understood: {rest[:120]}")
    return math.prod(shape[int(number)] for number in re.findall(r"\d+", found[1]))


def _convolution(
    rest: str, images: tuple[int, ...], kernel: tuple[int, ...], features: tuple[int, ...]
) -> float:
    """Operations of a convolution whose arrays have any layout."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", rest)
    if not labels:
        raise ValueError(f"this convolution isn't understood: {rest[:120]}")
    of_images, of_kernel, of_features = labels.groups()
    batch = images[of_images.index("b")] // _number(rest, "batch_group_count")
    channels = kernel[of_kernel.index("i")] * kernel[of_kernel.index("o")]
    places = 1
    axes = sorted(label for label in of_kernel if label.isdigit())
    window = re.search(r"window=\{([^}]*)\}", rest)
    for position, axis in enumerate(axes):

        def part(key: str, default: str, position: int = position) -> str:
            found = re.search(rf"\b{key}=(\S+)", window[1] if window else "")
            return found[1].split("x")[position] if found else default

        low = int(part("pad", "0_0").split("_")[0])
        places *= _valid(
            images[of_images.index(axis)],
            kernel[of_kernel.index(axis)],
            features[of_features.index(axis)],
            int(part("stride", "1")),
            low,
            int(part("lhs_dilate", "1")),
            int(part("rhs_dilate", "1")),
        )
    return 2 * batch * channels * places


def _number(rest: str, key: str) -> int:
    found = re.search(rf"{key}=(\d+)", rest)
    return int(found[1]) if found else 1


@functools.cache
def _valid(
    size: int, taps: int, results: int, stride: int, low: int, dilation: int, tap_dilation: int
) -> int:
    """Pairs of a result and a tap, along one axis, that meet an element of the image.

    Args:
        size: number of elements of the image.
        taps: number of taps of the kernel.
        results: number of positions of the kernel.
        stride: distance between two positions of the kernel.
        low: zeros before the image.
        dilation: distance between two elements of the image.
        tap_dilation: distance between two taps.
    """
    places = (
        result * stride + tap * tap_dilation - low
        for result in range(results)
        for tap in range(taps)
    )
    return sum(0 <= p <= (size - 1) * dilation and p % dilation == 0 for p in places)
