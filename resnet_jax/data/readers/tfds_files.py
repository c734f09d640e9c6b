"""The files of prepared TFDS data sets: their location, their completeness and their digest."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from etils import epath

from resnet_jax.data.remote_cache import copy_here
from resnet_jax.errors import ConfigError, DataError
from resnet_jax.utils.messages import first_line

_CHUNK_BYTES = 2**20
_WHOLLY_DIGESTED_BYTES = 4 * 2**30


def data_folder(data_dir: str | os.PathLike[str] | None) -> epath.Path:
    """Return the folder of prepared sets: `data_dir`, else $TFDS_DATA_DIR, else TFDS's default."""
    folder = os.fspath(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    return epath.Path(folder).expanduser()


def local_data_folder(name: str, data_dir: str | os.PathLike[str] | None) -> Path:
    """Return the folder of prepared sets on this host; a set in a bucket is copied there.

    Raises:
        ConfigError: `name` can't be the name of a data set.
        DataError: the folder doesn't exist, the bucket can't be read, or it has no such set; or the
            folder is in the home of a user without a home.
    """
    # Importing TFDS takes a second.
    from tensorflow_datasets.core import naming  # noqa: PLC0415

    try:
        naming.parse_builder_name_kwargs(name)
    except ValueError as error:
        raise ConfigError(
            f"{name!r} isn't a data set's name; write NAME, NAME/CONFIG or NAME:VERSION"
        ) from error
    folder = data_folder(data_dir)
    if os.fspath(folder).startswith("~"):
        raise DataError(f"nobody knows where {folder} is; set data.dir, TFDS_DATA_DIR or HOME")
    if "://" not in os.fspath(folder):
        local = Path(folder)
        if data_dir and not os.path.isdir(local):
            raise DataError(
                f"the data folder {local} doesn't exist; create it to have data put there"
            )
        return local
    base = name.partition(":")[0].partition("/")[0]
    try:
        return copy_here(folder / base).parent
    except FileNotFoundError:
        raise DataError(
            f"{folder} holds no data set {base!r}; prepare it in a local folder and copy that there"
        ) from None
    except DataError:
        raise
    except Exception as error:  # each client of a bucket raises its own types
        raise DataError(f"{folder / base} can't be read ({first_line(error)}).") from error


def check_shards(name: str, info: Any) -> list[Path]:
    """Open every file of records; TFDS would notice a missing file only when it reads from it.

    Args:
        name: the data set's name, for messages.
        info: TFDS's `DatasetInfo`.

    Returns:
        The files.

    Raises:
        DataError: a file is missing, damaged or of another length than `info` promises.
    """
    # Imported where prepared sets are opened.
    from array_record.python import array_record_module  # noqa: PLC0415

    files = []
    for split in info.splits.values():
        for number, length in enumerate(split.shard_lengths):  # there may be millions: lazily
            path = Path(
                split.filename_template.sharded_filepath(
                    shard_index=number, num_shards=split.num_shards
                )
            )
            try:
                if not path.is_file():  # opening a pipe would wait for a writer
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
            files.append(path)
    return files


def files_digest(folder: Path, records: Sequence[Path]) -> str:
    """Return a digest of the records and of the files that describe them (0.2 s for 140 MB).

    If the records have more than 4 GiB, the digest covers their sizes, beginnings and ends.
    """
    digest = hashlib.blake2b(digest_size=16)
    descriptions = [folder / "dataset_info.json", folder / "features.json"]
    descriptions += folder.glob("*.labels.txt")
    large = sum(path.stat().st_size for path in records) > _WHOLLY_DIGESTED_BYTES
    for path in sorted([*descriptions, *records]):
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
                if large and path in records:
                    file.seek(max(file.tell(), size - _CHUNK_BYTES))
    return digest.hexdigest()
