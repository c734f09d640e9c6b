"""Decides whether an error while reading a checkpoint means that the checkpoint is corrupt.

A corrupt checkpoint is renamed and never used again. So an error counts as corruption only if the
files themselves are known to be its cause; any other error means that they can't be reached.
"""

import contextlib
import errno
import os
import re
from collections.abc import Iterator, Sequence

from resnet_jax.parallel.job.agreement import all_gather_object
from resnet_jax.utils.messages import first_line

_MAX_REASON = 160  # characters; TensorStore's errors contain its whole configuration

# Status codes of TensorStore.
_STATUS = re.compile(
    r"\b(DATA_LOSS|NOT_FOUND|OUT_OF_RANGE|INVALID_ARGUMENT|FAILED_PRECONDITION|PERMISSION_DENIED"
    r"|UNAUTHENTICATED|UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|ABORTED|CANCELLED|UNKNOWN"
    r"|INTERNAL|UNIMPLEMENTED)\b"
)
_CORRUPTION_STATUSES = {
    "DATA_LOSS",
    "NOT_FOUND",
    "OUT_OF_RANGE",
    "INVALID_ARGUMENT",
    "FAILED_PRECONDITION",
}
_OS_ERROR = re.compile(r"\[os_error_code='(\d+)'\]")
_MISSING = (errno.ENOENT, errno.EISDIR, errno.ENOTDIR)


class CorruptionError(ValueError):
    """The content of a checkpoint differs from what was saved."""


class ForeignCheckpointError(Exception):
    """A checkpoint is whole, but of another run. It isn't set aside: only the user knows why."""


class _UnreachableError(Exception):
    """Another process couldn't reach its part of the checkpoint."""


def is_corruption(error: BaseException) -> bool:
    """Whether an error means that the checkpoint is corrupt, not that it can't be reached."""
    if isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError):
        return True
    if isinstance(error, OSError | MemoryError | ForeignCheckpointError | _UnreachableError):
        return False
    if type(error) is Exception and error.__cause__:  # Orbax wraps errors
        return is_corruption(error.__cause__)
    text = str(error)
    if found := _OS_ERROR.search(text):
        return int(found[1]) in _MISSING
    if statuses := set(_STATUS.findall(text)):
        return statuses <= _CORRUPTION_STATUSES
    # Errors of parsing; clients of buckets raise their own types.
    return isinstance(error, ValueError | LookupError | TypeError | AttributeError | EOFError)


def short_reason(error: BaseException) -> str:
    """The cause of an error of TensorStore or Orbax: the system's error, or the first line."""
    if found := _OS_ERROR.search(str(error)):
        return os.strerror(int(found[1]))
    return first_line(error, limit=_MAX_REASON)


def describe(names: Sequence[str]) -> str:
    """Description of arrays that fail their checksums; "" if there are none."""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{names[0]}{more} fails its checksum" if names else ""


@contextlib.contextmanager
def fail_together() -> Iterator[None]:
    """Run the body in every process; if it fails in one of them, raise in all of them.

    Each process reads the shards of its own devices. If only one process raised, the others would
    wait for it, or go on with another checkpoint.
    """
    own: Exception | None = None
    try:
        yield
    except Exception as error:
        own = error
    failures = all_gather_object(None if own is None else [is_corruption(own), short_reason(own)])
    if own and len(failures) == 1:
        raise own
    if failed := [failure for failure in failures if failure]:
        corrupt, reason = min(failed)  # corruption only if every failing process says so
        raise (CorruptionError if corrupt else _UnreachableError)(reason) from own
