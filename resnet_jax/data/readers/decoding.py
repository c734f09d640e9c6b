"""Splits that are decoded once, in threads, and cached as arrays if they come from files."""

import dataclasses
import logging
import os
from pathlib import Path

import numpy as np

from resnet_jax.data.images.fit import Fit
from resnet_jax.data.readers import array_cache
from resnet_jax.data.readers.encoded import Record, Records
from resnet_jax.data.readers.skipped import SkippedExample, check_few
from resnet_jax.data.readers.source import DecodedSplit
from resnet_jax.errors import ConfigError, DataError
from resnet_jax.utils.messages import first_line

_log = logging.getLogger(__name__)

# A block of examples is decoded at a time, which is three times as fast as single examples.
_BLOCK_BYTES = 2**22
_BLOCK_EXAMPLES = 256
_MAX_THREADS = 4
_NAMED = 3  # damaged examples in a warning; the log lists all


@dataclasses.dataclass(frozen=True)
class CachedSplit:
    """A split that is decoded as a whole and cached.

    Attributes:
        name: the split's name.
        where: the split in messages: "split 'train' of 'cifar10' in DIRECTORY".
        remedy: what to do about a damaged example, in messages: "prepare the data set again".
        examples: number of examples.
        fit: how images become arrays of one shape.
        cache: folder of the decoded arrays; None keeps none.
        records: the encoded examples.
    """

    name: str
    where: str
    remedy: str
    examples: int
    fit: Fit
    cache: Path | None
    records: Records

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(n, h, w, c) of the images."""
        return (self.examples, *self.fit.shape)

    def read(self, *, skip_corrupt: bool) -> DecodedSplit:
        """Return the split from the cache, or decode and cache it; see `Source.read`."""
        if self.cache and (cached := array_cache.load(self.cache, self.name, self.shape)):
            return DecodedSplit(*cached)
        _log.info("decoding %d images of %s, once", self.examples, self.where)
        decoded = self._decode(skip_corrupt=skip_corrupt)
        if decoded.skipped:  # not cached: the cache holds whole splits only
            self._report(decoded.skipped)
        elif self.cache:
            array_cache.store(self.cache, self.name, decoded.images, decoded.labels)
        return decoded

    def damaged(self, index: int, error: Exception) -> DataError:
        """Return the error to raise for a damaged example."""
        return DataError(
            f"example {index} of {self.where} can't be read ({first_line(error)});"
            f" {self.remedy}, or leave out damaged examples with data.corrupt='skip'"
        )

    def _decode(self, *, skip_corrupt: bool) -> DecodedSplit:
        # Importing Grain takes a second, which a cached split doesn't need.
        import grain  # noqa: PLC0415

        images, labels = np.empty(self.shape, np.uint8), np.empty(self.examples, np.int32)
        threads = min(_MAX_THREADS, os.cpu_count() or 1)
        blocks = grain.MapDataset.source(_Blocks(self, skip_corrupt=skip_corrupt)).to_iter_dataset(
            grain.ReadOptions(num_threads=threads, prefetch_buffer_size=_MAX_THREADS)
        )
        done, skipped = 0, []
        for block in blocks:
            stop = done + len(block.labels)
            images[done:stop], labels[done:stop] = block.images, block.labels
            done = stop
            skipped += block.skipped
            seen = done + len(skipped)
            check_few(skipped, seen=seen, examples=self.examples, where=self.where)
        if done + len(skipped) != self.examples:
            raise DataError(
                f"{self.where} has {done + len(skipped)} examples, but its metadata promise"
                f" {self.examples}; {self.remedy}"
            )
        return DecodedSplit(images[:done], labels[:done], tuple(skipped))

    def _report(self, skipped: tuple[SkippedExample, ...]) -> None:
        named = "; ".join(f"{example.index} ({example.reason})" for example in skipped[:_NAMED])
        more = f"; and {len(skipped) - _NAMED} more" * (len(skipped) > _NAMED)
        _log.warning(
            "%d of %d examples of %s are damaged and left out: %s%s",
            *(len(skipped), self.examples, self.where, named, more),
        )
        for example in skipped[_NAMED:]:
            _log.info("left out: example %d of %s (%s)", example.index, self.name, example.reason)


class _Blocks:
    """Random access to decoded blocks of a split."""

    def __init__(self, split: CachedSplit, *, skip_corrupt: bool) -> None:
        self._split, self._skip_corrupt = split, skip_corrupt
        size = int(np.prod(split.fit.shape))
        self._length = max(1, min(_BLOCK_EXAMPLES, _BLOCK_BYTES // size))

    def __len__(self) -> int:
        return (len(self._split.records) + self._length - 1) // self._length

    def __getitem__(self, block: int) -> DecodedSplit:
        start = block * self._length
        indices = range(start, min(start + self._length, len(self._split.records)))
        images = np.empty((len(indices), *self._split.fit.shape), np.uint8)
        labels = np.empty(len(indices), np.int32)
        skipped: list[SkippedExample] = []
        for index, record in zip(indices, self._split.records.fetch(indices), strict=True):
            row = index - start - len(skipped)
            example = _decode(record, self._split.fit)
            if isinstance(example, MemoryError | ConfigError):
                raise example
            if not isinstance(example, Exception):
                images[row], labels[row] = example
            elif self._skip_corrupt:
                skipped.append(SkippedExample(self._split.name, index, first_line(example)))
            else:
                raise self._split.damaged(index, example) from example
        rows = len(indices) - len(skipped)
        return DecodedSplit(images[:rows], labels[:rows], tuple(skipped))


def _decode(record: Record | Exception, fit: Fit) -> tuple[np.ndarray, int] | Exception:
    """Return image and label of a record, or the error that makes the record unusable."""
    if isinstance(record, Exception):
        return record
    if not -(2**31) <= record.label < 2**31:
        return DataError(f"{record.where}its label, {record.label}, is out of bounds")
    try:
        if isinstance(record.image, bytes):
            return fit.decode(record.image), record.label
        return fit.apply(record.image), record.label
    except DataError as error:
        return DataError(f"{record.where}{error}")
    except ConfigError as error:
        return ConfigError(
            f"{record.where}{error} as the first image; set data.image_size, to which images"
            " are scaled and cropped"
        )
