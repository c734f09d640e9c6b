"""`fit`: a whole run, from a config to a directory of results."""

import contextlib
from collections.abc import Callable

import jax
import ml_collections
from etils import epath

from resnet_jax.checkpoint.checkpointer import Checkpointer
from resnet_jax.checkpoint.corruption import first_line
from resnet_jax.checkpoint.lock import locked
from resnet_jax.checkpoint.shared import check_shared
from resnet_jax.checkpoint.stop import StopRequest
from resnet_jax.checkpoint.workdir import (
    CHECKPOINTS,
    CONFIG,
    check_config,
    prepare_workdir,
    remove_temporary_files,
    write_atomically,
)
from resnet_jax.config.io import describe_differences, to_json
from resnet_jax.config.schema import validate
from resnet_jax.errors import ConfigError, UsageError, WriteError
from resnet_jax.parallel.job.agreement import check_consistent, is_main
from resnet_jax.train.experiment import Experiment
from resnet_jax.train.job_fingerprint import job_fingerprint
from resnet_jax.train.loop import FitResult, Run, interrupt_immediately
from resnet_jax.train.pretrained import name_model
from resnet_jax.train.watchdog import Watchdog
from resnet_jax.utils.paths import as_path


def fit(
    config: ml_collections.ConfigDict,
    workdir: epath.PathLike,
    *,
    stop_at_step: int | None = None,
    stop: StopRequest | None = None,
    on_hang: Callable[[str], None] | None = None,
) -> FitResult:
    """Train the model of `config`, or go on where the run in `workdir` was stopped.

    Args:
        config: made by a file in configs/ or by `default_config`.
        workdir: directory of the run, created if need be; it is bound to this config. Several
            processes must share it. It may be in a bucket: gs://….
        stop_at_step: save and return after this step, as if a signal had asked for it.
        stop: a request that the caller has entered already; by default `fit` listens for signals
            itself while it trains.
        on_hang: called in another thread with a sentence when nothing has happened for
            `config.hang_timeout_s`, after the stacks of all threads were printed, or when another
            run has taken `workdir` over; it may end the process, which nothing else can. By
            default the run goes on.

    Raises:
        UsageError: `stop_at_step` is less than 1.
        ConfigError: an impossible config, or not the one that the run in `workdir` began with, or
            not that of the other processes, or one that takes more memory than there is.
        PeerError: another process has failed before the first step.
        DataError: data or checkpoints are missing or damaged, or data have changed.
        WriteError: `workdir` can't be written.
        NumericalError: something stopped being finite; nothing of that was saved.
        StoppedEarly: a signal came before there was anything to save.
    """
    if stop_at_step is not None and stop_at_step < 1:
        raise UsageError(f"stop_at_step is {stop_at_step}; it must be at least 1.")
    workdir = as_path(workdir)
    try:
        with (
            contextlib.nullcontext(stop) if stop else StopRequest() as request,
            contextlib.ExitStack() as held,
        ):
            return _fit(config, workdir, held, request, stop_at_step=stop_at_step, on_hang=on_hang)
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
        " before is intact. A smaller batch_size or eval_batch_size, a larger accumulate,"
        " model.remat, mesh.fsdp and data.resident=False each take less."
    )


def _fit(
    config: ml_collections.ConfigDict,
    workdir: epath.Path,
    held: contextlib.ExitStack,
    stop: StopRequest,
    *,
    stop_at_step: int | None,
    on_hang: Callable[[str], None] | None,
) -> FitResult:
    """Check all that can be checked before anything is compiled, and run."""
    about = job_fingerprint(config, stop_at_step=stop_at_step)
    with interrupt_immediately(stop), check_consistent(about) as common:
        validate(config)
        prepare_workdir(workdir)
        check_place = held.enter_context(locked(workdir, on_lost=on_hang)) if is_main() else None
        config = name_model(config, workdir)
        new = check_config(workdir, to_json(config), describe_differences)
        experiment = Experiment.make(config)
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
    checkpoints = Checkpointer(workdir / CHECKPOINTS, keep=config.keep_checkpoints)
    watchdog = Watchdog(config.hang_timeout_s, on_hang)
    held.enter_context(watchdog.watching())
    run = Run(
        *(experiment, workdir, checkpoints, stop, watchdog),
        check_place=check_place,
        stop_at_step=stop_at_step,
    )
    try:
        return run.go()
    except BaseException:
        checkpoints.finish_writing()
        raise
