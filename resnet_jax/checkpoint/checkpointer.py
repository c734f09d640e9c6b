"""Saving train states with Orbax in the background, verified, and restoring the newest good one.

The checksums of the arrays are saved with each state. They are compared with the files on disk
after each save, and with the arrays after each restore. A corrupt checkpoint is renamed to
STEP.corrupt, never deleted.
"""

import concurrent.futures
import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import orbax.checkpoint as ocp
from etils import epath

from resnet_jax.checkpoint.corruption import describe, is_corruption, short_reason
from resnet_jax.checkpoint.integrity import checksums, different, named_leaves, read_back, sealed
from resnet_jax.checkpoint.reader import CheckpointReader, State
from resnet_jax.checkpoint.retention import Manager, manager_options, sparse_steps
from resnet_jax.errors import DataError, WriteError
from resnet_jax.parallel.job.agreement import MAIN, all_gather_object, is_main
from resnet_jax.utils.malloc import release_freed_memory
from resnet_jax.utils.paths import bucket_errors
from resnet_jax.utils.streams import run_with_timeout

_log = logging.getLogger(__name__)

_POLL_S = 0.02
_NO_SPACE = ("No space left", "Disk quota exceeded")


class Checkpointer:
    """The checkpoints of a run: the newest few, the best, the newest verified, and sparse ones."""

    def __init__(
        self,
        directory: epath.Path,
        *,
        keep: int,
        period: Callable[[int], int] | None = None,
        run: Mapping[str, Any] | None = None,
    ) -> None:
        """Open the checkpoints in `directory`; create the directory if it doesn't exist.

        Args:
            directory: of this run's checkpoints.
            keep: how many of the newest checkpoints to keep. The best one is kept too, and older
                ones until the newest has been verified.
            period: of a step, of which the first checkpoint is never deleted; see `sparse_steps`.
            run: values that identify the run, by name, to detect copies from other runs; JSON.
        """
        self._keep, self._period, self._run = keep, period, run or {}
        self._verified: set[int] = set()
        options = manager_options(keep, self._verified, period=period, create=True)
        self._reader = CheckpointReader(directory, run=run, options=options)
        self._directory = self._reader.directory
        self._must_reopen = False  # a save has failed, and its files weren't removed yet
        self._saving: int | None = None  # step of the save that `settle` hasn't waited for
        self._verifier = concurrent.futures.ThreadPoolExecutor(1, "verify checkpoints")
        self._verdict: concurrent.futures.Future[str | None] | None = None

    def steps(self) -> list[int]:
        """Steps of the checkpoints, in order."""
        return self._reader.steps()

    def save(
        self,
        step: int,
        state: Any,
        *,
        progress: dict[str, Any],
        metrics: dict[str, float] | None,
    ) -> None:
        """Copy the state off the devices, then write and verify it in the background.

        Args:
            step: of the checkpoint.
            state: a tree of arrays; they may be donated as soon as this returns.
            progress: what else the run needs to resume; a JSON object.
            metrics: {"top1", "loss"} on the validation split, if the state was just evaluated.

        Raises:
            WriteError: this save or the previous one, which ran in the background, has failed. This
                one can be tried again.
        """
        self.settle()
        if step in self.steps():
            return  # the same run has saved this step before, with the same bits
        sums = checksums(named_leaves(state))
        document = sealed({"step": step, "run": self._run, "progress": progress, "checksums": sums})
        with self._write_errors():
            if self._must_reopen:
                self._reopen()
            self._saving = step
            self._reader.manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    progress=ocp.args.JsonSave(document),
                ),
                metrics=metrics,
                force=True,
            )
        if is_main():
            folder = self._directory / str(step)
            self._verdict = self._verifier.submit(
                find_corruption, self._reader.manager, folder, sums
            )

    def has_failed(self) -> bool:
        """Whether the last save is known to have failed; doesn't wait."""
        return self._verdict is not None and self._verdict.done() and bool(self._verdict.result())

    def settle(self) -> bool:
        """Wait until the last save is on disk and verified.

        Returns:
            Whether there was a save to wait for.

        Raises:
            WriteError: the save has failed, or is corrupt. Earlier checkpoints are intact.
        """
        if self._saving is None:
            return False
        with self._write_errors():
            self._reader.manager.wait_until_finished()
        corruption = all_gather_object(self._verdict and self._verdict.result())[MAIN]
        step, self._saving, self._verdict = self._saving, None, None
        if corruption:
            self._set_aside(step, f"{corruption}, though it was just written")
            raise WriteError(
                f"The checkpoint of step {step} isn't what was saved, and was set aside;"
                f" {_describe_intact(self.steps())}."
            )
        if corruption is not None:
            self._verified.add(step)
        return True

    def restore_newest(self, like: State) -> tuple[int, State, dict[str, Any]] | None:
        """Read the newest good checkpoint; rename corrupt ones.

        Args:
            like: a state of the same tree, shapes, types and shardings, or its description.

        Returns:
            Its step, the state, sharded as `like`, and the progress that was saved with it; None
            if there is no checkpoint.

        Raises:
            ConfigError: a checkpoint holds other arrays than `like`.
            DataError: all checkpoints are corrupt, or one can't be reached.
        """
        skipped = False
        for step in reversed(all_gather_object(self.steps())[MAIN]):
            try:
                restored = self._reader.restore(step, like)
            except DataError as error:
                cause = error.__cause__ or error
                if not is_corruption(cause):
                    raise
                self._set_aside(step, short_reason(cause))
                skipped = True
                continue
            self._verified.add(step)
            if skipped:
                _log.warning("using the checkpoint of step %d", step)
            return step, *restored
        # Corrupt checkpoints of earlier starts count too: only the user may decide to begin anew.
        if names := all_gather_object(_corrupt_checkpoints(self._directory))[MAIN]:
            raise DataError(
                f"No checkpoint in {self._directory} is good: {', '.join(names)} are what is left."
                " Choose another --workdir to begin anew, or move those away."
            )
        return None

    def restore(self, step: int, like: State) -> tuple[State, dict[str, Any]]:
        """Read the checkpoint of `step`; see `CheckpointReader.restore`.

        Raises:
            ConfigError, DataError: as for `CheckpointReader.restore`.
            WriteError: the last save, which ran in the background, has failed.
        """
        self.settle()
        restored = self._reader.restore(step, like)
        self._verified.add(step)
        return restored

    def close(self) -> None:
        """Wait until the last save is on disk and verified, and close the checkpoints.

        Raises:
            WriteError: the save has failed.
        """
        self.settle()
        self._verifier.shutdown()
        with self._write_errors():
            self._reader.close()

    def finish_writing(self, *, timeout_s: float = 60.0) -> None:
        """Wait for a save that is being written, because the run is about to end by an error.

        Errors of the save aren't raised: the run's own error matters. Other processes may be gone,
        so the wait ends after the time-out.
        """

        def wait() -> None:
            with contextlib.suppress(Exception):
                self._reader.manager.wait_until_finished()

        run_with_timeout(wait, timeout_s=timeout_s)

    def _reopen(self) -> None:
        """Open the directory again; Orbax removes the files of a failed save."""
        options = manager_options(self._keep, self._verified, period=self._period)
        self._reader.reopen(options)
        self._must_reopen = False

    def _set_aside(self, step: int, reason: str) -> None:
        """Rename a corrupt checkpoint, so that it is neither used nor deleted."""
        with self._write_errors():
            if is_main():
                target, count = self._directory / f"{step}.corrupt", 1
                while target.exists():
                    count += 1
                    target = self._directory / f"{step}.{count}.corrupt"
                (self._directory / str(step)).rename(target)
                _log.warning(
                    "The checkpoint of step %d is damaged (%s); it is kept as %s.",
                    *(step, reason, target),
                )
        self._verified.discard(step)
        self._reader.manager.reload()

    @contextlib.contextmanager
    def _write_errors(self) -> Iterator[None]:
        """If writing fails in one process, remove its files and raise WriteError in all of them."""
        own: Exception | None = None
        try:
            yield
        except Exception as error:  # of Orbax, TensorStore and file systems
            own = error
        failures = all_gather_object(short_reason(own) if own else None)
        reasons = [reason for reason in failures if reason]
        if not reasons:
            return
        failed, self._saving, self._verdict = self._saving, None, None
        self._must_reopen = True
        with contextlib.suppress(Exception):  # then the next save tries again
            self._reopen()
        if any(words in reasons[0] for words in _NO_SPACE):
            self._make_room()
        intact = _describe_intact([step for step in self.steps() if step != failed])
        raise WriteError(
            f"A checkpoint can't be written to {self._directory} ({reasons[0]}); {intact}."
        ) from own

    def _make_room(self) -> None:
        """Delete the checkpoints that the next successful save would delete."""
        steps = self.steps()
        newest = max(self._verified & set(steps), default=None)
        if newest is None:
            return
        manager = self._reader.manager
        kept = {*steps[max(0, len(steps) - self._keep + 1) :], manager.best_step()}
        if self._period:
            kept |= sparse_steps(steps, self._period)
        for step in steps:
            if step < newest and step not in kept:
                with contextlib.suppress(Exception):  # the disk may fail again
                    manager.delete(step)
                    _log.warning("deleted checkpoint %d to make room for the next one", step)


def find_corruption(manager: Manager, folder: epath.Path, sums: Mapping[str, str]) -> str | None:
    """Verify a checkpoint as soon as `manager` has written it.

    Args:
        manager: which is saving the checkpoint.
        folder: of the checkpoint.
        sums: checksums of its arrays.

    Returns:
        A description of the corruption; "" if there is none; None if the checkpoint can't be
        reached or verified.
    """
    while manager.is_saving_in_progress():
        time.sleep(_POLL_S)
    try:
        with bucket_errors(folder):
            if not folder.exists():
                return "it wasn't written"
    except OSError:
        return None
    try:
        found = checksums(read_back(folder / "state", sums))
    except DataError as error:
        return str(error) if is_corruption(error.__cause__ or error) else None
    except Exception as error:  # such as MemoryError: it must not end the run in one process alone
        _log.warning("The checkpoint %s couldn't be verified (%s).", folder, short_reason(error))
        return None
    finally:
        release_freed_memory()
    return describe(different(found, sums))


def _corrupt_checkpoints(directory: epath.Path) -> list[str]:
    with bucket_errors(directory):
        return sorted(path.name for path in directory.iterdir() if path.name.endswith(".corrupt"))


def _describe_intact(steps: list[int]) -> str:
    return f"checkpoints {', '.join(map(str, steps))} are intact" if steps else "there is none"
