"""Copies of folders in buckets (gs://…, s3://…) on this host, made once.

Records are read at random, and by a C++ reader that knows files only.
"""

import hashlib
import logging
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from etils import epath

from resnet_jax.data.array_cache import cache_root

_log = logging.getLogger(__name__)


def copy_here(folder: epath.Path) -> Path:
    """Return a local copy of `folder`, of the same name; only what changed is copied.

    A file is taken to be the same if its size and its time of change are.

    Raises:
        FileNotFoundError: there is no such folder.
        OSError: it can't be read, or the copy can't be written.
    """
    where = hashlib.blake2b(os.fspath(folder).encode(), digest_size=8).hexdigest()
    copy = cache_root() / "buckets" / where / folder.name
    files = list(_files(folder))
    if not files:
        raise FileNotFoundError(os.fspath(folder))
    announced = False
    for source in files:
        target = copy / os.fspath(source).removeprefix(f"{os.fspath(folder)}/")
        stat = source.stat()
        if target.exists():
            here = target.stat()
            if (here.st_size, here.st_mtime) == (stat.length, stat.mtime):
                continue
        if not announced:
            _log.info("copying %s to %s, once", folder, copy)
            announced = True
        target.parent.mkdir(parents=True, exist_ok=True)
        # Another process of this host may be copying the same file.
        temporary = target.with_name(f"{target.name}.{secrets.token_hex(4)}.part")
        try:
            with source.open("rb") as remote, temporary.open("xb") as local:
                shutil.copyfileobj(remote, local, 2**22)
            os.utime(temporary, (stat.mtime, stat.mtime))
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    return copy


def _files(folder: epath.Path) -> Iterator[epath.Path]:
    """All files below; `rglob` doesn't work on buckets."""
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if path.is_dir():
            yield from _files(path)
        else:
            yield path
