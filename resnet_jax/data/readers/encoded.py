"""Examples that are fetched, and decoded, when they are needed."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from resnet_jax.data.splits import Span
from resnet_jax.errors import DataError


class Record(NamedTuple):
    """An example as it is stored.

    Attributes:
        image: content of a PNG or JPEG file, or an array that isn't checked yet.
        label: the class.
        where: beginning of a message about the example: "'cat/1.jpg': ", or "".
    """

    image: bytes | np.ndarray
    label: int
    where: str = ""


class Records(Protocol):
    """The examples of a split by index; can be pickled."""

    def __len__(self) -> int:
        """Number of examples."""

    def fetch(self, indices: Sequence[int]) -> Iterator[Record | Exception]:
        """Yield the examples with these indices, in order; an error for a damaged example."""


@dataclasses.dataclass(frozen=True)
class EncodedSet:
    """The encoded examples of one role, a concatenation of spans of splits.

    Attributes:
        name: the data set's name, for messages.
        parts: the spans and the records of their splits.
        num_classes: every label is in [0, num_classes).
        remedy: what to do about a damaged example, in messages.
    """

    name: str
    parts: Sequence[tuple[Span, Records]]
    num_classes: int
    remedy: str

    def __len__(self) -> int:
        return sum(span.stop - span.start for span, _ in self.parts)

    def fetch(self, ids: Sequence[int]) -> Iterator[tuple[int, Record]]:
        """Yield (position in `ids`, example), grouped by split.

        Raises:
            DataError: a record is damaged, or its label is out of range.
        """
        wanted = np.asarray(ids)
        begin = 0
        for span, records in self.parts:
            length = span.stop - span.start
            positions = np.flatnonzero((wanted >= begin) & (wanted < begin + length))
            numbers = (wanted[positions] - begin + span.start).tolist()
            found = records.fetch(numbers) if numbers else iter(())
            for position, number, record in zip(positions.tolist(), numbers, found, strict=True):
                if isinstance(record, MemoryError):
                    raise record
                if isinstance(record, Exception):
                    raise self.damaged(span.split, number, str(record)) from record
                if not 0 <= record.label < self.num_classes:
                    reason = f"its label is {record.label}, not in 0 … {self.num_classes - 1}"
                    raise self.damaged(span.split, number, reason)
                yield position, record
            begin += length

    def locate(self, index: int) -> tuple[str, int]:
        """Return the split of example `index` and the example's number within the split."""
        for span, _ in self.parts:
            if index < span.stop - span.start:
                return span.split, span.start + index
            index -= span.stop - span.start
        raise IndexError(index)

    def damaged(self, split: str, number: int, reason: str) -> DataError:
        """Return the error to raise for an unusable example."""
        return DataError(
            f"example {number} of split {split!r} of {self.name!r} can't be read ({reason});"
            f" {self.remedy}"
        )
