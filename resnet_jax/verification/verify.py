"""`verify_run`: do a run's documents belong together, and does training again give its bits?"""

import dataclasses
import logging

from etils import epath
from ml_collections import ConfigDict

from resnet_jax.checkpoint.run_config import config_of
from resnet_jax.errors import DataError
from resnet_jax.train.checks import fix_threads
from resnet_jax.train.experiment import Experiment
from resnet_jax.utils.paths import as_path
from resnet_jax.verification.documents import DATA, Check, check_documents
from resnet_jax.verification.replay import Replay, replay, unreplayable
from resnet_jax.verification.run_record import RunRecord, check_at_rest, read_run

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class SliceResult:
    """What is known of the steps between two kept checkpoints.

    Attributes:
        first, last: steps of the checkpoints; 0 for the initial state.
        replayed: None if the slice wasn't trained again.
        reason: why it wasn't.
    """

    first: int
    last: int
    replayed: Replay | None
    reason: str = ""

    @property
    def outcome(self) -> str:
        """One of "equal", "differs", "other" (differs by another machine or code), "" (unknown)."""
        if self.replayed is None:
            return ""
        if not self.replayed.differences:
            return "equal"
        return "other" if self.replayed.other else "differs"


@dataclasses.dataclass(frozen=True)
class Verification:
    """The result of `verify_run`.

    Attributes:
        workdir: directory of the run.
        checks: of its documents.
        slices: all slices of the run, in order.
    """

    workdir: str
    checks: tuple[Check, ...]
    slices: tuple[SliceResult, ...]

    @property
    def verdict(self) -> str:
        """What follows: "verified"; "differs"; "undecided" if nothing is contradicted or shown."""
        outcomes = {part.outcome for part in self.slices}
        if "differs" in outcomes or any(check.passed is False for check in self.checks):
            return "differs"
        return "verified" if "equal" in outcomes and "other" not in outcomes else "undecided"


def verify_run(
    workdir: epath.PathLike, *, slices: int | None = 3, data_dir: str | None = None
) -> Verification:
    """Check the documents of a run, train slices of it again and compare the bits.

    A slice is the training from one kept checkpoint to the next. The run itself is only read.

    Args:
        workdir: directory of the run.
        slices: how many slices to train again: the first, the last, and others evenly between
            them. None trains all, from the initial state on; 0 only checks the documents.
        data_dir: folder of the data; None for the folder of the run's config.

    Raises:
        UsageError: `workdir` isn't the name of a folder.
        ConfigError: `workdir` isn't a run, or the run can't be trained here.
        WriteError: a process trains the run, or the temporary folder can't be written.
        DataError: the run has no checkpoint, a document is damaged, or the data are missing.
        StoppedEarly: a signal stopped the verification.
    """
    fix_threads(config_of(workdir))  # reading checkpoints starts JAX
    run = read_run(as_path(workdir))
    checks = check_documents(run, Experiment.make(_config_here(run, data_dir)))
    others = any(check.what == DATA and check.passed is False for check in checks)
    results = []
    chosen = _choose(run, slices)
    for first, last in _all_slices(run):
        reason = "the data are others" if others else unreplayable(run, first, last)
        if not reason and (first, last) not in chosen:
            reason = "not chosen (--slices)"
        if reason:
            results.append(SliceResult(first, last, None, reason))
            continue
        _log.info("training steps %s to %s again", f"{first + 1:,}", f"{last:,}")
        results.append(SliceResult(first, last, _replay_at_rest(run, first, last, data_dir)))
    return Verification(str(workdir), tuple(checks), tuple(results))


def _replay_at_rest(run: RunRecord, first: int, last: int, data_dir: str | None) -> Replay:
    """Train a slice again, unless the run goes on meanwhile.

    Raises:
        WriteError: a process trains the run.
        ResnetJaxError: as `replay`.
    """
    check_at_rest(run.workdir)
    try:
        replayed = replay(run, first, last, data_dir=data_dir)
    except DataError:
        check_at_rest(run.workdir)  # a run that goes on deletes checkpoints
        raise
    check_at_rest(run.workdir)
    return replayed


def _config_here(run: RunRecord, data_dir: str | None) -> ConfigDict:
    """The run's config for one device: for its data, not for training."""
    config = run.config.copy_and_resolve_references()
    config.mesh.data, config.mesh.fsdp = 1, 1
    if data_dir:
        config.data.dir = data_dir
    return config


def _all_slices(run: RunRecord) -> list[tuple[int, int]]:
    steps = sorted({*run.manifests, *run.damaged})
    return list(zip([0, *steps[:-1]], steps, strict=True))


def _choose(run: RunRecord, count: int | None) -> set[tuple[int, int]]:
    """Choose slices: the first, the last, and others evenly between them.

    The slice from the initial state is chosen only with all others: it may be most of the run.
    """
    possible = [pair for pair in _all_slices(run) if not unreplayable(run, *pair)]
    if count is None:
        return set(possible)
    possible = [pair for pair in possible if pair[0]]
    if count >= len(possible):
        return set(possible)
    if count == 1:
        return {possible[-1]}
    return {possible[round(i * (len(possible) - 1) / (count - 1))] for i in range(count)}
