"""Turns signals that end a job into a request to stop at the next safe point."""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from resnet_jax.errors import StoppedEarly
from resnet_jax.utils.streams import run_with_timeout

_NOTICE = b"stopping at the next safe point, where all is saved; Ctrl-C again gives up\n"

NOTHING_LOST = (
    "stopped before the first step; nothing was lost, and the same command starts the run again"
)

FailureAction = Callable[[BaseException | None], object]

_FAILURE_S = 3.0  # for the actions of `on_failure` before a signal ends the process

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

    def __init__(self, end: Callable[[str], object] | None = None) -> None:
        """Make a request that isn't set.

        Args:
            end: prints a message and ends the process, from any thread; called on a signal while
                `interrupt_immediately` applies. With None, StoppedEarly is raised, after a
                compilation that is in progress.
        """
        self.requested = False
        self._end = end
        self._previous: dict[int, object] = {}
        self._immediate_message: str | None = None  # inside `interrupt_immediately`
        self._on_failure: list[FailureAction] = []
        self._ending = threading.Lock()

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

        With `end`, another thread ends the process: Python handles no signal during a compilation,
        which may take minutes, and an exception that a handler raises is lost if the handler
        interrupts a callback of the garbage collector or a library that catches all exceptions.

        Raises:
            StoppedEarly: without `end`, with `message`, on a signal inside the context or before
                it; if the exception of the handler was lost, at the end of the context.
        """
        with self._ending_the_process(message):
            self._immediate_message = message
            try:
                if self.requested:
                    self._stop_here(message)
                yield
                if self.requested:
                    self._stop_here(message)
            finally:
                self._immediate_message = None

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside this context, within `interrupt_immediately`, a signal sets `requested` only.

        Raises:
            StoppedEarly: at the end of the context, as `interrupt_immediately`, if a signal came.
        """
        message, self._immediate_message = self._immediate_message, None
        try:
            yield
        finally:
            self._immediate_message = message
        if message and self.requested:
            self._stop_here(message)

    @contextlib.contextmanager
    def on_failure(self, action: FailureAction) -> Iterator[None]:
        """Call `action` if an error leaves the context, or before a signal ends the process inside.

        The action takes the error, which is None if a signal ends the process. Before the process
        ends, another thread calls the actions, the innermost first, and waits for them for three
        seconds: a file system may hang.
        """
        self._on_failure.append(action)
        try:
            yield
        except BaseException as error:
            action(error)
            raise
        finally:
            self._on_failure.remove(action)

    @contextlib.contextmanager
    def _ending_the_process(self, message: str) -> Iterator[None]:
        """Inside this context another thread ends the process on a signal."""
        if self._end is None:
            yield
            return
        receiver, sender = socket.socketpair()
        sender.setblocking(False)

        def listen(end: Callable[[str], object]) -> None:
            while number := receiver.recv(1):
                # Signals outside `_previous` have other handlers.
                if number[0] in self._previous and self._immediate_message:
                    self._end_process(end, message)

        thread = threading.Thread(target=listen, args=(self._end,), daemon=True)
        thread.start()
        before = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            sender.close()  # ends `recv` in the thread, after the signals so far
            thread.join()
            receiver.close()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._immediate_message and self._end:  # the other thread ends the process
            self.requested = True
            return
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

    def _stop_here(self, message: str) -> None:
        self._immediate_message = None  # raise only once
        if self._end:
            self._end_process(self._end, message)
        raise StoppedEarly(message)

    def _end_process(self, end: Callable[[str], object], message: str) -> None:
        def act() -> None:
            for action in reversed(self._on_failure):
                action(None)

        with self._ending:  # the main thread doesn't end the process while another thread writes
            run_with_timeout(act, timeout_s=_FAILURE_S)
            end(message)
