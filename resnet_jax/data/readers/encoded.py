"""Training images that stay on disk as they are, and are decoded each time they are needed."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from resnet_jax.errors import DataError


class Record(NamedTuple):
    """An example as it lies on disk: the bytes of a PNG or JPEG, and its label.

    `where` begins a message about it: "'cat/1.jpg': ", or nothing.
    """

    image: bytes
    label: int
    where: str = ""


class Records(Protocol):
    """The examples of a split by their numbers; can be sent to another process."""

    def __len__(self) -> int:
        """How many there are."""

    def fetch(self, indices: Sequence[int]) -> Iterator[Record | Exception]:
        """The examples with these numbers, in order; in place of a damaged one, what is wrong."""


class Span(NamedTuple):
    """The examples `start` ≤ i < `stop` of one split of a data set."""

    split: str
    start: int
    stop: int


@dataclasses.dataclass(frozen=True)
class EncodedSet:
    """The examples of one role, in the spans of splits that it is made of.

    Attributes:
        name: of the data set, for messages.
        parts: spans and the records of their splits.
        num_classes: every label is below.
        remedy: what to do about a damaged example, in messages.
    """

    name: str
    parts: Sequence[tuple[Span, Records]]
    num_classes: int
    remedy: str

    def __len__(self) -> int:
        return sum(span.stop - span.start for span, _ in self.parts)

    def fetch(self, ids: Sequence[int]) -> Iterator[tuple[int, Record]]:
        """Position in `ids`, and example, of each; grouped by the splits that they are in.

        Raises:
            DataError: a record is damaged, or its label can't be.
        """
        wanted = np.asarray(ids)
        begin = 0
        for span, records in self.parts:
            length = span.stop - span.start
            here = np.flatnonzero((wanted >= begin) & (wanted < begin + length))
            numbers = (wanted[here] - begin + span.start).tolist()
            found = records.fetch(numbers) if numbers else iter(())
            for position, number, record in zip(here.tolist(), numbers, found, strict=True):
                if isinstance(record, MemoryError):
                    raise record
                if isinstance(record, Exception):
                    raise self.damaged(span.split, number, str(record)) from record
                if not 0 <= record.label < self.num_classes:
                    why = f"its label is {record.label}, not in 0 … {self.num_classes - 1}"
                    raise self.damaged(span.split, number, why)
                yield position, record
            begin += length

    def locate(self, index: int) -> tuple[str, int]:
        """Split and number within it of example `index`."""
        for span, _ in self.parts:
            if index < span.stop - span.start:
                return span.split, span.start + index
            index -= span.stop - span.start
        raise IndexError(index)

    def damaged(self, split: str, number: int, why: str) -> DataError:
        """What is raised for an example that can't be used."""
        return DataError(
            f"example {number} of split {split!r} of {self.name!r} can't be read ({why});"
            f" {self.remedy}"
        )
