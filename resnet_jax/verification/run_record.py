"""What a run has on record: config, metrics, checkpoints with their manifests, summary."""

import contextlib
import dataclasses
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from resnet_jax.checkpoint.checkpointer import find_corruption
from resnet_jax.checkpoint.corruption import short_reason
from resnet_jax.checkpoint.lock import LOCK, holder_of
from resnet_jax.checkpoint.reader import CheckpointReader, is_missing
from resnet_jax.checkpoint.run_config import config_of
from resnet_jax.checkpoint.workdir import CHECKPOINTS, METRICS, SUMMARY
from resnet_jax.config.io import bound_fields
from resnet_jax.errors import DataError, WriteError
from resnet_jax.logging.metrics_log import read_metrics
from resnet_jax.logging.summary import read_summary
from resnet_jax.utils.paths import bucket_errors


@dataclasses.dataclass(frozen=True, eq=False)
class RunRecord:
    """All that a run has on record; read once, and never written.

    Attributes:
        workdir: directory of the run.
        config: the run's configuration.
        records: the records of metrics.jsonl.
        manifests: by the step of each checkpoint that is whole; see `CheckpointReader.manifest`.
        damaged: reason by the step of each checkpoint that isn't.
        summary: content of summary.json; None if the run hasn't finished.
    """

    workdir: epath.Path
    config: ConfigDict
    records: list[dict[str, Any]]
    manifests: dict[int, dict[str, Any]]
    damaged: dict[int, str]
    summary: dict[str, Any] | None

    def progress(self, step: int) -> dict[str, Any]:
        """Return the progress that was saved with the checkpoint of `step`."""
        progress: dict[str, Any] = self.manifests[step]["progress"]
        return progress

    @property
    def environments(self) -> list[dict[str, Any]]:
        """The environments of the newest checkpoint; [] if the run's version recorded none."""
        newest = max(self.manifests, default=None)
        return [] if newest is None else list(self.progress(newest).get("environments", []))


def read_run(workdir: epath.Path) -> RunRecord:
    """Read the record of a run; compare each checkpoint with its checksums.

    Raises:
        ConfigError: `workdir` isn't a run.
        WriteError: a process trains the run, and changes what is read.
        DataError: the run has no checkpoint, or a document is damaged.
    """
    config = config_of(workdir)
    check_at_rest(workdir)
    directory = workdir / CHECKPOINTS
    with bucket_errors(directory):
        has_checkpoints = directory.is_dir()
    if not has_checkpoints:
        raise _no_checkpoints(workdir)
    try:
        reader = CheckpointReader(directory, run=bound_fields(config))
    except OSError as error:
        raise DataError(f"{directory} can't be read ({error.strerror or error}).") from None
    with contextlib.closing(reader):
        manifests, damaged = {}, {}
        for step in reader.steps():
            folder = reader.directory / str(step)
            try:
                manifest = reader.manifest(step)
                reason = find_corruption(reader.manager, folder, manifest["checksums"])
            except DataError as error:
                reason = short_reason(error.__cause__ or error)
            if reason is None:
                raise DataError(f"The checkpoint {folder} can't be read.")
            if not reason:
                manifests[step] = manifest
            elif not is_missing(folder):  # a run that began meanwhile may have deleted it
                damaged[step] = reason
    check_at_rest(workdir)  # else a checkpoint that is half deleted would count as damaged
    if not manifests and not damaged:
        raise _no_checkpoints(workdir)
    with bucket_errors(workdir):
        finished = (workdir / SUMMARY).exists()
    summary = None
    if finished:
        with read_summary(workdir) as found:
            summary = dict(found)
    return RunRecord(workdir, config, read_metrics(workdir / METRICS), manifests, damaged, summary)


def check_at_rest(workdir: epath.Path) -> None:
    """Check that no living process holds the lock of the run.

    Raises:
        WriteError: a process trains the run, and changes what is read.
        DataError: the lock can't be read.
    """
    try:
        holder = holder_of(workdir)
    except OSError as error:
        raise DataError(f"{workdir / LOCK} can't be read ({error.strerror or error}).") from None
    if holder:
        raise WriteError(
            f"{workdir} is in use by {holder}. A run must be at rest to be verified: wait for that"
            " process, or stop it."
        )


def _no_checkpoints(workdir: epath.Path) -> DataError:
    return DataError(f"{workdir} has no finished checkpoint, so nothing of it can be verified.")
