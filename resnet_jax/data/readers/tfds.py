"""Prepared TFDS folders (ArrayRecord) read without TensorFlow.

TFDS finds and parses the records, Pillow decodes: TFDS's own decoder depends on whether OpenCV is
installed, and then returns whatever the file holds.
"""

# ruff: noqa: PLC0415 - TFDS is loaded only when a prepared set is opened

import dataclasses
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from resnet_jax.data import remote_cache as mirror
from resnet_jax.data.images.fit import Fit
from resnet_jax.data.images.image_files import MODES
from resnet_jax.data.images.preprocessing import ScaleAndCrop
from resnet_jax.data.readers import array_cache
from resnet_jax.data.readers.decoding import EncodedSplit, first_line
from resnet_jax.data.readers.encoded import Record
from resnet_jax.data.readers.skipped import SkippedExample
from resnet_jax.data.readers.tfds_metadata import check_metadata
from resnet_jax.errors import ConfigError, DataError, did_you_mean

_CHUNK = 2**20  # bytes
_WHOLLY_DIGESTED_BYTES = 4 * 2**30
_MAX_CLASSES = 1_000_000


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A prepared image classification set on disk; see `resnet_jax.data.datasets.Source`."""

    name: str
    builder: Any
    lengths: Mapping[str, int]
    class_names: tuple[str, ...]
    files_digest: str
    fit: Fit

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(h, w, c) of the images as `fit` gives them."""
        return self.fit.shape

    def read(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """All images and labels of one split; see `EncodedSplit.read`."""
        return self._encoded(split).read()

    def read_intact(self, split: str) -> tuple[np.ndarray, np.ndarray, tuple[SkippedExample, ...]]:
        """The same without damaged examples; see `EncodedSplit.read_intact`."""
        return self._encoded(split).read_intact()

    def _encoded(self, split: str) -> EncodedSplit:
        return EncodedSplit(
            name=split,
            where=f"split {split!r} of {self.name!r} in {self.builder.data_dir}",
            remedy="prepare the data set again",
            examples=self.lengths[split],
            fit=self.fit,
            cache=array_cache.cache_folder(self.name, f"{self.files_digest}{self.fit.name}"),
            open=lambda: self.records(split),
        )

    def records(self, split: str) -> "PreparedRecords":
        """The records of one split."""
        import tensorflow_datasets as tfds

        features = self.builder.info.features
        raw = [key for key in features if isinstance(features[key], tfds.features.Image)]
        skip = {key: tfds.decode.SkipDecoding() for key in raw}
        return PreparedRecords(self.builder.as_data_source(split, decoders=skip))

    def fingerprint(self, split: str) -> str:
        """Changes with the files of the set."""
        return f"{split}-{self.files_digest}"


@dataclasses.dataclass(frozen=True)
class PreparedRecords:
    """The records of a split; see `resnet_jax.data.readers.encoded.Records`."""

    source: Any  # of TFDS, with images not decoded

    def __len__(self) -> int:
        return len(self.source)

    def fetch(self, indices: Sequence[int]) -> Iterator[Record | Exception]:
        """Records; in place of a damaged one the error."""
        try:
            found = self.source.__getitems__(list(indices))
        except MemoryError:
            raise
        except Exception:  # one of them is damaged: go through them singly to say which
            for index in indices:
                try:
                    one = self.source[index]
                    record: Record | Exception = Record(one["image"], int(one["label"]))
                except Exception as error:
                    record = error
                yield record
        else:
            for one in found:
                yield Record(one["image"], int(one["label"]))


def open_prepared(
    name: str,
    data_dir: str | None,
    *,
    crop: ScaleAndCrop | None = None,
    channels: int | None = None,
) -> Prepared:
    """Find the prepared set and check everything that can be checked without decoding.

    With `crop` images of any sizes are scaled and cropped, and converted to `channels`.

    Raises ConfigError for a name that nobody knows, DataError for a set that isn't prepared, isn't
    image classification with one image size, isn't ArrayRecord, or lacks part of its files.
    """
    from tensorflow_datasets.core import naming, read_only_builder
    from tensorflow_datasets.core.utils import error_utils

    try:
        naming.parse_builder_name_kwargs(name)
    except ValueError as error:
        raise ConfigError(
            f"{name!r} isn't a data set's name; write NAME, NAME/CONFIG or NAME:VERSION"
        ) from error
    folder = local_data_folder(name, data_dir)
    if data_dir and not folder.is_dir():
        raise DataError(f"the data folder {folder} doesn't exist; create it to have data put there")
    try:
        # TFDS's public function would read the metadata too, before they are checked.
        with error_utils.record_error_context():
            prepared = read_only_builder._find_builder_dir(name, data_dir=str(folder))
    except Exception as error:
        raise _not_sound(name, folder, error) from error
    if prepared is None:
        if name not in ("cifar10", "cifar100"):
            raise _not_prepared(name, folder)
        from resnet_jax.data.prepare.cifar import prepare_cifar

        prepared = prepare_cifar(name, folder)
    try:
        check_metadata(Path(prepared), within=folder)
    except DataError as error:
        raise _not_sound(name, folder, error) from error
    try:
        builder = read_only_builder.builder_from_directory(prepared)
        return _check(name, builder, crop, channels)
    except (ConfigError, DataError):
        raise
    except Exception as error:  # TFDS believes what its files say of each other
        raise _not_sound(name, folder, error) from error


def _not_sound(name: str, folder: Path, error: Exception) -> DataError:
    return DataError(
        f"the prepared data set {name!r} in {folder} can't be opened ({first_line(error)}); "
        "remove its folder and prepare it again"
    )


def data_folder(data_dir: str | os.PathLike[str] | None) -> epath.Path:
    """The folder of prepared sets: the argument, else $TFDS_DATA_DIR, else TFDS's default."""
    folder = os.fspath(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    return epath.Path(folder).expanduser()


def local_data_folder(name: str, data_dir: str | os.PathLike[str] | None) -> Path:
    """The folder of prepared sets on this host, into which a set in a bucket is copied.

    Raises:
        DataError: the bucket can't be read, or holds no such set.
    """
    folder = data_folder(data_dir)
    if "://" not in os.fspath(folder):
        return Path(folder)
    base = name.partition(":")[0].partition("/")[0]
    try:
        copy = mirror.copy_here(folder / base)
    except FileNotFoundError:
        raise DataError(
            f"{folder} holds no data set {base!r}; prepare it in a local folder and copy that there"
        ) from None
    except DataError:
        raise
    except Exception as error:  # each kind of bucket has its own, and ImportError without a client
        raise DataError(f"{folder / base} can't be read ({first_line(error)}).") from error
    return copy.parent


def _check(name: str, builder: Any, crop: ScaleAndCrop | None, channels: int | None) -> Prepared:
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
            f"can be read without TensorFlow; prepare it again in another folder: {_recipe(name)}"
        )
    files = _check_shards(name, info)
    return Prepared(
        name=name,
        builder=builder,
        lengths={split: one.num_examples for split, one in info.splits.items()},
        class_names=tuple(label.names),
        files_digest=_files_digest(Path(builder.data_dir), files),
        fit=Fit(shape, crop, stored=True),
    )


def _check_shards(name: str, info: Any) -> list[Path]:
    """Open every file of records: TFDS itself would notice a missing one only at the first read."""
    from array_record.python import array_record_module

    files = []
    for split in info.splits.values():
        for number, length in enumerate(split.shard_lengths):  # one by one, as they may be millions
            path = split.filename_template.sharded_filepath(
                shard_index=number, num_shards=split.num_shards
            )
            try:
                if not Path(path).is_file():  # a pipe would be waited for
                    raise FileNotFoundError("there is no such file")
                reader = array_record_module.ArrayRecordReader(str(path))
                found = reader.num_records()
                reader.close()
            except Exception as error:
                raise DataError(
                    f"{path} of {name!r} is missing or damaged ({first_line(error)}); prepare the "
                    "data set again"
                ) from error
            if found != length:
                raise DataError(
                    f"{path} of {name!r} holds {found} examples where dataset_info.json promises "
                    f"{length}; prepare the data set again"
                )
            files.append(Path(path))
    return files


def _files_digest(folder: Path, records: Sequence[Path]) -> str:
    """Digest of the records and of the files that give them their meaning (0.2 s for 140 MB).

    Of sets that would take minutes to read, it is of the sizes, beginnings and ends of the records.
    """
    digest = hashlib.blake2b(digest_size=16)
    meaning = [folder / "dataset_info.json", folder / "features.json", *folder.glob("*.labels.txt")]
    large = sum(path.stat().st_size for path in records) > _WHOLLY_DIGESTED_BYTES
    for path in sorted([*meaning, *records]):
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
                if large and path in records:
                    file.seek(max(file.tell(), size - _CHUNK))
    return digest.hexdigest()


def _not_prepared(name: str, folder: Path) -> ConfigError | DataError:
    from tensorflow_datasets.core import registered

    base = name.partition(":")[0].partition("/")[0]
    known = ["digits", "folder", *registered.list_imported_builders()]
    if base not in known:
        return ConfigError(
            f"there is no data set {name!r}: {folder} holds none and TFDS doesn't know the name."
            f"{did_you_mean(base, known)}"
        )
    return DataError(
        f"the data set {name!r} isn't prepared in {folder}; prepare it: {_recipe(name, folder)}"
    )


def _recipe(name: str, folder: Path | str = "DATA_DIR") -> str:
    """The commands that prepare a set with TensorFlow in an environment of its own."""
    return (
        "python -m venv prepare && prepare/bin/pip install tensorflow tensorflow-datasets "
        'importlib_resources && prepare/bin/python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder({name!r}, data_dir={str(folder)!r}, file_format='array_record')"
        '.download_and_prepare()"'
    )
