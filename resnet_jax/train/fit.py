"""`fit`: a whole run, from a config to a directory of results.

A training step reads in three files: this file opens the run (opening.py: checks, lock, restore)
and puts it on record; loop.py is the training loop; step.py is the pure step.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import ml_collections
from etils import epath

from resnet_jax.checkpoint.stop import StopRequest
from resnet_jax.data.readers.from_python import PythonData
from resnet_jax.data.readers.python_examples import Examples
from resnet_jax.errors import UsageError
from resnet_jax.logging.metrics_log import MetricsLog
from resnet_jax.logging.tracking import open_trackers
from resnet_jax.train.callbacks import Callback, Callbacks
from resnet_jax.train.checks import fix_threads
from resnet_jax.train.dispatch import CompiledSteps
from resnet_jax.train.evaluate import Evaluation
from resnet_jax.train.failures import explained
from resnet_jax.train.finish import finish_run, show_finished
from resnet_jax.train.goodput import Goodput, TimeAccount
from resnet_jax.train.loop import train_loop
from resnet_jax.train.nonfinite import NonfiniteRecord
from resnet_jax.train.opening import OpenRun, Requests, open_run
from resnet_jax.train.precise_bn import PreciseStatistics
from resnet_jax.train.profile import ProfiledSteps
from resnet_jax.train.records import Recorder
from resnet_jax.train.recovery import Recovery
from resnet_jax.train.saving import Saver
from resnet_jax.train.scoring import Scorer
from resnet_jax.train.state import TrainState
from resnet_jax.utils.paths import as_path


@dataclasses.dataclass(frozen=True)
class FitResult:
    """Result of `fit`.

    Attributes:
        state: the last state.
        history: the records of metrics.jsonl, one dict per record.
        evaluation: final scores by name: "validation", "test", with moving averages also
            "validation_ema" and "test_ema", and "test_best", the best checkpoint's scores on the
            test split, if that checkpoint is intact. Empty if the run stopped early. Without
            confusion matrices if the run had finished before: the scores are then read from
            summary.json.
        best: {"step", "top1", "loss"} on the validation split, or None without that split.
        stopped_early: the run was asked to stop. Everything is saved, and `fit` resumes here. If
            the request came after the compilation and before the first step, as during the
            diagnostics of step 0, there is nothing to save: the step of `state` is 0, and `fit`
            begins again.
    """

    state: TrainState
    history: list[dict[str, Any]]
    evaluation: dict[str, Evaluation]
    best: dict[str, Any] | None
    stopped_early: bool


def fit(
    config: ml_collections.ConfigDict,
    workdir: epath.PathLike,
    *,
    datasets: Mapping[str, Examples] | None = None,
    class_names: Sequence[str] = (),
    stop_at_step: int | None = None,
    profile: tuple[int, int] | None = None,
    stop: StopRequest | None = None,
    on_hang: Callable[[str], None] | None = None,
    started_s: float = 0.0,
    callbacks: Sequence[Callback] = (),
) -> FitResult:
    """Train the model of `config`, or resume the run in `workdir`.

    Args:
        config: from a file in configs/ or from `default_config`.
        workdir: directory of the run, created if it doesn't exist. It is bound to this config. All
            processes of a job must share it. It may be in a bucket: gs://….
        datasets: the data, instead of those that `config.data.name` names: the examples of each
            split, such as "train" and "test", as arrays (images, labels) or as a random-access
            source (docs/data.md). Pass the same data when the run is resumed, on every process.
        class_names: with `datasets`, one name per class; by default the labels from "0" on.
        stop_at_step: save and return after this step, as if a signal had asked for it.
        profile: the first and the last training step to trace; the first step of a run is 1. The
            trace is in the folder tensorboard/plugins/profile of `workdir`.
        stop: a request that the caller has entered already; by default `fit` listens for signals
            itself while it trains.
        on_hang: called in another thread with a message when there was no progress for
            `config.hang_timeout_s`, after the stacks of all threads were printed, or when another
            run has taken over `workdir`. It may end the process, which the stuck main thread
            can't. By default the run goes on.
        started_s: seconds since this process started, which goodput.json counts as start-up.
        callbacks: objects of subclasses of `Callback`, called in this order.

    Raises:
        UsageError: `stop_at_step` is less than 1, the run doesn't have the steps of `profile`,
            `callbacks` holds an object that isn't a `Callback`, or `datasets` isn't a mapping of
            splits.
        CallbackError: a callback has raised an exception. The run is saved first.
        ConfigError: the config is impossible, needs too much memory, or differs from the config of
            the run in `workdir` or of the other processes.
        PeerError: another process has failed before the first step.
        DataError: data or checkpoints are missing or damaged, or the data have changed.
        WriteError: `workdir` can't be written.
        NumericalError: a loss, gradient, parameter or score isn't finite. What is saved is finite.
        StoppedEarly: a signal came before the steps were compiled.
    """
    names = tuple(class_names)  # of an array, too
    if names and datasets is None:
        raise UsageError("class_names is for datasets; other data have class names of their own.")
    data = None if datasets is None else PythonData(datasets, names)
    if not isinstance(callbacks, Iterable):
        raise UsageError(f"callbacks is {callbacks!r}, not a list of callbacks.")
    requests = Requests(
        stop or StopRequest(), stop_at_step, profile, on_hang, tuple(callbacks), data
    )
    workdir, account = as_path(workdir), TimeAccount(started_s=started_s)
    fix_threads(config)
    with (
        explained(workdir),
        contextlib.nullcontext() if stop else requests.stop,
        open_run(config, workdir, requests, account) as run,
    ):
        if run.on_record:
            with run.console() as console:
                history, evaluation = show_finished(workdir, console)
            begin = run.begin
            return FitResult(begin.state, history, evaluation, begin.best, stopped_early=False)
        goodput = Goodput(workdir, account, first_step=run.begin.step)
        with run.on_failure(goodput.end):
            try:
                return _train(run, goodput)
            except BaseException:
                run.checkpoints.finish_writing()
                raise


def _train(run: OpenRun, goodput: Goodput) -> FitResult:
    """Train to the end or a stop, score, and put on record."""
    experiment, begin, clock, watchdog = run.experiment, run.begin, run.clock, run.watchdog
    spec, config = experiment.spec, experiment.spec.config
    workdir, total_steps = run.workdir, run.total_steps
    state, step = begin.state, begin.step
    scorer = Scorer(experiment.evaluators(), spec, watchdog)
    with run.requests.interrupt_immediately():
        watchdog.now("opening the trackers")
        trackers = open_trackers(config, workdir, start_step=step)
    with (
        trackers,
        MetricsLog(
            workdir,
            start_step=step,
            records=begin.records,
            total_steps=total_steps,
            prometheus_dir=config.prometheus_dir,
            trackers=trackers,
        ) as log,
        run.console() as console,
    ):
        if begin.change:
            console.say(begin.change)
        recorder = Recorder(
            spec,
            workdir,
            log=log,
            trackers=trackers,
            console=console,
            clock=clock,
            goodput=goodput,
        )
        nonfinite = NonfiniteRecord(
            workdir, spec.orders(), limit=config.nonfinite.limit, count=begin.nonfinite
        )
        saver = Saver(
            run.checkpoints,
            begin.facts,
            best=begin.best,
            log=log,
            nonfinite=nonfinite,
            clock=clock,
            goodput=goodput,
            watchdog=watchdog,
            log_every=config.log_every,
            attempts=config.save_attempts,
        )
        recovery = Recovery(spec, nonfinite, run.checkpoints, saver)
        state = recovery.count_skipped_before(state, step)
        callbacks = Callbacks(
            run.requests.callbacks,
            spec=spec,
            workdir=workdir,
            history=log.history,
            best=lambda: saver.best,
            clock=clock,
            watchdog=watchdog,
        )
        if step < total_steps:
            with contextlib.closing(experiment.loader()) as loader, contextlib.ExitStack() as used:
                with run.requests.interrupt_immediately():
                    loader.start(step)  # reads images while the step compiles
                    teacher = experiment.teacher_variables()
                    compiled = CompiledSteps(spec, teacher, clock=clock, watchdog=watchdog)
                    profiled = ProfiledSteps(
                        compiled, run.requests.profile, workdir, clock=clock, watchdog=watchdog
                    )
                    run_steps = used.enter_context(profiled)
                    measure = PreciseStatistics(spec) if config.precise_bn else None
                    compiled.compile(state, step)
                validate = functools.partial(scorer, "validation")
                state, step = train_loop(
                    state,
                    step,
                    spec=spec,
                    loader=loader,
                    run_steps=run_steps,
                    measure_statistics=measure,
                    validate=validate if "validation" in scorer.splits else None,
                    diagnose=experiment.diagnose,
                    recorder=recorder,
                    saver=saver,
                    recovery=recovery,
                    callbacks=callbacks,
                    clock=clock,
                    watchdog=watchdog,
                    stop=run.requests.stop,
                    stop_at_step=run.requests.stop_at_step,
                    check_workdir=run.check_workdir,
                )
            callbacks.check()
        if step < total_steps:
            watchdog.now("finishing the last checkpoint")
            run.checkpoints.close()
            goodput.end()
            trackers.outcome = "stopped"
            console.stopped(step, workdir, callbacks.stop_reason)
            callbacks.end(step, state, {}, early=True)
            return FitResult(state, log.history, {}, saver.best, stopped_early=True)
        clock.account.enter("evaluation")
        evaluation = finish_run(
            state, step, run=run, scorer=scorer, saver=saver, recovery=recovery, recorder=recorder
        )
        goodput.end()
        trackers.outcome = "finished"
        callbacks.end(step, state, evaluation, early=False)
        return FitResult(state, log.history, evaluation, saver.best, stopped_early=False)
