"""Traces of training steps, for TensorBoard and Perfetto."""

import contextlib
import logging
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
from etils import epath

from resnet_jax.checkpoint.workdir import TENSORBOARD, write_atomically
from resnet_jax.data.loaders.loader import DeviceBatches
from resnet_jax.errors import UsageError
from resnet_jax.parallel.job.agreement import is_main
from resnet_jax.train.clock import Clock
from resnet_jax.train.dispatch import CompiledSteps
from resnet_jax.train.state import TrainState
from resnet_jax.train.watchdog import Watchdog
from resnet_jax.utils.paths import bucket_errors, is_remote

_log = logging.getLogger(__name__)

Steps = tuple[int, int]
"""The first and the last of the traced steps; the first step of a run is 1."""


def parse_steps(text: str) -> Steps:
    """Parse the value of `--profile`.

    Raises:
        UsageError: it isn't START:STOP, or STOP comes before START.
    """
    found = re.fullmatch(r"(\d{1,10}):(\d{1,10})", text, re.ASCII)
    steps = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= steps[0] <= steps[1]:
        raise UsageError(
            f"--profile is {text!r}; it must be START:STOP, the first and the last step to trace,"
            " such as 101:110."
        )
    return steps


def check_steps(steps: Steps, *, total_steps: int) -> None:
    """Check that the run has the steps to trace.

    Raises:
        UsageError: it hasn't.
    """
    if not 1 <= steps[0] <= steps[1] <= total_steps:
        raise UsageError(
            f"The steps to profile are {steps[0]}:{steps[1]}, but the run has the steps"
            f" 1:{total_steps}."
        )


class ProfiledSteps:
    """Takes steps as `CompiledSteps` does, and traces some of them in the main process of a job.

    The trace also has what happens between the steps, such as an evaluation, but nothing of the
    steps before and after. A trace that can't be written is a warning, not an error.

    Attributes:
        ends: the steps after which a dispatch must end, in all processes alike.
    """

    def __init__(
        self,
        run_steps: CompiledSteps,
        steps: Steps | None,
        workdir: epath.Path,
        *,
        clock: Clock,
        watchdog: Watchdog,
    ) -> None:
        """Trace nothing yet.

        Args:
            run_steps: takes the steps.
            steps: the steps to trace; None traces nothing. Of steps that an earlier process has
                taken, those that are left.
            workdir: directory of the run; the trace goes to its folder for TensorBoard.
            clock: paused while the trace is begun and written.
            watchdog: told when the trace is written.
        """
        self.ends = () if steps is None else (steps[0] - 1, steps[1])
        self._run_steps, self._clock, self._watchdog = run_steps, clock, watchdog
        self._steps = steps if is_main() else None
        self._target = workdir / TENSORBOARD
        self._folder = Path()  # of the trace on this host, once tracing has begun
        self._tracing = contextlib.ExitStack()
        self._is_tracing = False
        self._newest: TrainState | None = None  # after a traced dispatch

    def __call__(
        self, state: TrainState, batches: DeviceBatches, *, first: int, steps: int
    ) -> TrainState:
        """Take `steps` steps from step number `first` on; donates `state`."""
        if self._steps is None or not self._steps[0] - 1 <= first < self._steps[1]:
            return self._run_steps(state, batches, first=first, steps=steps)
        last = self._steps[1]
        if not self._is_tracing:
            self._run_steps.compile(state, first)  # a compilation isn't a part of the steps
            with self._clock.paused((state, batches), "evaluation"):
                self._begin()
        with jax.profiler.StepTraceAnnotation("train", step_num=first + 1):
            state = self._run_steps(state, batches, first=first, steps=steps)
        if self._is_tracing:
            self._newest = state
            if first + steps >= last:
                with self._clock.paused(state, "evaluation"):
                    self._end()
        return state

    def __enter__(self) -> "ProfiledSteps":
        return self

    def __exit__(self, *_: object) -> None:
        """Write the trace of a run that ends before the last of the steps.

        A run that took none of the steps logs a warning.
        """
        if self._is_tracing:
            whole = [leaf for leaf in jax.tree.leaves(self._newest) if not leaf.is_deleted()]
            jax.block_until_ready(whole)  # a dispatch returns before its steps are done
            self._end()
        elif self._steps is not None:
            _log.warning("No step is traced: this process took none of %d:%d.", *self._steps)

    def _begin(self) -> None:
        folder = self._target
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # it slows down the steps
        self._is_tracing = True
        with self._warning():
            if is_remote(folder):
                folder = epath.Path(self._tracing.enter_context(tempfile.TemporaryDirectory()))
            jax.profiler.start_trace(folder, create_perfetto_trace=True, profiler_options=options)
            self._folder = Path(folder)

    def _end(self) -> None:
        self._watchdog.now("writing the trace of training steps")
        self._steps, self._newest, self._is_tracing = None, None, False
        with self._tracing, self._warning():
            jax.profiler.stop_trace()
            if is_remote(self._target):
                _copy(self._folder, self._target)
            _log.info("the trace is in %s", self._target / "plugins" / "profile")

    @contextlib.contextmanager
    def _warning(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError, ValueError) as error:  # JAX raises all of them
            self._steps, self._is_tracing = None, False
            reason = " ".join(str(error).split())
            _log.warning("The steps can't be traced (%s); the run goes on.", reason)


def _copy(source: Path, target: epath.Path) -> None:
    for path in sorted(source.rglob("*")):
        if path.is_file():
            copy = target / path.relative_to(source).as_posix()
            with bucket_errors(copy):
                copy.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(copy, path.read_bytes())
