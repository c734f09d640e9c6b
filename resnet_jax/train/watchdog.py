"""Detects a run that is stuck because a device, a file system or a process doesn't answer.

None of these raises an error: the main thread waits, and only another thread can notice.
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
    """Expects news of every step, and ends the process if there is none for too long."""

    def __init__(self, timeout_s: float, end: Callable[[str], None] | None) -> None:
        """Watch nothing yet.

        Args:
            timeout_s: longest time without news, in seconds; 0 disables the watchdog.
            end: ends this process, given a message that says what the process was doing. Called in
                another thread. None only prints the stacks of the threads.
        """
        self._timeout_s, self._end = timeout_s, end
        self._silent_s, self._doing = 0.0, "nothing yet"

    def now(self, doing: str) -> None:
        """Note progress, and what this process is about to do."""
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
            # Time in which a laptop slept or the process was suspended doesn't count.
            self._silent_s += min(now - last, 2 * tick_s)
            last = now
            if self._silent_s >= self._timeout_s:
                self._report()
                self._silent_s = 0.0

    def _report(self) -> None:
        try:
            # The terminal itself may be stuck.
            run_with_timeout(self._print_stacks, timeout_s=_SHOW_S)
        finally:
            if self._end:
                self._end(
                    f"This process has made no progress for {self._timeout_s:g} s (hang_timeout_s)"
                    f" while {self._doing}: it is stuck, or waits for another that is."
                )

    def _print_stacks(self) -> None:
        terminal = sys.__stderr__ or sys.stderr  # C can't write to a notebook's stream
        shown = LossyStream(terminal)
        print(f"\nno progress for {self._timeout_s:g} s; where each thread is:", file=shown)
        shown.flush()
        if terminal:
            with contextlib.suppress(OSError, ValueError):  # the terminal was closed
                faulthandler.dump_traceback(terminal)
