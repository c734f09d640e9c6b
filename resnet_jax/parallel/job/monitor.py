"""Notices within seconds that another process of the job has ended, and ends this one too.

Otherwise the rest would wait for it in the next step, until JAX's heartbeat aborts them after
minutes, with a C++ stack trace. The lines that the roll-call has opened are kept: process 0 has one
to each other process, which the kernel breaks when either of them dies. A process that ends by
itself says so, and why.
"""

import contextlib
import json
import selectors
import socket
import threading
import time
from collections.abc import Callable

# How a job ends that has failed, in seconds: LEAVE_S < GRACE_S < SETTLE_S, and GRACE_S < LAST_S by
# what `end` may take. Process 0 has to be the last: it serves JAX's connection, and when that
# breaks, JAX aborts whoever is left with a C++ stack trace instead of an exit code and one line.
LEAVE_S = 2.0  # that a failed process other than 0 waits for the others to take leave of JAX too
GRACE_S = 3.0  # that the others have to fail by themselves, so that each can say why
SETTLE_S = 5.0  # that an error of the network waits for the news whose fault it is
LAST_S = 8.0  # until process 0 ends, if the others haven't done so before

_LONGEST = 4096  # bytes
_LONGEST_REASON = 500  # characters, each of which JSON may write as six bytes

# A host that lost its power or its network breaks no connection: ask, after 10 s of silence.
_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}


class PeerWatch:
    """Watches the other processes from a thread, until `leave`.

    A process that failed takes the others along after a grace period, so that those which fail for
    the same reason can say so themselves. One that was lost takes them along at once.
    """

    def __init__(
        self,
        process: int,
        lines: dict[int, socket.socket],
        end: Callable[[str], None],
        *,
        grace_s: float = GRACE_S,
    ) -> None:
        """Begin to watch.

        Args:
            process: number of this one.
            lines: from `call_roll`.
            end: ends this process, given a sentence that says which process was lost. It is called
                in another thread, while the main one may wait for that process in vain.
            grace_s: seconds that this process has to end by itself if another one has failed;
                process 0 then waits for the others to end, which takes them as long.
        """
        self._process, self._lines, self._end, self._grace_s = process, lines, end, grace_s
        self._heard = dict.fromkeys(lines, b"")  # of the line that isn't complete yet
        self._left = threading.Event()
        self._lost = threading.Event()
        self._selector = selectors.DefaultSelector()
        for number, line in lines.items():
            line.settimeout(5.0)
            line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in _KEEPALIVE.items():
                if hasattr(socket, option):  # Linux
                    line.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
            self._selector.register(line, selectors.EVENT_READ, number)
        threading.Thread(target=self._watch, name="watch peers", daemon=True).start()

    def leave(self, failure: str | None) -> None:
        """Say that this process ends by itself.

        Args:
            failure: why the others can't go on, in a sentence; None if it has done its part.
        """
        self._left.set()
        self._tell(self._process, failure)

    def has_lost(self, timeout_s: float) -> bool:
        """Whether a process was lost, or is within some seconds; then this one is being ended."""
        return self._lost.wait(timeout_s)

    def _tell(self, process: int, failure: str | None, *, lost: bool = False) -> None:
        if failure is not None:  # the first line; XLA's go on for pages
            failure = (failure.splitlines() or [""])[0][:_LONGEST_REASON]
        message = json.dumps({"process": process, "failure": failure, "lost": lost}).encode()
        for line in self._lines.values():
            with contextlib.suppress(OSError):  # it has ended as well
                line.sendall(message + b"\n")

    def _watch(self) -> None:
        while self._selector.get_map() and not self._left.is_set():
            for key, _ in self._selector.select(timeout=1.0):
                line: socket.socket = key.fileobj  # type: ignore[assignment]
                self._hear(line, key.data)

    def _hear(self, line: socket.socket, number: int) -> None:
        try:
            text = line.recv(_LONGEST)
        except OSError:
            text = b""
        if not text:
            self._selector.unregister(line)
            self._lose(number, "its connection broke", lost=True)
            return
        *complete, rest = (self._heard[number] + text).split(b"\n")
        self._heard[number] = rest
        for said in [*complete, rest] if len(rest) > _LONGEST else complete:
            process, failure, lost = _understand(said, number)
            if failure is None:
                self._selector.unregister(line)  # it has done its part, and hangs up
                return
            self._lose(process, failure, lost=lost)

    def _lose(self, process: int, failure: str, *, lost: bool) -> None:
        """End this process, unless it ends by itself in time."""
        if self._process == 0 and not self._left.is_set():  # the others hear it from here only
            self._tell(process, failure, lost=lost)
        if not lost and self._left.wait(self._grace_s):
            return
        if not self._left.is_set():
            self._lost.set()
            if self._process == 0:
                self._see_off(LAST_S - GRACE_S)
            self._end(f"Process {process} has ended: {failure.rstrip('.')}.")

    def _see_off(self, timeout_s: float) -> None:
        """Wait for the others to hang up."""
        deadline = time.monotonic() + timeout_s
        while self._selector.get_map() and (left_s := deadline - time.monotonic()) > 0:
            for key, _ in self._selector.select(left_s):
                line: socket.socket = key.fileobj  # type: ignore[assignment]
                with contextlib.suppress(OSError):
                    if line.recv(_LONGEST):  # it says that it is about to
                        continue
                self._selector.unregister(line)


def _understand(said: bytes, number: int) -> tuple[int, str | None, bool]:
    """Which process has ended, why (None if it has done its part), and whether it was lost.

    Args:
        said: a line, which anything may stand in.
        number: of the process that has said it.
    """
    try:
        message = json.loads(said)
        process, failure, lost = (message[name] for name in ("process", "failure", "lost"))
    except (ValueError, KeyError, TypeError, RecursionError):
        process, failure, lost = None, 0, False
    if type(process) is not int or not isinstance(failure, str | None) or type(lost) is not bool:
        return number, "it said something that can't be understood", False
    return process, failure and failure[:_LONGEST_REASON], lost
