"""The opening of a run: checks, the lock of its directory, and the newest good checkpoint."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import ml_collections
from etils import epath

from resnet_jax.checkpoint.checkpointer import Checkpointer
from resnet_jax.checkpoint.lock import locked
from resnet_jax.checkpoint.shared import check_shared
from resnet_jax.checkpoint.stop import StopRequest
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
from resnet_jax.config.schema import check_complete, flatten, validate
from resnet_jax.data.readers.from_python import PythonData
from resnet_jax.errors import UsageError
from resnet_jax.logging.console import TrainingConsole
from resnet_jax.logging.process import ProcessRecord
from resnet_jax.logging.provenance import code_digest, package_versions
from resnet_jax.logging.tracking import check_installed
from resnet_jax.parallel.job.agreement import MAIN, all_gather_object, check_consistent, is_main
from resnet_jax.train.callbacks import Callback, check_callbacks
from resnet_jax.train.clock import Clock
from resnet_jax.train.experiment import Experiment, name_data
from resnet_jax.train.failures import unless_taken_over
from resnet_jax.train.goodput import TimeAccount, record_end
from resnet_jax.train.pretrained import name_model
from resnet_jax.train.profile import Steps, check_steps
from resnet_jax.train.restore import Beginning, restore_or_begin
from resnet_jax.train.watchdog import Watchdog
from resnet_jax.utils.paths import bucket_errors, is_remote


@dataclasses.dataclass(frozen=True, eq=False)
class Requests:
    """What the caller asks for beside the config; see the arguments of `fit`."""

    stop: StopRequest
    stop_at_step: int | None = None
    profile: Steps | None = None
    on_hang: Callable[[str], None] | None = None
    callbacks: tuple[Callback, ...] = ()
    data: PythonData | None = None

    def __post_init__(self) -> None:
        check_callbacks(self.callbacks)
        if self.stop_at_step is not None and self.stop_at_step < 1:
            raise UsageError(f"stop_at_step is {self.stop_at_step}; it must be at least 1.")

    def interrupt_immediately(self) -> contextlib.AbstractContextManager[None]:
        """While inside, a signal ends the run at once, because there is nothing to save.

        The processes of a job agree on a step to stop at instead.
        """
        if jax.process_count() > 1:
            return contextlib.nullcontext()
        return self.stop.interrupt_immediately()


@dataclasses.dataclass(frozen=True, eq=False)
class OpenRun:
    """A run that was checked, locked and restored.

    Attributes:
        workdir: directory of the run.
        experiment: what is trained, with its data.
        begin: where the run begins.
        checkpoints: checkpoints of the run.
        on_record: the run was trained and scored before.
        clock: of the run.
        watchdog: told what happens.
        check_workdir: raises WriteError if the directory isn't where it was, and PeerError if
            another run has taken it over.
        requests: of the caller.
    """

    workdir: epath.Path
    experiment: Experiment
    begin: Beginning
    checkpoints: Checkpointer
    on_record: bool
    clock: Clock
    watchdog: Watchdog
    check_workdir: Callable[[], None]
    requests: Requests

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.experiment.spec.intervals.total_steps

    def on_failure(self, write: Callable[[], None]) -> contextlib.AbstractContextManager[None]:
        """Call `write` if the context fails, unless another run has taken over the directory."""
        return self.requests.stop.on_failure(unless_taken_over(self.check_workdir, write))

    @contextlib.contextmanager
    def console(self) -> Iterator[TrainingConsole]:
        """A console that has shown what the run is about to do."""
        spec, begin = self.experiment.spec, self.begin
        with TrainingConsole(total_steps=self.total_steps, start_step=begin.step) as console:
            console.opening(
                self.workdir,
                spec.config,
                train_examples=spec.intervals.train_examples,
                devices=spec.mesh.devices,
                on_record=self.on_record,
                notices=begin.notices,
            )
            yield console


@contextlib.contextmanager
def open_run(
    config: ml_collections.ConfigDict,
    workdir: epath.Path,
    requests: Requests,
    account: TimeAccount,
) -> Iterator[OpenRun]:
    """Check everything that can be checked before anything is compiled, lock, and restore.

    Inside the context the directory is locked. The caller has entered `requests.stop`.

    Raises:
        ResnetJaxError: as `fit`.
    """
    stop, profile = requests.stop, requests.profile
    with contextlib.ExitStack() as held:
        if requests.data:
            check_complete(config)
            config = name_data(config, requests.data)
        fingerprint = _job_fingerprint(config, requests)
        with requests.interrupt_immediately(), check_consistent(fingerprint) as common:
            check_complete(config)
            here = None if is_remote(workdir) else Path(workdir)
            import_extensions(config.extensions or (), workdir=here)
            validate(config)
            check_installed(config)
            common["the sources of extensions"] = extension_digests(config.extensions)
            prepare_workdir(workdir)
            # Only the main process of a job checks the work directory.
            lock = locked(workdir, on_lost=requests.on_hang)
            check_workdir = held.enter_context(lock) if is_main() else lambda: None
            config = name_model(config, workdir)
            new = check_config(workdir, to_json(config), describe_differences)
            record = held.enter_context(ProcessRecord(workdir, check_workdir))
            held.enter_context(stop.on_failure(record.end))
            end_account = functools.partial(record_end, workdir, account)
            held.enter_context(stop.on_failure(unless_taken_over(check_workdir, end_account)))
            experiment = Experiment.make(config, requests.data)
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
        watchdog = Watchdog(config.hang_timeout_s, requests.on_hang)
        held.enter_context(watchdog.watching())
        clock = Clock(account)
        with requests.interrupt_immediately(), account.phase("restore"):
            watchdog.now("restoring")
            begin = restore_or_begin(experiment, checkpoints, workdir)
        clock.earlier_s = begin.wall_s
        total_steps, on_record = experiment.spec.intervals.total_steps, False
        if begin.step >= total_steps:
            with bucket_errors(workdir):
                on_record = (workdir / SUMMARY).exists()
            on_record = all_gather_object(on_record)[MAIN]
        if not on_record:
            record.trains(start_step=begin.step, total_steps=total_steps)
        yield OpenRun(
            workdir=workdir,
            experiment=experiment,
            begin=begin,
            checkpoints=checkpoints,
            on_record=on_record,
            clock=clock,
            watchdog=watchdog,
            check_workdir=check_workdir,
            requests=requests,
        )


def _job_fingerprint(config: ml_collections.ConfigDict, requests: Requests) -> dict[str, Any]:
    """What the processes of a job compare, by name; `data.dir` may differ from host to host."""
    found = {name: value for name, value in flatten(config).items() if name != "data.dir"}
    found |= {f"the version of {name}": version for name, version in package_versions().items()}
    profile = list(requests.profile) if requests.profile else None
    callbacks = [type(callback).__name__ for callback in requests.callbacks]
    flags = {"stop_at_step": requests.stop_at_step, "profile": profile, "callbacks": callbacks}
    return found | flags | {"the code of resnet_jax": code_digest()}
