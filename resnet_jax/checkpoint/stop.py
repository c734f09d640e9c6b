"""Turns the signals that end a job into a request to stop at the next safe point."""

import contextlib
import os
import signal
import threading
from types import FrameType

_NOTICE = b"stopping at the next safe point, where all is saved; Ctrl-C again gives up\n"


class StopRequest:
    """While entered, a signal sets `requested`; a SIGINT after that interrupts at once.

    SIGTERM comes from schedulers, SIGINT from Ctrl-C, SIGHUP from a terminal that is closed. A
    signal that the process was told to ignore, as nohup does with SIGHUP, is left alone.
    """

    _signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, object] = {}

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

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        first, self.requested = not self.requested, True
        if first:
            # The terminal may be gone, which SIGHUP tells of. Not print: its lock may be held by
            # the code that the signal interrupted.
            with contextlib.suppress(OSError):
                os.write(2, _NOTICE)
