"""What gpu.py tells the measurement of an item."""

import dataclasses
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True)
class Task:
    """What the measurement of an item is told.

    Attributes:
        toy: measure at toy size.
        data: folder of data sets, if there is one.
        folder: where results are written.
        deadline: when the item must end, by `time.monotonic`.
    """

    toy: bool
    data: Path | None
    folder: Path
    deadline: float

    @property
    def seconds_left(self) -> float:
        """Until the deadline."""
        return self.deadline - time.monotonic()


class MissingError(Exception):
    """The machine lacks what an item needs."""


class Postponed(str):
    """Why a part has no result yet. The item isn't complete, and is measured again."""


NO_TIME = Postponed("no time")
