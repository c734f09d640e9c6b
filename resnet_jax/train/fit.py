"""`fit`: a whole run, from a config to a directory of results.

A training step reads in three files: this file checks, locks and restores; loop.py is the training
loop; step.py is the pure step.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_collections
from etils import epath

from resnet_jax.checkpoint.checkpointer import Checkpointer
from resnet_jax.checkpoint.corruption import first_line
from resnet_jax.checkpoint.lock import locked
from resnet_jax.checkpoint.shared import check_shared
from resnet_jax.checkpoint.stop import FailureAction, StopRequest
from resnet_jax.checkpoint.workdir import (
    CHECKPOINTS,
    CONFIG,
    SUMMARY,
    check_config,
    prepare_workdir,
    remove_temporary_files,
    write_atomically,
)
from resnet_jax.config.extensions import extension_digests, import_extensions
from resnet_jax.config.io import bound_fields, describe_differences, to_json
from resnet_jax.config.schema import check_complete, validate
from resnet_jax.errors import ConfigError, ResnetJaxError, UsageError, WriteError
from resnet_jax.logging.console import TrainingConsole
from resnet_jax.logging.metrics_log import MetricsLog
from resnet_jax.logging.process import ProcessRecord, recorded_process
from resnet_jax.logging.prometheus import PrometheusFile
from resnet_jax.parallel.job.agreement import (
    MAIN,
    all_gather_object,
    check_consistent,
    is_main,
)
from resnet_jax.train.checks import fix_threads
from resnet_jax.train.clock import Clock
from resnet_jax.train.dispatch import CompiledSteps
from resnet_jax.train.evaluate import Evaluation
from resnet_jax.train.experiment import Experiment
from resnet_jax.train.finish import finish_run, show_finished
from resnet_jax.train.goodput import Goodput, TimeAccount, record_end
from resnet_jax.train.job_fingerprint import job_fingerprint
from resnet_jax.train.loop import train_loop
from resnet_jax.train.nonfinite import NonfiniteRecord
from resnet_jax.train.precise_bn import PreciseStatistics
from resnet_jax.train.pretrained import name_model
from resnet_jax.train.profile import ProfiledSteps, check_steps
from resnet_jax.train.records import Recorder
from resnet_jax.train.recovery import Recovery
from resnet_jax.train.restore import Beginning, restore_or_begin
from resnet_jax.train.saving import Saver
from resnet_jax.train.scoring import Scorer
from resnet_jax.train.spec import TrainSpec
from resnet_jax.train.state import TrainState
from resnet_jax.train.watchdog import Watchdog
from resnet_jax.utils.paths import as_path, bucket_errors, is_remote


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
    stop_at_step: int | None = None,
    profile: tuple[int, int] | None = None,
    stop: StopRequest | None = None,
    on_hang: Callable[[str], None] | None = None,
    started_s: float = 0.0,
) -> FitResult:
    """Train the model of `config`, or resume the run in `workdir`.

    Args:
        config: from a file in configs/ or from `default_config`.
        workdir: directory of the run, created if it doesn't exist. It is bound to this config. All
            processes of a job must share it. It may be in a bucket: gs://….
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

    Raises:
        UsageError: `stop_at_step` is less than 1, or the run doesn't have the steps `profile`.
        ConfigError: the config is impossible, needs too much memory, or differs from the config of
            the run in `workdir` or of the other processes.
        PeerError: another process has failed before the first step.
        DataError: data or checkpoints are missing or damaged, or the data have changed.
        WriteError: `workdir` can't be written.
        NumericalError: a loss, gradient, parameter or score isn't finite. What is saved is finite.
        StoppedEarly: a signal came before the steps were compiled.
    """
    if stop_at_step is not None and stop_at_step < 1:
        raise UsageError(f"stop_at_step is {stop_at_step}; it must be at least 1.")
    workdir, account = as_path(workdir), TimeAccount(started_s=started_s)
    fix_threads(config)
    try:
        with (
            contextlib.nullcontext(stop) if stop else StopRequest() as request,
            contextlib.ExitStack() as held,
        ):
            return _fit(
                config,
                workdir,
                held,
                request,
                account,
                stop_at_step=stop_at_step,
                profile=profile,
                on_hang=on_hang,
            )
    except OSError as error:
        raise WriteError(f"{workdir} can't be written: {error.strerror or error}.") from error
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            raise _out_of_memory(error) from error
        raise


def _out_of_memory(error: Exception) -> ConfigError:
    reason = first_line(error).removeprefix("RESOURCE_EXHAUSTED: ").rstrip(".")
    return ConfigError(
        f"This host or its devices have too little memory for this run ({reason}). What was saved"
        " before is intact. A smaller batch_size, eval_batch_size or steps_per_dispatch, a larger"
        " accumulate, model.remat, mesh.fsdp and data.resident=False each take less."
    )


def interrupt_immediately(stop: StopRequest) -> contextlib.AbstractContextManager[None]:
    """While inside, a signal ends the run at once, because there is nothing to save.

    The processes of a job agree on a step to stop at instead.
    """
    return contextlib.nullcontext() if jax.process_count() > 1 else stop.interrupt_immediately()


def _fit(
    config: ml_collections.ConfigDict,
    workdir: epath.Path,
    held: contextlib.ExitStack,
    stop: StopRequest,
    account: TimeAccount,
    *,
    stop_at_step: int | None,
    profile: tuple[int, int] | None,
    on_hang: Callable[[str], None] | None,
) -> FitResult:
    """Check everything that can be checked before anything is compiled, lock, and train."""
    fingerprint = job_fingerprint(config, stop_at_step=stop_at_step, profile=profile)
    with interrupt_immediately(stop), check_consistent(fingerprint) as common:
        check_complete(config)
        here = None if is_remote(workdir) else Path(workdir)
        import_extensions(config.extensions or (), workdir=here)
        validate(config)
        common["the sources of extensions"] = extension_digests(config.extensions)
        prepare_workdir(workdir)
        # Only the main process of a job checks the work directory.
        check_workdir: Callable[[], None] = (
            held.enter_context(locked(workdir, on_lost=on_hang)) if is_main() else lambda: None
        )
        config = name_model(config, workdir)
        new = check_config(workdir, to_json(config), describe_differences)
        record = held.enter_context(recorded_process(workdir, check_workdir=check_workdir))
        held.enter_context(stop.on_failure(record.end))
        end_account = functools.partial(record_end, workdir, account)
        held.enter_context(stop.on_failure(_if_ours(check_workdir, end_account)))
        experiment = Experiment.make(config)
        if profile:
            check_steps(profile, total_steps=experiment.spec.intervals.total_steps)
        common["the data's fingerprint"] = experiment.dataset.fingerprint
        if new and experiment.pretrained:
            common["the weights to begin with"] = experiment.pretrained.sha256
        if experiment.teacher:
            common["the weights of distill.teacher"] = experiment.teacher.sha256
    check_shared(workdir)
    if is_main():  # all processes have made their probes by now
        remove_temporary_files(workdir)
        if new:
            write_atomically(workdir / CONFIG, to_json(config))
    checkpoints = Checkpointer(
        workdir / CHECKPOINTS,
        keep=config.keep_checkpoints,
        period=experiment.spec.intervals.kept_after if config.keep_every else None,
        run=bound_fields(config),
    )
    watchdog = Watchdog(config.hang_timeout_s, on_hang)
    held.enter_context(watchdog.watching())
    try:
        return _run(
            experiment,
            workdir,
            checkpoints,
            held,
            stop,
            watchdog,
            Clock(account),
            record,
            stop_at_step=stop_at_step,
            profile=profile,
            check_workdir=check_workdir,
        )
    except BaseException:
        checkpoints.finish_writing()
        raise


def _run(
    experiment: Experiment,
    workdir: epath.Path,
    checkpoints: Checkpointer,
    held: contextlib.ExitStack,
    stop: StopRequest,
    watchdog: Watchdog,
    clock: Clock,
    record: ProcessRecord,
    *,
    stop_at_step: int | None,
    profile: tuple[int, int] | None,
    check_workdir: Callable[[], None],
) -> FitResult:
    """Restore the newest good checkpoint, train to the end or a stop, and put on record."""
    spec, config = experiment.spec, experiment.spec.config
    total_steps = spec.intervals.total_steps
    with interrupt_immediately(stop), clock.account.phase("restore"):
        watchdog.now("restoring")
        begin = restore_or_begin(experiment, checkpoints, workdir)
    state, step = begin.state, begin.step
    clock.earlier_s = begin.wall_s
    if step >= total_steps:
        with bucket_errors(workdir):
            on_record = (workdir / SUMMARY).exists()
        if all_gather_object(on_record)[MAIN]:
            with TrainingConsole(total_steps=total_steps, start_step=step) as console:
                _open(console, spec, workdir, begin)
                history, evaluation = show_finished(workdir, console)
            return FitResult(state, history, evaluation, begin.best, stopped_early=False)

    record.trains(start_step=step, total_steps=total_steps)
    goodput = Goodput(workdir, clock.account, first_step=step)
    held.enter_context(stop.on_failure(_if_ours(check_workdir, goodput.end)))
    scorer = Scorer(experiment.evaluators(), spec)
    with (
        MetricsLog(
            workdir,
            start_step=step,
            records=begin.records,
            prometheus=_prometheus(config.prometheus_dir, workdir, total_steps=total_steps),
        ) as log,
        TrainingConsole(total_steps=total_steps, start_step=step) as console,
    ):
        _open(console, spec, workdir, begin)
        if begin.change:
            console.say(begin.change)
        recorder = Recorder(spec, workdir, log=log, console=console, clock=clock, goodput=goodput)
        nonfinite = NonfiniteRecord(
            workdir, spec.orders(), limit=config.nonfinite.limit, count=begin.nonfinite
        )
        saver = Saver(
            checkpoints,
            begin.facts,
            best=begin.best,
            log=log,
            nonfinite=nonfinite,
            clock=clock,
            goodput=goodput,
            log_every=config.log_every,
            attempts=config.save_attempts,
        )
        recovery = Recovery(spec, nonfinite, checkpoints, saver)
        if step < total_steps:
            with contextlib.ExitStack() as used:
                loader = used.enter_context(contextlib.closing(experiment.loader()))
                with interrupt_immediately(stop):
                    loader.start(step)  # reads images while the step compiles
                    teacher = experiment.teacher_variables()
                    compiled = CompiledSteps(spec, teacher, clock=clock, watchdog=watchdog)
                    run_steps = used.enter_context(
                        ProfiledSteps(compiled, profile, workdir, clock=clock, watchdog=watchdog)
                    )
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
                    clock=clock,
                    watchdog=watchdog,
                    stop=stop,
                    stop_at_step=stop_at_step,
                    check_workdir=check_workdir,
                )
        if step < total_steps:
            watchdog.now("finishing the last checkpoint")
            checkpoints.close()
            goodput.end()
            console.stopped(step, workdir)
            return FitResult(state, log.history, {}, saver.best, stopped_early=True)
        clock.account.enter("evaluation")
        evaluation = finish_run(
            state,
            step,
            experiment=experiment,
            scorer=scorer,
            checkpoints=checkpoints,
            saver=saver,
            recovery=recovery,
            recorder=recorder,
            watchdog=watchdog,
        )
        goodput.end()
        return FitResult(state, log.history, evaluation, saver.best, stopped_early=False)


def _if_ours(check_workdir: Callable[[], None], write: Callable[[], None]) -> FailureAction:
    """Return a function that calls `write` unless another run has taken over the directory."""

    def write_if_ours(_: BaseException | None) -> None:
        with contextlib.suppress(ResnetJaxError):
            check_workdir()
            write()

    return write_if_ours


def _prometheus(folder: str, workdir: epath.Path, *, total_steps: int) -> PrometheusFile | None:
    return PrometheusFile(as_path(folder), workdir, total_steps=total_steps) if folder else None


def _open(console: TrainingConsole, spec: TrainSpec, workdir: epath.Path, begin: Beginning) -> None:
    devices = spec.mesh.devices
    console.opening(
        workdir,
        title=f"{spec.config.model.name} on {spec.config.data.name}",
        train_examples=spec.intervals.train_examples,
        batch_size=spec.intervals.batch_size,
        devices=f"{devices.size} × {devices.flat[0].device_kind}",
        seeds=spec.config.seeds,
        notices=begin.notices,
    )
