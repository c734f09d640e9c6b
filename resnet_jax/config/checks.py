"""Checks of the value of a single config field."""

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

from resnet_jax.errors import ConfigError, did_you_mean

_LONGEST_VALUE = 200  # characters, in a message


@dataclasses.dataclass(frozen=True)
class Check:
    """The accepted values of a field.

    Attributes:
        rule: the predicate of the sentence "The value …", which ends messages and is shown in
            docs/config.md.
        accepts: whether a value is accepted; called with values of the field's type.
        choices: names among which a misspelt value is looked up.
        each: the field is a tuple, and the check is for each of its elements.
    """

    rule: str
    accepts: Callable[[Any], bool]
    choices: Sequence[str] = ()
    each: bool = False

    def __call__(self, name: str, value: Any) -> None:
        """Check the value of the field `name`.

        Raises:
            ConfigError: the value isn't accepted.
        """
        for item in value if self.each else [value]:
            if not self.accepts(item):
                verb = "names" if self.each else "is"
                hint = did_you_mean(str(item), self.choices) if self.choices else ""
                shown = "empty" if item == "" else show_value(item)
                raise ConfigError(f"{name} {verb} {shown}; it {self.rule}.{hint}")


def one_of(choices: Sequence[str], *, each: bool = False) -> Check:
    """Accept one of several names; with `each`, a tuple of such names."""
    named = ", ".join(choice for choice in choices if choice)
    rule = f"can be {named}{' or empty' * ('' in choices)}"
    return Check(rule, lambda value: value in choices, choices, each)


def _are_numbers(values: Any) -> bool:
    return all(isinstance(value, int | float) for value in values)


def _is_range_of_shares(value: Any) -> bool:
    return not value or (len(value) == 2 and _are_numbers(value) and 0 < value[0] <= value[1] <= 1)


def at_most(limit: float) -> Check:
    """Accept numbers from 0 to `limit`."""
    return Check(f"can be 0 to {limit:g}", lambda value: 0 <= value <= limit)


POSITIVE = Check("must be greater than 0", lambda value: value > 0)
AT_LEAST_1 = Check("must be at least 1", lambda value: value >= 1)
NOT_NEGATIVE = Check("can't be negative", lambda value: value >= 0)
BELOW_1 = Check("must be at least 0 and less than 1", lambda value: 0 <= value < 1)
UP_TO_1 = Check("must be greater than 0 and at most 1", lambda value: 0 < value <= 1)
POWER_OF_TWO = Check(
    "can be 0 or a power of two",
    lambda value: isinstance(value, int) and value >= 0 and value & (value - 1) == 0,
)
SHARE = Check("must be at least 0, at most 1", lambda value: 0 <= value <= 1)
PROBABILITY = Check("is a probability, 0 to 1", lambda value: 0 <= value <= 1)
NUMBERS = Check("must be a tuple of numbers", _are_numbers)
RANGE_OF_SHARES = Check(
    "is a smallest and a largest share, such as (0.08, 1.0), or () for none", _is_range_of_shares
)
SEED = Check("must be less than 2**32 and can't be negative", lambda value: 0 <= value < 2**32)
WORKERS = Check("can be -1, 0 or more", lambda value: value >= -1)
LOCAL = Check("is a folder of this host, or empty", lambda value: "://" not in value)
SPLIT = Check("names the split to train on", bool)


def check_finite(name: str, value: Any) -> None:
    """Check that a number, or each number of a tuple, is finite.

    Raises:
        ConfigError: a number isn't finite.
    """
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, float) and not math.isfinite(number):
            raise ConfigError(f"{name} is {show_value(value)}; it must be finite.")


def check_storable(name: str, value: Any) -> None:
    """Check that JSON can hold a value, and so the record of a run.

    Raises:
        ConfigError: it can't, as with NumPy's numbers.
    """
    try:
        json.dumps(value)
    except TypeError:
        raise ConfigError(
            f"{name} is {show_value(value)}; it must consist of Python's own numbers and texts."
        ) from None


def show_value(value: Any) -> str:
    """Return the value as text of a limited length, for a message."""
    try:
        text = repr(value)
    except ValueError:  # Python doesn't print integers of more than 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…"
