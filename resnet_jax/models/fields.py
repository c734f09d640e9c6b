"""Fields of networks: what a change of a field changes, and the check of each value.

A field is declared by its default, `width: int = setting(64, "shapes")`, or by a plain value where
it changes inference. Config, weight files and checks read all that they need from the declaration.
"""

import dataclasses
import operator
import reprlib
import sys
import types
import typing
from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeVar, get_args, get_origin

import numpy as np

from resnet_jax.errors import ConfigError, did_you_mean

T = TypeVar("T")
Changes = Literal["inference", "training", "shapes", "compilation"]
"""What another value of a field changes.

"inference": what the network computes; weight files record the field and compare it on reading.
"training": training or initial values only; recorded, not compared.
"shapes": shapes of parameters, which show it; recorded, compared by the shapes.
"compilation": how the same network is computed; neither recorded nor compared.
"""

Need = tuple[tuple[str, ...], Callable[[Any], bool], str]
"""Names of fields; the condition under which they may differ from their defaults; its text."""


def setting(
    default: T,
    changes: Changes = "inference",
    *,
    least: int | None = None,
    most: float | None = None,
    below: float | None = None,
    positive: bool = False,
) -> T:
    """Declare a field of a dataclass.

    Args:
        default: the default value.
        changes: what another value changes.
        least: the smallest value of an integer; None is 1, or a smaller default.
        most, below: a float must be in [0, most], or in [0, below).
        positive: a float must be greater than 0.
    """
    metadata = {
        "changes": changes, "least": least, "most": most, "below": below, "positive": positive
    }  # fmt: skip
    return dataclasses.field(default=default, metadata=metadata)


def fields_of(owner: Any) -> dict[str, dataclasses.Field[Any]]:
    """The fields of a dataclass or of an instance by name, without Flax's `parent` and `name`."""
    return {f.name: f for f in dataclasses.fields(owner) if f.name not in ("parent", "name")}


def values_of(owner: Any) -> dict[str, Any]:
    """The values of the fields of a dataclass instance by name."""
    return {name: getattr(owner, name) for name in fields_of(owner)}


def changes(field: dataclasses.Field[Any]) -> Changes:
    """What another value of the field changes."""
    return field.metadata.get("changes", "inference")


def check_fields(owner: Any) -> None:
    """Check the type and the range of each field of a dataclass instance.

    Integers of other types, such as NumPy's, are replaced by Python's, because fields are hashed
    and written as JSON.

    Raises:
        ConfigError: naming the field, its value and the values that it can have.
    """
    hints = typing.get_type_hints(type(owner))
    for name, field in fields_of(owner).items():
        value, hint = getattr(owner, name), hints[name]
        if isinstance(hint, types.UnionType) or get_origin(hint) is typing.Union:
            if value is None:
                continue
            hint = next(arg for arg in get_args(hint) if arg is not type(None))
        if hint is int or get_origin(hint) is tuple:
            converted = _with_python_integers(value)
            if converted is not value:
                object.__setattr__(owner, name, converted)  # of a frozen dataclass, too
                value = converted
        _check_value(f"model.{name}", value, hint, field)


def check_needs(owner: Any, needs: Iterable[Need]) -> None:
    """Check that fields which differ from their defaults have an effect.

    Raises:
        ConfigError: naming the field, its value and what the field needs.
    """
    for names, holds, needed in needs:
        for name in names:
            value = getattr(owner, name)
            if value != fields_of(owner)[name].default and not holds(owner):
                raise ConfigError(f"model.{name} is {value!r}, which needs {needed}.")


def _check_value(name: str, value: Any, hint: Any, field: dataclasses.Field[Any]) -> None:
    shown = reprlib.repr(value)  # a file from elsewhere may hold a number of 4,000 digits
    if get_origin(hint) is Literal:
        known = get_args(hint)
        if value not in known:
            choice, nearest = ", ".join(known), did_you_mean(str(value), known)
            raise ConfigError(f"{name} is {shown}; it can be {choice}.{nearest}")
    elif get_origin(hint) is tuple:
        args = get_args(hint)
        if not isinstance(value, tuple) or not value:
            raise ConfigError(f"{name} is {shown}; it must be a tuple.")
        if Ellipsis not in args and len(value) != len(args):
            raise ConfigError(f"{name} is {shown}; it takes {len(args)} integers.")
        if not all(_is_integer(n, 1) for n in value):
            raise ConfigError(f"{name} is {shown}; it takes integers from 1 up.")
    elif hint is int:
        least = field.metadata.get("least")
        if least is None:
            least = min(1, field.default) if isinstance(field.default, int) else 1
        if not _is_integer(value, least):
            raise ConfigError(f"{name} is {shown}; it takes integers from {least} up.")
    elif hint is bool:
        if not isinstance(value, bool):
            raise ConfigError(f"{name} is {shown}; it can be True or False.")
    elif hint is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not abs(value) <= sys.float_info.max:  # NaN isn't either
            raise ConfigError(f"{name} is {shown}; it must be a finite number.")
        most, below = field.metadata.get("most"), field.metadata.get("below")
        if below is not None and not 0 <= value < below:
            raise ConfigError(f"{name} is {shown}; it must be in [0, {below:g}).")
        if most is not None and not 0 <= value <= most:
            raise ConfigError(f"{name} is {shown}; it must be in [0, {most:g}].")
        if field.metadata.get("positive") and value <= 0:
            raise ConfigError(f"{name} is {shown}; it must be positive.")


def _with_python_integers(value: Any) -> Any:
    """The integer, or the tuple of integers, as Python's; any other value unchanged."""
    if isinstance(value, tuple):
        converted = tuple(_with_python_integers(item) for item in value)
        same = all(new is old for new, old in zip(converted, value, strict=True))
        return value if same else converted
    if isinstance(value, bool | np.bool):
        return value
    try:
        return operator.index(value)
    except TypeError:
        return value


def _is_integer(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
