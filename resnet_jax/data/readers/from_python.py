"""Data sets that are passed in Python: arrays, or random-access sources of examples."""

import dataclasses
import functools
import hashlib
from collections.abc import Mapping

import numpy as np

from resnet_jax.data.dataset_info import FROM_PYTHON
from resnet_jax.data.images.fit import Fit
from resnet_jax.data.images.image_files import MODES, image_size
from resnet_jax.data.images.preprocessing import ScaleAndCrop
from resnet_jax.data.readers.decoding import CachedSplit
from resnet_jax.data.readers.encoded import Records
from resnet_jax.data.readers.python_examples import (
    ArrayRecords,
    Examples,
    SourceRecords,
    make_records,
)
from resnet_jax.data.readers.source import DecodedSplit
from resnet_jax.errors import ConfigError, DataError, UsageError

_SHAPES_TRIED = 8  # examples, of which the first that can be read has the size of all


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
    splits = {name: make_records(name, examples) for name, examples in data.splits.items()}
    shapes = {name: _first_shape(name, records) for name, records in splits.items()}
    first, shape = next(iter(shapes.items()))
    if mode := MODES.get(shape[-1]):
        splits = {
            name: records.in_mode(mode) if isinstance(records, SourceRecords) else records
            for name, records in splits.items()
        }
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

    splits: Mapping[str, ArrayRecords | SourceRecords]
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


def _first_shape(split: str, records: ArrayRecords | SourceRecords) -> tuple[int, int, int]:
    """(h, w, c) of the first image that can be read; the content of files is read as RGB.

    Images of different colours are RGB: Pillow's are converted, others are refused as they are
    read.
    """
    reason, shapes = DataError(""), []
    for index, record in enumerate(records.fetch(range(min(len(records), _SHAPES_TRIED)))):
        if isinstance(record, MemoryError):
            raise record
        if isinstance(record, Exception):
            reason = _unusable(split, index, record)
            continue
        if isinstance(record.image, bytes):
            try:
                shapes.append((*image_size(record.image), 3))
            except DataError as error:
                reason = _unusable(split, index, error)
        elif record.image.ndim == 3 and record.image.size:
            shapes.append(record.image.shape)
        else:
            shape = list(record.image.shape)
            reason = _unusable(split, index, DataError(f"its image has the shape {shape}"))
    if not shapes:
        raise reason
    height, width, channels = shapes[0]
    return height, width, channels if len({shape[-1] for shape in shapes}) == 1 else 3


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
