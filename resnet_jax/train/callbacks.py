"""Callbacks: code of the caller of `fit` that sees a run at its log points, and may stop it."""

import dataclasses
import functools
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from etils import epath
from ml_collections import FrozenConfigDict

from resnet_jax.errors import CallbackError, PeerError, UsageError
from resnet_jax.parallel.job.agreement import all_gather_object
from resnet_jax.train.clock import Clock
from resnet_jax.train.evaluate import Evaluation
from resnet_jax.train.spec import TrainSpec
from resnet_jax.train.state import TrainState
from resnet_jax.train.watchdog import Watchdog
from resnet_jax.utils.messages import first_line


@dataclasses.dataclass(frozen=True, eq=False)
class RunView:
    """What a callback sees of a run. Nothing can be changed through it; `stop` asks for the end.

    Attributes:
        workdir: directory of the run.
        config: the run's configuration.
        total_steps: steps of the whole run.
        step: steps done.
        epoch: passes over the training split.
        state: the state after `step` steps, on the devices. The next step reuses its memory: copy
            what is kept, by `jax.device_get`. With several seeds its arrays have a leading axis.
        scores: the evaluation of each split that was just scored, as in `FitResult.evaluation`; {}
            in other hooks than `on_evaluate` and `on_end`.
        best: {"step", "top1", "loss"} of the best checkpoint on the validation split; None before
            the first. In `on_evaluate`, where `step` isn't saved yet, it is of earlier evaluations.
        stopped_early: in `on_end`, whether the run stopped before its last step.
    """

    workdir: epath.Path
    config: FrozenConfigDict
    total_steps: int
    step: int
    epoch: float
    state: TrainState
    scores: Mapping[str, Evaluation]
    best: Mapping[str, Any] | None
    stopped_early: bool
    _history: Sequence[dict[str, Any]]
    _stop: Callable[[str], None]

    @property
    def record(self) -> Mapping[str, Any]:
        """The last record of metrics.jsonl; {} before the first.

        In `on_log` this is the training record of this step. There is no such record if all steps
        of a seed since the last log point were skipped (`nonfinite.policy="skip"`).
        """
        return types.MappingProxyType(self._history[-1]) if self._history else {}

    @property
    def history(self) -> tuple[Mapping[str, Any], ...]:
        """All records of metrics.jsonl, including those before a restart."""
        return tuple(types.MappingProxyType(record) for record in self._history)

    def stop(self, reason: str = "") -> None:
        """Stop the run after this hook: it saves this step, and `fit` returns.

        Has no effect in `on_end`.

        Args:
            reason: shown on the console.
        """
        self._stop(reason)


class Callback:
    """Base class of callbacks for `fit(…, callbacks=[…])`; override the hooks that you need.

    In a job of several processes every process calls the hooks, in the same order: a computation on
    `run.state` runs on all of them. Training waits while a hook runs.
    """

    def on_log(self, run: RunView) -> None:
        """Called at each log point, after the training record of this step.

        `RunView.record` says when there is no such record. After a rollback
        (`nonfinite.policy="rollback"`) this hook may be called a second time for the same step,
        then with the restored state.
        """

    def on_evaluate(self, run: RunView) -> None:
        """Called after each evaluation of the validation split, with `run.scores`."""

    def on_checkpoint(self, run: RunView) -> None:
        """Called after each checkpoint, which is on disk and verified.

        A run whose callbacks have this hook waits for each checkpoint; others write in the
        background.
        """

    def on_end(self, run: RunView) -> None:
        """Called once, after summary.json is written or the run has stopped.

        It isn't called when the run ends by an error, nor when `fit` returns a run that had
        finished before.
        """


Hook = Literal["on_log", "on_evaluate", "on_checkpoint", "on_end"]


class Callbacks:
    """Calls the hooks of a run's callbacks, in order, and notes what they ask for.

    A hook that no callback overrides costs nothing.

    Attributes:
        stop_reason: the callback that has stopped the run, and its reason; "" before.
    """

    def __init__(
        self,
        callbacks: Sequence[Callback],
        *,
        spec: TrainSpec,
        workdir: epath.Path,
        history: Sequence[dict[str, Any]],
        best: Callable[[], dict[str, Any] | None],
        clock: Clock,
        watchdog: Watchdog,
    ) -> None:
        """Call nothing yet.

        Args:
            callbacks: in the order in which they are called; the same in all processes.
            spec, workdir: of the run.
            history: the records of the run, to which the run appends.
            best: returns the best step so far.
            clock: paused while hooks run.
            watchdog: told of the hooks.
        """
        self.stop_reason = ""
        self._callbacks, self._spec, self._workdir = callbacks, spec, workdir
        self._history, self._best = history, best
        self._clock, self._watchdog = clock, watchdog
        self._config = FrozenConfigDict(spec.config) if callbacks else None
        self._failure: CallbackError | PeerError | None = None
        self._cause: BaseException | None = None

    @property
    def see_checkpoints(self) -> bool:
        """Whether a callback has the hook `on_checkpoint`, so that the run waits for each save."""
        return bool(self._having("on_checkpoint"))

    def log(self, step: int, state: TrainState) -> bool:
        """Call `on_log`; return whether the run must stop."""
        return self._call("on_log", step, state)

    def evaluate(self, step: int, state: TrainState, scores: Mapping[str, Evaluation]) -> bool:
        """Call `on_evaluate`; return whether the run must stop."""
        return self._call("on_evaluate", step, state, scores=scores)

    def checkpoint(self, step: int, state: TrainState) -> bool:
        """Call `on_checkpoint`; return whether the run must stop."""
        return self._call("on_checkpoint", step, state)

    def end(
        self, step: int, state: TrainState, scores: Mapping[str, Evaluation], *, early: bool
    ) -> None:
        """Call `on_end`.

        Raises:
            CallbackError, PeerError: as `check`.
        """
        self._call("on_end", step, state, scores=scores, early=early)
        self.check()

    def check(self) -> None:
        """Raise the error of a callback that has failed; the run is saved.

        Raises:
            CallbackError: a callback of this process has failed.
            PeerError: a callback of another process has failed.
        """
        if self._failure:
            raise self._failure from self._cause

    def _having(self, hook: Hook) -> list[Callback]:
        base = getattr(Callback, hook)
        return [callback for callback in self._callbacks if getattr(type(callback), hook) != base]

    def _call(
        self,
        hook: Hook,
        step: int,
        state: TrainState,
        *,
        scores: Mapping[str, Evaluation] | None = None,
        early: bool = False,
    ) -> bool:
        """Call a hook; return whether a callback, here or in another process, ends the run."""
        callbacks = self._having(hook)
        if not callbacks or self._failure:
            return False
        assert self._config is not None
        asked: list[str] = []
        failed = ""
        self._watchdog.now(f"calling {hook} of the callbacks at step {step}")
        with self._clock.paused(state, "evaluation"):
            for callback in callbacks:
                name = type(callback).__name__
                view = RunView(
                    workdir=self._workdir,
                    config=self._config,
                    total_steps=self._spec.intervals.total_steps,
                    step=step,
                    epoch=self._spec.intervals.epoch(step),
                    state=state,
                    scores=types.MappingProxyType(dict(scores or {})),
                    best=types.MappingProxyType(best) if (best := self._best()) else None,
                    stopped_early=early,
                    _history=self._history,
                    _stop=functools.partial(_ask, asked, name),
                )
                try:
                    getattr(callback, hook)(view)
                except (Exception, SystemExit) as error:  # of the user's code
                    what = f"{type(error).__name__}: {first_line(error)}"
                    failed, self._cause = (
                        f"{name} has failed in {hook} at step {step} ({what})",
                        error,
                    )
                    break
        return self._agree("; ".join(asked), failed)

    def _agree(self, asked: str, failed: str) -> bool:
        """Return whether any process asks to stop, or has failed."""
        reports = all_gather_object({"asked": asked, "failed": failed})
        advice = "What was trained is saved; `fit` goes on from there."
        for number, report in enumerate(reports):
            if report["failed"]:
                self._failure = PeerError(
                    f"A callback of process {number}, {report['failed']}. {advice}"
                )
        if failed:
            self._failure = CallbackError(f"The callback {failed}. {advice}")
        reasons = [report["asked"] for report in reports if report["asked"]]
        self.stop_reason = self.stop_reason or (reasons[0] if reasons else "")
        return bool(self._failure or reasons)


def check_callbacks(callbacks: Iterable[Callback]) -> None:
    """Check that all are callbacks.

    Raises:
        UsageError: naming the first that isn't.
    """
    for callback in callbacks:
        if not isinstance(callback, Callback):
            raise UsageError(
                f"callbacks has {callback!r}, which isn't an object of a subclass of"
                " resnet_jax.Callback."
            )


def _ask(asked: list[str], name: str, reason: str) -> None:
    asked.append(f"{name}: {reason}" if reason else name)
