"""The encoded images of a split, decoded once, in threads, and kept in the cache."""

import dataclasses
import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from resnet_jax.data.images.fit import Fit
from resnet_jax.data.readers import array_cache
from resnet_jax.data.readers.encoded import Record, Records
from resnet_jax.data.readers.skipped import SkippedExample, check_few
from resnet_jax.errors import ConfigError, DataError

_log = logging.getLogger(__name__)

_BLOCK_BYTES = 2**22
_BLOCK_EXAMPLES = 256
_NAMED = 3  # damaged examples in a warning; all are in the log


@dataclasses.dataclass(frozen=True)
class EncodedSplit:
    """A split on disk.

    Attributes:
        name: of the split.
        where: the split, in messages: "split 'train' of 'cifar10' in DIRECTORY".
        remedy: what to do about a damaged example, in messages: "prepare the data set again".
        examples: how many there are.
        fit: how their images become arrays.
        cache: folder of its decoded arrays.
        open: called when they aren't there.
    """

    name: str
    where: str
    remedy: str
    examples: int
    fit: Fit
    cache: Path
    open: Callable[[], Records]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(n, h, w, c) of the images."""
        return (self.examples, *self.fit.shape)

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """All images, uint8 (n, h, w, c), and labels, int32 (n,), from the cache if they're there.

        Raises:
            DataError: an example is damaged.
            ConfigError: one doesn't fit what was asked for.
        """
        images, labels, _ = self._read(skip=False)
        return images, labels

    def read_intact(self) -> tuple[np.ndarray, np.ndarray, tuple[SkippedExample, ...]]:
        """As `read`, but without the damaged examples, which are named.

        Raises:
            DataError: there are more of them than may be left out.
            ConfigError: as for `read`.
        """
        images, labels, skipped = self._read(skip=True)
        if skipped:
            named = "; ".join(f"{one.index} ({one.reason})" for one in skipped[:_NAMED])
            more = f"; and {len(skipped) - _NAMED} more" * (len(skipped) > _NAMED)
            _log.warning(
                "%d of %d examples of %s are damaged and left out: %s%s",
                *(len(skipped), self.shape[0], self.where, named, more),
            )
            for one in skipped[_NAMED:]:
                _log.info("left out: example %d of %s (%s)", one.index, one.split, one.reason)
        return images, labels, skipped

    def _read(self, *, skip: bool) -> tuple[np.ndarray, np.ndarray, tuple[SkippedExample, ...]]:
        if (cached := array_cache.load(self.cache, self.name, self.shape)) is not None:
            return *cached, ()
        _log.info("decoding %d images of %s, once", self.shape[0], self.where)
        images, labels, skipped = self._decode(skip=skip)
        # A split that lacks examples is looked through anew each time: the cache holds whole ones.
        if not skipped:
            array_cache.store(self.cache, self.name, images, labels)
        return images, labels, skipped

    def _decode(self, *, skip: bool) -> tuple[np.ndarray, np.ndarray, tuple[SkippedExample, ...]]:
        import grain  # noqa: PLC0415 - takes a second, which a cached split needn't wait for

        images, labels = np.empty(self.shape, np.uint8), np.empty(self.shape[0], np.int32)
        blocks = grain.MapDataset.source(_Blocks(self, skip=skip)).to_iter_dataset(
            grain.ReadOptions(num_threads=min(4, os.cpu_count() or 1), prefetch_buffer_size=4)
        )
        done, skipped = 0, []
        for some_images, some_labels, damaged in blocks:
            stop = done + len(some_labels)
            images[done:stop], labels[done:stop] = some_images, some_labels
            done = stop
            skipped += damaged
            seen = done + len(skipped)
            check_few(skipped, seen=seen, examples=self.shape[0], where=self.where)
        if done + len(skipped) != self.shape[0]:
            raise DataError(
                f"{self.where} gave {done + len(skipped)} examples where {self.shape[0]} are"
                f" promised; {self.remedy}"
            )
        return images[:done], labels[:done], tuple(skipped)


class _Blocks:
    """Random access to decoded blocks of a split; a block at a time is three times as fast."""

    def __init__(self, split: EncodedSplit, *, skip: bool) -> None:
        self._split, self._skip = split, skip
        self._records = split.open()
        size = int(np.prod(split.shape[1:]))
        self._length = max(1, min(_BLOCK_EXAMPLES, _BLOCK_BYTES // size))

    def __len__(self) -> int:
        return (len(self._records) + self._length - 1) // self._length

    def __getitem__(self, block: int) -> tuple[np.ndarray, np.ndarray, list[SkippedExample]]:
        start = block * self._length
        indices = range(start, min(start + self._length, len(self._records)))
        images = np.empty((len(indices), *self._split.shape[1:]), np.uint8)
        labels = np.empty(len(indices), np.int32)
        skipped: list[SkippedExample] = []
        for index, record in zip(indices, self._records.fetch(indices), strict=True):
            row = index - start - len(skipped)
            example = self._decode(record)
            if isinstance(example, MemoryError | ConfigError):
                raise example
            if not isinstance(example, Exception):
                images[row], labels[row] = example
            elif self._skip:
                skipped.append(SkippedExample(self._split.name, index, first_line(example)))
            else:
                raise self._damaged(index, example) from example
        rows = len(indices) - len(skipped)
        return images[:rows], labels[:rows], skipped

    def _decode(self, record: Record | Exception) -> tuple[np.ndarray, int] | Exception:
        if isinstance(record, Exception):
            return record
        if not -(2**31) <= record.label < 2**31:
            return DataError(f"{record.where}its label, {record.label}, is out of bounds")
        try:
            return self._split.fit.decode(record.image), record.label
        except DataError as error:
            return DataError(f"{record.where}{error}")
        except ConfigError as error:
            return ConfigError(
                f"{record.where}{error} as the first image; set data.image_size, to which images"
                " are scaled and cropped"
            )

    def _damaged(self, index: int, error: Exception) -> DataError:
        return DataError(
            f"example {index} of {self._split.where} can't be read ({first_line(error)});"
            f" {self._split.remedy}, or leave out what is damaged with data.corrupt='skip'"
        )


def first_line(error: Exception) -> str:
    """What an error says, on one line."""
    return (str(error).strip().splitlines() or [""])[0] or type(error).__name__
