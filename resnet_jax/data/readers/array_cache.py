"""Decoded splits kept as .npy files in the user's cache folder, checked each time they are read.

A missing, damaged or unwritable cache is never an error: the caller decodes again.
"""

import json
import logging
import re
import secrets
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np

from resnet_jax.utils.files import cache_root

_log = logging.getLogger(__name__)

_FORMAT = 1  # raise it when the decoding changes its result


def cache_folder(name: str, digest: str) -> Path:
    """The folder for one version of one data set."""
    safe = re.sub(r"[^\w.-]+", "_", name)
    return cache_root() / "datasets" / f"{safe}-{digest}"


def load(
    folder: Path, split: str, shape: tuple[int, int, int, int]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Images, uint8 of `shape`, and labels, int32 (n,), or None if they aren't there intact."""
    try:
        record = json.loads((folder / f"{split}.json").read_text())
        images = np.load(folder / f"{split}-images.npy", allow_pickle=False)
        labels = np.load(folder / f"{split}-labels.npy", allow_pickle=False)
    except FileNotFoundError:
        return None
    except Exception as error:  # a damaged header makes numpy raise almost anything
        _log.warning("the cache in %s can't be read (%s); decoding again", folder, error)
        return None
    intact = (
        (images.dtype, images.shape) == (np.uint8, shape)
        and (labels.dtype, labels.shape) == (np.int32, shape[:1])
        and record == _record(images, labels)
    )
    if not intact:
        _log.warning("the cached split %s in %s is damaged; decoding again", split, folder)
        return None
    return images, labels


def store(folder: Path, split: str, images: np.ndarray, labels: np.ndarray) -> None:
    """Write the split; the .json comes last, so that an interrupted write isn't found by `load`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / f"{split}-images.npy", lambda file: np.save(file, images))
        _write(folder / f"{split}-labels.npy", lambda file: np.save(file, labels))
        record = json.dumps(_record(images, labels)).encode()
        _write(folder / f"{split}.json", lambda file: file.write(record))
    except OSError as error:
        _log.warning("decoded images aren't cached in %s: %s", folder, error)


def _record(images: np.ndarray, labels: np.ndarray) -> dict[str, int]:
    """What the .json holds: the format and one CRC-32 per array (3 GB/s, enough against decay)."""
    return {
        "format": _FORMAT,
        "images_crc32": zlib.crc32(np.ascontiguousarray(images).data),
        "labels_crc32": zlib.crc32(np.ascontiguousarray(labels).data),
    }


def _write(path: Path, save: Callable[[IO[bytes]], object]) -> None:
    """Write to a temporary file beside `path`, then rename it: readers see all of it or nothing."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        with temporary.open("xb") as file:
            save(file)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
