"""Folders of images: CLASS/name.jpg, or SPLIT/CLASS/name.jpg.

Without split folders there is one split, "train". Its order spreads each class evenly, so that
every slice has about the same share of each class: "train[:80%]" and "train[80%:]" are a fair
division. Within a class, files are sorted by a digest of their content: names and dates don't
matter, and copies of a file are neighbours.
"""

import concurrent.futures
import dataclasses
import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from resnet_jax.data.images.fit import Fit
from resnet_jax.data.images.image_files import image_size, read_file
from resnet_jax.data.images.preprocessing import ScaleAndCrop
from resnet_jax.data.readers import array_cache
from resnet_jax.data.readers.decoding import CachedSplit
from resnet_jax.data.readers.encoded import Record
from resnet_jax.data.readers.source import DecodedSplit
from resnet_jax.errors import ConfigError, DataError

_log = logging.getLogger(__name__)

SUFFIXES = (".jpeg", ".jpg", ".png")
LAYOUT = "CLASS/name.jpg or SPLIT/CLASS/name.jpg"
_THREADS = 4


@dataclasses.dataclass(frozen=True)
class ImageFile:
    """An image file: its path within the data set's folder, its label and its digest."""

    path: str
    label: int
    digest: str


@dataclasses.dataclass(frozen=True)
class ImageFolder:
    """A folder of images, located but not decoded; see `Source`."""

    folder: Path
    files: Mapping[str, Sequence[ImageFile]]  # of each split, in order
    class_names: tuple[str, ...]
    fit: Fit

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(h, w, 3) of the decoded images."""
        return self.fit.shape

    @property
    def lengths(self) -> dict[str, int]:
        """Number of images of each split."""
        return {split: len(files) for split, files in self.files.items()}

    def read(self, split: str, *, skip_corrupt: bool = False) -> DecodedSplit:
        """Decode a split, or load it from the cache; see `Source.read`."""
        cached = CachedSplit(
            name=split,
            where=f"split {split!r} of {str(self.folder)!r}",
            remedy="repair or remove that file",
            examples=len(self.files[split]),
            fit=self.fit,
            cache=array_cache.cache_folder("folder", f"{self.fingerprint(split)}{self.fit.name}"),
            records=self.records(split),
        )
        return cached.read(skip_corrupt=skip_corrupt)

    def records(self, split: str) -> "ImageRecords":
        """Return the files of a split."""
        return ImageRecords(self.folder, self.files[split])

    def fingerprint(self, split: str) -> str:
        """Return a digest of the images' bytes, labels and order."""
        content = repr([(file.label, file.digest) for file in self.files[split]])
        return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


@dataclasses.dataclass(frozen=True)
class ImageRecords:
    """The files of a split; see `Records`."""

    folder: Path
    files: Sequence[ImageFile]

    def __len__(self) -> int:
        return len(self.files)

    def fetch(self, indices: Sequence[int]) -> Iterator[Record | Exception]:
        """Yield the content of files; an error for a file that can't be read."""
        for index in indices:
            file = self.files[index]
            where = f"{file.path!r}: "
            try:
                yield Record(read_file(self.folder / file.path), file.label, where)
            except DataError as error:
                yield DataError(f"{where}{error}")
            except MemoryError as error:
                yield error


def open_folder(
    data_dir: str | None, *, crop: ScaleAndCrop | None, channels: int = 3
) -> ImageFolder:
    """Locate the images in a folder, and check all that can be checked without decoding.

    Hidden files and folders are ignored, and so are files other than images beside the class
    folders.

    Args:
        data_dir: the folder.
        crop: how images are scaled and cropped to one size; None if all have one size.
        channels: 3 reads images as RGB, 1 as grey.

    Raises:
        ConfigError: no folder is given, or it is in a bucket.
        DataError: the folder doesn't exist, or doesn't have the layout `LAYOUT`.
    """
    if not data_dir:
        raise ConfigError(f"data.name is 'folder', and data.dir must name it: {LAYOUT}.")
    if "://" in data_dir:
        raise ConfigError(f"the images of {data_dir} are in a bucket; copy them to this host.")
    folder = Path(os.path.expanduser(data_dir))
    try:
        paths = find_images(folder)
    except OSError as error:
        where = error.filename or str(folder)
        raise DataError(f"the folder {where!r} can't be read: {error.strerror}.") from None
    class_names = tuple(next(iter(paths.values())))
    labels = {name: label for label, name in enumerate(class_names)}
    labelled = [
        (split, path, labels[name])
        for split, classes in paths.items()
        for name, names in classes.items()
        for path in names
    ]
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        digests = list(pool.map(lambda entry: _digest(folder / entry[1]), labelled))
    files: dict[str, list[ImageFile]] = {split: [] for split in paths}
    for (split, path, label), digest in zip(labelled, digests, strict=True):
        files[split].append(ImageFile(path, label, digest))
    _warn_of_copies(folder, files)
    ordered = {split: spread_classes(split_files) for split, split_files in files.items()}
    height, width = crop.size if crop else _first_size(folder, ordered)
    return ImageFolder(folder, ordered, class_names, Fit((height, width, channels), crop))


def spread_classes(files: Iterable[ImageFile]) -> list[ImageFile]:
    """Sort files so that each class is spread evenly: of its n files, file j is at (j + ½) / n."""
    by_class: dict[int, list[ImageFile]] = {}
    for file in sorted(files, key=lambda file: (file.digest, file.path)):
        by_class.setdefault(file.label, []).append(file)
    placed = [
        ((2 * number + 1) / (2 * len(members)), file.digest, file.path, file)
        for members in by_class.values()
        for number, file in enumerate(members)
    ]
    return [file for *_, file in sorted(placed, key=lambda entry: entry[:3])]


def find_images(folder: Path) -> dict[str, dict[str, list[str]]]:
    """Return the paths of all images within `folder`, by split and class, sorted.

    Raises:
        DataError: the folder doesn't have the layout `LAYOUT`.
    """
    tops = _subfolders(folder)
    if not tops:
        raise DataError(f"{str(folder)!r} holds no folders; images are found as {LAYOUT}.")
    deep = [top for top in tops if _subfolders(top)]
    if deep and len(deep) < len(tops):
        flat = next(top for top in tops if top not in deep)
        raise DataError(
            f"in {str(folder)!r} there are folders in {deep[0].name!r} and none in {flat.name!r};"
            f" images are found either as {LAYOUT}."
        )
    splits = {top.name: _subfolders(top) for top in tops} if deep else {"train": tops}
    for outside in (folder, *deep):
        if loose := [path for path in _visible(outside) if _is_image(path)]:
            raise DataError(f"{str(loose[0])!r} lies outside of the folder of a class ({LAYOUT}).")
    found = {
        split: {
            class_folder.name: [
                str(path.relative_to(folder)) for path in _images_of_class(class_folder)
            ]
            for class_folder in class_folders
        }
        for split, class_folders in splits.items()
    }
    _check_classes(folder, found)
    return found


def _check_classes(folder: Path, found: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
    """Raise DataError if splits differ in their classes, or if class names are impossible."""
    first, *others = found
    for split in others:
        if different := sorted(found[split].keys() ^ found[first].keys()):
            holder, other = (first, split) if different[0] in found[first] else (split, first)
            raise DataError(
                f"the class {different[0]!r} is in {holder!r} but not in {other!r} of"
                f" {str(folder)!r}; every split must have a folder for every class."
            )
    names = list(found[first])
    for name in names:
        if not name.isprintable():
            raise DataError(f"the folder {name!r} in {str(folder)!r} has a name that isn't text.")
    if len(names) == 1:
        raise DataError(
            f"{str(folder)!r} holds one class only, {names[0]!r}; images are found as {LAYOUT}."
        )


def _images_of_class(folder: Path) -> list[Path]:
    """Return the images of a class; raise DataError if the folder holds anything else or none."""
    entries = _visible(folder)
    others = [path for path in entries if not _is_image(path)]
    if others:
        kinds = Counter("folder" if p.is_dir() else p.suffix or "no suffix" for p in others)
        named = ", ".join(f"{kind}: {count}" for kind, count in sorted(kinds.items()))
        raise DataError(
            f"{str(folder)!r} holds {len(others)} that aren't PNG or JPEG files ({named}; the first"
            f" is {others[0].name!r}); convert them or move them away."
        )
    if not entries:
        raise DataError(f"the class {str(folder)!r} has no images; add some or remove it.")
    return entries


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file()


def _subfolders(folder: Path) -> list[Path]:
    return [path for path in _visible(folder) if path.is_dir()]


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _digest(path: Path) -> str:
    """Return a digest of a file's content; "" for a file that the decoder won't read."""
    try:
        return hashlib.blake2b(read_file(path), digest_size=16).hexdigest()
    except DataError:
        return ""


def _warn_of_copies(folder: Path, files: Mapping[str, Sequence[ImageFile]]) -> None:
    """Warn if two splits or two classes contain the same file."""
    seen: dict[str, tuple[str, ImageFile]] = {}
    copies: list[tuple[ImageFile, ImageFile]] = []
    for split, split_files in files.items():
        for file in split_files:
            other_split, other = seen.setdefault(file.digest, (split, file))
            if file.digest and (other_split, other.label) != (split, file.label):
                copies.append((other, file))
    if copies:
        original, copy = copies[0]
        _log.warning(
            "%s has copies of images in another split or class: %d, of which the first is %r of %r",
            *(folder, len(copies), copy.path, original.path),
        )


def _first_size(folder: Path, files: Mapping[str, Sequence[ImageFile]]) -> tuple[int, int]:
    """Return height and width of the first image that can be read."""
    reason = DataError("")
    for file in (file for split_files in files.values() for file in split_files):
        try:
            return image_size(read_file(folder / file.path))
        except DataError as error:
            reason = DataError(f"{file.path!r}: {error}")
    raise DataError(f"no image in {str(folder)!r} can be read ({reason}).")
