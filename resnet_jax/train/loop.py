"""The course of a run: train, log, score and save until it ends or is told to stop."""

import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from etils import epath

from resnet_jax.checkpoint.checkpointer import Checkpointer
from resnet_jax.checkpoint.retention import best_fn
from resnet_jax.checkpoint.stop import StopRequest
from resnet_jax.checkpoint.workdir import CURVES, DIAGNOSTICS, METRICS, SUMMARY
from resnet_jax.config.schema import streams
from resnet_jax.data.datasets import Dataset
from resnet_jax.errors import DataError, NumericalError, WriteError
from resnet_jax.logging.console import TrainingConsole
from resnet_jax.logging.metrics_log import MetricsLog, read_metrics
from resnet_jax.logging.report import (
    Figures,
    draw_curves,
    recorded_scores,
    recorded_summary,
    run_summary,
    write_summary,
)
from resnet_jax.ops.native import library as native
from resnet_jax.parallel.job.agreement import (
    MAIN,
    ProcessFlags,
    all_gather_object,
    is_main,
    wait_for_all,
)
from resnet_jax.train.clock import Clock
from resnet_jax.train.evaluate import Evaluation, bounded
from resnet_jax.train.experiment import Experiment
from resnet_jax.train.metrics import TrainMetrics, nonfinite_steps, with_spread
from resnet_jax.train.nonfinite import NonfiniteError, NonfiniteRecord
from resnet_jax.train.pretrained import check_unchanged
from resnet_jax.train.state import TrainState
from resnet_jax.train.step import all_finite
from resnet_jax.train.watchdog import Watchdog
from resnet_jax.utils.malloc import release_freed_memory
from resnet_jax.utils.paths import bucket_errors

if TYPE_CHECKING:
    from resnet_jax.train.diagnostics.probe import Probe

_log = logging.getLogger(__name__)
_all_finite = jax.jit(all_finite)
_LONGEST_WAIT_S = 30  # between attempts of the last save
_MOST_DOUBLINGS = 6  # of the log intervals between attempts of others: up to 64
_SETTLING = 3  # dispatches after which a step finds its memory where the last one left it


@dataclasses.dataclass(frozen=True)
class FitResult:
    """What `fit` returns.

    Attributes:
        state: the last state.
        history: the records of metrics.jsonl, one dict per log point.
        evaluation: final scores by name: "validation", "test", with moving averages also
            "validation_ema" and "test_ema", and "test_best", the test split under the best
            checkpoint if that is intact. Empty if the run stopped early; without confusion
            matrices if it had finished before, as they are read from summary.json then.
        best: {"step", "top1", "loss"} on the validation split, or None without one.
        stopped_early: the run was asked to stop; all is saved, and `fit` goes on from here.
    """

    state: TrainState
    history: list[dict[str, Any]]
    evaluation: dict[str, Evaluation]
    best: dict[str, Any] | None
    stopped_early: bool


def interrupt_immediately(stop: StopRequest) -> contextlib.AbstractContextManager[None]:
    """While inside, a signal ends the run at once; the processes of a job end at a step instead,
    which they agree on.
    """
    return contextlib.nullcontext() if jax.process_count() > 1 else stop.interrupt_immediately()


class Run:
    """A run as this process lives it; `go` is its course, the rest the parts of it in order."""

    def __init__(
        self,
        experiment: Experiment,
        workdir: epath.Path,
        checkpoints: Checkpointer,
        stop: StopRequest,
        watchdog: Watchdog,
        *,
        check_place: Callable[[], None] | None,
        stop_at_step: int | None,
    ) -> None:
        """Be ready to go; the arguments are as in `fit`, checked.

        `check_place` raises a WriteError if `workdir` isn't where it was; None in other processes
        than the main one.
        """
        self._experiment, self._plan = experiment, experiment.plan
        self._config, self._dataset = experiment.config, experiment.dataset
        self._workdir, self._checkpoints = workdir, checkpoints
        self._stop, self._watchdog, self._stop_at_step = stop, watchdog, stop_at_step
        self._check_place = check_place
        self._clock = Clock()
        self._figures = Figures(workdir)
        self._waited_s = 0.0  # for images, up to the last log point
        self._failed_saves = 0  # in a row
        self._probe: Probe | None = None
        self._retry_at: int | None = None  # the step after which the next save is tried

    def go(self) -> FitResult:
        """Go on from the newest good checkpoint, to the end or a stop."""
        with interrupt_immediately(self._stop):
            self._restore()
        total_steps = self._plan.total_steps
        if self._step >= total_steps and all_gather_object(self._is_on_record())[MAIN]:
            return self._as_recorded()
        self._evaluators = self._experiment.evaluators()
        with (
            MetricsLog(
                self._workdir, start_step=self._step, records=self._records_then
            ) as self._log,
            TrainingConsole(total_steps=total_steps, start_step=self._step) as self._console,
        ):
            self._console.opening(self._experiment, self._workdir)
            if self._switched_from:
                self._console.say(
                    f"convolutions were by {self._switched_from} so far and are by"
                    f" {self._convolutions[-1]} from here on, which round differently: the run goes"
                    " on, but not bit for bit as it would have"
                )
            if self._step < total_steps:
                if self._step == 0 and self._plan.diagnoses_at(0):
                    self._diagnose()
                self._train()
            return self._end_early() if self._step < total_steps else self._finish()

    def _restore(self) -> None:
        self._watchdog.now("restoring")
        restored = self._checkpoints.restore_newest(self._experiment.abstract_state)
        self._step, self._best, self._records_then, gone_on = 0, None, None, 0
        devices = self._experiment.mesh.devices
        self._convolutions = [native.describe(devices.flat[0].platform, devices.size)]
        self._switched_from = ""
        if restored:
            self._step, self._state, progress = restored
            _check_same_data(progress, self._dataset, self._workdir)
            self._began_with = progress.get("init_from")  # runs of older versions drew all weights
            check_unchanged(self._config.init_from, self._began_with)
            if teacher := self._experiment.teacher:
                teacher.check(progress.get("teacher"))
            self._best, gone_on = progress["best"], progress["nonfinite"]
            self._records_then = progress.get("records")  # older versions didn't count them
            before = progress.get("convolutions", self._convolutions)  # older versions kept none
            if before[-1] != self._convolutions[-1]:
                self._switched_from = before[-1]
                before = before + self._convolutions
            self._convolutions = before
            self._clock.earlier_s = progress["wall_s"]
        else:
            self._state = self._experiment.initial_state()
            weights = self._experiment.pretrained
            self._began_with = weights.record() if weights else None
        self._best_on_disk = self._best_being_saved = self._best
        self._nonfinite = NonfiniteRecord(
            self._workdir,
            self._experiment.orders(),
            limit=self._config.nonfinite.limit,
            count=gone_on,
        )

    def _is_on_record(self) -> bool:
        with bucket_errors(self._workdir):
            return (self._workdir / SUMMARY).exists()

    def _as_recorded(self) -> FitResult:
        """Finished and on record: nothing is scored again, and files are left as they are."""
        with TrainingConsole(total_steps=self._plan.total_steps, start_step=self._step) as console:
            console.opening(self._experiment, self._workdir)
            with recorded_summary(self._workdir) as summary:
                evaluation = recorded_scores(summary)
                console.closing(summary, self._workdir)
        history = read_metrics(self._workdir / METRICS)
        return FitResult(self._state, history, evaluation, self._best, stopped_early=False)

    def _train(self) -> None:
        """Take steps until the last one, or until a process is told to stop."""
        with contextlib.closing(self._experiment.batches()) as self._batches:
            with interrupt_immediately(self._stop):
                self._batches.start(self._step)  # images are read while the step compiles
                self._jitted = self._experiment.train_steps()
                self._compiled: dict[int, jax.stages.Compiled] = {}  # by the size of images
                self._teacher = self._experiment.teacher_variables()
                self._precise_statistics = self._experiment.precise_statistics()
                self._program(self._step)
            self._take_steps()

    def _program(self, step: int) -> jax.stages.Compiled:
        """The training steps for images of the size that they have then, compiled once."""
        size = self._experiment.image_sizes.at(step)
        if size not in self._compiled:
            self._watchdog.now("compiling the training step")
            with self._clock.paused(self._state):
                shapes = self._experiment.abstract_batches(image_size=size)
                lowered = self._jitted.lower(self._state, *shapes, 1, *self._teacher)
                self._compiled[size] = lowered.compile()
        return self._compiled[size]

    def _take_steps(self) -> None:
        self._clock.start_lap(self._step)
        flags = ProcessFlags(self._experiment.mesh)
        stopping = any(all_gather_object(self._stop.requested)) or self._is_told_to_stop_here()
        settling = _SETTLING
        while self._step < self._plan.total_steps and not stopping:
            first = self._step
            self._step = self._plan.next_pause(first, stop_at_step=self._stop_at_step)
            self._watchdog.now(f"training steps {first + 1} to {self._step}")
            steps = np.int32(self._step - first)
            batches, train_steps = self._batches.take(first), self._program(first)
            self._state = train_steps(self._state, *batches, steps, *self._teacher)
            if settling:
                settling -= 1
                jax.block_until_ready(self._state)
                release_freed_memory()
            stopping, failed = flags.any_process(
                self._stop.requested, self._checkpoints.has_failed()
            )
            stopping = stopping or self._is_told_to_stop_here()
            if failed:
                self._hear_of_failure()
            self._pause(last=stopping or self._step == self._plan.total_steps)

    def _is_told_to_stop_here(self) -> bool:
        return self._stop_at_step is not None and self._step >= self._stop_at_step

    def _pause(self, *, last: bool) -> None:
        """Log, score and save what is due; the last pause saves in any case.

        If something isn't finite and the run goes back, the same is done with the state that it
        has then, which is saved in any case, too.

        Raises:
            WriteError: the work directory isn't where it was.
        """
        if self._check_place:
            self._check_place()
        while True:
            try:
                self._log_score_and_save(last=last)
                return
            except NonfiniteError as found:
                self._recover(found)
                last = True

    def _log_score_and_save(self, *, last: bool) -> None:
        """In this order: a checkpoint's step is on record before the checkpoint exists, so a
        resumed run neither repeats nor misses a line.

        Raises:
            NonfiniteError: something isn't finite; it is neither measured, scored nor saved.
        """
        scores_now = self._plan.evaluates_at(self._step)
        if self._config.precise_bn and scores_now:
            self._measure_statistics()
        if self._plan.logs_at(self._step):
            self._log_training()
        scores_now = scores_now and "validation" in self._evaluators
        diagnoses_now = self._plan.diagnoses_at(self._step)
        due = scores_now or self._plan.saves_at(self._step)
        if self._retry_at is not None:
            due = self._step >= self._retry_at
        saves_now = due or last
        if scores_now or diagnoses_now or saves_now:
            self._check_finite()
        best = self._best
        scores = self._validate() if scores_now else None
        if not saves_now:
            self._best = best  # a state that isn't saved can't be the best
        if diagnoses_now:
            self._diagnose()
        if saves_now:
            self._save(scores, last=last)

    def _measure_statistics(self) -> None:
        self._watchdog.now(f"measuring the statistics of step {self._step}")
        waited = self._batches.waited_s
        with self._clock.paused(self._state):
            self._state = self._precise_statistics(self._state, self._batches)
        self._waited_s += self._batches.waited_s - waited  # training didn't wait for those

    def _log_training(self) -> None:
        """Fetch the meter, and write means over the examples since the last log point.

        Raises:
            NonfiniteError: there were steps that weren't finite, which aren't to be skipped. The
                others are on record.
        """
        meters = self._experiment.meters(self._state)
        nonfinite = sum(int(meter.nonfinite) for meter in meters)
        skips = self._config.nonfinite.policy == "skip"
        if nonfinite and skips:
            self._nonfinite.write(nonfinite_steps(meters), "skipped")
            what = f"{nonfinite} of the steps before {self._step} weren't finite"
            self._nonfinite.go_on(nonfinite, f"{what}, and were skipped")
        waited = self._batches.waited_s - self._waited_s
        self._waited_s = self._batches.waited_s
        trained = self._plan.batch_size * len(meters)
        speed, elapsed = self._clock.lap(self._step, trained)
        if all(meter.steps for meter in meters):
            of_seeds = [meter.means() for meter in meters]
            for means, single in zip(of_seeds, self._experiment.singles, strict=True):
                means["lr"] = float(single.schedule(self._step - 1))
            record = {
                "step": self._step,
                "epoch": round(self._plan.epoch(self._step), 4),
                "examples": self._step * self._plan.batch_size,
                "split": "train",
                **(with_spread(of_seeds) if self._experiment.seeds else of_seeds[0]),
                "img_per_s": round(speed, 1),
                "wall_s": round(self._clock.wall_s(), 3),
            }
            if streams(self._config):
                record["data_wait"] = round(min(1.0, waited / elapsed), 4)
            self._log.write(record)
            self._console.train(record)
        self._state = self._state.replace(meter=self._experiment.empty_meter())
        if nonfinite and not skips:
            what = f"The loss or its gradient{self._whose(meters)}"
            raise NonfiniteError(what, self._step, nonfinite_steps(meters))

    def _diagnose(self) -> None:
        """Measure the network, put that on record, and draw it."""
        from resnet_jax.train.diagnostics.figure import draw_diagnostics  # noqa: PLC0415

        self._watchdog.now(f"measuring the network of step {self._step}")
        with self._clock.paused(self._state):
            self._probe = self._probe or self._experiment.probe()
            measured = [self._probe(state) for state in self._experiment.single_states(self._state)]
            scalars = [one.scalars for one in measured]
            record = {
                "step": self._step,
                "epoch": round(self._plan.epoch(self._step), 4),
                "split": "diagnostics",
                **(with_spread(scalars) if self._experiment.seeds else scalars[0]),
                "wall_s": round(self._clock.wall_s(), 3),
            }
            self._log.write(record)
            if is_main():
                title = f"{self._config.model.name} on {self._config.data.name}"
                similar = measured[0].similarities
                self._figures.draw(
                    DIAGNOSTICS,
                    lambda: draw_diagnostics(
                        self._workdir, self._log.history, similar, title=title
                    ),
                )

    def _whose(self, meters: list[TrainMetrics]) -> str:
        """Of which seeds a meter tells of steps that weren't finite, if there are several."""
        seeds = self._config.seeds
        found = [str(seed) for seed, meter in zip(seeds, meters, strict=False) if meter.nonfinite]
        return f" of seed {', '.join(found)}" if found else ""

    def _validate(self) -> dict[str, Evaluation]:
        with self._clock.paused(self._state):
            self._watchdog.now(f"scoring step {self._step}")
            scores = self._score("validation", self._state, self._step)
        for name, scored in scores.items():
            record = self._score_record(name, scored, self._step)
            self._log.write(record)
            self._console.evaluation(record)
        self._choose_best(scores)
        return scores

    def _choose_best(self, scores: dict[str, Evaluation]) -> None:
        """Take this step for the best one if its scores are."""
        if self._best is None or best_fn(scores["validation"].metrics) >= best_fn(self._best):
            self._best = {"step": self._step, **scores["validation"].scalars()}

    def _score(self, split: str, state: TrainState, step: int) -> dict[str, Evaluation]:
        """Score the raw variables and, as `{split}_ema`, their moving averages."""
        evaluator = self._evaluators[split]
        scores = {split: evaluator(state.variables(), state.normalization)}
        if state.ema is not None:
            averaged = evaluator(state.variables(ema=True), state.normalization)
            scores[f"{split}_ema"] = averaged
        if self._config.seeds and self._config.nonfinite.policy == "skip":
            # A seed that is lost ends no others.
            scores = {name: bounded(scored) for name, scored in scores.items()}
        for name, scored in scores.items():
            for metric, value in scored.metrics.items():
                if not math.isfinite(value):  # the logits overflow
                    raise NonfiniteError(f"The {metric} on {name}", step, [])
        return scores

    def _save(self, scores: dict[str, Evaluation] | None, *, last: bool) -> None:
        """Save in the background; after the last step wait until it is done, and done well.

        Raises:
            WriteError: this has failed for the last time.
        """
        with self._clock.paused(self._state):
            self._watchdog.now(f"saving step {self._step}")
            while True:
                try:
                    self._save_once(scores)
                    if last:
                        self._settle()
                except WriteError as error:
                    self._count_failure(error, last=last)
                    if last:
                        if scores:  # it is saved again, with these scores
                            self._choose_best(scores)
                        continue
                return

    def _check_finite(self) -> None:
        state, meters = self._state, self._experiment.meters(self._state)
        with self._clock.paused(state):
            finite = bool(_all_finite((state.params, state.batch_stats, state.ema)))
        counted = any(meter.nonfinite for meter in meters)
        if not finite or (counted and self._config.nonfinite.policy != "skip"):
            what = f"A loss, gradient, parameter or statistic{self._whose(meters)}"
            raise NonfiniteError(what, self._step, nonfinite_steps(meters))

    def _save_once(self, scores: dict[str, Evaluation] | None) -> None:
        self._settle()
        self._log.sync()
        self._nonfinite.sync()
        self._checkpoints.save(
            self._step,
            self._state,
            progress={
                "best": self._best,
                "wall_s": self._clock.wall_s(),
                "nonfinite": self._nonfinite.count,
                "records": len(self._log.history),
                "class_names": self._dataset.class_names,
                "image_shape": self._experiment.evaluation_shape(),
                "fingerprint": self._dataset.fingerprint,
                "init_from": self._began_with,
                "convolutions": self._convolutions,
                "teacher": teacher.record() if (teacher := self._experiment.teacher) else None,
            },
            metrics=scores["validation"].scalars() if scores else None,
        )
        self._best_being_saved, self._retry_at = self._best, None

    def _settle(self) -> None:
        if self._checkpoints.settle():
            self._failed_saves, self._best_on_disk = 0, self._best_being_saved

    def _hear_of_failure(self, *, last: bool = False) -> None:
        """Wait for a save in the background, which may have failed here or in another process."""
        try:
            self._settle()
        except WriteError as error:
            self._count_failure(error, last=last)

    def _count_failure(self, error: WriteError, *, last: bool) -> None:
        """Say when the next attempt is, each time twice as late up to a limit.

        Raises:
            WriteError: there have been enough.
        """
        self._failed_saves += 1
        if self._failed_saves >= self._config.save_attempts:
            raise error
        self._best = self._best_on_disk  # a checkpoint that isn't there can't be the best
        patience = 2 ** min(self._failed_saves - 1, _MOST_DOUBLINGS)
        if last:
            patience = min(patience, _LONGEST_WAIT_S)
            when = f"the next attempt is in {patience} s"
        else:
            log_every = self._plan.log_every
            self._retry_at = (self._step // log_every + patience) * log_every
            when = f"training goes on, and the next attempt is after step {self._retry_at:,}"
        tried = f"{self._failed_saves} of {self._config.save_attempts} have failed"
        _log.warning("%s At step %d %s (%s).", error, self._step, when, tried)
        if last:
            time.sleep(patience)

    def _recover(self, found: NonfiniteError) -> None:
        """Go back to the newest checkpoint, and on from here with its state, if that is wanted.

        The caller saves it.

        What built up to the fault lies in the batches since: none of them is trained on again
        (the remedy of Chowdhery et al. 2022, 2204.02311, section 5.1).

        Raises:
            NumericalError: it isn't wanted, was done too often, or there is none.
        """
        restored = None
        if self._config.nonfinite.policy == "rollback":
            self._watchdog.now("restoring")
            self._hear_of_failure(last=True)
            restored = self._checkpoints.restore_newest(self._experiment.abstract_state)
        if restored is None:
            self._nonfinite.write(found.steps, "the run ended")
            raise self._end_of(found)
        good, state, progress = restored
        self._nonfinite.write(found.steps, f"went back to step {good}")
        self._nonfinite.go_on(1, f"{found}; went back to the checkpoint of step {good}")
        self._state = state.moved_to(self._step).replace(meter=self._experiment.empty_meter())
        self._best = self._best_on_disk = self._best_being_saved = progress["best"]

    def _end_of(self, found: NonfiniteError) -> NumericalError:
        self._checkpoints.finish_writing()  # of an earlier step, and good
        saved = self._checkpoints.steps()
        safe = (
            f"The checkpoint of step {saved[-1]} is from before" if saved else "Nothing was saved"
        )
        return NumericalError(
            f"{found}. {safe}; a lower schedule.base_lr, a schedule.warmup or optimizer.clip_norm"
            " usually helps."
        )

    def _end_early(self) -> FitResult:
        self._watchdog.now("finishing the last checkpoint")
        self._checkpoints.close()
        self._console.stopped(self._step, self._workdir)
        return FitResult(self._state, self._log.history, {}, self._best, stopped_early=True)

    def _finish(self) -> FitResult:
        """Score, and put on record."""
        self._watchdog.now("scoring the last step and the best")
        evaluation = self._final_scores()
        for name, scored in evaluation.items():
            if name.startswith("test"):  # the validation split was scored at this step already
                scored_at = self._best["step"] if self._best and name == "test_best" else self._step
                self._log.write(self._score_record(name, scored, scored_at))
        self._watchdog.now("finishing the last checkpoint")
        self._checkpoints.close()
        self._log.sync()  # summary.json tells that all else is there
        summary = run_summary(
            self._experiment,
            evaluation=evaluation,
            best=self._best,
            init_from=self._began_with,
            convolutions=self._convolutions,
            history=self._log.history,
            wall_s=self._clock.wall_s(),
        )
        if is_main():
            title = f"{self._config.model.name} on {self._config.data.name}"
            self._figures.draw(
                CURVES, lambda: draw_curves(self._workdir, self._log.history, title=title)
            )
            write_summary(self._workdir, summary)
        self._console.closing(summary, self._workdir)
        wait_for_all("the run is on record")
        history = self._log.history
        return FitResult(self._state, history, evaluation, self._best, stopped_early=False)

    def _final_scores(self) -> dict[str, Evaluation]:
        """Score the last state on every held-out split, and the selected one on the test split."""
        scores: dict[str, Evaluation] = {}
        try:
            for split in self._evaluators:
                scores |= self._score(split, self._state, self._step)
            if self._best and "test" in self._evaluators:
                step = self._best["step"]
                abstract = self._experiment.abstract_state
                selected, _ = self._checkpoints.restore(step, abstract)
                scores["test_best"] = self._score("test", selected, step)["test"]
        except NonfiniteError as found:
            raise self._end_of(found) from None
        except DataError as error:  # the last state is safe, and has its scores
            _log.warning("The best checkpoint can't be scored on the test split: %s", error)
        return scores

    def _score_record(self, name: str, scored: Evaluation, step: int) -> dict[str, Any]:
        """A line of metrics.jsonl; `name` is that of a split, after a "_" the kind of weights."""
        split, _, weights = name.partition("_")
        return {
            "step": step,
            "epoch": round(self._plan.epoch(step), 4),
            "split": split,
            "weights": weights or "raw",
            "wall_s": round(self._clock.wall_s(), 3),
            **scored.scalars(),
        }


def _check_same_data(progress: dict[str, Any], dataset: Dataset, workdir: epath.Path) -> None:
    if progress["fingerprint"] != dataset.fingerprint:
        raise DataError(
            f"The images or labels of {dataset.name}, or their order, aren't those that the run in"
            f" {workdir} began with (fingerprint {dataset.fingerprint}, was"
            f" {progress['fingerprint']}). Nothing was touched; point data.dir at the old data."
        )
