"""Notices within seconds that another process of the job has ended, and ends this process too.

The connections of the rendezvous are kept: process 0 has a connection to each other process, which
the kernel closes when either process dies. A process that fails sends the reason first.

JAX's own heartbeats (tested with jax 0.10.2) can't replace this. They notice a dead process after
`heartbeat_timeout_seconds`, and then abort the others by SIGABRT with a C++ stack trace, instead of
an exit code and one line. They don't notice a process that fails by an exception: it waits with all
others for `shutdown_timeout_seconds`. A short heartbeat also aborts a job one of whose hosts was
suspended for a while.
"""

import contextlib
import json
import selectors
import socket
import threading
import time
from collections.abc import Callable

# How a failed job ends, in seconds: LEAVE_S < GRACE_S < SETTLE_S, and GRACE_S < LAST_S by the time
# that `end` may take. Process 0 must end last, because it runs JAX's coordination service: when the
# connection to the service breaks, JAX aborts the other processes with a C++ stack trace; see
# aborts.py.
LEAVE_S = 2.0  # a failed process other than 0 waits so long for the others to shut down JAX too
GRACE_S = 3.0  # the others have this time to fail by themselves, so that each can report its error
SETTLE_S = 5.0  # an error of the network waits so long for the news which process has failed
LAST_S = 8.0  # process 0 ends after this time, if the others haven't ended before

_MAX_MESSAGE_BYTES = 4096
_MAX_REASON = 500  # characters, each of which JSON may write as six bytes

# A host that loses power or network closes no connection: probe it after 10 s of silence.
_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}


class PeerMonitor:
    """Monitors the other processes from a thread, until `leave`.

    If a process fails, the others end after a grace period, so that processes that fail for the
    same reason can report it themselves. If a process is lost, the others end at once.
    """

    def __init__(
        self,
        process: int,
        connections: dict[int, socket.socket],
        end: Callable[[str], None],
        *,
        grace_s: float = GRACE_S,
    ) -> None:
        """Start to monitor.

        Args:
            process: number of this process.
            connections: from `rendezvous`.
            end: ends this process, given a sentence that says which process was lost. It is called
                in another thread, because the main thread may wait for the lost process.
            grace_s: seconds that this process has to end by itself after another has failed;
                process 0 then waits for the others to end, which takes as long.
        """
        self._process, self._connections = process, connections
        self._end, self._grace_s = end, grace_s
        self._received = dict.fromkeys(connections, b"")  # of a message that isn't complete yet
        self._left = threading.Event()
        self._lost = threading.Event()
        self._selector = selectors.DefaultSelector()
        for number, connection in connections.items():
            connection.settimeout(5.0)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in _KEEPALIVE.items():
                if hasattr(socket, option):  # Linux
                    connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
            self._selector.register(connection, selectors.EVENT_READ, number)
        threading.Thread(target=self._monitor, name="monitor peers", daemon=True).start()

    def leave(self, failure: str | None) -> None:
        """Tell the others that this process ends by itself.

        Args:
            failure: why the others can't go on, in a sentence; None if this process has finished.
        """
        self._left.set()
        self._send(self._process, failure)

    def has_lost(self, timeout_s: float) -> bool:
        """Whether a process is lost within the time-out; then `end` is about to be called."""
        return self._lost.wait(timeout_s)

    def _send(self, process: int, failure: str | None, *, lost: bool = False) -> None:
        if failure is not None:  # the first line; errors of XLA have pages
            failure = (failure.splitlines() or [""])[0][:_MAX_REASON]
        message = json.dumps({"process": process, "failure": failure, "lost": lost}).encode()
        for connection in self._connections.values():
            with contextlib.suppress(OSError):  # that process has ended as well
                connection.sendall(message + b"\n")

    def _monitor(self) -> None:
        while self._selector.get_map() and not self._left.is_set():
            for key, _ in self._selector.select(timeout=1.0):
                self._receive(key.fileobj, key.data)  # type: ignore[arg-type]

    def _receive(self, connection: socket.socket, number: int) -> None:
        try:
            piece = connection.recv(_MAX_MESSAGE_BYTES)
        except OSError:
            piece = b""
        if not piece:
            self._selector.unregister(connection)
            self._lose(number, "its connection broke", lost=True)
            return
        *messages, rest = (self._received[number] + piece).split(b"\n")
        self._received[number] = rest
        for message in [*messages, rest] if len(rest) > _MAX_MESSAGE_BYTES else messages:
            process, failure, lost = _parse(message, number)
            if failure is None:
                self._selector.unregister(connection)  # the process has finished
                return
            self._lose(process, failure, lost=lost)

    def _lose(self, process: int, failure: str, *, lost: bool) -> None:
        """End this process, unless it ends by itself in time."""
        if self._process == 0 and not self._left.is_set():  # the others hear of it from process 0
            self._send(process, failure, lost=lost)
        if not lost and self._left.wait(self._grace_s):
            return
        if not self._left.is_set():
            self._lost.set()
            if self._process == 0:
                self._wait_for_others(LAST_S - GRACE_S)
            self._end(f"Process {process} has ended: {failure.rstrip('.')}.")

    def _wait_for_others(self, timeout_s: float) -> None:
        """Wait until the others have closed their connections."""
        deadline = time.monotonic() + timeout_s
        while self._selector.get_map() and (left_s := deadline - time.monotonic()) > 0:
            for key, _ in self._selector.select(left_s):
                connection: socket.socket = key.fileobj  # type: ignore[assignment]
                with contextlib.suppress(OSError):
                    if connection.recv(_MAX_MESSAGE_BYTES):  # that it is about to end
                        continue
                self._selector.unregister(connection)


def _parse(message: bytes, number: int) -> tuple[int, str | None, bool]:
    """Which process has ended, why (None if it has finished), and whether it was lost.

    Args:
        message: a line of unknown content.
        number: of the process that has sent it.
    """
    try:
        fields = json.loads(message)
        process, failure, lost = (fields[name] for name in ("process", "failure", "lost"))
    except (ValueError, KeyError, TypeError, RecursionError):
        process, failure, lost = None, 0, False
    if type(process) is not int or not isinstance(failure, str | None) or type(lost) is not bool:
        return number, "it sent a message that isn't valid", False
    return process, failure and " ".join(failure.split())[:_MAX_REASON], lost
