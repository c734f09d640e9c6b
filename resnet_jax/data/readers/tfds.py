"""Prepared TFDS folders (ArrayRecord), read without TensorFlow.

TFDS locates and parses the records; Pillow decodes the images. TFDS's own decoder gives different
results with and without OpenCV, and doesn't check shapes.
"""

# ruff: noqa: PLC0415 - TFDS is imported only when a prepared set is opened

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resnet_jax.data.images.fit import Fit
from resnet_jax.data.images.image_files import MODES
from resnet_jax.data.images.preprocessing import ScaleAndCrop
from resnet_jax.data.readers import array_cache
from resnet_jax.data.readers.decoding import CachedSplit
from resnet_jax.data.readers.encoded import Record
from resnet_jax.data.readers.idx import IDX_SETS
from resnet_jax.data.readers.source import DecodedSplit
from resnet_jax.data.readers.tfds_files import check_shards, files_digest
from resnet_jax.data.readers.tfds_metadata import check_metadata
from resnet_jax.errors import ConfigError, DataError, did_you_mean
from resnet_jax.utils.messages import first_line

_MAX_CLASSES = 1_000_000


@dataclasses.dataclass(frozen=True)
class PreparedSet:
    """A prepared image classification set on disk; see `Source`."""

    name: str
    builder: Any  # TFDS's read-only builder
    lengths: Mapping[str, int]
    class_names: tuple[str, ...]
    files_digest: str
    fit: Fit

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(h, w, c) of the decoded images."""
        return self.fit.shape

    def read(self, split: str, *, skip_corrupt: bool = False) -> DecodedSplit:
        """Decode a split, or load it from the cache; see `Source.read`."""
        cached = CachedSplit(
            name=split,
            where=f"split {split!r} of {self.name!r} in {self.builder.data_dir}",
            remedy="prepare the data set again",
            examples=self.lengths[split],
            fit=self.fit,
            cache=array_cache.cache_folder(self.name, f"{self.files_digest}{self.fit.name}"),
            records=self.records(split),
        )
        return cached.read(skip_corrupt=skip_corrupt)

    def records(self, split: str) -> "PreparedRecords":
        """Return the records of a split."""
        import tensorflow_datasets as tfds

        features = self.builder.info.features
        raw = [key for key in features if isinstance(features[key], tfds.features.Image)]
        skip = {key: tfds.decode.SkipDecoding() for key in raw}
        return PreparedRecords(self.builder.as_data_source(split, decoders=skip))

    def fingerprint(self, split: str) -> str:
        """Return a text that changes with any file of the set."""
        return f"{split}-{self.files_digest}"


@dataclasses.dataclass(frozen=True)
class PreparedRecords:
    """The records of a split; see `Records`."""

    source: Any  # TFDS's data source, which leaves images encoded

    def __len__(self) -> int:
        return len(self.source)

    def fetch(self, indices: Sequence[int]) -> Iterator[Record | Exception]:
        """Yield records; an error for a damaged record."""
        try:
            found = self.source.__getitems__(list(indices))
        except MemoryError:
            raise
        except Exception:  # a record is damaged: read them one by one to find it
            for index in indices:
                try:
                    example = self.source[index]
                    record: Record | Exception = Record(example["image"], int(example["label"]))
                except Exception as error:
                    record = error
                yield record
        else:
            for example in found:
                yield Record(example["image"], int(example["label"]))


def find_prepared(name: str, folder: Path) -> Path | None:
    """Return the folder of a prepared set within `folder`; None if the set isn't prepared.

    Raises:
        DataError: the set's files can't be read.
    """
    from tensorflow_datasets.core import read_only_builder
    from tensorflow_datasets.core.utils import error_utils

    try:
        # TFDS's public function would read the metadata as well, before they are checked.
        with error_utils.record_error_context():
            found = read_only_builder._find_builder_dir(name, data_dir=str(folder))
    except Exception as error:
        raise _not_sound(name, folder, error) from error
    return Path(found) if found else None


def open_prepared(
    name: str,
    prepared: Path,
    *,
    within: Path,
    crop: ScaleAndCrop | None = None,
    channels: int | None = None,
) -> PreparedSet:
    """Open a prepared set, and check all that can be checked without decoding.

    Args:
        name: the data set's name.
        prepared: the set's folder.
        within: the folder of all prepared sets; the set's files must be inside.
        crop: how images are scaled and cropped to one size; None if all have one size.
        channels: with `crop`, the number of channels that images are converted to; None keeps the
            number of the data set.

    Raises:
        ConfigError: the images differ in size, and there is no crop.
        DataError: the set isn't an image classification set in ArrayRecord files, or is damaged.
    """
    from tensorflow_datasets.core import read_only_builder

    try:
        check_metadata(prepared, within=within)
    except DataError as error:
        raise _not_sound(name, within, error) from error
    try:
        builder = read_only_builder.builder_from_directory(prepared)
        return _check_builder(name, builder, crop, channels)
    except (ConfigError, DataError):
        raise
    except Exception as error:  # TFDS trusts the metadata, and raises many types
        raise _not_sound(name, within, error) from error


def not_prepared(name: str, folder: Path) -> ConfigError | DataError:
    """Return the error to raise for a set that isn't prepared in `folder`."""
    from tensorflow_datasets.core import registered

    base = name.partition(":")[0].partition("/")[0]
    known = ["digits", "folder", *registered.list_imported_builders()]
    if base not in known:
        return ConfigError(
            f"there is no data set {name!r}: {folder} holds none and TFDS doesn't know the name."
            f"{did_you_mean(base, known)}"
        )
    if name in IDX_SETS:
        package = ", install Debian's package dataset-fashion-mnist" * (name == "fashion_mnist")
        remedy = f"set data.dir to a folder of its IDX files{package}, or prepare it"
    else:
        remedy = "prepare it"
    return DataError(
        f"the data set {name!r} isn't prepared in {folder}; {remedy}: {_commands(name, folder)}"
    )


def _not_sound(name: str, folder: Path, error: Exception) -> DataError:
    return DataError(
        f"the prepared data set {name!r} in {folder} can't be opened ({first_line(error)}); "
        "remove its folder and prepare it again"
    )


def _check_builder(
    name: str, builder: Any, crop: ScaleAndCrop | None, channels: int | None
) -> PreparedSet:
    import tensorflow_datasets as tfds

    info, features = builder.info, builder.info.features
    parts = dict(features.items()) if isinstance(features, tfds.features.FeaturesDict) else {}
    image, label = parts.get("image"), parts.get("label")
    if not (isinstance(image, tfds.features.Image) and isinstance(label, tfds.features.ClassLabel)):
        raise DataError(
            f"{name!r} isn't an image classification set: it needs the features image and label, "
            f"and has {', '.join(parts) or 'none by name'}"
        )
    if not 0 < (label.num_classes or 0) <= _MAX_CLASSES:
        raise DataError(
            f"{name!r} has {label.num_classes} classes; there can be 1 to {_MAX_CLASSES:,}"
        )
    shape = tuple(image.shape)
    if image.np_dtype != np.uint8 or shape[-1] not in MODES:
        raise DataError(
            f"the images of {name!r} have shape {shape} and type {image.np_dtype}; only uint8 "
            "images with 1, 3 or 4 channels can be held in memory"
        )
    if crop:
        shape = (*crop.size, channels or shape[-1])
    elif None in shape:
        raise ConfigError(
            f"the images of {name!r} differ in size: their shape is {shape}; set data.image_size,"
            " to which they are scaled and cropped"
        )
    if info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
        raise DataError(
            f"{builder.data_dir} is in the format {info.file_format.value}, and only array_record "
            f"can be read without TensorFlow; prepare it again in another folder: {_commands(name)}"
        )
    files = check_shards(name, info)
    return PreparedSet(
        name=name,
        builder=builder,
        lengths={split: split_info.num_examples for split, split_info in info.splits.items()},
        class_names=tuple(label.names),
        files_digest=files_digest(Path(builder.data_dir), files),
        fit=Fit(shape, crop, stored=True),
    )


def _commands(name: str, folder: Path | str = "DATA_DIR") -> str:
    """Return the commands that prepare a set with TensorFlow in a separate environment."""
    return (
        "python -m venv prepare && prepare/bin/pip install tensorflow tensorflow-datasets "
        'importlib_resources && prepare/bin/python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder({name!r}, data_dir={str(folder)!r}, file_format='array_record')"
        '.download_and_prepare()"'
    )
