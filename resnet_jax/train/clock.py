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

    def __init__(self) -> None:
        """Start counting."""
        self.earlier_s = 0.0  # seconds that the run took in earlier processes
        self._started = time.monotonic()
        self.start_lap(0)

    def wall_s(self) -> float:
        """Seconds that the run has taken so far, pauses and compilation included."""
        return self.earlier_s + time.monotonic() - self._started

    def start_lap(self, step: int) -> None:
        """Leave what went before, such as compilation, out of the speed of training."""
        self._lap_started, self._lap_step = time.monotonic(), step

    def lap(self, step: int, batch_size: int) -> tuple[float, float]:
        """Training images per second since the last lap, and its seconds; begins another."""
        elapsed = max(time.monotonic() - self._lap_started, 1e-9)
        speed = (step - self._lap_step) * batch_size / elapsed
        self.start_lap(step)
        return speed, elapsed

    @contextlib.contextmanager
    def paused(self, pending: Any) -> Iterator[None]:
        """Keep what happens inside out of the lap, once the `pending` arrays are computed."""
        jax.block_until_ready(pending)
        began = time.monotonic()
        yield
        self._lap_started += time.monotonic() - began
