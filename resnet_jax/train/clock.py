"""Wall time of a run, its phases, and training speed without pauses."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import jax

from resnet_jax.train.goodput import Phase, TimeAccount


class Clock:
    """Counts seconds over restarts, and images per second between log points.

    All readings come from the monotonic clock, which changes of the system time don't affect.

    Attributes:
        account: seconds by phase.
        earlier_s: seconds that the run took in earlier processes.
    """

    def __init__(self, account: TimeAccount | None = None) -> None:
        """Start counting; `account` has begun before."""
        self.account = account or TimeAccount()
        self.earlier_s = 0.0
        self._started = self._lap_started = time.monotonic()
        self._lap_step = 0

    def wall_s(self) -> float:
        """Return the seconds that the run has taken so far, pauses and compilation included."""
        return self.earlier_s + time.monotonic() - self._started

    def start_lap(self, step: int) -> None:
        """Exclude what happened before, such as compilation, from the training speed."""
        self.account.enter("step")
        self._lap_started, self._lap_step = time.monotonic(), step

    def lap(self, step: int, images_per_step: int) -> tuple[float, float]:
        """Return (training images per second, seconds) since the last lap, and begin a new lap."""
        elapsed_s = max(time.monotonic() - self._lap_started, 1e-9)
        speed = (step - self._lap_step) * images_per_step / elapsed_s
        self.start_lap(step)
        return speed, elapsed_s

    @contextlib.contextmanager
    def paused(self, pending: Any, phase: Phase) -> Iterator[None]:
        """Exclude what happens inside from the lap, once the `pending` arrays are computed.

        It is excluded also if it ends by an exception: a run may go back to a checkpoint.
        """
        jax.block_until_ready(pending)
        began = time.monotonic()
        try:
            with self.account.phase(phase):
                yield
        finally:
            self._lap_started += time.monotonic() - began
