"""Examples that are passed in Python, in one form: an array for each image, or the bytes of a file.

A random-access source has PyGrain's protocol: `len(source)` is the number of examples, and
`source[i]` is {"image": image, "label": label} or (image, label). Lists, data sets of PyTorch and
Hugging Face, and `grain.MapDataset` have it.
"""

import dataclasses
import operator
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from resnet_jax.data.images.image_files import BYTES_PER_PIXEL, MODES
from resnet_jax.data.readers.encoded import Record
from resnet_jax.errors import DataError, StoppedEarly
from resnet_jax.utils.messages import first_line

_EXAMPLE = "an example is {'image': image, 'label': label} or (image, label)"
_PLANES = (1, 3, 4)  # numbers of channels of images that aren't multispectral
_GREY = ("1", "L", "LA")  # Pillow's modes


@runtime_checkable
class RandomAccess(Protocol):
    """A source of examples by index. It must return the same example each time."""

    def __len__(self) -> int:
        """Number of examples."""

    def __getitem__(self, index: int, /) -> Any:
        """Return the example {"image": image, "label": label} or (image, label)."""


Examples = tuple[ArrayLike, ArrayLike] | RandomAccess
"""The examples of a split.

Either (images, labels): uint8 [n, h, w, c], or [n, h, w] in grey, and integers [n]. Or a source,
whose images are uint8 [h, w, c] or [h, w], Pillow's images, or the content of PNG or JPEG files.
"""


@dataclasses.dataclass(frozen=True, eq=False)
class ArrayRecords:
    """Examples in arrays: images uint8 [n, h, w, c], labels int32 [n]; see `Records`."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def fetch(self, indices: Sequence[int]) -> Iterator[Record]:
        """Yield the examples."""
        for index in indices:
            yield Record(self.images[index], int(self.labels[index]))


class SourceRecords:
    """The examples of a random-access source, which is called by a thread at a time."""

    def __init__(self, source: RandomAccess, mode: str | None = None) -> None:
        """Read nothing yet.

        Args:
            source: of the examples.
            mode: Pillow's mode, of `MODES`, to which Pillow's images are converted.
        """
        self._source, self._mode = source, mode
        self._length, self._lock = len(source), threading.Lock()

    def __reduce__(self) -> tuple[type["SourceRecords"], tuple[RandomAccess, str | None]]:
        """Pickle the source: a lock can't be pickled."""
        return SourceRecords, (self._source, self._mode)

    def in_mode(self, mode: str) -> "SourceRecords":
        """The same examples with Pillow's images in this mode."""
        return SourceRecords(self._source, mode)

    def __len__(self) -> int:
        return self._length

    def fetch(self, indices: Sequence[int]) -> Iterator[Record | Exception]:
        """Yield the examples; an error for one that the source doesn't return."""
        for index in indices:
            yield self._read(index)

    def _read(self, index: int) -> Record | Exception:
        try:
            with self._lock:
                example = self._source[index]
            return _record(example, self._mode)
        except StoppedEarly:
            raise
        except (MemoryError, DataError) as error:
            return error
        except Exception as error:  # the source is code of the user
            reason = DataError(f"{type(error).__name__}: {first_line(error)}")
            reason.__cause__ = error
            return reason


def make_records(split: str, examples: Examples) -> ArrayRecords | SourceRecords:
    """Check the form of a split's examples; those of a source are read when they are fetched.

    Args:
        split: the name of the split, for messages.
        examples: as a caller passes them.

    Raises:
        DataError: they have another form, type or shape, or there are none.
    """
    if isinstance(examples, tuple):
        if len(examples) != 2:
            raise DataError(f"datasets[{split!r}] is a tuple of {len(examples)}, not of 2 arrays.")
        return _array_records(split, *examples)
    if isinstance(examples, str | bytes | Mapping) or not isinstance(examples, RandomAccess):
        raise DataError(
            f"datasets[{split!r}] is of type {type(examples).__name__}; it is (images, labels), or"
            f" a source with a length and examples by index: {_EXAMPLE}."
        )
    if not len(examples):
        raise DataError(f"datasets[{split!r}] has no examples.")
    return SourceRecords(examples)


def _array_records(split: str, images: ArrayLike, labels: ArrayLike) -> ArrayRecords:
    pixels = _as_array(
        f"the images of {split!r}",
        images,
        if_ragged="pass list(zip(images, labels)) instead, and set data.image_size",
    )
    numbers = _as_array(
        f"the labels of {split!r}", labels, if_ragged="a label is the number of a class"
    )
    what = f"the images of {split!r} are {pixels.dtype} {list(pixels.shape)}"
    if pixels.dtype != np.uint8:
        raise DataError(
            f"{what}; they must be uint8, grey levels 0 to 255 as in files (normalisation is part"
            " of the run)."
        )
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    if pixels.ndim != 4 or not pixels.size:
        raise DataError(f"{what}; they must be [n, h, w, c], or [n, h, w] in grey.")
    if is_channels_first(pixels.shape[1:]):
        raise DataError(
            f"{what}, channels first; pass images.transpose(0, 2, 3, 1), which is [n, h, w, c]."
        )
    what = f"the labels of {split!r} are {numbers.dtype} {list(numbers.shape)}"
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
        raise DataError(f"{what}; they must be integers [n], the number of each example's class.")
    if len(numbers) != len(pixels):
        raise DataError(f"{split!r} has {len(pixels):,} images and {len(numbers):,} labels.")
    low, high = int(numbers.min()), int(numbers.max())
    if low < -(2**31) or high >= 2**31:
        raise DataError(f"the labels of {split!r} go from {low} to {high}; classes count from 0.")
    return ArrayRecords(pixels, numbers.astype(np.int32))


def _as_array(what: str, values: ArrayLike, *, if_ragged: str) -> np.ndarray:
    try:
        return np.asarray(values)
    except ValueError:
        raise DataError(f"{what} differ in shape; {if_ragged}.") from None
    except (TypeError, RuntimeError) as error:  # of a tensor on a GPU, or on several hosts
        raise DataError(f"{what} can't be converted to an array ({first_line(error)}).") from error


def _record(example: Any, mode: str | None) -> Record:
    """Convert an example of a source; `mode` as for `SourceRecords`.

    Raises:
        DataError: the example has another form. The message begins with "it".
    """
    match example:
        case {"image": image, "label": label} | (image, label):
            pass
        case _:
            keys = f" with {', '.join(map(repr, example))}" if isinstance(example, dict) else ""
            raise DataError(f"it is of type {type(example).__name__}{keys}; {_EXAMPLE}")
    try:
        number = operator.index(label)
    except TypeError:
        raise DataError(f"its label is {label!r}, not an integer") from None
    if isinstance(image, bytes):
        return Record(image, number)
    pixels = np.asarray(_in_mode(image, mode) if isinstance(image, Image.Image) else image)
    if is_channels_first(pixels.shape):
        raise DataError(
            f"its image is {list(pixels.shape)}, channels first; return image.transpose(1, 2, 0),"
            " which is [h, w, c]"
        )
    return Record(pixels[..., None] if pixels.ndim == 2 else pixels, number)


def is_channels_first(shape: tuple[int, ...]) -> bool:
    """Whether an image of this shape is [c, h, w], as in PyTorch."""
    return len(shape) == 3 and shape[0] in _PLANES and shape[2] not in _PLANES


def _in_mode(image: Image.Image, mode: str | None) -> Image.Image:
    """Convert an image of Pillow; None keeps the modes of `MODES`, and makes others RGB."""
    if image.mode not in BYTES_PER_PIXEL:
        raise DataError(
            f"it is a Pillow image of mode {image.mode}, not of 8 bits per channel; pass uint8"
        )
    if mode is None:
        mode = image.mode if image.mode in MODES.values() else "RGB"
    if mode == "L" and image.mode not in _GREY:
        raise DataError(
            f"it is a Pillow image of mode {image.mode}, and the first images are grey; convert all"
            " images to one mode"
        )
    return image if image.mode == mode else image.convert(mode)
