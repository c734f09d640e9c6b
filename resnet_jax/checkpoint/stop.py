"""Turns the signals that end a job into a request to stop at the next safe point."""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from resnet_jax.errors import StoppedEarly

_NOTICE = b"stopping at the next safe point, where all is saved; Ctrl-C again gives up\n"
_PATIENCE_S = 2.0

NOTHING_LOST = (
    "stopped before the first step; nothing was lost, and the same command starts the run again"
)


class StopRequest:
    """While entered, a signal sets `requested`; a SIGINT after that interrupts at once.

    SIGTERM comes from schedulers, SIGINT from Ctrl-C, SIGHUP from a terminal that is closed. A
    signal that the process was told to ignore, as nohup does with SIGHUP, is left alone.
    """

    _signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

    def __init__(self, end: Callable[[], None] | None = None) -> None:
        """Be ready to listen.

        Args:
            end: ends the process, where a signal may do that and the main thread doesn't listen
                because it compiles; called in another thread. None waits for it.
        """
        self.requested = False
        self._end = end
        self._previous: dict[int, object] = {}
        self._nothing_to_lose = False

    def __enter__(self) -> "StopRequest":
        # Python delivers signals to the main thread only, and lets only it install handlers.
        if threading.current_thread() is threading.main_thread():
            for number in self._signals:
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    @contextlib.contextmanager
    def nothing_to_lose(self) -> Iterator[None]:
        """While inside, a signal ends the run at once, because there is nothing to save.

        Raises:
            StoppedEarly: there was a signal before, or is one now.
        """
        with self._end_while_compiling():
            self._nothing_to_lose = True
            try:
                if self.requested:
                    self._stop_here()
                yield
            finally:
                self._nothing_to_lose = False

    @contextlib.contextmanager
    def _end_while_compiling(self) -> Iterator[None]:
        """Listen in another thread: the main one hears of signals between instructions of Python
        only, and a compilation, which may take minutes, is one.
        """
        if self._end is None:
            yield
            return
        left = threading.Event()
        ear, bell = socket.socketpair()
        bell.setblocking(False)

        def listen(end: Callable[[], None]) -> None:
            if ear.recv(1) and not left.wait(_PATIENCE_S):
                end()

        thread = threading.Thread(target=listen, args=(self._end,), daemon=True)
        thread.start()
        before = signal.set_wakeup_fd(bell.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            left.set()
            signal.set_wakeup_fd(before)
            bell.close()  # what the thread hears of too
            thread.join()
            ear.close()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        first, self.requested = not self.requested, True
        if self._nothing_to_lose:
            self._stop_here()
        if first:
            # The terminal may be gone, which SIGHUP tells of. Not print: its lock may be held by
            # the code that the signal interrupted.
            with contextlib.suppress(OSError):
                os.write(2, _NOTICE)

    def _stop_here(self) -> None:
        self._nothing_to_lose = False  # once is enough
        raise StoppedEarly(NOTHING_LOST)
