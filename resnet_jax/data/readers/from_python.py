"""Data sets that are passed in Python: arrays, or random-access sources of examples.

A random-access source has PyGrain's protocol: `len(source)` is the number of examples, and
`source[i]` is {"image": image, "label": label} or (image, label). Lists, data sets of PyTorch and
Hugging Face, and `grain.MapDataset` have it.
"""

import dataclasses
import functools
import hashlib
import operator
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from resnet_jax.data.dataset_info import FROM_PYTHON
from resnet_jax.data.images.fit import Fit
from resnet_jax.data.images.image_files import MODES, image_size
from resnet_jax.data.images.preprocessing import ScaleAndCrop
from resnet_jax.data.readers.decoding import CachedSplit
from resnet_jax.data.readers.encoded import Record, Records
from resnet_jax.data.readers.source import DecodedSplit
from resnet_jax.errors import ConfigError, DataError, StoppedEarly, UsageError
from resnet_jax.utils.messages import first_line

_EXAMPLE = "an example is {'image': image, 'label': label} or (image, label)"
_SHAPES_TRIED = 8  # examples, of which the first that can be read has the shape of all
_PLANES = (1, 3, 4)  # numbers of channels of images that aren't multispectral


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
class PythonData:
    """The `datasets` and `class_names` that a caller passes; see `resnet_jax.fit`.

    Attributes:
        splits: the examples by the name of their split.
        class_names: one name per class; () names the classes of the labels "0", "1", ….

    Raises:
        UsageError: `splits` isn't a mapping from names to examples, or two classes have one name.
    """

    splits: Mapping[str, Examples]
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.splits, Mapping) or not self.splits:
            raise UsageError(
                f"datasets is {'empty' if isinstance(self.splits, Mapping) else 'no mapping'}; it"
                " is a dict such as {'train': (images, labels), 'test': (images, labels)}."
            )
        for name in self.splits:
            if not isinstance(name, str) or not name.isidentifier():
                raise UsageError(f"datasets has the split {name!r}; use a name such as 'train'.")
        for name in self.class_names:
            if not isinstance(name, str) or not name.isprintable() or not name:
                raise UsageError(f"class_names has {name!r}, which isn't a line of text.")
        if len(set(self.class_names)) < len(self.class_names):
            raise UsageError("class_names has the same name twice.")


def open_python_data(
    data: PythonData, *, crop: ScaleAndCrop | None, channels: int | None
) -> "PythonSource":
    """Check what can be checked without reading all examples.

    Args:
        data: the examples.
        crop: how images are scaled and cropped to one size; None if all have one size.
        channels: the number of channels that images must have; None for any.

    Raises:
        DataError: examples of another form, type or shape.
        ConfigError: images that can't be scaled.
    """
    splits = {name: _records(name, examples) for name, examples in data.splits.items()}
    shapes = {name: _first_shape(name, records) for name, records in splits.items()}
    first, shape = next(iter(shapes.items()))
    for name, other in shapes.items():
        if other[-1] != shape[-1] or (other != shape and not crop):
            raise DataError(
                f"the images of {name!r} are {_show(other)}, those of {first!r} {_show(shape)};"
                " all splits must have the same channels, and without data.image_size the same"
                " size."
            )
    if channels and shape[-1] != channels:
        raise ConfigError(
            f"data.random_crop_area is for RGB images; those of {first!r} are {_show(shape)}."
        )
    if crop and shape[-1] not in MODES:
        raise ConfigError(
            f"the images of {first!r} are {_show(shape)}, and data.image_size scales images of 1, 3"
            " or 4 channels; scale them first, and leave it unset."
        )
    height, width = crop.size if crop else shape[:2]
    return PythonSource(splits, Fit((height, width, shape[-1]), crop), data.class_names)


@dataclasses.dataclass(frozen=True, eq=False)
class PythonSource:
    """Data that were passed in Python, not decoded yet; see `Source`."""

    splits: "Mapping[str, ArrayRecords | SourceRecords]"
    fit: Fit
    given_names: tuple[str, ...]
    _decoded: dict[str, DecodedSplit] = dataclasses.field(default_factory=dict, init=False)
    _surveys: "dict[str, _Survey]" = dataclasses.field(default_factory=dict, init=False)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(h, w, c) of the decoded images."""
        return self.fit.shape

    @property
    def lengths(self) -> dict[str, int]:
        """Number of examples of each split."""
        return {name: len(records) for name, records in self.splits.items()}

    @functools.cached_property
    def class_names(self) -> tuple[str, ...]:
        """The names that were given, or else the labels from "0" to the largest of any split.

        Raises:
            DataError: names weren't given, and a label below the largest has no example.
        """
        if self.given_names:
            return self.given_names
        used = np.unique(np.concatenate([self._labels(split) for split in self.splits]))
        used = used[used >= 0]
        gaps = np.flatnonzero(used != np.arange(len(used)))
        if len(gaps):
            raise DataError(
                f"the labels go up to {used[-1]}, and no example has the label {gaps[0]}; count"
                " classes from 0, or pass class_names if some classes have no examples."
            )
        return tuple(map(str, used.tolist()))

    def read(self, split: str, *, skip_corrupt: bool = False) -> DecodedSplit:
        """Return the arrays of a split, or read all examples of its source; see `Source.read`."""
        records = self.splits[split]
        if isinstance(records, ArrayRecords) and not self.fit.crop:
            return DecodedSplit(records.images, records.labels)
        if split not in self._decoded:
            decoding = CachedSplit(
                name=split,
                where=f"split {split!r} of datasets",
                remedy="repair or remove it",
                examples=len(records),
                fit=self.fit,
                cache=None,
                records=records,
            )
            self._decoded[split] = decoding.read(skip_corrupt=skip_corrupt)
        return self._decoded[split]

    def records(self, split: str) -> Records:
        """Return the examples of a split."""
        return self.splits[split]

    def fingerprint(self, split: str) -> str:
        """Return a digest of the images and labels of a split, all of which are read."""
        return self._survey(split).digest

    def _labels(self, split: str) -> np.ndarray:
        records = self.splits[split]
        if isinstance(records, ArrayRecords):
            return records.labels
        return self._decoded[split].labels if split in self._decoded else self._survey(split).labels

    def _survey(self, split: str) -> "_Survey":
        if split not in self._surveys:
            self._surveys[split] = _survey(split, self.splits[split])
        return self._surveys[split]


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

    def __init__(self, source: RandomAccess) -> None:
        self._source, self._length, self._lock = source, len(source), threading.Lock()

    def __reduce__(self) -> tuple[type["SourceRecords"], tuple[RandomAccess]]:
        """Pickle the source: a lock can't be pickled."""
        return SourceRecords, (self._source,)

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
            return _record(example)
        except StoppedEarly:
            raise
        except (MemoryError, DataError) as error:
            return error
        except Exception as error:  # the source is code of the user
            reason = DataError(f"{type(error).__name__}: {first_line(error)}")
            reason.__cause__ = error
            return reason


@dataclasses.dataclass(frozen=True, eq=False)
class _Survey:
    """A digest of all examples of a split, and their labels."""

    digest: str
    labels: np.ndarray


def _survey(split: str, records: Records) -> _Survey:
    digest, labels = hashlib.blake2b(digest_size=16), []
    for index, record in enumerate(records.fetch(range(len(records)))):
        if isinstance(record, MemoryError):
            raise record
        if isinstance(record, Exception):
            raise _unusable(split, index, record) from record
        labels.append(record.label)
        if isinstance(record.image, bytes):
            layout, content = f"{len(record.image)}", record.image
        else:
            layout, content = f"{record.image.shape}", record.image.tobytes()
        digest.update(f"{record.label} {layout} ".encode())
        digest.update(content)
    return _Survey(digest.hexdigest(), np.array(labels, np.int64))


def _unusable(split: str, index: int, reason: Exception) -> DataError:
    return DataError(f"example {index} of split {split!r} of datasets can't be read ({reason}).")


def _records(split: str, examples: Examples) -> ArrayRecords | SourceRecords:
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
    if pixels.shape[1] in _PLANES and pixels.shape[3] not in _PLANES:
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


def _record(example: Any) -> Record:
    """Convert an example of a source.

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
    if isinstance(image, Image.Image) and image.mode not in MODES.values():
        image = image.convert("RGB")
    pixels = np.asarray(image)
    return Record(pixels[..., None] if pixels.ndim == 2 else pixels, number)


def _first_shape(split: str, records: ArrayRecords | SourceRecords) -> tuple[int, int, int]:
    """(h, w, c) of the first image that can be read; the content of files is read as RGB."""
    reason = DataError("")
    for index, record in enumerate(records.fetch(range(min(len(records), _SHAPES_TRIED)))):
        if isinstance(record, MemoryError):
            raise record
        if isinstance(record, Exception):
            reason = _unusable(split, index, record)
            continue
        if isinstance(record.image, bytes):
            try:
                return (*image_size(record.image), 3)
            except DataError as error:
                reason = _unusable(split, index, error)
                continue
        if record.image.ndim == 3 and record.image.size:
            height, width, channels = record.image.shape
            return height, width, channels
        shape = list(record.image.shape)
        reason = _unusable(split, index, DataError(f"its image has the shape {shape}"))
    raise reason


def _show(shape: tuple[int, int, int]) -> str:
    return "{}×{} with {} channel{}".format(*shape, "s" * (shape[-1] != 1))


def not_passed() -> ConfigError:
    """The error of a config whose data were passed in Python, where nothing passes them."""
    return ConfigError(
        f"data.name is {FROM_PYTHON!r}: the data of this run were passed in Python and are in no"
        " file. Pass them again, in Python: resnet_jax.fit(config, workdir, datasets={'train':"
        " (images, labels), …}) trains, and resnet_jax.restore_run(workdir).evaluate('test',"
        " datasets={'test': (images, labels)}) scores."
    )
