"""Wall time of a run, and speed of its training without the pauses."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import jax


class Clock:
    """Counts seconds over restarts, and images per second between log points.

    All readings come from the monotonic clock, which no change of the system time disturbs.
    """

    def __init__(self, *, step: int, earlier_s: float) -> None:
        """Start counting at `step`, after `earlier_s` seconds in earlier processes."""
        self._earlier_s = earlier_s
        self._started = self._lap_started = time.monotonic()
        self._lap_step = step

    def wall_s(self) -> float:
        """Seconds that the run has taken so far, pauses and compilation included."""
        return self._earlier_s + time.monotonic() - self._started

    def lap(self, step: int, batch_size: int) -> float:
        """Training images per second since the last lap, and begin another."""
        now = time.monotonic()
        speed = (step - self._lap_step) * batch_size / max(now - self._lap_started, 1e-9)
        self._lap_started, self._lap_step = now, step
        return speed

    @contextlib.contextmanager
    def paused(self, pending: Any) -> Iterator[None]:
        """Keep what happens inside out of the lap, once the `pending` arrays are computed."""
        jax.block_until_ready(pending)
        began = time.monotonic()
        yield
        self._lap_started += time.monotonic() - began
