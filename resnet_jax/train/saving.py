"""Saving checkpoints in the background; a save that fails is tried again later."""

import dataclasses
import logging
import time
from typing import Any

from resnet_jax.checkpoint.checkpointer import Checkpointer
from resnet_jax.checkpoint.retention import best_fn
from resnet_jax.errors import WriteError
from resnet_jax.logging.metrics_log import MetricsLog
from resnet_jax.parallel.job.agreement import MAIN, all_gather_object
from resnet_jax.train.clock import Clock
from resnet_jax.train.evaluate import Evaluation
from resnet_jax.train.goodput import Goodput
from resnet_jax.train.nonfinite import NonfiniteRecord
from resnet_jax.train.state import TrainState
from resnet_jax.train.watchdog import Watchdog

_log = logging.getLogger(__name__)
_LONGEST_WAIT_S = 30  # between attempts of the last save
_MOST_DOUBLINGS = 6  # of the log intervals between attempts of other saves: up to 64


@dataclasses.dataclass(frozen=True)
class RunFacts:
    """Facts of a run that every checkpoint records, to use it and to compare them on resume.

    Attributes:
        class_names: one per logit.
        image_shape: (h, w, c) of the images that are scored.
        fingerprint: of the data.
        init_from: `Pretrained.record` of the weights that the run began with, or None.
        convolutions: implementations of convolutions in use, in order.
        teacher: `Teacher.record` of the teacher, or None.
        extensions: SHA-256 of the source of each module of `config.extensions`.
        environments: what computed the run, one entry for each change: "step", the first step; of
            `provenance` "code", "versions" and "hardware"; "convolutions"; "settings", the fields
            that may differ when a run is resumed.
    """

    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    fingerprint: str
    init_from: dict[str, str] | None
    convolutions: list[str]
    teacher: dict[str, str] | None
    extensions: dict[str, str] = dataclasses.field(default_factory=dict)
    environments: tuple[dict[str, Any], ...] = ()


class Saver:
    """Saves the states of a run, and keeps track of the best checkpoint.

    Attributes:
        best: {"step", "top1", "loss"} of the best step on the validation split that has a
            checkpoint, or is being saved; None before the first.
        facts: recorded in each checkpoint.
    """

    def __init__(
        self,
        checkpoints: Checkpointer,
        facts: RunFacts,
        *,
        best: dict[str, Any] | None,
        log: MetricsLog,
        nonfinite: NonfiniteRecord,
        clock: Clock,
        goodput: Goodput,
        watchdog: Watchdog,
        log_every: int,
        attempts: int,
    ) -> None:
        """Save nothing yet.

        Args:
            checkpoints: the checkpoints of the run.
            facts: recorded in each checkpoint.
            best: of the checkpoint that the run goes on from.
            log: written before each checkpoint, as is `nonfinite`.
            nonfinite: record of steps that weren't finite.
            clock: of the run.
            goodput: told of each save, and of each return to a checkpoint.
            watchdog: told of each attempt, and of each pause before another.
            log_every: steps between log points, the unit of the pause after a failed save.
            attempts: number of saves in a row whose failure ends the run.
        """
        self.best, self.facts = best, facts
        self._checkpoints = checkpoints
        self._log, self._nonfinite, self._clock = log, nonfinite, clock
        self._goodput, self._watchdog = goodput, watchdog
        self._log_every, self._attempts = log_every, attempts
        self._best_on_disk = self._best_being_saved = best
        self._failures = 0  # in a row
        self._retry_at: int | None = None  # the step after which the next attempt is made

    def is_due(self, step: int, *, scheduled: bool) -> bool:
        """Return whether to save: when scheduled or, after a failure, at the next attempt."""
        return scheduled if self._retry_at is None else step >= self._retry_at

    def has_failed(self) -> bool:
        """Return whether the save in the background is known to have failed; doesn't wait."""
        return self._checkpoints.has_failed()

    def save(
        self,
        step: int,
        state: TrainState,
        scores: dict[str, Evaluation] | None,
        *,
        last: bool,
    ) -> None:
        """Save in the background; with `last`, wait until the checkpoint is verified.

        A failed save is tried again: with `last` at once, otherwise after a pause in steps.

        Args:
            step: number of the checkpoint.
            state: the state after `step` steps.
            scores: of the validation split, if it was just scored.
            last: this is the last save of the process.

        Raises:
            WriteError: too many saves in a row have failed.
        """
        while True:
            self._watchdog.now(f"saving step {step}")
            if scores:
                self._choose_best(step, scores["validation"])
            try:
                self._start(step, state, scores)
                if last:
                    self._settle()
                self._goodput.saved(step)
            except WriteError as error:
                self._count_failure(error, step, last=last)
                if last:
                    continue
            return

    def settle_or_count(self, step: int, *, last: bool = False) -> None:
        """Wait for the save in the background; count a failure, here or in another process.

        Raises:
            WriteError: too many saves in a row have failed.
        """
        try:
            self._settle()
        except WriteError as error:
            self._count_failure(error, step, last=last)

    def wait_until_saved(self, step: int) -> bool:
        """Wait for the save in the background; return whether it is on disk and verified.

        Raises:
            WriteError: as `settle_or_count`.
        """
        self.settle_or_count(step)
        return self._retry_at is None

    def went_back(self, step: int, best: dict[str, Any] | None) -> None:
        """Go back to the best of the checkpoint of `step`, which was restored."""
        self._goodput.went_back(step)
        self.best = self._best_on_disk = self._best_being_saved = best

    def _choose_best(self, step: int, scored: Evaluation) -> None:
        if self.best is None or best_fn(scored.metrics) >= best_fn(self.best):
            self.best = {"step": step, **scored.scalars()}

    def _start(self, step: int, state: TrainState, scores: dict[str, Evaluation] | None) -> None:
        """Write the records first: a resumed run then neither repeats nor misses a line."""
        self._settle()
        self._sync_records()
        self._checkpoints.save(
            step,
            state,
            progress={
                "best": self.best,
                "wall_s": self._clock.wall_s(),
                "nonfinite": self._nonfinite.count,
                "records": len(self._log.history),
                "records_sha256": self._log.digest(),
                **vars(self.facts),
            },
            metrics=scores["validation"].scalars() if scores else None,
        )
        self._best_being_saved, self._retry_at = self.best, None

    def _sync_records(self) -> None:
        """Make the records durable.

        Raises:
            WriteError: metrics.jsonl can't be written. All processes raise it; one writes.
        """
        own: WriteError | None = None
        try:
            self._log.sync()
        except WriteError as error:
            own = error
        if reason := all_gather_object(str(own) if own else "")[MAIN]:
            raise WriteError(reason) from own
        self._nonfinite.sync()

    def _settle(self) -> None:
        if self._checkpoints.settle():
            self._failures, self._best_on_disk = 0, self._best_being_saved

    def _count_failure(self, error: WriteError, step: int, *, last: bool) -> None:
        """Schedule the next attempt, each time twice as late up to a limit.

        With `last`, wait for the time of the attempt.

        Raises:
            WriteError: too many saves in a row have failed.
        """
        self._failures += 1
        if self._failures >= self._attempts:
            raise error
        self.best = self._best_on_disk  # the best must have a checkpoint
        pause = 2 ** min(self._failures - 1, _MOST_DOUBLINGS)
        if last:
            pause = min(pause, _LONGEST_WAIT_S)
            when = f"the next attempt is in {pause} s"
        else:
            self._retry_at = (step // self._log_every + pause) * self._log_every
            when = f"training goes on, and the next attempt is after step {self._retry_at:,}"
        tried = f"{self._failures} of {self._attempts} have failed"
        _log.warning("%s At step %d %s (%s).", error, step, when, tried)
        if last:
            self._watchdog.now(f"waiting to save step {step} again")
            time.sleep(pause)
