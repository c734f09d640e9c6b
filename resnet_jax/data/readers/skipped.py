"""Damaged examples that a run leaves out with `data.corrupt="skip"`, and their largest number."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

from resnet_jax.errors import DataError

CorruptPolicy = Literal["stop", "skip"]
"""What a damaged image or record does: end the run, or be left out."""

# Largest share, 1 / 1000, of damaged examples. Decay damages fewer; a broken preparation more.
_EXAMPLES_PER_SKIPPED = 1000


@dataclasses.dataclass(frozen=True)
class SkippedExample:
    """An example that was left out; `index` is its position in the prepared split."""

    split: str
    index: int
    reason: str


def most_skipped(examples: int) -> int:
    """Return how many examples may be left out of a split: 0.1 %, but at least 1."""
    return max(1, examples // _EXAMPLES_PER_SKIPPED)


def check_few(skipped: Sequence[SkippedExample], *, seen: int, examples: int, where: str) -> None:
    """Raise DataError if more examples of a split are damaged than may be left out.

    Args:
        skipped: the damaged examples so far.
        seen: number of examples decoded so far.
        examples: number of examples of the split.
        where: the split, for the message.
    """
    most = most_skipped(examples)
    if len(skipped) > most:
        raise DataError(
            f"{len(skipped)} of the first {seen} examples of {where} are damaged (the first is"
            f" example {skipped[0].index}: {skipped[0].reason}), and data.corrupt='skip' leaves out"
            f" at most {most} of {examples} (0.1 %, but at least 1); prepare the data set again"
        )
