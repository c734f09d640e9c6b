"""One run at a time in a directory.

The holder of the lock is written into a file, which it renews while it lives. Whether a holder on
another host lives is told by watching for that, since clocks of hosts need not agree.

On a file system the file is made in a way that only one process can succeed in, over NFS too; a
bucket can't do that, so that two runs that start there within the same second may miss each other.
"""

import contextlib
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils import epath

from resnet_jax.buckets import bucket_errors, is_remote
from resnet_jax.checkpoint.workdir import write_atomically
from resnet_jax.errors import WriteError

LOCK = ".lock"

_log = logging.getLogger(__name__)

_RENEW_S = 15.0
_STALE_S = 90.0  # without a renewal, as we see it
_LONG_AGO_S = 900.0  # more than clocks of hosts differ by
_LOOK_S = 0.5
_TAKEOVER_S = 5.0

_held: dict[str, epath.Path] = {}
"""The directories that this process has locked, by the lock's token."""


@contextlib.contextmanager
def locked(workdir: epath.Path) -> Iterator[None]:
    """Hold the lock of `workdir`, an existing directory, inside.

    A lock whose holder is dead is taken over: on this host that is known at once, of another host
    when it hasn't renewed its lock for a minute and a half.

    Raises:
        WriteError: another run holds it.
        OSError: it can't be written.
    """
    mine = _this_process()
    _take(workdir, mine)
    _held[mine["token"]] = workdir
    ended = threading.Event()
    renewing = threading.Thread(target=_renew, args=(workdir, mine, ended), daemon=True)
    renewing.start()
    try:
        yield
    finally:
        ended.set()
        renewing.join()
        _release(mine["token"])


def release_all(*, timeout_s: float = 3.0) -> None:
    """Give up what this process has locked, because it is about to end at once."""

    def release() -> None:
        for token in list(_held):
            _release(token)

    releasing = threading.Thread(target=release, daemon=True)  # the file system may be why it ends
    releasing.start()
    releasing.join(timeout_s)


def _release(token: str) -> None:
    workdir = _held.pop(token, None)
    if workdir is None:  # another thread ends this process, and was faster
        return
    with contextlib.suppress(OSError), bucket_errors(workdir):
        if _read(workdir / LOCK).get("token") == token:
            (workdir / LOCK).unlink()


def holder_of(workdir: epath.Path) -> str:
    """Who holds the lock, in words; "" for nobody, or nobody that lives."""
    holder = _read(workdir / LOCK)
    age_s = _age_s(workdir / LOCK)
    lives = _lives_here(holder) if _is_here(holder) else age_s is not None and age_s < _STALE_S
    return _describe(holder) if lives else ""


def _describe(holder: dict[str, Any]) -> str:
    try:
        return f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
    except KeyError:
        return "a process that isn't known"


def _take(workdir: epath.Path, mine: dict[str, Any]) -> None:
    for _ in range(100):
        if _create(workdir / LOCK, mine):
            return
        holder = _read(workdir / LOCK)
        if _lives_here(holder) if _is_here(holder) else _is_renewed(workdir, holder):
            raise WriteError(
                f"{workdir} is in use by {_describe(holder)}. Nothing was touched; wait for it,"
                " end it, or choose another --workdir."
            )
        if _take_over(workdir, mine, holder):
            return
        time.sleep(0.05)
    raise WriteError(f"{workdir / LOCK} can't be taken; other runs are taking it. Try again.")


def _is_renewed(workdir: epath.Path, holder: dict[str, Any]) -> bool:
    """Watch a lock from another host until its holder renews it, or should have done so."""
    first = _age_s(workdir / LOCK), _mark(workdir / LOCK)
    if first[0] is None or first[0] > _LONG_AGO_S:
        return False
    _log.info(
        "%s was in use by %s; waiting up to %.0f s for a sign of life",
        workdir,
        _describe(holder),
        _STALE_S,
    )
    deadline = time.monotonic() + _STALE_S
    while time.monotonic() < deadline:
        time.sleep(_LOOK_S)
        if (mark := _mark(workdir / LOCK)) != first[1]:
            return mark is not None  # else it has ended
    return False


def _mark(path: epath.Path) -> Any:
    """What a renewal changes; None if there is no such file."""
    modified = _modified(path)
    return None if modified is None else (modified, _read(path))


def _age_s(path: epath.Path) -> float | None:
    """Seconds since the file was written or renewed; None if there is none."""
    modified = _modified(path)
    if modified is None:
        return None
    # Not every kind of bucket tells when; there it is in the file.
    return time.time() - float(_read(path).get("renewed") or modified or time.time())


def _modified(path: epath.Path) -> float | None:
    try:
        with bucket_errors(path):  # epath tells whole seconds
            return path.stat().mtime if is_remote(path) else os.stat(path).st_mtime
    except FileNotFoundError:
        return None


def _take_over(workdir: epath.Path, mine: dict[str, Any], dead: dict[str, Any]) -> bool:
    """Put this process in a dead one's place, unless another one is about to."""
    turn = workdir / f"{LOCK}.takeover"
    if not _create(turn, mine):
        if (_age_s(turn) or 0.0) > _TAKEOVER_S:  # it died meanwhile
            turn.unlink(missing_ok=True)
        return False
    try:
        still = _read(workdir / LOCK) == dead
        if still:
            write_atomically(workdir / LOCK, _text(workdir, mine))
        return still
    finally:
        turn.unlink(missing_ok=True)


def _create(path: epath.Path, mine: dict[str, Any]) -> bool:
    """Make the file with its content at once, if there is none."""
    text = _text(path, mine)
    if is_remote(path):
        if _modified(path) is not None:
            return False
        write_atomically(path, text)
        return _read(path).get("token") == mine["token"]
    draft = Path(f"{os.fspath(path)}.{secrets.token_hex(8)}")
    try:
        draft.write_text(text, encoding="utf-8")
        os.link(draft, path)
    except FileExistsError:
        return False
    finally:
        draft.unlink(missing_ok=True)
    return True


def _renew(workdir: epath.Path, mine: dict[str, Any], ended: threading.Event) -> None:
    while not ended.wait(_RENEW_S):
        # The next renewal may succeed; a file system that is gone for good stops the saves.
        with contextlib.suppress(OSError):
            if is_remote(workdir):
                write_atomically(workdir / LOCK, _text(workdir, mine))
            else:
                os.utime(workdir / LOCK)


def _text(path: epath.Path, mine: dict[str, Any]) -> str:
    return json.dumps(mine | {"renewed": time.time()} if is_remote(path) else mine)


def _read(path: epath.Path) -> dict[str, Any]:
    """What the file says; {} if there is none, or it says nothing that can be understood."""
    try:
        with bucket_errors(path):
            holder = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return holder if isinstance(holder, dict) else {}


def _is_here(holder: dict[str, Any]) -> bool:
    """Whether its process number means something here: another container has its own numbers."""
    return holder.get("host") == _host() and (
        holder.get("boot") != _boot() or holder.get("namespace") == _namespace()
    )


def _lives_here(holder: dict[str, Any]) -> bool:
    if holder.get("boot") != _boot():
        return False
    started = _started(holder.get("pid", -1))
    return started is not None and started == holder.get("started")


def _this_process() -> dict[str, Any]:
    return {
        "host": _host(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
        "boot": _boot(),
        "namespace": _namespace(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "token": secrets.token_hex(8),
    }


def _host() -> str:
    return socket.gethostname()


def _boot() -> str:
    """Names this start of the machine, since which a process number has a meaning."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _namespace() -> str:
    """Names the set of processes that this one can see, such as those of a container."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """When the process began, so that a number used again isn't taken for it; None if it's dead."""
    try:
        # The second field is the program's name in brackets, which may have blanks and brackets.
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        fields = text.rpartition(")")[2].split()
        return None if fields[0] == "Z" else fields[19]
    except OSError:
        pass
    if Path("/proc/self/stat").exists():
        return None
    try:  # not Linux
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "unknown"
