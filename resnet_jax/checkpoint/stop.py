"""Turns signals that end a job into a request to stop at the next safe point."""

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
_REACTION_S = 2.0

NOTHING_LOST = (
    "stopped before the first step; nothing was lost, and the same command starts the run again"
)


STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def ignore_stop_signals() -> None:
    """Ignore the signals that end a job, because this process is about to end by itself.

    Otherwise a signal during the shutdown of the interpreter would kill the process and replace
    its exit code. Has no effect outside the main thread.
    """
    if threading.current_thread() is threading.main_thread():
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)


class StopRequest:
    """While entered, a signal sets `requested`; a SIGINT after it raises KeyboardInterrupt.

    Schedulers send SIGTERM, Ctrl-C sends SIGINT, and a closed terminal sends SIGHUP. A signal that
    the process already ignores, such as SIGHUP with nohup, stays ignored.
    """

    def __init__(self, end: Callable[[], None] | None = None) -> None:
        """Make a request that isn't set.

        Args:
            end: ends the process; called in another thread if `interrupt_immediately` applies but
                the main thread doesn't react, because it compiles. With None, the signal takes
                effect after the compilation.
        """
        self.requested = False
        self._end = end
        self._previous: dict[int, object] = {}
        self._immediate_message: str | None = None  # inside `interrupt_immediately`

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
        """Inside this context a signal ends the run at once, because there is nothing to save.

        Raises:
            StoppedEarly: with `message`, on a signal inside the context or before it.
        """
        with self._react_while_compiling():
            self._immediate_message = message
            try:
                if self.requested:
                    self._stop_here(message)
                yield
            finally:
                self._immediate_message = None

    @contextlib.contextmanager
    def _react_while_compiling(self) -> Iterator[None]:
        """React to signals in another thread, if the main thread doesn't within seconds.

        Python handles signals between bytecode instructions, and a compilation, which may take
        minutes, is one instruction.
        """
        if self._end is None:
            yield
            return
        left = threading.Event()
        receiver, sender = socket.socketpair()
        sender.setblocking(False)

        def listen(end: Callable[[], None]) -> None:
            if receiver.recv(1) and not left.wait(_REACTION_S):
                end()

        thread = threading.Thread(target=listen, args=(self._end,), daemon=True)
        thread.start()
        before = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            left.set()
            signal.set_wakeup_fd(before)
            sender.close()  # ends `recv` in the thread
            thread.join()
            receiver.close()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        first, self.requested = not self.requested, True
        if self._immediate_message:
            self._stop_here(self._immediate_message)
        if first:
            # After SIGHUP the terminal may be gone. `print` could deadlock, because the interrupted
            # code may hold the lock of the stream.
            with contextlib.suppress(OSError):
                os.write(2, _NOTICE)

    def _stop_here(self, message: str) -> NoReturn:
        self._immediate_message = None  # raise only once
        raise StoppedEarly(message)
