"""MNIST and data sets in its format: four IDX files, compressed by gzip or not.

An IDX file has a header of big-endian numbers, two zero bytes, the type of the values (8 for
bytes), the number of dimensions and their sizes, and then the values (Y. LeCun, C. Cortes,
"The MNIST database of handwritten digits"). Fashion-MNIST (Xiao et al. 2017, 1708.07747) comes in
this format as Debian's package dataset-fashion-mnist.
"""

import contextlib
import dataclasses
import gzip
import math
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, NoReturn, cast

import numpy as np

from resnet_jax.data.readers.source import DecodedSplit
from resnet_jax.errors import ConfigError, DataError
from resnet_jax.utils.files import open_regular_file

IDX_SETS: Mapping[str, tuple[str, ...]] = {
    "mnist": tuple("0123456789"),
    "fashion_mnist": (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
}
"""Names of the classes of the data sets in this format."""

_SYSTEM_FOLDERS = {"fashion_mnist": Path("/usr/share/datasets/fashion-mnist")}
"""Folders of distributions' packages."""

_PREFIXES = {"train": "train", "test": "t10k"}
_LIMIT_BYTES = 2**30
"""Largest size of the values of a file; MNIST's take 45 MiB."""
_CHUNK_BYTES = 2**20
_UNSIGNED_BYTES = 8  # type of the values


@dataclasses.dataclass(frozen=True)
class IdxFolder:
    """A folder of IDX files, whose headers have been read; see `Source`."""

    folder: Path
    class_names: tuple[str, ...]
    shapes: Mapping[str, tuple[int, int, int]]  # (n, h, w) of each split

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(h, w, 1) of every image."""
        _, height, width = self.shapes["train"]
        return height, width, 1

    @property
    def lengths(self) -> dict[str, int]:
        """Number of images of each split."""
        return {split: shape[0] for split, shape in self.shapes.items()}

    def read(self, split: str, *, skip_corrupt: bool = False) -> DecodedSplit:
        """Read a split; `skip_corrupt` has no effect, as images aren't encoded one by one."""
        del skip_corrupt
        images = _read_values(_find(self.folder, split, "images"), dimensions=3)
        labels = _read_values(_find(self.folder, split, "labels"), dimensions=1)
        return DecodedSplit(images[..., None], labels.astype(np.int32))

    def records(self, split: str) -> NoReturn:
        """Raise ConfigError: the images aren't encoded one by one."""
        raise ConfigError(
            f"the images in {str(self.folder)!r} are arrays in memory; data.random_crop_area isn't"
            " for them."
        )

    def fingerprint(self, split: str) -> NoReturn:
        """Raise ConfigError: the images aren't encoded one by one."""
        self.records(split)


def find_idx_folder(name: str, data_dir: str | None) -> Path | None:
    """The folder of a data set's IDX files; None if there is none.

    Args:
        name: the data set's name.
        data_dir: the folder; None is that of a distribution's package.
    """
    folder = Path(os.path.expanduser(data_dir)) if data_dir else _SYSTEM_FOLDERS.get(name)
    if name not in IDX_SETS or folder is None:
        return None
    is_there = any(os.path.lexists(path) for path in _candidates(folder, "train", "images"))
    return folder if is_there else None


def open_idx_folder(name: str, folder: Path) -> IdxFolder:
    """Check the four files of a data set and their headers.

    Args:
        name: a name in `IDX_SETS`.
        folder: the folder of the files.

    Raises:
        DataError: a file is missing or can't be read, or a header is wrong.
    """
    shapes = {}
    for split in _PREFIXES:
        images = _find(folder, split, "images")
        with _opened(images) as file:
            n, height, width = _read_header(file, images, dimensions=3)
        labels = _find(folder, split, "labels")
        with _opened(labels) as file:
            (labelled,) = _read_header(file, labels, dimensions=1)
        if labelled != n:
            raise DataError(f"{images} has {n:,} images, and {labels.name} {labelled:,} labels.")
        shapes[split] = (n, height, width)
    train, test = shapes["train"][1:], shapes["test"][1:]
    if train != test:
        raise DataError(f"{folder}: images for training are {train}, for testing {test}.")
    return IdxFolder(folder, IDX_SETS[name], shapes)


def _candidates(folder: Path, split: str, kind: str) -> list[Path]:
    """The names that the file may have, with and without gzip; the archives on the web differ."""
    dimensions = 3 if kind == "images" else 1
    stem = f"{_PREFIXES[split]}-{kind}"
    names = (f"{stem}-idx{dimensions}-ubyte", f"{stem}.idx{dimensions}-ubyte")
    return [folder / f"{name}{suffix}" for name in names for suffix in ("", ".gz")]


def _find(folder: Path, split: str, kind: str) -> Path:
    candidates = _candidates(folder, split, kind)
    for path in candidates:
        if os.path.lexists(path):
            return path
    raise DataError(f"{folder} has no {candidates[0].name}, nor {candidates[1].name}.")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a file, decompressed; its errors are raised as DataError."""
    try:
        with open_regular_file(path) as raw:
            if path.suffix == ".gz":
                with gzip.open(raw) as file:
                    yield cast("IO[bytes]", file)
            else:
                yield raw
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is damaged ({error}); replace it.") from None
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror or error}.") from None


def _read_header(file: IO[bytes], path: Path, *, dimensions: int) -> tuple[int, ...]:
    """The sizes of the dimensions.

    Raises:
        DataError: the file isn't an IDX file of bytes with so many dimensions, is empty, or has
            more values than `_LIMIT_BYTES`.
    """
    length = 4 + 4 * dimensions
    header = file.read(length)
    if header[:4] != bytes((0, 0, _UNSIGNED_BYTES, dimensions)) or len(header) < length:
        raise DataError(f"{path} isn't an IDX file of bytes with {dimensions} dimensions.")
    shape = struct.unpack(f">{dimensions}I", header[4:])
    if math.prod(shape) == 0:
        raise DataError(f"{path} is empty: its header gives the size {shape}.")
    if math.prod(shape) > _LIMIT_BYTES:
        raise DataError(
            f"{path} is too large: its header gives the size {shape}, and at most"
            f" {_LIMIT_BYTES / 2**30:g} GiB are read."
        )
    return shape


def _read_values(path: Path, *, dimensions: int) -> np.ndarray:
    """The values, uint8; memory is taken for what the file has, not for what its header says."""
    with _opened(path) as file:
        shape = _read_header(file, path, dimensions=dimensions)
        expected, values = math.prod(shape), bytearray()
        while piece := file.read(min(_CHUNK_BYTES, expected + 1 - len(values))):
            values += piece
    if len(values) != expected:
        found = "more" if len(values) > expected else f"{len(values):,}"
        raise DataError(
            f"{path} is damaged: its header gives {expected:,} bytes, and it has {found}."
        )
    return np.frombuffer(values, np.uint8).reshape(shape)
