"""What a parameter is, by its path: its kind, for weight decay, and its stage, for learning rates.

Each table of rules is complete: a parameter that falls under no rule, or under two, is an error.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax

_WEIGHTS = r"(conv\w*|\w+_conv|fc\d?|\w+_fc\d?|gate|carry_gate)"
PARAMETER_GROUPS: dict[str, str] = {
    "kernel": rf"(.*/)?{_WEIGHTS}/kernel",
    "bias": rf"(.*/)?{_WEIGHTS}/bias",
    "norm": r"(.*/)?(bn\w*|\w+_bn|shift\d|fc_shift|skip_gain)/(scale|bias)",
}
"""Name → regular expression over whole parameter paths. Each parameter is in exactly one group."""

RESNET_PARTS: dict[str, str] = {
    "stem": r"(conv1|bn1|(conv|bn)1_\d|pool_conv|pool_bn)/.+",
    "stage": r"layer\d+_(\d+|rest)/.+",
    "last": r"bn_final/.+",  # the end of the last stage
    "head": r"(fc|fc_shift)/.+",
}
"""The parts of a `ResNet`, likewise."""


def parameter_groups(params: Any) -> Any:
    """Replace each parameter by the name of its group.

    Raises:
        ValueError: a parameter is in no group or in several: its weight decay would be a guess.
    """
    return _by_rule(params, PARAMETER_GROUPS)


def in_head(params: Any) -> Any:
    """Replace each parameter of a `ResNet` by whether it belongs to the classifier.

    Raises:
        ValueError: a parameter is in no part of the network or in several.
    """
    return jax.tree.map(lambda part: part == "head", _by_rule(params, RESNET_PARTS))


def distances_from_head(params: Any) -> Any:
    """Replace each parameter of a `ResNet` by its distance from the classifier.

    That is 0 for the classifier, 1 for the last stage, and one more for the stem than for the
    first stage.

    Raises:
        ValueError: a parameter is in no part of the network or in several.
    """
    parts = jax.tree_util.tree_leaves_with_path(_by_rule(params, RESNET_PARTS))
    stages = {_stage(path) for path, part in parts if part == "stage"}
    last = max(stages, default=0)

    def distance(path: tuple[Any, ...], part: str) -> int:
        depth = {"stem": 0, "last": last, "head": last + 1}
        return last + 1 - (_stage(path) if part == "stage" else depth[part])

    return jax.tree_util.tree_map_with_path(distance, _by_rule(params, RESNET_PARTS))


def _stage(path: tuple[Any, ...]) -> int:
    return int(path[0].key.removeprefix("layer").partition("_")[0])


def _by_rule(params: Any, rules: Mapping[str, str]) -> Any:
    def rule(path: tuple[Any, ...], _: Any) -> str:
        name = "/".join(key.key for key in path)
        found = [rule for rule, pattern in rules.items() if re.fullmatch(pattern, name)]
        if len(found) != 1:
            raise ValueError(f"parameter {name} is in {len(found)} groups {found}, not in one")
        return found[0]

    return jax.tree_util.tree_map_with_path(rule, params)
