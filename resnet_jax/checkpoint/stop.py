"""Turns the signals that end a job into a request to stop at the next safe point."""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

from resnet_jax.errors import StoppedEarly

_NOTICE = b"stopping at the next safe point, where all is saved; Ctrl-C again gives up\n"
_PATIENCE_S = 2.0

NOTHING_LOST = (
    "stopped before the first step; nothing was lost, and the same command starts the run again"
)


STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def ignore_stop_signals() -> None:
    """Ignore the signals that end a job, because this process is about to end by itself.

    Its exit code then says how the run ended. Without this, a signal that comes while the
    interpreter shuts down kills the process. Has no effect outside the main thread.
    """
    if threading.current_thread() is threading.main_thread():
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)


class StopRequest:
    """While entered, a signal sets `requested`; a SIGINT after that interrupts at once.

    SIGTERM comes from schedulers, SIGINT from Ctrl-C, SIGHUP from a terminal that is closed. A
    signal that the process was told to ignore, as nohup does with SIGHUP, is left alone.
    """

    def __init__(self, end: Callable[[], None] | None = None) -> None:
        """Be ready to listen.

        Args:
            end: ends the process, where a signal may do that and the main thread doesn't listen
                because it compiles; called in another thread. None waits for it.
        """
        self.requested = False
        self._end = end
        self._previous: dict[int, object] = {}
        self._immediate_message: str | None = None  # what to say then

    def __enter__(self) -> "StopRequest":
        # Python delivers signals to the main thread only, and lets only it install handlers.
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            if signal.getsignal(number) == self._handle:  # not if `ignore_stop_signals` was called
                signal.signal(number, handler)  # type: ignore[arg-type]

    @contextlib.contextmanager
    def interrupt_immediately(self, message: str = NOTHING_LOST) -> Iterator[None]:
        """While inside, a signal ends the run at once, because there is nothing to save.

        Raises:
            StoppedEarly: with `message`: there was a signal before, or is one now.
        """
        with self._end_while_compiling():
            self._immediate_message = message
            try:
                if self.requested:
                    self._stop_here(message)
                yield
            finally:
                self._immediate_message = None

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
        if self._immediate_message:
            self._stop_here(self._immediate_message)
        if first:
            # The terminal may be gone, which SIGHUP tells of. Not print: its lock may be held by
            # the code that the signal interrupted.
            with contextlib.suppress(OSError):
                os.write(2, _NOTICE)

    def _stop_here(self, message: str) -> NoReturn:
        self._immediate_message = None  # once is enough
        raise StoppedEarly(message)
