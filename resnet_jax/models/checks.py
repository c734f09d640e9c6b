"""Refusals of networks that can't be built, or whose fields would have no effect, by name."""

import dataclasses
import operator
import reprlib
import sys
import types
import typing
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from resnet_jax.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from resnet_jax.models.highway import HighwayNet
    from resnet_jax.models.resnet import ResNet
    from resnet_jax.models.vgg import VGG

_FRACTIONS = ("dropout", "shortcut_dropout", "stochastic_depth", "head_dropout", "bn_momentum")

Rule = tuple[tuple[str, ...], Callable[["ResNet"], bool], str]

# Fields that differ from their default need what the sentence says.
_NEEDS: tuple[Rule, ...] = (
    (
        ("stride_on", "groups", "group_width"),
        lambda m: m.branch == "bottleneck",
        "branch='bottleneck'",
    ),
    (("dropout",), lambda m: m.branch != "single", "a branch of two convolutions or more"),
    (
        ("merge", "shortcut_dropout", "shortcut_scale", "branch_scale", "stochastic_depth"),
        lambda m: m.shortcut != "none",
        "a shortcut",
    ),
    (("gate_bias", "gate_kernel_size"), lambda m: m.merge != "add", "a merge with gates"),
    (("carry_bias",), lambda m: m.merge == "independent_gates", "merge='independent_gates'"),
    (
        ("bn_group_size", "bn_frozen", "bn_momentum"),
        lambda m: m.norm == "batch",
        "norm='batch'",
    ),
    (("norm_groups",), lambda m: m.norm == "group", "norm='group'"),
    (
        ("norm_epsilon",),
        lambda m: m.norm in ("batch", "group", "layer"),
        "norm='batch', 'group' or 'layer'",
    ),
    (("stochastic_depth_mode",), lambda m: m.stochastic_depth > 0, "stochastic_depth"),
    (
        ("zero_init_scale",),
        # After a last ReLU, or on a plain network, a zero scale has no gradient, for ever.
        lambda m: (
            m.norm in ("batch", "group", "layer")
            and m.order in ("original", "relu_preact")
            and m.shortcut != "none"
        ),
        "a shortcut, and a normalisation as the last step of the branch"
        " (order='original' or 'relu_preact')",
    ),
    (("stem_norm",), lambda m: m.order == "preact", "order='preact'"),
    (("deep_stem_widths",), lambda m: m.stem == "deep", "stem='deep'"),
)


def check_resnet(model: "ResNet") -> None:
    """Check every field by itself, then what fields need of each other.

    Raises:
        ConfigError: naming the field, its value, and what it can be or what it needs.
    """
    check_fields(model)
    defaults = {field.name: field.default for field in dataclasses.fields(model)}
    for names, holds, needed in _NEEDS:
        for name in names:
            value = getattr(model, name)
            if value != defaults[name] and not holds(model):
                raise ConfigError(f"model.{name} is {value!r}, which needs {needed}.")
    if model.norm in ("fixup", "skipinit") and model.shortcut == "none":
        raise ConfigError(
            f"model.norm is {model.norm!r}, whose branches begin at zero; it needs a shortcut."
        )
    if model.norm == "fixup" and (
        model.order != "original" or model.merge != "add" or model.branch == "single"
    ):
        raise ConfigError(
            "model.norm is 'fixup', which is defined for order='original', merge='add' and"
            " branches of two convolutions or more."
        )
    if model.stem == "deep" and model.deep_stem_widths is None:
        width = model.stem_width or model.width
        if width % 2:
            raise ConfigError(f"model.stem is 'deep', which halves its width; it is {width}, odd.")
    if model.output_stride is not None:
        stem = model.feature_info()["stem"].stride
        strides = [stem * 2**i for i in range(len(model.stage_sizes))]
        if model.output_stride not in strides:
            known = ", ".join(map(str, strides))
            raise ConfigError(f"model.output_stride is {model.output_stride}; it can be {known}.")


def check_vgg(model: "VGG") -> None:
    """Check every field of a VGG.

    Raises:
        ConfigError: naming the field, its value and what it can be.
    """
    check_fields(model)
    if model.bn_group_size is not None and model.norm != "batch":
        raise ConfigError(
            f"model.bn_group_size is {model.bn_group_size!r}, which needs norm='batch'."
        )


def check_highway(model: "HighwayNet") -> None:
    """Check every field of a highway network.

    Raises:
        ConfigError: naming the field, its value, and what it can be or what it needs.
    """
    check_fields(model)
    if len(model.stage_widths) != len(model.stage_sizes):
        raise ConfigError(
            f"model.stage_widths is {model.stage_widths}; it takes one for each of the"
            f" {len(model.stage_sizes)} stages."
        )
    if model.merge != "add" and model.shortcut == "none":
        raise ConfigError(f"model.merge is {model.merge!r}, which needs a shortcut.")
    if model.carry_bias is not None and model.merge != "independent_gates":
        raise ConfigError(
            f"model.carry_bias is {model.carry_bias}, which needs merge='independent_gates'."
        )


def check_fields(model: Any) -> None:
    """Check the type and range of each field of a network's dataclass.

    Integers of other types, such as NumPy's, become Python's: fields are hashed and written as
    JSON.

    Raises:
        ConfigError: naming the field, its value and what it can be.
    """
    hints = typing.get_type_hints(type(model))
    for field in dataclasses.fields(model):
        if field.name in ("parent", "name", "dtype", "param_dtype"):
            continue
        name, value, hint = field.name, getattr(model, field.name), hints[field.name]
        if isinstance(hint, types.UnionType) or get_origin(hint) is typing.Union:
            if value is None:
                continue
            hint = next(arg for arg in get_args(hint) if arg is not type(None))
        if hint is int or get_origin(hint) is tuple:
            whole = _with_python_integers(value)
            if whole is not value:
                setattr(model, name, whole)  # a module is open until its __post_init__ has run
                value = whole
        _check_value(f"model.{name}", value, hint, fraction=name in _FRACTIONS)
    if hasattr(model, "norm_epsilon") and model.norm_epsilon <= 0:
        raise ConfigError(f"model.norm_epsilon is {model.norm_epsilon}; it must be positive.")


def _check_value(name: str, value: Any, hint: Any, *, fraction: bool) -> None:
    shown = reprlib.repr(value)  # a stranger's file may hold a number of 4,000 digits
    if get_origin(hint) is Literal:
        known = get_args(hint)
        if value not in known:
            choice, hint = ", ".join(known), did_you_mean(str(value), known)
            raise ConfigError(f"{name} is {shown}; it can be {choice}.{hint}")
    elif get_origin(hint) is tuple:
        args = get_args(hint)
        if not isinstance(value, tuple) or not value:
            raise ConfigError(f"{name} is {shown}; it must be a tuple.")
        if Ellipsis not in args and len(value) != len(args):
            raise ConfigError(f"{name} is {shown}; it takes {len(args)} integers.")
        if not all(_is_count(n, 1) for n in value):
            raise ConfigError(f"{name} is {shown}; it takes integers from 1 up.")
    elif hint is int:
        least = 0 if name == "model.num_classes" else 1
        if not _is_count(value, least):
            raise ConfigError(f"{name} is {shown}; it takes integers from {least} up.")
    elif hint is bool:
        if not isinstance(value, bool):
            raise ConfigError(f"{name} is {shown}; it can be True or False.")
    elif hint is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not abs(value) <= sys.float_info.max:  # NaN isn't either
            raise ConfigError(f"{name} is {shown}; it must be a finite number.")
        if fraction and not 0 <= value < 1:
            raise ConfigError(f"{name} is {shown}; it must be in [0, 1).")
        if name == "model.se_ratio" and not 0 <= value <= 1:
            raise ConfigError(f"{name} is {shown}; it must be in [0, 1].")


def _with_python_integers(value: Any) -> Any:
    """The integer, or the tuple of integers, as Python's; anything else as it is."""
    if isinstance(value, tuple):
        converted = tuple(_with_python_integers(item) for item in value)
        same = all(new is old for new, old in zip(converted, value, strict=True))
        return value if same else converted
    if isinstance(value, bool):
        return value
    try:
        return operator.index(value)
    except TypeError:
        return value


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
