"""The protocol of data sets whose splits are known but not yet in memory."""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import numpy as np

from resnet_jax.data.readers.encoded import Records
from resnet_jax.data.readers.skipped import SkippedExample


class DecodedSplit(NamedTuple):
    """A split in host memory.

    Attributes:
        images: uint8 (n, h, w, c).
        labels: int32 (n,).
        skipped: the damaged examples that were left out, in order.
    """

    images: np.ndarray
    labels: np.ndarray
    skipped: tuple[SkippedExample, ...] = ()


class Source(Protocol):
    """A data set whose splits are known but not yet in memory."""

    @property
    def lengths(self) -> Mapping[str, int]:
        """Number of examples of each split."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(h, w, c) of every image."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name per class."""

    def read(self, split: str, *, skip_corrupt: bool = False) -> DecodedSplit:
        """Decode all examples of a split; `skip_corrupt` leaves out a few damaged examples.

        Raises:
            DataError: an example is damaged, or too many are.
            ConfigError: an image doesn't have `image_shape`.
        """

    def records(self, split: str) -> Records:
        """Return the encoded examples of a split."""

    def fingerprint(self, split: str) -> str:
        """Return a text that changes with the files of a split."""
