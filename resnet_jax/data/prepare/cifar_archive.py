"""The official archives of CIFAR-10 and CIFAR-100: found, downloaded and verified."""

import dataclasses
import hashlib
import http.client
import logging
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

from resnet_jax.errors import DataError, WriteError
from resnet_jax.utils.files import replace_file

_log = logging.getLogger(__name__)

TIMEOUT_S = 10.0
_CHUNK_BYTES = 2**20


@dataclasses.dataclass(frozen=True)
class Archive:
    """An official archive: its address, its digest and its content."""

    version: str  # of the TFDS data set
    url: str
    file_name: str
    size: int  # in bytes
    sha256: str
    prefix: str  # of the paths of all files in the archive
    files: Mapping[str, tuple[str, ...]]  # split → its binary files, in order
    label_keys: tuple[str, ...]  # names of the labels, one byte each before a record's pixels
    label_files: tuple[str, ...]  # for each label, the file with the class names


def official_archive(name: str) -> Archive:
    """Return TFDS's description of the archive of "cifar10" or "cifar100"."""
    # Importing TFDS takes a second.
    from tensorflow_datasets.core import registered  # noqa: PLC0415

    official = registered.imported_builder_cls(name)
    # Read the property from the class: an instance of the builder would search for its data.
    layout = official._cifar_info.fget(official)
    info = official.url_infos[layout.url]
    return Archive(
        version=str(official.VERSION),
        url=layout.url,
        file_name=info.filename,
        size=int(info.size),
        sha256=info.checksum,
        prefix=layout.prefix,
        files={"train": tuple(layout.train_files), "test": tuple(layout.test_files)},
        label_keys=tuple(layout.label_keys),
        label_files=tuple(layout.label_files),
    )


def find_or_download(name: str, official: Archive, folder: Path) -> Path:
    """Return the archive in downloads/manual, TFDS's folder for files that users downloaded."""
    path = folder / "downloads" / "manual" / official.file_name
    if path.exists():
        return path
    _log.info("downloading %s (%d MB) to %s", official.url, official.size // 10**6, path.parent)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, _download(name, official, path))
    except OSError as error:
        raise WriteError(
            f"{name} isn't prepared in {folder}, and {path} can't be written ({error}); point "
            f"--config.data.dir or TFDS_DATA_DIR at a prepared {name} or at a folder of your own"
        ) from error
    return path


def _download(name: str, official: Archive, path: Path) -> Iterator[bytes]:
    """Yield the bytes of the archive, in one attempt."""
    received, digest = 0, hashlib.sha256()
    try:
        with urllib.request.urlopen(official.url, timeout=TIMEOUT_S) as response:
            while chunk := response.read(_CHUNK_BYTES):
                before, received = received, received + len(chunk)
                if received > official.size:
                    break
                if received * 10 // official.size > before * 10 // official.size:
                    _log.info("%s: %d %%", official.file_name, 100 * received // official.size)
                digest.update(chunk)
                yield chunk
        if received != official.size:
            amount = "more" if received > official.size else f"only {received}"
            raise http.client.HTTPException(
                f"{amount} bytes came where {official.size} were promised"
            )
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise DataError(
            f"{name} isn't prepared in {path.parents[2]}, and {official.url} can't be downloaded "
            f"({reason}); fetch {official.file_name} on another machine and put it at {path}, or "
            f"point data.dir or TFDS_DATA_DIR at a folder that holds a prepared {name}"
        ) from error
    if digest.hexdigest() != official.sha256:
        raise DataError(
            f"{official.url} gives another file than the official archive (SHA-256"
            f" {digest.hexdigest()}, not {official.sha256}); fetch {official.file_name} elsewhere"
            f" and put it at {path}"
        )


def verify(path: Path, official: Archive) -> None:
    """Raise DataError unless `path` is the official archive, by size and SHA-256."""
    found = ""
    try:
        size = path.stat().st_size
        if size == official.size:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"the archive {path} can't be read: {error}") from error
    if found != official.sha256:
        raise DataError(
            f"{path} isn't the official archive: it has {size} bytes and the SHA-256 "
            f"{found or 'of something else'}, not {official.size} and {official.sha256}; remove it "
            f"and fetch {official.url} again"
        )
