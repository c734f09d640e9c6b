"""Ends a run that is stuck: a device, a file system or another process doesn't answer.

Nothing of that raises an error. The main thread waits, and only another thread can notice.
"""

import contextlib
import faulthandler
import sys
import threading
import time
from collections.abc import Callable, Iterator

from resnet_jax.utils.streams import LossyStream, run_with_timeout

_TICK_S = 1.0
_SHOW_S = 3.0


class Watchdog:
    """Expects to be told of every step, and calls for the end of the process if it isn't."""

    def __init__(self, timeout_s: float, end: Callable[[str], None] | None) -> None:
        """Be ready to watch.

        Args:
            timeout_s: seconds without news that are too many; 0 for any number.
            end: ends this process, given a sentence that says what it was doing. It is called in
                another thread. None only shows where the threads are.
        """
        self._timeout_s, self._end = timeout_s, end
        self._silent_s, self._doing = 0.0, "nothing yet"

    def now(self, doing: str) -> None:
        """Take note that this process gets on, and what it is about to do."""
        self._silent_s, self._doing = 0.0, doing

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watch from another thread while inside."""
        if not self._timeout_s:
            yield
            return
        done = threading.Event()
        thread = threading.Thread(target=self._watch, name="watchdog", args=(done,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _watch(self, done: threading.Event) -> None:
        tick_s = min(_TICK_S, self._timeout_s / 4)
        last = time.monotonic()
        while not done.wait(tick_s):
            now = time.monotonic()
            # A laptop that slept, or a process that was stopped, has missed nothing meanwhile.
            self._silent_s += min(now - last, 2 * tick_s)
            last = now
            if self._silent_s >= self._timeout_s:
                self._bark()
                self._silent_s = 0.0

    def _bark(self) -> None:
        try:
            run_with_timeout(
                self._show_threads, timeout_s=_SHOW_S
            )  # the terminal may be what is stuck
        finally:
            if self._end:
                self._end(
                    f"This process has made no progress for {self._timeout_s:g} s (hang_timeout_s)"
                    f" while {self._doing}: it is stuck, or waits for another that is."
                )

    def _show_threads(self) -> None:
        terminal = sys.__stderr__ or sys.stderr  # a notebook's own can't be written to from C
        shown = LossyStream(terminal)
        print(f"\nno progress for {self._timeout_s:g} s; where each thread is:", file=shown)
        shown.flush()
        if terminal:
            with contextlib.suppress(OSError, ValueError):  # it was closed here
                faulthandler.dump_traceback(terminal)
