"""Paths on this host and in buckets (gs://…, s3://…), and the errors of the buckets' clients."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from etils import epath

from resnet_jax.errors import ConfigError, UsageError
from resnet_jax.utils.files import open_regular_file

_LARGEST_DOCUMENT = 2**30  # bytes; metrics.jsonl has a few hundred per line
_SCHEMES = ("gs", "s3")

# Errors that clients raise without an errno.
_ERRNOS = {
    FileNotFoundError: errno.ENOENT,
    FileExistsError: errno.EEXIST,
    PermissionError: errno.EACCES,
    TimeoutError: errno.ETIMEDOUT,
}


def as_path(name: epath.PathLike) -> epath.Path:
    """The path of a name, on this host or in a bucket; ~ is the user's home.

    Raises:
        UsageError: the name is a URL of another scheme.
    """
    scheme, separator, _ = os.fspath(name).partition("://")
    if separator and scheme not in _SCHEMES:
        known = ", ".join(f"{each}://…" for each in _SCHEMES)
        raise UsageError(f"{os.fspath(name)} isn't a folder's name; in a bucket it is {known}.")
    return epath.Path(name).expanduser()


def is_remote(path: epath.PathLike) -> bool:
    """Whether the path is in a bucket, not on a file system of this host."""
    return "://" in os.fspath(path)


@contextlib.contextmanager
def bucket_errors(path: epath.PathLike) -> Iterator[None]:
    """Convert exceptions of a bucket's client to OSErrors with a message of one line.

    Clients raise exceptions of their own libraries, and OSErrors without a message or with a page
    of text. Exceptions for a path on this host are unchanged. Put only calls of the client inside:
    a bug there would look like a failure of the bucket.

    Args:
        path: the path that is read or written.

    Raises:
        OSError: the client failed. A FileNotFoundError, FileExistsError, PermissionError or
            TimeoutError keeps its type. `strerror` is always set.
        ImportError: the client isn't installed.
    """
    try:
        yield
    except ImportError:
        raise
    except Exception as error:
        if not is_remote(path) or getattr(error, "strerror", None):
            raise
        text = " ".join(str(error).split())
        for kind, number in _ERRNOS.items():
            if isinstance(error, kind):
                # The text may be only the path.
                reason = f"{os.strerror(number)}: {text}" if text else os.strerror(number)
                raise OSError(number, reason, os.fspath(path)) from error
        raise OSError(errno.EIO, text or type(error).__name__, os.fspath(path)) from error


def exists(path: epath.Path) -> bool:
    """Whether there is such a file or folder.

    Raises:
        ConfigError: the path can't be reached.
    """
    try:
        with bucket_errors(path):
            return bool(path.exists())
    except OSError as error:
        raise ConfigError(f"{path} can't be read ({error.strerror or error}).") from None


def modified_s(path: epath.Path) -> float | None:
    """When a file or folder was written, in seconds since 1970; None if a bucket doesn't tell.

    Not by epath on this host: it fails for files of a user who has no name here.

    Raises:
        OSError: there is no such file or folder, or it can't be reached.
    """
    if not is_remote(path):
        return os.stat(path).st_mtime
    with bucket_errors(path):
        try:
            return path.stat().mtime or None  # 0: a bucket's folder
        except TypeError:  # the bucket tells no time
            return None


def read_document(path: epath.PathLike) -> bytes:
    """Read a file on this host or in a bucket; a pipe or a device is an error.

    Raises:
        OSError: the file can't be read, isn't a regular file or, on this host, has more than 1 GiB,
            as a sparse file may.
        ImportError: the client of this kind of bucket isn't installed.
    """
    if not is_remote(path):
        with open_regular_file(Path(path)) as file:
            if os.fstat(file.fileno()).st_size > _LARGEST_DOCUMENT:
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), os.fspath(path))
            return file.read()
    with bucket_errors(path):
        return epath.Path(path).read_bytes()
