"""Damaged examples that a run leaves out because it was told to: which, and how many it may."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

from resnet_jax.errors import DataError

CorruptPolicy = Literal["stop", "skip"]
"""What a damaged image or record does: end the run, or be left out."""

_LARGEST_SHARE = 1000  # one in so many; decay takes fewer, and a broken preparation takes more


@dataclasses.dataclass(frozen=True)
class SkippedExample:
    """An example that was left out: `index` counts all examples of the split as it was prepared."""

    split: str
    index: int
    reason: str


def most_skipped(examples: int) -> int:
    """How many examples of a split of that size may be left out: 0.1 %, but at least one."""
    return max(1, examples // _LARGEST_SHARE)


def check_few(skipped: Sequence[SkippedExample], *, seen: int, examples: int, where: str) -> None:
    """Raise DataError if more of the split are damaged than may be left out.

    Args:
        skipped: those found so far.
        seen: how many examples were looked at.
        examples: how many the split has.
        where: the split, for the message.
    """
    most = most_skipped(examples)
    if len(skipped) > most:
        raise DataError(
            f"{len(skipped)} of the first {seen} examples of {where} are damaged (the first is"
            f" example {skipped[0].index}: {skipped[0].reason}), and data.corrupt='skip' leaves out"
            f" at most {most} of {examples} (0.1 %, but at least 1); prepare the data set again"
        )
