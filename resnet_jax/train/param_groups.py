"""Groups of parameters by their paths: for weight decay, and for learning rates by stage.

Each rule is complete: a parameter that it doesn't cover is an error.
"""

import re
from typing import Any

import jax

from resnet_jax.errors import ConfigError

PARAMETER_GROUPS = ("kernel", "bias", "norm")
"""Kernels; biases of modules that have a kernel; scales and biases of the other modules."""

RESNET_PARTS: dict[str, str] = {
    "stem": r"(conv1|bn1|(conv|bn)1_\d|pool_conv|pool_bn)/.+",
    "stage": r"layer\d+_(\d+|rest)/.+",
    "last": r"bn_final/.+",  # the end of the last stage
    "head": r"(fc|fc_shift)/.+",
}
"""Part of a `ResNet` → regular expression over whole parameter paths."""


def parameter_groups(params: Any) -> Any:
    """Replace each parameter by the name of its group, by the last part of its path.

    Raises:
        ConfigError: a parameter isn't named kernel, scale or bias: whether its weight decays would
            be a guess.
    """
    names = {_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)}

    def group(path: tuple[Any, ...], _: Any) -> str:
        module, slash, last = _name(path).rpartition("/")
        if last not in ("kernel", "scale", "bias"):
            raise ConfigError(
                f"The parameter {_name(path)} is in no group for weight decay. Name it kernel"
                " (group kernel), scale (group norm) or bias (group bias beside a kernel, else"
                " norm)."
            )
        if last == "kernel":
            return "kernel"
        return "bias" if last == "bias" and f"{module}{slash}kernel" in names else "norm"

    return jax.tree_util.tree_map_with_path(group, params)


def in_head(params: Any) -> Any:
    """Replace each parameter of a `ResNet` by whether it belongs to the classifier.

    Raises:
        ValueError: a parameter is in no part of the network or in several.
    """
    return jax.tree.map(lambda part: part == "head", _by_part(params))


def distances_from_head(params: Any) -> Any:
    """Replace each parameter of a `ResNet` by its distance from the classifier.

    That is 0 for the classifier, 1 for the last stage, and one more for the stem than for the
    first stage.

    Raises:
        ValueError: a parameter is in no part of the network or in several.
    """
    by_part = _by_part(params)
    parts = jax.tree_util.tree_leaves_with_path(by_part)
    stages = {_stage(path) for path, part in parts if part == "stage"}
    last = max(stages, default=0)

    def distance(path: tuple[Any, ...], part: str) -> int:
        depth = {"stem": 0, "last": last, "head": last + 1}
        return last + 1 - (_stage(path) if part == "stage" else depth[part])

    return jax.tree_util.tree_map_with_path(distance, by_part)


def _stage(path: tuple[Any, ...]) -> int:
    return int(path[0].key.removeprefix("layer").partition("_")[0])


def _name(path: tuple[Any, ...]) -> str:
    return "/".join(key.key for key in path)


def _by_part(params: Any) -> Any:
    def part(path: tuple[Any, ...], _: Any) -> str:
        name = _name(path)
        found = [part for part, pattern in RESNET_PARTS.items() if re.fullmatch(pattern, name)]
        if len(found) != 1:
            raise ValueError(f"parameter {name} is in {len(found)} parts {found}, not in one")
        return found[0]

    return jax.tree_util.tree_map_with_path(part, params)
