"""Prepared TFDS folders (ArrayRecord) read without TensorFlow.

TFDS finds and parses the records, Grain reads ahead in threads, Pillow decodes: TFDS's own
decoder depends on whether OpenCV is installed, and then returns whatever the file holds.
"""

# ruff: noqa: PLC0415 - TFDS, Grain and Pillow are loaded only when a prepared set is opened

import dataclasses
import hashlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from resnet_jax.data import array_cache, mirror
from resnet_jax.data.image_files import MODES, decode_image
from resnet_jax.data.skipped import SkippedExample, check_few
from resnet_jax.errors import ConfigError, DataError, did_you_mean

_log = logging.getLogger(__name__)


_BLOCK_BYTES = 2**22
_BLOCK_EXAMPLES = 256
_NAMED = 3  # damaged examples in a warning; all are in the log


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A prepared image classification set on disk; see `resnet_jax.data.sources.Source`."""

    name: str
    builder: Any
    lengths: Mapping[str, int]
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    files_digest: str

    def read(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """All images, uint8 (n, h, w, c), and labels, int32 (n,), from the cache if they're there.

        Raises DataError for a record that is damaged or isn't the PNG or JPEG that was promised.
        """
        images, labels, _ = self._read(split, skip=False)
        return images, labels

    def read_intact(self, split: str) -> tuple[np.ndarray, np.ndarray, tuple[SkippedExample, ...]]:
        """As `read`, but without the damaged examples, which are named.

        Raises DataError if there are more of them than may be left out.
        """
        images, labels, skipped = self._read(split, skip=True)
        if skipped:
            named = "; ".join(f"{one.index} ({one.reason})" for one in skipped[:_NAMED])
            more = f"; and {len(skipped) - _NAMED} more" * (len(skipped) > _NAMED)
            _log.warning(
                "%d of %d examples of %s are damaged and left out: %s%s",
                *(len(skipped), self.lengths[split], self._where(split), named, more),
            )
            for one in skipped[_NAMED:]:
                _log.info("left out: example %d of %s (%s)", one.index, one.split, one.reason)
        return images, labels, skipped

    def _read(
        self, split: str, *, skip: bool
    ) -> tuple[np.ndarray, np.ndarray, tuple[SkippedExample, ...]]:
        shape = (self.lengths[split], *self.image_shape)
        folder = array_cache.cache_folder(self.name, self.files_digest)
        if (cached := array_cache.load(folder, split, shape)) is not None:
            return *cached, ()
        _log.info("decoding %d images of %s/%s, once", shape[0], self.name, split)
        images, labels, skipped = self._decode(split, shape, skip=skip)
        # A split that lacks examples is looked through anew each time: the cache holds whole ones.
        if not skipped:
            array_cache.store(folder, split, images, labels)
        return images, labels, skipped

    def _decode(
        self, split: str, shape: tuple[int, int, int, int], *, skip: bool
    ) -> tuple[np.ndarray, np.ndarray, tuple[SkippedExample, ...]]:
        import grain

        images, labels = np.empty(shape, np.uint8), np.empty(shape[0], np.int32)
        blocks = grain.MapDataset.source(_Blocks(self, split, skip=skip)).to_iter_dataset(
            grain.ReadOptions(num_threads=min(4, os.cpu_count() or 1), prefetch_buffer_size=4)
        )
        done, skipped = 0, []
        for some_images, some_labels, damaged in blocks:
            stop = done + len(some_labels)
            images[done:stop], labels[done:stop] = some_images, some_labels
            done = stop
            skipped += damaged
            check_few(
                skipped, seen=done + len(skipped), examples=shape[0], where=self._where(split)
            )
        if done + len(skipped) != shape[0]:
            raise DataError(
                f"{self._where(split)} gave {done + len(skipped)} examples "
                f"where dataset_info.json promises {shape[0]}; prepare it again"
            )
        return images[:done], labels[:done], tuple(skipped)

    def _where(self, split: str) -> str:
        return f"split {split!r} of {self.name!r} in {self.builder.data_dir}"


class _Blocks:
    """Random access to decoded blocks of a split; a block at a time is three times as fast."""

    def __init__(self, prepared: Prepared, split: str, *, skip: bool) -> None:
        import tensorflow_datasets as tfds

        self._prepared, self._split, self._skip = prepared, split, skip
        features = prepared.builder.info.features
        raw = [key for key in features if isinstance(features[key], tfds.features.Image)]
        self._records = prepared.builder.as_data_source(
            split, decoders={key: tfds.decode.SkipDecoding() for key in raw}
        )
        size = int(np.prod(prepared.image_shape))
        self._length = max(1, min(_BLOCK_EXAMPLES, _BLOCK_BYTES // size))

    def __len__(self) -> int:
        return (len(self._records) + self._length - 1) // self._length

    def __getitem__(self, block: int) -> tuple[np.ndarray, np.ndarray, list[SkippedExample]]:
        start = block * self._length
        indices = range(start, min(start + self._length, len(self._records)))
        images = np.empty((len(indices), *self._prepared.image_shape), np.uint8)
        labels = np.empty(len(indices), np.int32)
        skipped: list[SkippedExample] = []
        for index, record in self._fetch(indices):
            row = index - start - len(skipped)
            try:
                if isinstance(record, Exception):
                    raise record
                images[row] = decode_image(record["image"], self._prepared.image_shape)
                labels[row] = record["label"]
            except MemoryError:
                raise
            except Exception as error:
                if not self._skip:
                    raise self._damaged(index, error) from error
                skipped.append(SkippedExample(self._split, index, _first_line(error)))
        rows = len(indices) - len(skipped)
        return images[:rows], labels[:rows], skipped

    def _fetch(self, indices: Sequence[int]) -> Iterator[tuple[int, Mapping[str, Any] | Exception]]:
        """The records by their index; in place of a damaged one the error."""
        try:
            records = self._records.__getitems__(list(indices))
        except MemoryError:
            raise
        except Exception:  # one of them is damaged: go through them singly to say which
            for index in indices:
                try:
                    record = self._records[index]
                except MemoryError:
                    raise
                except Exception as error:
                    record = error
                yield index, record
        else:
            yield from zip(indices, records, strict=True)

    def _damaged(self, index: int, error: Exception) -> DataError:
        return DataError(
            f"example {index} of {self._prepared._where(self._split)} can't be read "
            f"({_first_line(error)}); prepare the data set again, or leave out what is "
            "damaged with data.corrupt='skip'"
        )


def open_prepared(name: str, data_dir: str | None) -> Prepared:
    """Find the prepared set and check everything that can be checked without decoding.

    Raises ConfigError for a name that nobody knows, DataError for a set that isn't prepared, isn't
    image classification with one image size, isn't ArrayRecord, or lacks part of its files.
    """
    from tensorflow_datasets.core import naming, read_only_builder, registered

    folder = local_data_folder(name, data_dir)
    if data_dir and not folder.is_dir():
        raise DataError(f"the data folder {folder} doesn't exist; create it to have data put there")
    try:
        naming.parse_builder_name_kwargs(name)
    except ValueError as error:
        raise ConfigError(
            f"{name!r} isn't a data set's name; write NAME, NAME/CONFIG or NAME:VERSION"
        ) from error
    try:
        builder = read_only_builder.builder_from_files(name, data_dir=str(folder))
    except registered.DatasetNotFoundError:
        if name not in ("cifar10", "cifar100"):
            raise _not_prepared(name, folder) from None
        from resnet_jax.data.cifar import prepare_cifar

        prepared = prepare_cifar(name, folder)
        builder = read_only_builder.builder_from_directory(prepared)
    except Exception as error:
        raise _not_sound(name, folder, error) from error
    try:
        return _check(name, builder)
    except DataError:
        raise
    except Exception as error:  # TFDS believes what its files say of each other
        raise _not_sound(name, folder, error) from error


def _not_sound(name: str, folder: Path, error: Exception) -> DataError:
    return DataError(
        f"the prepared data set {name!r} in {folder} can't be opened ({_first_line(error)}); "
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
    except Exception as error:  # each kind of bucket has its own, and ImportError without a client
        raise DataError(f"{folder / base} can't be read ({_first_line(error)}).") from error
    return copy.parent


def _check(name: str, builder: Any) -> Prepared:
    import tensorflow_datasets as tfds

    info, features = builder.info, builder.info.features
    parts = dict(features.items()) if isinstance(features, tfds.features.FeaturesDict) else {}
    image, label = parts.get("image"), parts.get("label")
    if not (isinstance(image, tfds.features.Image) and isinstance(label, tfds.features.ClassLabel)):
        raise DataError(
            f"{name!r} isn't an image classification set: it needs the features image and label, "
            f"and has {', '.join(parts) or 'none by name'}"
        )
    shape = tuple(image.shape)
    if None in shape or image.np_dtype != np.uint8 or shape[-1] not in MODES:
        raise DataError(
            f"the images of {name!r} have shape {shape} and type {image.np_dtype}; only uint8 "
            "images of one fixed size with 1, 3 or 4 channels can be held in memory"
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
        image_shape=shape,
        class_names=tuple(label.names),
        files_digest=_files_digest(Path(builder.data_dir), files),
    )


def _check_shards(name: str, info: Any) -> list[Path]:
    """Open every file of records: TFDS itself would notice a missing one only at the first read."""
    from array_record.python import array_record_module

    files = []
    for split in info.splits.values():
        for path, length in zip(split.filepaths, split.shard_lengths, strict=True):
            try:
                reader = array_record_module.ArrayRecordReader(str(path))
                found = reader.num_records()
                reader.close()
            except Exception as error:
                raise DataError(
                    f"{path} of {name!r} is missing or damaged ({_first_line(error)}); prepare the "
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
    """Digest of the records and of the files that give them their meaning (0.2 s for 140 MB)."""
    digest = hashlib.blake2b(digest_size=16)
    meaning = [folder / "dataset_info.json", folder / "features.json", *folder.glob("*.labels.txt")]
    for path in sorted([*meaning, *records]):
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while chunk := file.read(2**20):
                digest.update(chunk)
    return digest.hexdigest()


def _not_prepared(name: str, folder: Path) -> ConfigError | DataError:
    from tensorflow_datasets.core import registered

    base = name.partition(":")[0].partition("/")[0]
    known = ["digits", *registered.list_imported_builders()]
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


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0] or type(error).__name__
