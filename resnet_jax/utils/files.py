"""Files of this host: reading, atomic replacement, the cache folder, the limit of open files."""

import contextlib
import errno
import functools
import os
import resource
import secrets
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from resnet_jax.errors import ConfigError, WriteError

TEMPORARY_SUFFIX = ".draft"
"""Suffix of the names of files that aren't complete yet."""


def local_path(name: str | os.PathLike[str]) -> Path:
    """The path of a name on this host; ~ is the user's home.

    If nobody knows the home, the name stays as it is, as in a shell.
    """
    return Path(os.path.expanduser(name))


def cache_root() -> Path:
    """The folder for files that can be created again: in $XDG_CACHE_HOME or ~/.cache.

    For a user without a home directory it is a temporary folder of this process. In a shared folder
    other users could place programs.
    """
    root = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(root):
        root = os.path.expanduser("~/.cache")
    if not os.path.isabs(root):
        root = _temporary_folder().name
    return Path(root) / "resnet_jax"


@functools.cache
def _temporary_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="resnet_jax-")


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """Make a temporary folder, and remove it at the end. Put only its use inside.

    Raises:
        WriteError: it can't be made or written.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="resnet_jax-") as name:
            yield Path(name)
    except OSError as error:
        raise temporary_error(error) from None


def temporary_error(error: OSError) -> WriteError:
    """The error to raise for one of a temporary file or folder."""
    where = f" {tempfile.tempdir}" if tempfile.tempdir else ""  # else no folder can be used
    return WriteError(
        f"The temporary folder{where} can't be written ({error.strerror or error}); choose another"
        " by the variable TMPDIR."
    )


def replace_file(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    """Replace the file at `path` atomically: a reader or a crash sees the old or the new content.

    Args:
        path: of the file, in an existing folder.
        pieces: the content, in order.

    Raises:
        OSError: the file can't be written, or `path` is a link, a pipe, a device or a folder; what
            was there is intact.
    """
    if os.path.lexists(path):
        _check_regular(path, path.lstat().st_mode)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")
    try:
        with temporary.open("xb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # makes the rename durable
    finally:
        os.close(folder)


class NotRegularFileError(OSError):
    """A path is that of a pipe or a device, or of a symbolic link where none may be."""


@contextlib.contextmanager
def open_regular_file(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a file to read it, without waiting for the writer of a pipe.

    Whether the file is a regular one is checked after it is opened: a path that was checked before
    may be that of another file by then.

    Raises:
        IsADirectoryError: `path` is a folder.
        NotRegularFileError: `path` is a pipe or a device.
        OSError: the file can't be opened.
    """
    with open(path, "rb", opener=_open_nonblocking) as file:
        _check_regular(Path(path), os.fstat(file.fileno()).st_mode)
        yield file


def _open_nonblocking(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def _check_regular(path: Path, mode: int) -> None:
    """Check that a mode of `stat` is a regular file's."""
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not stat.S_ISREG(mode):
        kind = "a symbolic link" if stat.S_ISLNK(mode) else "a pipe or a device"
        reason = f"{path.name} is {kind}, not a regular file"
        raise NotRegularFileError(errno.EINVAL, reason, os.fspath(path))


def ensure_open_files(count: int, *, what: str) -> None:
    """Raise this process's limit of open files to at least `count`.

    Args:
        count: number of open files.
        what: what needs the files, for the error message.

    Raises:
        ConfigError: the system's hard limit is lower.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= count:
        return
    if hard != resource.RLIM_INFINITY and hard < count:
        raise ConfigError(
            f"{what} needs {count:,} open files, and a process may have {hard:,} here; allow more"
            " with `ulimit -n`."
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
