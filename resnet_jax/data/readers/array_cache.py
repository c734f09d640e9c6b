"""Decoded splits as .npy files in the user's cache folder, checked on each read.

A missing, damaged or unwritable cache is never an error: the caller decodes again.
"""

import io
import json
import logging
import re
import zlib
from pathlib import Path

import numpy as np

from resnet_jax.utils.files import cache_root, replace_file

_log = logging.getLogger(__name__)

_FORMAT = 1  # increase when decoding gives different arrays


def cache_folder(name: str, digest: str) -> Path:
    """Return the folder for one version of a data set."""
    safe = re.sub(r"[^\w.-]+", "_", name)
    return cache_root() / "datasets" / f"{safe}-{digest}"


def load(
    folder: Path, split: str, shape: tuple[int, int, int, int]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Load a split.

    Returns:
        Images, uint8 of `shape`, and labels, int32 (n,); None if they are missing or damaged.
    """
    try:
        record = json.loads((folder / f"{split}.json").read_text())
        images = np.load(folder / f"{split}-images.npy", allow_pickle=False)
        labels = np.load(folder / f"{split}-labels.npy", allow_pickle=False)
    except FileNotFoundError:
        return None
    except Exception as error:  # NumPy raises many types for a damaged header
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
    """Write a split; the .json file is last, so that `load` ignores an interrupted write."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _save(folder / f"{split}-images.npy", images)
        _save(folder / f"{split}-labels.npy", labels)
        record = json.dumps(_record(images, labels)).encode()
        replace_file(folder / f"{split}.json", [record])
    except OSError as error:
        _log.warning("decoded images aren't cached in %s: %s", folder, error)


def _record(images: np.ndarray, labels: np.ndarray) -> dict[str, int]:
    """Return the content of the .json file: the format and a CRC-32 of each array (3 GB/s)."""
    return {
        "format": _FORMAT,
        "images_crc32": zlib.crc32(np.ascontiguousarray(images).data),
        "labels_crc32": zlib.crc32(np.ascontiguousarray(labels).data),
    }


def _save(path: Path, array: np.ndarray) -> None:
    """Write what `np.save` writes, in one step and without a copy of the array."""
    header = io.BytesIO()
    layout = np.lib.format.header_data_from_array_1_0(array)
    np.lib.format.write_array_header_1_0(header, layout)
    replace_file(path, [header.getvalue(), np.ascontiguousarray(array).data.cast("B")])
