"""One run at a time in a directory.

The holder of the lock is written into a file, whose time it renews while it lives. On a file system
the file is made in a way that only one process can succeed in, over NFS too; a bucket can't do
that, so that two runs that start there within the same second may miss each other.
"""

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils import epath

from resnet_jax.checkpoint.workdir import is_remote, write_atomically
from resnet_jax.errors import WriteError

LOCK = ".lock"

_RENEW_S = 15.0
_TAKEOVER_S = 5.0
_STALE_S = 90.0  # of holders on other hosts, whose clocks need not agree with ours


@contextlib.contextmanager
def locked(workdir: epath.Path) -> Iterator[None]:
    """Hold the lock of `workdir`, an existing directory, inside.

    A lock whose holder is dead is taken over: on this host that is known at once, of another host
    if it hasn't renewed its lock for a minute and a half.

    Raises:
        WriteError: another run holds it.
        OSError: it can't be written.
    """
    mine = _this_process()
    _take(workdir, mine)
    ended = threading.Event()
    renewing = threading.Thread(target=_renew, args=(workdir, mine, ended), daemon=True)
    renewing.start()
    try:
        yield
    finally:
        ended.set()
        renewing.join()
        with contextlib.suppress(OSError):
            if _read(workdir / LOCK).get("token") == mine["token"]:
                (workdir / LOCK).unlink()


def holder_of(workdir: epath.Path) -> str:
    """Who holds the lock, in words; "" for nobody, or nobody that lives."""
    holder = _read(workdir / LOCK)
    return _describe(holder) if (workdir / LOCK).exists() and _lives(holder, workdir) else ""


def _describe(holder: dict[str, Any]) -> str:
    try:
        return f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
    except KeyError:
        return "a process that isn't known"


def _take(workdir: epath.Path, mine: dict[str, Any]) -> None:
    deadline = time.monotonic() + _TAKEOVER_S * 2
    while time.monotonic() < deadline:
        if _create(workdir / LOCK, mine):
            return
        holder = _read(workdir / LOCK)
        if _lives(holder, workdir):
            raise WriteError(
                f"{workdir} is in use by {_describe(holder)}. Nothing was touched; wait for it,"
                " end it, or choose another --workdir."
            )
        if _take_over(workdir, mine, holder):
            return
        time.sleep(0.05)
    raise WriteError(f"{workdir / LOCK} can't be taken; other runs are taking it. Try again.")


def _take_over(workdir: epath.Path, mine: dict[str, Any], dead: dict[str, Any]) -> bool:
    """Put this process in a dead one's place, unless another one is about to."""
    turn = workdir / f"{LOCK}.takeover"
    if not _create(turn, mine):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - turn.stat().mtime > _TAKEOVER_S:  # it died meanwhile
                turn.unlink()
        return False
    try:
        still = _read(workdir / LOCK) == dead
        if still:
            write_atomically(workdir / LOCK, json.dumps(mine))
        return still
    finally:
        turn.unlink()


def _create(path: epath.Path, mine: dict[str, Any]) -> bool:
    """Make the file with its content at once, if there is none."""
    text = json.dumps(mine)
    if is_remote(path):
        if path.exists():
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
                write_atomically(workdir / LOCK, json.dumps(mine | {"renewed": time.time()}))
            else:
                os.utime(workdir / LOCK)


def _read(path: epath.Path) -> dict[str, Any]:
    """What the file says; {} if there is none, or it says nothing that can be understood."""
    try:
        holder = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return holder if isinstance(holder, dict) else {}


def _lives(holder: dict[str, Any], workdir: epath.Path) -> bool:
    if holder.get("host") == _host():
        if holder.get("boot") != _boot():
            return False
        started = _started(holder.get("pid", -1))
        return started is not None and started == holder.get("started")
    try:
        stat = (workdir / LOCK).stat()
    except FileNotFoundError:
        return False
    return time.time() - float(holder.get("renewed", stat.mtime)) < _STALE_S


def _this_process() -> dict[str, Any]:
    return {
        "host": _host(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
        "boot": _boot(),
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
