"""The process that holds a lock: how the lock file describes it, and whether it is alive."""

import dataclasses
import json
import os
import secrets
import socket
import time
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Holder:
    """A process that holds a lock; without fields if the lock file is damaged.

    Attributes:
        host: name of its host.
        here: name of the container in which `pid` is valid; see `_here`.
        pid: number of the process.
        started: when the process started, in the units of its host.
        since: when it took the lock, for people.
        token: random text that no other holder has.
        renewed: when it renewed the lock, in seconds by the clock of a host. The file of a lock in
            a bucket has it; on a file system it is the time of the file.
    """

    host: str | None = None
    here: str | None = None
    pid: int | None = None
    started: str | None = None
    since: str | None = None
    token: str | None = None
    renewed: float | None = None

    def __str__(self) -> str:
        if self.pid is None or self.host is None or self.since is None:
            return "a process that isn't known"
        return f"process {self.pid} on {self.host}, since {self.since}"

    def is_alive(self) -> bool | None:
        """Whether the process is alive; None if that can't be seen from this process."""
        if not self.here or self.here != _here():
            return None
        started = None if self.pid is None else _started(self.pid)
        return started is not None and started == self.started

    def has_other_token(self, other: "Holder") -> bool:
        """Whether the two are different processes; a damaged lock file doesn't tell."""
        return self.token is not None and self.token != other.token

    def to_json(self) -> str:
        """The content of the lock file."""
        return json.dumps({k: v for k, v in dataclasses.asdict(self).items() if v is not None})


def parse_holder(content: bytes) -> Holder:
    """The holder of a lock file of any content."""
    try:
        fields = json.loads(content).get
        known = {field.name: fields(field.name) for field in dataclasses.fields(Holder)}
    except (ValueError, RecursionError, AttributeError):  # no JSON, or no object
        return Holder()
    types: dict[str, Any] = {"pid": int | None, "renewed": int | float | None}
    is_sound = all(isinstance(value, types.get(name, str | None)) for name, value in known.items())
    return Holder(**known) if is_sound else Holder()


def this_process() -> Holder:
    """This process as a holder, with a new token."""
    return Holder(
        host=socket.gethostname(),
        here=_here(),
        pid=os.getpid(),
        started=_started(os.getpid()),
        since=time.strftime("%Y-%m-%d %H:%M:%S %z"),
        token=secrets.token_hex(8),
    )


def _here() -> str:
    """Name of the container in which a pid is valid, since the start of its host.

    Names of hosts aren't unique. Empty where the container isn't known: not on Linux.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """When the process started, which tells it from a later one with its pid; None if it's dead."""
    try:
        # The second field is the program's name in brackets, which may have blanks and brackets.
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    # In a zombie with other threads, one of them may still be writing.
    is_dead = fields[0] == "Z" and int(fields[17]) <= 1
    return None if is_dead else fields[19]
