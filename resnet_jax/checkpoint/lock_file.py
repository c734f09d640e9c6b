"""The file of a lock: created, read, renewed, taken over and removed.

On a file system, `os.link` creates the file so that only one process can succeed, over NFS too. A
bucket has no such operation: of two runs that start there within the same second, both may go on
until the first renewal, when one of them finds that the other holds the lock.
"""

import contextlib
import dataclasses
import errno
import logging
import os
import secrets
import time
from pathlib import Path

from etils import epath

from resnet_jax.checkpoint.lock_holder import Holder, parse_holder
from resnet_jax.checkpoint.workdir import write_atomically
from resnet_jax.errors import WriteError
from resnet_jax.utils.files import TEMPORARY_SUFFIX, open_regular_file
from resnet_jax.utils.paths import bucket_errors, is_remote

_log = logging.getLogger(__name__)

_TAKEOVER_S = 30.0  # a takeover takes milliseconds, or seconds where the file system is busy
_POLL_S = 0.5
_LARGEST = 2**16  # bytes that are read of a lock, which may be damaged

# Errors of os.link on file systems without hard links: vfat, gcsfuse, some SMB shares.
_NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


def read_lock(path: epath.Path) -> Holder | None:
    """The holder of the lock; None without a lock.

    Raises:
        OSError: the file can't be read.
    """
    try:
        if is_remote(path):
            with bucket_errors(path):
                return parse_holder(path.read_bytes())
        with open_regular_file(Path(path)) as file:
            holder = parse_holder(file.read(_LARGEST))
            return dataclasses.replace(holder, renewed=os.fstat(file.fileno()).st_mtime)
    except FileNotFoundError:
        return None


def acquire(path: epath.Path, own: Holder, *, stale_s: float) -> Holder | None:
    """Make the lock this process's own; a dead holder's lock is taken over.

    Args:
        path: of the lock file.
        own: this process.
        stale_s: a holder that can't be seen from this process is dead if it doesn't renew its lock
            for so many seconds.

    Returns:
        None; or the living holder, which keeps the lock.

    Raises:
        OSError: the file can't be read or written.
        WriteError: other processes took the lock again and again.
    """
    for _ in range(100):
        if _create(path, own):
            return None
        found = read_lock(path)
        if found is not None:  # else it was released meanwhile
            if living := _wait_for_renewal(path, found, stale_s):
                return living
            if _take_over(path, own, found):
                return None
        time.sleep(0.05)
    raise WriteError(f"{path} can't be taken; other runs are taking it. Try again.")


def renew(path: epath.Path, own: Holder) -> str:
    """Renew the lock of this process.

    Returns:
        "", or who has the lock now if this process has lost it.
    """
    holder = read_lock(path)
    if holder is None:
        # If the directory is gone too, the run finds out when it next writes (`locked`).
        return "gone" if is_remote(path) or path.parent.exists() else ""
    if holder.has_other_token(own):
        return f"held by {holder}"
    if is_remote(path):
        write_atomically(path, _content(path, own))
    else:
        os.utime(path)
    return ""


def remove(path: epath.Path, own: Holder) -> None:
    """Remove the lock if this process holds it, as far as the file system allows."""
    with contextlib.suppress(OSError), bucket_errors(path):
        if _is_held_by(path, own):
            path.unlink()


def _wait_for_renewal(path: epath.Path, holder: Holder, stale_s: float) -> Holder | None:
    """The holder if it is alive; if that can't be seen, it must renew its lock in time."""
    is_alive = holder.is_alive()
    if is_alive is not None:
        return holder if is_alive else None
    _log.info("%s is held by %s; waiting up to %.0f s for its renewal", path, holder, stale_s)
    # Polls are counted, not seconds: while the file system doesn't answer, nobody can renew.
    for _ in range(round(stale_s / _POLL_S)):
        time.sleep(_POLL_S)
        now = read_lock(path)
        if now != holder:
            return now
    return None


def _take_over(path: epath.Path, own: Holder, dead: Holder) -> bool:
    """Replace a dead holder, unless another process is about to.

    Only the holder of a second lock may do so. If that holder dies, its lock is taken over alike.
    """
    second = path.parent / f"{path.name}.takeover"
    if acquire(second, own, stale_s=_TAKEOVER_S) is not None:
        return False
    try:
        if read_lock(path) != dead:
            return False
        write_atomically(path, _content(path, own))
        return _is_held_by(path, own)  # not if this took so long that the second lock was lost
    finally:
        remove(second, own)


def _create(path: epath.Path, own: Holder) -> bool:
    """Create the file with its content, unless it exists."""
    content = _content(path, own)
    if is_remote(path):
        if read_lock(path) is not None:
            return False
        write_atomically(path, content)
        return _is_held_by(path, own)
    temporary = Path(f"{os.fspath(path)}.{secrets.token_hex(8)}{TEMPORARY_SUFFIX}")
    try:
        temporary.write_text(content, encoding="utf-8")
        try:
            os.link(temporary, path)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            # A process that reads the file while it's empty waits for its renewal.
            with Path(path).open("x", encoding="utf-8") as file:
                file.write(content)
    except FileExistsError:
        return _is_held_by(path, own)  # NFS may repeat a request that has succeeded
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _content(path: epath.Path, own: Holder) -> str:
    """The file's content; in a bucket with the time, because not every bucket stores it."""
    return (dataclasses.replace(own, renewed=time.time()) if is_remote(path) else own).to_json()


def _is_held_by(path: epath.Path, own: Holder) -> bool:
    holder = read_lock(path)
    return holder is not None and holder.token == own.token
