"""Prepares CIFAR-10 and CIFAR-100 as TFDS folders from their official archives.

The folder equals the one of TFDS's own builder (features, ids, order, version, PNG images), in
ArrayRecord format. TensorFlow isn't needed.
"""

# ruff: noqa: PLC0415 - TFDS and Pillow are loaded only when there is something to prepare

import contextlib
import io
import logging
import os
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from resnet_jax.data.prepare.cifar_archive import (
    Archive,
    find_or_download,
    official_archive,
    verify,
)
from resnet_jax.errors import ConfigError, DataError, WriteError
from resnet_jax.utils.files import local_path

_log = logging.getLogger(__name__)

CIFAR = ("cifar10", "cifar100")
EXAMPLES = {"train": 50_000, "test": 10_000}
IMAGE_SHAPE = (32, 32, 3)
_MAX_TEXT_BYTES = 2**16
_LOG_EVERY = 10_000


def prepare_cifar(
    name: str, data_dir: str | os.PathLike[str], *, archive: str | os.PathLike[str] | None = None
) -> Path:
    """Prepare a data set in `data_dir`, unless it is prepared already.

    An interrupted download or preparation is never taken for a finished one.

    Args:
        name: "cifar10" or "cifar100".
        data_dir: the folder of prepared sets.
        archive: the official archive; None looks in `data_dir`/downloads/manual, and downloads the
            archive to this folder if it isn't there.

    Returns:
        The folder of the prepared set.

    Raises:
        ConfigError: another name.
        DataError: the archive can't be downloaded or isn't the official one.
        WriteError: `data_dir` can't be written.
    """
    if name not in CIFAR:
        raise ConfigError(f"only cifar10 and cifar100 can be prepared here, not {name!r}")
    folder = local_path(data_dir)
    official = official_archive(name)
    prepared = folder / name / official.version
    document = prepared / "dataset_info.json"
    if prepared.exists():  # a finished folder appears at once, with the document in it
        if document.exists():
            return prepared
        raise DataError(f"{prepared} holds an unfinished data set; remove it to prepare it anew")
    path = Path(archive) if archive is not None else find_or_download(name, official, folder)
    verify(path, official)
    contents = read_archive(path, official)
    _log.info("writing %s to %s", name, prepared)
    try:
        _write(name, folder, official, contents)
    except (OSError, RuntimeError) as error:  # a full disk is a RuntimeError in ArrayRecord
        if not document.exists():  # else another process has prepared it
            raise WriteError(f"{name} can't be written to {folder}: {error}") from error
    return prepared


def read_archive(path: Path, official: Archive) -> dict[str, bytes]:
    """Read the expected files of the archive into memory; other files are ignored.

    Returns:
        File name → content.

    Raises:
        DataError: the archive is damaged, or a file is missing or has another size.
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
    """Yield (key, example) of binary records: label bytes, then 3×32×32 pixels each.

    The key is the position in the archive, as in TFDS: it determines the order on disk.
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
    """Let TFDS's builder write `contents`, to a temporary folder that it renames at the end."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import registered

    official = registered.imported_builder_cls(name)

    with registered.skip_registration():

        class FromArchive(official):  # type: ignore[valid-type, misc]
            # TFDS derives the folder, the checksums and `moduleName` from these.
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
                """Print nothing."""

            def _log_download_done(self) -> None:
                """Print nothing."""

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
