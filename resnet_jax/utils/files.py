"""Files of this host: replaced as a whole, and as many open as are needed."""

import functools
import os
import resource
import secrets
import tempfile
from collections.abc import Iterable
from pathlib import Path

from resnet_jax.errors import ConfigError

TEMPORARY_SUFFIX = ".draft"  # ends the hidden name of a file that isn't complete yet


def cache_root() -> Path:
    """Where this package keeps what it can make again: under $XDG_CACHE_HOME or ~/.cache.

    Without either, as for a user who has no home, that is a folder of this process alone, which
    ends with it. A shared one would let others put programs there.
    """
    root = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(root):
        root = os.path.expanduser("~/.cache")
    if not os.path.isabs(root):
        root = _folder_of_this_process().name
    return Path(root) / "resnet_jax"


@functools.cache
def _folder_of_this_process() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="resnet_jax-")


def replace_file(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    """Replace the file at `path`, so that a reader or a crash sees the old one or the new one.

    Args:
        path: of the file, in a folder that exists.
        pieces: the content, in order.

    Raises:
        OSError: it can't be written; the old file is intact.
    """
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
        os.fsync(folder)  # makes the rename itself durable
    finally:
        os.close(folder)


def allow_files(count: int, *, what: str) -> None:
    """Let this process have that many open files, if the system says fewer but allows it.

    Args:
        count: how many.
        what: needs them, for the message.

    Raises:
        ConfigError: the system doesn't allow it.
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
