"""Paths in buckets, gs://… and s3://…, whose clients have errors of their own kinds."""

import contextlib
import errno
import os
from collections.abc import Iterator

from etils import epath

from resnet_jax.errors import UsageError

_SCHEMES = ("gs", "s3")

# The errors that clients raise without a number.
_NUMBERS = {
    FileNotFoundError: errno.ENOENT,
    FileExistsError: errno.EEXIST,
    PermissionError: errno.EACCES,
    TimeoutError: errno.ETIMEDOUT,
}


def as_path(name: epath.PathLike) -> epath.Path:
    """The path with that name, on this host or in a bucket; ~ is the user's home.

    Raises:
        UsageError: it is a URL of another kind.
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
    """Turn what the client of a bucket raises inside into an OSError with a reason of one line.

    Clients raise exceptions of the libraries that they are made of, and OSErrors without a reason
    or with a page of it. On a path of this host nothing is changed. Only calls of the client
    belong inside: a bug there would be taken for a failure of the bucket.

    Args:
        path: that is read or written, for the message.

    Raises:
        OSError: the client failed; a FileNotFoundError, FileExistsError, PermissionError or
            TimeoutError is still one. `strerror` is always set.
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
        for kind, number in _NUMBERS.items():
            if isinstance(error, kind):
                # The text may be nothing but the path.
                reason = f"{os.strerror(number)}: {text}" if text else os.strerror(number)
                raise OSError(number, reason, os.fspath(path)) from error
        raise OSError(errno.EIO, text or type(error).__name__, os.fspath(path)) from error
