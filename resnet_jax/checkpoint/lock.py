"""A lock on a run's directory: one run at a time.

The lock is a file that names its holder, which renews the file while it is alive. Whether a holder
on another host is alive is found by watching for renewals, because clocks of hosts may differ. A
holder that was taken for dead, such as a suspended process, finds out at its next renewal.
"""

import contextlib
import dataclasses
import functools
import logging
import threading
import time
from collections.abc import Callable, Iterator

from etils import epath

from resnet_jax.checkpoint.lock_file import acquire, read_lock, remove, renew
from resnet_jax.checkpoint.lock_holder import Holder, this_process
from resnet_jax.checkpoint.workdir import CONFIG
from resnet_jax.errors import PeerError, WriteError
from resnet_jax.utils.paths import is_remote
from resnet_jax.utils.streams import run_with_timeout

LOCK = ".lock"

_log = logging.getLogger(__name__)

_RENEW_S = 15.0
_STALE_S = 90.0  # without a renewal


@dataclasses.dataclass(eq=False)
class _Held:
    """A lock that this process holds.

    Attributes:
        path, own: the file, and what it holds.
        released: whether the lock was released.
        writing: acquired to renew or remove the file.
        read_s: when the file was last read, by `time.monotonic`.
    """

    path: epath.Path
    own: Holder
    released: threading.Event = dataclasses.field(default_factory=threading.Event)
    writing: threading.Lock = dataclasses.field(default_factory=threading.Lock)
    read_s: float = float("-inf")


_all_held: set[_Held] = set()


@contextlib.contextmanager
def locked(
    workdir: epath.Path, *, on_lost: Callable[[str], None] | None = None
) -> Iterator[Callable[[], None]]:
    """Hold the lock of `workdir` inside the context.

    A dead holder's lock is taken over: at once if its process ran in this container since the last
    start of this host, otherwise after a minute and a half without a renewal.

    Args:
        workdir: an existing directory, on a file system or in a bucket.
        on_lost: called in another thread, with a sentence, if another run has taken the lock over;
            it should end the process. By default the sentence is logged as an error.

    Yields:
        A function to call before writing into the directory. It raises a WriteError if the
        directory was renamed, moved or removed, and a PeerError if another run holds the lock. In
        a bucket it looks every 15 s.

    Raises:
        WriteError: another run holds the lock, or its file can't be read or written.
    """
    held = _Held(workdir / LOCK, this_process())
    _all_held.add(held)  # before, because another thread may end the process at any moment
    try:
        holder = acquire(held.path, held.own, stale_s=_STALE_S)
    except OSError as error:
        _release(held)  # the failed operation may have taken effect
        raise WriteError(
            f"{held.path} can't be read or written ({error.strerror or error}); another run may be"
            " there. Nothing was touched; try again, or choose another --workdir."
        ) from None
    if holder is not None:
        _all_held.discard(held)
        raise WriteError(
            f"{workdir} is in use by {holder}. Nothing was touched; wait for it, end it, or choose"
            " another --workdir."
        )
    renewing = threading.Thread(
        target=_keep_renewing, args=(held, on_lost or _log.error), daemon=True
    )
    renewing.start()
    try:
        yield functools.partial(_check_held, held)
    finally:
        _release(held)


def _check_held(held: _Held) -> None:
    folder = held.path.parent
    # Training must not wait for a bucket after every dispatch.
    if is_remote(folder) and time.monotonic() - held.read_s < _RENEW_S:
        return
    held.read_s = time.monotonic()
    try:
        holder = read_lock(held.path)
    except OSError:  # the following write reports it
        return
    if holder is not None:
        if holder.has_other_token(held.own):
            raise PeerError(
                f"{folder} isn't this run's any more: its lock is held by {holder}. The lock was"
                " taken over, or the directory was moved and another run began here. What this run"
                " saved before is intact."
            )
    elif not is_remote(folder) and not (folder / CONFIG).exists():
        raise WriteError(
            f"Work directory {folder} was renamed, moved or removed while this run wrote to it."
            " What was saved is in it, wherever it is now: move it back, or start the run again"
            " with its new --workdir."
        )


def release_all(*, timeout_s: float = 3.0) -> None:
    """Release the locks of this process, because it is about to end at once."""

    def release() -> None:
        for held in list(_all_held):
            _release(held)

    run_with_timeout(release, timeout_s=timeout_s)  # the file system may be the reason to end


def _release(held: _Held) -> None:
    held.released.set()
    with held.writing:  # a renewal that has begun would write the file again
        remove(held.path, held.own)
    _all_held.discard(held)


def _keep_renewing(held: _Held, on_lost: Callable[[str], None]) -> None:
    lost = ""
    while not lost and not held.released.wait(_RENEW_S):
        # After an error the next renewal may succeed; if not, saving a checkpoint fails.
        with contextlib.suppress(OSError), held.writing:
            if not held.released.is_set():
                lost = renew(held.path, held.own)
    if lost:
        on_lost(
            f"{held.path.parent} isn't this run's any more, since its lock is {lost}: it wasn't"
            " renewed for too long, as by a host that was suspended, or it was deleted."
        )


@dataclasses.dataclass(frozen=True)
class LockState:
    """What is known of a lock without waiting for its renewal.

    Attributes:
        holder: the process that the lock names.
        is_alive: whether the holder is alive. Of a process on another host, the clocks of both
            hosts decide.
        age_s: seconds since the last renewal; None if the lock doesn't tell.
    """

    holder: Holder
    is_alive: bool
    age_s: float | None


def lock_state(workdir: epath.Path) -> LockState | None:
    """The state of the lock of `workdir`; None without a lock.

    Raises:
        OSError: the lock can't be read.
    """
    holder = read_lock(workdir / LOCK)
    if holder is None:
        return None
    age_s = None if holder.renewed is None else max(0.0, time.time() - holder.renewed)
    is_alive = holder.is_alive()
    if is_alive is None:
        is_alive = age_s is not None and age_s < _STALE_S
    return LockState(holder, is_alive, age_s)


def holder_of(workdir: epath.Path) -> str:
    """A description of the living holder of the lock, without waiting; "" if there is none.

    Raises:
        OSError: the lock can't be read.
    """
    state = lock_state(workdir)
    return str(state.holder) if state and state.is_alive else ""
