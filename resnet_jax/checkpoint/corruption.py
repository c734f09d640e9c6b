"""What an error while a checkpoint is read says about it: is it damaged, or out of reach?

A damaged checkpoint is set aside, for good. So it takes proof: an error of which it isn't known
that the files themselves are to blame condemns nothing.
"""

import contextlib
import errno
import os
import re
from collections.abc import Iterator, Sequence

from resnet_jax.parallel.job.agreement import all_gather_object

_LONGEST_REASON = 160  # characters; TensorStore describes its whole configuration

# TensorStore's statuses, of which only these are about what was read.
_STATUS = re.compile(
    r"\b(DATA_LOSS|NOT_FOUND|OUT_OF_RANGE|INVALID_ARGUMENT|FAILED_PRECONDITION|PERMISSION_DENIED"
    r"|UNAUTHENTICATED|UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|ABORTED|CANCELLED|UNKNOWN"
    r"|INTERNAL|UNIMPLEMENTED)\b"
)
_OF_THE_FILES = {
    "DATA_LOSS",
    "NOT_FOUND",
    "OUT_OF_RANGE",
    "INVALID_ARGUMENT",
    "FAILED_PRECONDITION",
}
_OS_ERROR = re.compile(r"\[os_error_code='(\d+)'\]")
_GONE = (errno.ENOENT, errno.EISDIR, errno.ENOTDIR)


class FlawError(ValueError):
    """What was read isn't what was saved."""


class _UnreachableError(Exception):
    """Another process couldn't read its part, for a reason outside of the checkpoint."""


def is_damage(error: BaseException) -> bool:
    """Whether the checkpoint itself is to blame for an error, not the way to it."""
    if isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError):
        return True
    if isinstance(error, OSError | MemoryError | _UnreachableError):
        return False
    if type(error) is Exception and error.__cause__:  # Orbax says where, not what
        return is_damage(error.__cause__)
    text = str(error)
    if found := _OS_ERROR.search(text):
        return int(found[1]) in _GONE
    if statuses := set(_STATUS.findall(text)):
        return statuses <= _OF_THE_FILES
    # Of files that don't parse. Clients of buckets raise classes of their own.
    return isinstance(error, ValueError | LookupError | TypeError | AttributeError | EOFError)


def first_line(error: BaseException) -> str:
    """What went wrong, in one line of reasonable length."""
    if found := _OS_ERROR.search(str(error)):
        return os.strerror(int(found[1]))
    line = (str(error).splitlines() or [""])[0] or type(error).__name__
    return line if len(line) <= _LONGEST_REASON else line[:_LONGEST_REASON] + " …"


def describe(names: Sequence[str]) -> str:
    """Which arrays aren't what was saved; "" for none."""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{names[0]}{more} fails its checksum" if names else ""


@contextlib.contextmanager
def reading_together() -> Iterator[None]:
    """Read something in every process; where one of them fails, all do.

    Each reads the parts of its own devices. If it alone found one damaged, the others would wait
    for it, or go on with another checkpoint.
    """
    mine: Exception | None = None
    try:
        yield
    except Exception as error:
        mine = error
    told = all_gather_object(None if mine is None else [is_damage(mine), first_line(mine)])
    if mine and len(told) == 1:
        raise mine
    if failed := [each for each in told if each]:
        damage, reason = min(failed)  # it condemns nothing while one couldn't look
        raise (FlawError if damage else _UnreachableError)(reason) from mine
