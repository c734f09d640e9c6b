"""Images before their preparation: in folders of images, and in the archives of ImageNet."""

import dataclasses
import io
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from resnet_jax.data.dataset_info import KNOWN_SETS
from resnet_jax.data.images.image_files import MAX_FILE_BYTES, read_file
from resnet_jax.data.readers.folders import find_images
from resnet_jax.errors import DataError

TRAIN_IMAGES = KNOWN_SETS["imagenet2012"].lengths["train"]
TRAIN_ARCHIVE, VALIDATION_ARCHIVE = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"


@dataclasses.dataclass(frozen=True)
class Original:
    """An image in a file of its own or in an archive.

    Attributes:
        name: the path within the folder, or the name in the archive.
        label: the class.
        path: the file or the archive.
        start: position of the first byte in the archive; -1 for a file of its own.
        length: in bytes.
    """

    name: str
    label: int
    path: str
    start: int
    length: int

    def read(self) -> bytes:
        """Return the content.

        Raises:
            DataError: the image can't be read. The message begins with "it", which stands for the
                image.
        """
        if self.start < 0:
            return read_file(Path(self.path))
        if self.length > MAX_FILE_BYTES:
            raise DataError(f"it has more than {MAX_FILE_BYTES // 2**20} MiB")
        try:
            with open(self.path, "rb", buffering=0) as archive:
                archive.seek(self.start)
                data = archive.read(self.length)
        except OSError as error:
            raise DataError(f"it can't be read from {self.path}: {error.strerror}") from error
        if len(data) != self.length:
            raise DataError(f"it ends too early in {self.path}")
        return data


@dataclasses.dataclass(frozen=True)
class Collection:
    """All images by split, in any order, and one name per class."""

    splits: Mapping[str, Sequence[Original]]
    class_names: tuple[str, ...]

    @property
    def in_folders(self) -> bool:
        """Whether there are images in files of their own."""
        return any(image.start < 0 for images in self.splits.values() for image in images)


def open_originals(source: Path) -> Collection:
    """Locate the images in a folder, or in the ImageNet archives in a folder.

    Raises:
        DataError: the folder doesn't exist, or has another layout.
    """
    if not source.is_dir():
        raise DataError(f"there is no folder {str(source)!r}.")
    archives = [source / TRAIN_ARCHIVE, source / VALIDATION_ARCHIVE]
    if any(archive.exists() for archive in archives):
        return _imagenet(*archives)
    try:
        found = find_images(source)
    except OSError as error:
        raise DataError(f"{error.filename or source} can't be read: {error.strerror}.") from None
    class_names = tuple(next(iter(found.values())))
    labels = {name: label for label, name in enumerate(class_names)}
    splits = {
        split: [
            Original(
                name, labels[class_name], str(source / name), -1, os.path.getsize(source / name)
            )
            for class_name, names in classes.items()
            for name in names
        ]
        for split, classes in found.items()
    }
    return Collection(splits, class_names)


def _imagenet(train: Path, validation: Path) -> Collection:
    """Locate the images of ImageNet 2012.

    TFDS contains the order of the classes and the labels of the validation images.
    """
    import tensorflow_datasets as tfds  # noqa: PLC0415 - takes a second; folders don't need it

    folder = tfds.core.tfds_path("datasets/imagenet2012")
    class_names = tuple((folder / "labels.txt").read_text().split())
    number = {name: label for label, name in enumerate(class_names)}
    labels = (folder / "validation_labels.txt").read_text().split()
    splits: dict[str, list[Original]] = {}
    if train.exists():
        splits["train"] = []
        for name, start, length in _members(train):
            wnid = name.removesuffix(".tar")
            if wnid not in number:
                raise DataError(f"{train} has {name!r}, which is no class of ImageNet 2012.")
            splits["train"] += [
                Original(inner, number[wnid], str(train), start + at, size)
                for inner, at, size in _members(train, start=start, length=length)
            ]
        if len(splits["train"]) != TRAIN_IMAGES:
            found = f"{len(splits['train']):,} images, not {TRAIN_IMAGES:,}"
            raise DataError(f"{train} has {found}; it may have been cut off.")
    if validation.exists():
        members = sorted(_members(validation))
        if len(members) != len(labels):
            raise DataError(f"{validation} has {len(members):,} images, not {len(labels):,}.")
        splits["validation"] = [
            Original(name, number[label], str(validation), start, length)
            for (name, start, length), label in zip(members, labels, strict=True)
        ]
    return Collection(splits, class_names)


def _members(path: Path, *, start: int = 0, length: int = -1) -> Iterator[tuple[str, int, int]]:
    """Yield name, first byte and length of each file in a tar archive.

    Args:
        path: the archive.
        start, length: position and length of an archive within the archive, to read instead. First
            bytes are then relative to `start`.
    """
    try:
        with open(path, "rb") as file:
            inside = io.BufferedReader(_Section(file, start, length)) if length >= 0 else file
            with tarfile.open(fileobj=inside, mode="r:") as archive:
                for member in archive:
                    if member.issparse() or member.size < 0:
                        raise DataError(
                            f"the archive {path} has {member.name!r}, whose length isn't that of"
                            " its data: this is no archive of images."
                        )
                    if member.isfile():
                        yield os.path.basename(member.name), member.offset_data, member.size
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"the archive {path} can't be read ({error}).") from error


class _Section(io.RawIOBase):
    """A part of a file as a file."""

    def __init__(self, file: IO[bytes], start: int, length: int) -> None:
        self._file, self._start, self._length, self._at = file, start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._length}
        self._at = origin[whence] + place
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        self._file.seek(self._start + self._at)
        data = self._file.read(max(0, min(len(buffer), self._length - self._at)))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
