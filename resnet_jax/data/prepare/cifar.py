"""CIFAR-10 and CIFAR-100 from their official archives to prepared TFDS folders, without TensorFlow.

The folder is the one that TFDS's own builder writes (same features, ids, order and version, PNG
images, ArrayRecord), so anything that reads TFDS data reads it.
"""

# ruff: noqa: PLC0415 - TFDS and Pillow are loaded only when there is something to prepare

import contextlib
import dataclasses
import hashlib
import http.client
import io
import logging
import os
import secrets
import tarfile
import urllib.request
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from resnet_jax.errors import ConfigError, DataError, WriteError

_log = logging.getLogger(__name__)

EXAMPLES = {"train": 50_000, "test": 10_000}
IMAGE_SHAPE = (32, 32, 3)
TIMEOUT_S = 10.0
_CHUNK_BYTES = 2**20
_MAX_TEXT_BYTES = 2**16
_LOG_EVERY = 10_000


@dataclasses.dataclass(frozen=True)
class Archive:
    """An official archive: where it is, how to recognise it, and what is inside."""

    version: str  # of the TFDS data set that is made of it
    url: str
    file_name: str
    size: int
    sha256: str
    prefix: str
    files: Mapping[str, tuple[str, ...]]  # split → its binary files, in order
    label_keys: tuple[str, ...]  # one byte each before the pixels of a record
    label_files: tuple[str, ...]  # the class names of each key


def prepare_cifar(
    name: str, data_dir: str | os.PathLike[str], *, archive: str | os.PathLike[str] | None = None
) -> Path:
    """Make `data_dir` hold the prepared set `name`, "cifar10" or "cifar100"; returns its folder.

    The archive is `archive` if given, else the one that the user has put in
    `data_dir`/downloads/manual, else it's downloaded to there. An interrupted download or
    preparation leaves nothing that could be taken for a finished one.

    Raises DataError if the archive can't be had or isn't the official one, WriteError if
    `data_dir` can't be written.
    """
    if name not in ("cifar10", "cifar100"):
        raise ConfigError(f"only cifar10 and cifar100 can be prepared here, not {name!r}")
    folder = Path(data_dir).expanduser()
    official = official_archive(name)
    prepared = folder / name / official.version
    if (prepared / "dataset_info.json").exists():
        return prepared
    if prepared.exists():
        raise DataError(f"{prepared} holds an unfinished data set; remove it to prepare it anew")
    path = Path(archive) if archive is not None else _find_or_download(name, official, folder)
    _verify(path, official)
    contents = read_archive(path, official)
    _log.info("writing %s to %s", name, prepared)
    try:
        _write(name, folder, official, contents)
    except (OSError, RuntimeError) as error:  # a full disk is a RuntimeError in ArrayRecord
        if not (prepared / "dataset_info.json").exists():  # else another process was quicker
            raise WriteError(f"{name} can't be written to {folder}: {error}") from error
    return prepared


def official_archive(name: str) -> Archive:
    """What the installed TFDS knows of the archive of "cifar10" or "cifar100"."""
    from tensorflow_datasets.core import registered

    official = registered.imported_builder_cls(name)
    # The property needs nothing of the instance but its name; a builder would look for its data.
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


def _find_or_download(name: str, official: Archive, folder: Path) -> Path:
    """The archive in downloads/manual, TFDS's place for files that users fetched themselves."""
    path = folder / "downloads" / "manual" / official.file_name
    if path.exists():
        return path
    _log.info("downloading %s (%d MB) to %s", official.url, official.size // 10**6, path.parent)
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("xb") as file:
            for chunk in _download(name, official, path):
                file.write(chunk)
        found = _sha256(part)
        if found != official.sha256:
            raise DataError(
                f"{official.url} gives another file than the official archive (SHA-256 {found}, "
                f"not {official.sha256}); fetch {official.file_name} elsewhere and put it at {path}"
            )
        part.replace(path)
    except OSError as error:
        raise WriteError(
            f"{name} isn't prepared in {folder}, and {path} can't be written ({error}); point "
            f"--config.data.dir or TFDS_DATA_DIR at a prepared {name} or at a folder of your own"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
    return path


def _download(name: str, official: Archive, path: Path) -> Iterator[bytes]:
    """The bytes behind the URL; one attempt with a short timeout, and one sentence if it fails."""
    received = 0
    try:
        with urllib.request.urlopen(official.url, timeout=TIMEOUT_S) as response:
            while chunk := response.read(_CHUNK_BYTES):
                before, received = received, received + len(chunk)
                if received > official.size:
                    break
                if received * 10 // official.size > before * 10 // official.size:
                    _log.info("%s: %d %%", official.file_name, 100 * received // official.size)
                yield chunk
        if received != official.size:
            amount = "more" if received > official.size else f"only {received} bytes"
            raise http.client.HTTPException(f"{amount} came where {official.size} were promised")
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise DataError(
            f"{name} isn't prepared in {path.parents[2]}, and {official.url} can't be downloaded "
            f"({reason}); fetch {official.file_name} on another machine and put it at {path}, or "
            f"point data.dir or TFDS_DATA_DIR at a folder that holds a prepared {name}"
        ) from error


def _verify(path: Path, official: Archive) -> None:
    """Raise DataError unless `path` is the official archive, by size and SHA-256."""
    try:
        size = path.stat().st_size
        found = _sha256(path) if size == official.size else ""
    except OSError as error:
        raise DataError(f"the archive {path} can't be read: {error}") from error
    if found != official.sha256:
        raise DataError(
            f"{path} isn't the official archive: it has {size} bytes and the SHA-256 "
            f"{found or 'of something else'}, not {official.size} and {official.sha256}; remove it "
            f"and fetch {official.url} again"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_archive(path: Path, official: Archive) -> dict[str, bytes]:
    """The expected files of the archive by name, each with the size that it must have.

    Nothing is written to disk and every other member is skipped. Raises DataError if one is
    missing, has another size, or if the archive is damaged.
    """
    record = len(official.label_keys) + int(np.prod(IMAGE_SHAPE))
    sizes = {
        official.prefix + file: EXAMPLES[split] // len(files) * record
        for split, files in official.files.items()
        for file in files
    }
    texts = {official.prefix + file for file in official.label_files}
    contents: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:gz") as tar:
            for member in tar:
                if member.name not in sizes and member.name not in texts:
                    continue
                size = sizes.get(member.name, min(member.size, _MAX_TEXT_BYTES))
                if not member.isfile() or member.size != size:
                    raise DataError(f"{member.name} in {path} isn't a file of {size} bytes")
                stream = tar.extractfile(member)
                contents[member.name] = stream.read() if stream else b""
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise DataError(f"the archive {path} is damaged: {error}") from error
    if missing := sorted((set(sizes) | texts) - set(contents)):
        raise DataError(f"the archive {path} lacks {', '.join(missing)}")
    return contents


def examples(
    binary: bytes, label_keys: tuple[str, ...], split: str
) -> Iterator[tuple[int, dict[str, Any]]]:
    """TFDS keys and examples of the binary records: label bytes, then 3×32×32 pixels each.

    The key is the position in the archive, as in TFDS, because it decides the order on disk.
    """
    from PIL import Image

    height, width, channels = IMAGE_SHAPE
    records = np.frombuffer(binary, np.uint8).reshape(
        -1, len(label_keys) + int(np.prod(IMAGE_SHAPE))
    )
    for index, record in enumerate(records):
        pixels = record[len(label_keys) :].reshape(channels, height, width).transpose(1, 2, 0)
        png = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels)).save(png, format="PNG")
        example = dict(zip(label_keys, map(int, record), strict=False))
        yield index, {**example, "id": f"{split}_{index:05d}", "image": png.getvalue()}
        if (index + 1) % _LOG_EVERY == 0:
            _log.info("%s: %d of %d images", split, index + 1, len(records))


def _write(name: str, folder: Path, layout: Archive, contents: Mapping[str, bytes]) -> None:
    """Let TFDS's builder write `contents` to a temporary folder, which it renames at the end."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import registered

    official = registered.imported_builder_cls(name)

    with registered.skip_registration():

        class FromArchive(official):  # type: ignore[valid-type, misc]
            # TFDS derives the folder, the checksums and `moduleName` from these two.
            name = official.name
            __module__ = official.__module__

            def _split_generators(self, dl_manager: object) -> dict[str, Any]:
                for key, file in zip(layout.label_keys, layout.label_files, strict=True):
                    text = contents[layout.prefix + file].decode()
                    self.info.features[key].names = [line for line in text.split("\n") if line]
                return {split: self._generate_examples(split) for split in layout.files}

            def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
                binary = b"".join(contents[layout.prefix + file] for file in layout.files[split])
                return examples(binary, layout.label_keys, split)

            def _log_download_bytes(self) -> None:
                """TFDS would print here."""

            def _log_download_done(self) -> None:
                """TFDS would print here."""

    with _no_progress_bars():
        FromArchive(data_dir=str(folder), file_format="array_record").download_and_prepare(
            download_config=tfds.download.DownloadConfig(try_download_gcs=False)
        )


@contextlib.contextmanager
def _no_progress_bars() -> Iterator[None]:
    from tensorflow_datasets.core.utils import tqdm_utils

    before = tqdm_utils._active
    tqdm_utils.display_progress_bar(False)
    try:
        yield
    finally:
        tqdm_utils.display_progress_bar(before)
