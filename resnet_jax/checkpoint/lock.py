"""One run at a time in a directory.

The holder of the lock is written into a file, which it renews while it lives. Whether a holder
that can't be seen from here lives is told by watching for that, since clocks of hosts need not
agree. One that was taken for dead, such as a suspended one, learns so when it renews its lock.

On a file system the file is made in a way that only one process can succeed in, over NFS too; a
bucket can't do that: of two runs that start there within the same second, both may go on until
the first renewal, when one of them learns that the lock is the other's.
"""

import contextlib
import dataclasses
import errno
import functools
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from etils import epath

from resnet_jax.checkpoint.workdir import CONFIG, write_atomically
from resnet_jax.errors import PeerError, WriteError
from resnet_jax.utils.files import DRAFT
from resnet_jax.utils.paths import bucket_errors, is_remote

LOCK = ".lock"

_log = logging.getLogger(__name__)

_RENEW_S = 15.0
_STALE_S = 90.0  # without a renewal, as we see it
_TAKEOVER_S = 30.0  # it takes milliseconds, or seconds where the file system is busy
_LOOK_S = 0.5

# What os.link says where there are no hard links: vfat, gcsfuse, some shares of SMB.
_NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)

_Holder = dict[str, Any]  # see _this_process; empty if the file can't be understood


@dataclasses.dataclass(frozen=True, eq=False)
class _Held:
    """A lock of this process; `writing` is held while it is renewed or removed."""

    path: epath.Path
    mine: _Holder
    ended: threading.Event = dataclasses.field(default_factory=threading.Event)
    writing: threading.Lock = dataclasses.field(default_factory=threading.Lock)


_all_held: set[_Held] = set()


@contextlib.contextmanager
def locked(
    workdir: epath.Path, *, on_lost: Callable[[str], None] | None = None
) -> Iterator[Callable[[], None]]:
    """Hold the lock of `workdir`, an existing directory, inside.

    A dead holder's lock is taken over: at once if its process ran on this start of this host and
    in this container, else when it isn't renewed while this one watches for a minute and a half.

    Args:
        workdir: on a file system or in a bucket.
        on_lost: called in another thread with a sentence when another run has taken the lock over;
            it should end the process. By default the sentence is logged as an error.

    Yields:
        A function to be called before something is written into the directory. It raises a
        WriteError if the directory was renamed, moved or removed, and a PeerError if another run
        holds the lock.

    Raises:
        WriteError: another run holds it, or it can't be read or written.
    """
    held = _Held(workdir / LOCK, _this_process())
    try:
        holder = _take(held.path, held.mine, silence_s=_STALE_S)
    except OSError as error:
        _give_up(held.path, held.mine)  # what failed may have been done
        raise WriteError(
            f"{held.path} can't be read or written ({error.strerror or error}); another run may be"
            " there. Nothing was touched; try again, or choose another --workdir."
        ) from None
    if holder is not None:
        raise WriteError(
            f"{workdir} is in use by {_describe(holder)}. Nothing was touched; wait for it,"
            " end it, or choose another --workdir."
        )
    _all_held.add(held)
    threading.Thread(target=_renew, args=(held, on_lost or _log.error), daemon=True).start()
    try:
        yield functools.partial(_check_place, held)
    finally:
        _release(held)


def _check_place(held: _Held) -> None:
    folder = held.path.parent
    try:
        found = _look(held.path)
    except OSError:  # what is written next will tell
        return
    if found is not None:
        if found[1].get("token", held.mine["token"]) != held.mine["token"]:
            raise PeerError(
                f"{folder} isn't this run's any more: its lock is held by {_describe(found[1])}."
                " The lock was taken over, or the directory was moved and another run began here."
                " What this run saved before is intact."
            )
    elif not is_remote(folder) and not (folder / CONFIG).exists():
        raise WriteError(
            f"Work directory {folder} was renamed, moved or removed while this run wrote to it."
            " What was saved is in it, wherever it is now: move it back, or start the run again"
            " with its new --workdir."
        )


def release_all(*, timeout_s: float = 3.0) -> None:
    """Give up what this process has locked, because it is about to end at once."""

    def release() -> None:
        for held in list(_all_held):
            _release(held)

    releasing = threading.Thread(target=release, daemon=True)  # the file system may be why it ends
    releasing.start()
    releasing.join(timeout_s)


def _release(held: _Held) -> None:
    held.ended.set()
    with held.writing:  # or a renewal that has begun would write the file again
        _give_up(held.path, held.mine)
    _all_held.discard(held)


def _give_up(path: epath.Path, mine: _Holder) -> None:
    with contextlib.suppress(OSError), bucket_errors(path):
        if _is_of(path, mine):
            path.unlink()


def _renew(held: _Held, on_lost: Callable[[str], None]) -> None:
    lost = ""
    while not lost and not held.ended.wait(_RENEW_S):
        # The next renewal may succeed; a file system that is gone for good stops the saves.
        with contextlib.suppress(OSError), held.writing:
            if not held.ended.is_set():
                lost = _renew_once(held.path, held.mine)
    if lost:
        on_lost(
            f"{held.path.parent} isn't this run's any more, since its lock is {lost}: it wasn't"
            " renewed for too long, as by a host that was suspended, or it was deleted."
        )


def _renew_once(path: epath.Path, mine: _Holder) -> str:
    """Show that this process lives; if the lock isn't its own any more, say whose it is instead."""
    found = _look(path)
    if found is None:
        # Of a directory that went away with its lock, who writes into it learns by the check.
        return "gone" if is_remote(path) or path.parent.exists() else ""
    if found[1].get("token", mine["token"]) != mine["token"]:
        return f"held by {_describe(found[1])}"
    if is_remote(path):
        write_atomically(path, _text(path, mine))
    else:
        os.utime(path)
    return ""


def holder_of(workdir: epath.Path) -> str:
    """Who holds the lock, in words, at a glance; "" for nobody, or nobody that lives.

    Whether a holder that can't be seen from here lives is told by the clocks of both hosts.

    Raises:
        OSError: the lock can't be read.
    """
    found = _look(workdir / LOCK)
    if found is None:
        return ""
    renewed, holder = found
    lives = _lives(holder)
    if lives is None:
        lives = time.time() - renewed < _STALE_S
    return _describe(holder) if lives else ""


def _describe(holder: _Holder) -> str:
    try:
        return f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
    except KeyError:
        return "a process that isn't known"


def _take(path: epath.Path, mine: _Holder, *, silence_s: float) -> _Holder | None:
    """Make the file this process's own, unless the holder that it returns lives."""
    for _ in range(100):
        if _create(path, mine):
            return None
        found = _look(path)
        if found is not None:  # else it was released meanwhile
            holder = _watch(path, found, silence_s)
            if holder is not None:
                return holder
            if _take_over(path, mine, found):
                return None
        time.sleep(0.05)
    raise WriteError(f"{path} can't be taken; other runs are taking it. Try again.")


def _watch(path: epath.Path, found: tuple[float, _Holder], silence_s: float) -> _Holder | None:
    """Return the holder if it lives; one that can't be seen must renew its lock within a time."""
    holder = found[1]
    lives = _lives(holder)
    if lives is not None:
        return holder if lives else None
    _log.info(
        "%s is of %s; waiting up to %.0f s for a sign of life", path, _describe(holder), silence_s
    )
    # Looks are counted, not seconds: while the file system doesn't answer, nobody can renew.
    for _ in range(round(silence_s / _LOOK_S)):
        time.sleep(_LOOK_S)
        now = _look(path)
        if now != found:
            return None if now is None else now[1]
    return None


def _take_over(path: epath.Path, mine: _Holder, dead: tuple[float, _Holder]) -> bool:
    """Put this process in a dead one's place, unless another one is about to.

    Only who holds the lock `turn` may do so. If it died meanwhile, that one is taken over alike.
    """
    turn = path.parent / f"{path.name}.takeover"
    if _take(turn, mine, silence_s=_TAKEOVER_S) is not None:
        return False
    try:
        if _look(path) != dead:
            return False
        write_atomically(path, _text(path, mine))
        return _is_of(path, mine)  # not if this took so long that another one got the turn
    finally:
        _give_up(turn, mine)


def _create(path: epath.Path, mine: _Holder) -> bool:
    """Make the file with its content at once, if there is none."""
    text = _text(path, mine)
    if is_remote(path):
        if _look(path) is not None:
            return False
        write_atomically(path, text)
        return _is_of(path, mine)
    draft = Path(f"{os.fspath(path)}.{secrets.token_hex(8)}{DRAFT}")
    try:
        draft.write_text(text, encoding="utf-8")
        try:
            os.link(draft, path)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            with Path(path).open("x", encoding="utf-8") as file:  # who sees it empty will watch it
                file.write(text)
    except FileExistsError:
        return _is_of(path, mine)  # NFS may send a request again that has succeeded
    finally:
        draft.unlink(missing_ok=True)
    return True


def _text(path: epath.Path, mine: _Holder) -> str:
    """In a bucket the time is in the file: not every kind of bucket tells it."""
    return json.dumps(mine | {"renewed": time.time()} if is_remote(path) else mine)


def _look(path: epath.Path) -> tuple[float, _Holder] | None:
    """When the file was renewed, by some host's clock, and what it says; None if there is none."""
    try:
        with bucket_errors(path), path.open("rb") as file:
            content = file.read()
            renewed = 0.0 if is_remote(path) else os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        return None
    holder: Any = None
    with contextlib.suppress(ValueError, RecursionError):
        holder = json.loads(content)
    if not isinstance(holder, dict) or not _is_sound(holder):
        return renewed, {}
    return holder.get("renewed", renewed), holder


def _is_sound(holder: _Holder) -> bool:
    """Whether what is there has the types that `_this_process` gives it."""
    return all(
        isinstance(value, {"pid": int, "renewed": int | float}.get(name, str | None))
        for name, value in holder.items()
    )


def _is_of(path: epath.Path, mine: _Holder) -> bool:
    found = _look(path)
    return found is not None and found[1].get("token") == mine["token"]


def _lives(holder: _Holder) -> bool | None:
    """Whether the process lives; None if that can't be seen from here."""
    if not _here() or holder.get("here") != _here():
        return None
    started = _started(holder.get("pid", -1))
    return started is not None and started == holder.get("started")


def _this_process() -> _Holder:
    return {
        "host": socket.gethostname(),
        "here": _here(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "token": secrets.token_hex(8),
    }


def _here() -> str:
    """Names where the number of a process means something: a container, since the host's start.

    The host's name wouldn't do, which others may have too. Empty where it isn't known: not Linux.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """When the process began, so that a number used again isn't taken for it; None if it's dead."""
    try:
        # The second field is the program's name in brackets, which may have blanks and brackets.
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    ended = fields[0] == "Z" and int(fields[17]) <= 1  # else another thread may still be writing
    return None if ended else fields[19]
