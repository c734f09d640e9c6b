"""Local copies of folders in buckets (gs://…, s3://…), made once per host.

Records are read in random order, by a C++ reader that supports only files. fsspec's own caches
don't fit: they name files by digests, or read a folder again each time.
"""

import hashlib
import itertools
import logging
import os
import secrets
import shutil
import time
from pathlib import Path
from typing import Any

import fsspec  # type: ignore[import-untyped]
from etils import epath

from resnet_jax.errors import DataError
from resnet_jax.utils.files import cache_root
from resnet_jax.utils.paths import bucket_errors

_log = logging.getLogger(__name__)

# Fields in which clients give a file's version: Google Cloud Storage has a version number, S3 a
# digest of the content and a time in whole seconds.
_VERSION = ("generation", "ETag", "etag", "LastModified", "mtime")


def copy_here(folder: epath.Path) -> Path:
    """Copy the changed files of a folder in a bucket to this host.

    A file is unchanged if its size and its version in the bucket are. If the bucket gives no
    version, the file is copied each time. Folders that were removed from the bucket, such as those
    of a version of a data set, are removed from the copy too.

    Args:
        folder: the folder, in a bucket.

    Returns:
        The copy, a folder of the same name.

    Raises:
        FileNotFoundError: the bucket has no such folder.
        DataError: an object's name would lead out of the copy; nothing is written.
        OSError: the bucket can't be read, or the copy can't be written.
        ImportError: the client of this kind of bucket isn't installed.
    """
    where = hashlib.blake2b(os.fspath(folder).encode(), digest_size=8).hexdigest()
    copy = cache_root() / "buckets" / where / folder.name
    with bucket_errors(folder):
        bucket, root = fsspec.url_to_fs(os.fspath(folder))
        bucket.invalidate_cache()  # fsspec caches the listings of this process
        found = bucket.find(root, detail=True)
    files = {
        name: info
        for name, info in found.items()
        if info["type"] == "file" and not name.endswith("/")  # an empty object may mark a folder
    }
    if not files:
        raise FileNotFoundError(os.fspath(folder))
    targets = {name: _target(copy, root, name) for name in files}
    announced = False
    for name, info in files.items():
        target = targets[name]
        stamp = _stamp(info)
        if stamp is not None and target.exists():
            here = target.lstat()
            if (here.st_size, here.st_mtime_ns) == (info["size"], stamp):
                continue
        if not announced:
            _log.info("copying %s to %s, once", folder, copy)
            announced = True
        target.parent.mkdir(parents=True, exist_ok=True)
        # A random name: another process of this host may be copying the same file.
        temporary = target.with_name(f"{target.name}.{secrets.token_hex(4)}.part")
        try:
            with (
                bucket_errors(folder),
                bucket.open(name, "rb") as remote,
                temporary.open("xb") as local,
            ):
                shutil.copyfileobj(remote, local, 2**22)
            if (length := temporary.stat().st_size) != info["size"]:
                raise OSError(
                    f"{name} has {length} bytes where {info['size']} were announced; it was"
                    " changed meanwhile, or the connection broke off"
                )
            if stamp is not None:
                os.utime(temporary, ns=(time.time_ns(), stamp))
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    present = {target.relative_to(copy).parts[0] for target in targets.values()}
    for old in copy.iterdir():
        if old.name not in present and old.is_dir() and not old.is_symlink():
            _log.info("removing %s, which isn't in %s any more", old, folder)
            shutil.rmtree(old, ignore_errors=True)
    return copy


def _target(copy: Path, root: str, name: str) -> Path:
    """Return the path of an object's copy, inside of `copy`."""
    inside = name.removeprefix(f"{root}/")
    parts = inside.split("/")
    if inside == name or {"", ".", ".."} & set(parts) or "\\" in name or not name.isprintable():
        raise DataError(
            f"the object {name!r} in the bucket has a name that no file can have; nothing was"
            " copied. Remove the object, or use another folder."
        )
    for folder in itertools.accumulate(parts[:-1], lambda path, part: path / part, initial=copy):
        if folder != copy and folder.is_symlink():
            raise DataError(f"{folder} is a link to elsewhere; remove it. Nothing was copied.")
    return copy.joinpath(*parts)


def _stamp(info: dict[str, Any]) -> int | None:
    """Return a digest of a file's version, which becomes the modification time of the copy, in ns.

    The modification time changes atomically with the copy, even if several processes write the
    copy. A digest of all fields also detects a change within a second. None if the bucket gives no
    version.
    """
    version = [str(info.get(key) or "") for key in _VERSION]
    if not any(version):
        return None
    digest = hashlib.blake2b("\0".join(version).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % (2**31 * 10**9)  # file systems have dates up to 2038
