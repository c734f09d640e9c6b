"""Saving train states with Orbax in the background, verified; and restoring the newest good one.

With each state go the checksums of its arrays. They are compared with what lies on disk after each
save, and with what was restored. A checkpoint that fails is renamed STEP.corrupt, never deleted.
"""

import concurrent.futures
import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from etils import epath

from resnet_jax.checkpoint.corruption import (
    FlawError,
    describe,
    first_line,
    is_damage,
    reading_together,
)
from resnet_jax.checkpoint.integrity import (
    check_step,
    checksums,
    different,
    named_leaves,
    own_step,
    read_back,
    sealed,
    unsealed,
)
from resnet_jax.checkpoint.retention import Manager, merit, retention
from resnet_jax.errors import ConfigError, DataError, WriteError
from resnet_jax.parallel.job.agreement import MAIN, all_gather_object, is_main
from resnet_jax.utils.malloc import give_back_freed_memory
from resnet_jax.utils.paths import bucket_errors, is_remote

State = TypeVar("State")

_log = logging.getLogger(__name__)

_MOST_DIFFERENCES = 3
_POLL_S = 0.02
_NO_ROOM = ("No space left", "Disk quota exceeded")


class Checkpointer:
    """The checkpoints of one run: the newest few, the best, and the newest verified one."""

    def __init__(self, directory: epath.Path, *, keep: int | None) -> None:
        """Open or create the checkpoints in `directory`.

        Args:
            directory: of this run's checkpoints.
            keep: how many of the newest to keep, beside the best and what is needed until the
                newest has been verified; None only reads.
        """
        logging.getLogger("absl").addFilter(_matters)
        # Orbax wants it absolute; what is in a bucket is.
        self._directory = directory if is_remote(directory) else directory.absolute()
        self._keep = keep
        self._verified: set[int] = set()
        self._states = ocp.StandardCheckpointHandler()
        self._progress = ocp.JsonCheckpointHandler()
        self._manager = self._open(create=keep is not None)
        self._broken = False  # a save has failed, and its remains weren't swept away yet
        self._saving: int | None = None  # the step of the save that wasn't settled yet
        self._reader = concurrent.futures.ThreadPoolExecutor(1, "verify checkpoints")
        self._verdict: concurrent.futures.Future[str | None] | None = None

    def _open(self, *, create: bool = False) -> Manager:
        """Look at what there is; away with what a save left unfinished, unless this only reads."""
        options = ocp.CheckpointManagerOptions(
            preservation_policy=retention(self._keep, self._verified),
            best_fn=merit,  # without it Orbax forgets the metrics when the process ends
            cleanup_tmp_directories=self._keep is not None,
            read_only=self._keep is None,
            create=create,  # but once: it may be renamed meanwhile
        )
        handlers = {"state": self._states, "progress": self._progress}
        with bucket_errors(self._directory):
            return Manager(self._directory, item_handlers=handlers, options=options)

    def steps(self) -> list[int]:
        """Steps that can be restored, in order."""
        return sorted(self._manager.all_steps())

    def save(
        self,
        step: int,
        state: Any,
        *,
        progress: dict[str, Any],
        metrics: dict[str, float] | None,
    ) -> None:
        """Copy the state off the devices and write it in the background.

        As soon as it is there it is read again, in the background too, and compared.

        Args:
            step: number of the checkpoint.
            state: a tree of arrays; it may be donated as soon as this returns.
            progress: what else the run must know to go on; a JSON object.
            metrics: {"top1", "loss"} on the validation split, if it was just scored.

        Raises:
            WriteError: this save, or the one before, which ran in the background, has failed. This
                one can be tried again.
        """
        self.settle()
        if step in self._manager.all_steps():
            return  # the same run has been here before: the state is the same to the bit
        sums = checksums(named_leaves(state))
        record = sealed({"step": step, "progress": progress, "checksums": sums})
        with self._write_errors():
            if self._broken:
                self._manager, self._broken = self._open(), False
            self._saving = step
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    progress=ocp.args.JsonSave(record),
                ),
                metrics=metrics,
                force=True,
            )
        if is_main():
            self._verdict = self._reader.submit(self._flaw_on_disk, self._manager, step, sums)

    def has_failed(self) -> bool:
        """Whether it is known already that the last save has failed; doesn't wait."""
        return self._verdict is not None and self._verdict.done() and bool(self._verdict.result())

    def settle(self) -> bool:
        """Wait until the last save is on disk and was read again.

        Returns:
            Whether there was one to wait for.

        Raises:
            WriteError: it couldn't be written, or isn't what was saved. What was saved before is
                intact.
        """
        if self._saving is None:
            return False
        with self._write_errors():
            self._manager.wait_until_finished()
        flaw = all_gather_object(self._verdict and self._verdict.result())[MAIN]
        step, self._saving, self._verdict = self._saving, None, None
        if flaw:
            self._set_aside(step, f"{flaw}, though it was just written")
            raise WriteError(
                f"The checkpoint of step {step} isn't what was saved, and was set aside;"
                f" {self._intact()}."
            )
        if flaw is not None:
            self._verified.add(step)
        return True

    def _flaw_on_disk(self, manager: Manager, step: int, sums: Mapping[str, str]) -> str | None:
        """What is wrong with a checkpoint, once it is on disk; "" for nothing, None if that can't
        be told.
        """
        while manager.is_saving_in_progress():
            time.sleep(_POLL_S)
        folder = self._directory / str(step)
        try:
            with bucket_errors(folder):
                if not folder.exists():
                    return "it wasn't written"
        except OSError:
            return None
        try:
            found = checksums(read_back(folder / "state", sums))
        except DataError as error:
            return str(error) if is_damage(error.__cause__ or error) else None
        finally:
            give_back_freed_memory()
        return describe(different(found, sums))

    def restore_newest(self, like: State) -> tuple[int, State, dict[str, Any]] | None:
        """Read the newest checkpoint that is good; set aside those that aren't.

        Args:
            like: a state of the same tree, shapes, types and shardings.

        Returns:
            Its step, the state, laid out as `like`, and the progress that was saved with it; None
            if there is no checkpoint.

        Raises:
            ConfigError: a checkpoint holds other arrays than `like`.
            DataError: none is good, or one can't be read for a reason outside of it.
        """
        failed: list[int] = []
        for step in reversed(all_gather_object(self.steps())[MAIN]):
            try:
                restored = self._restore(step, _abstract(like))
            except DataError as error:
                cause = error.__cause__ or error
                if not is_damage(cause):
                    raise
                self._set_aside(step, first_line(cause))
                failed.append(step)
                continue
            if failed:
                _log.warning("using the checkpoint of step %d", step)
            return step, *restored
        # Those of earlier starts count too: to begin anew isn't ours to choose.
        if names := all_gather_object(self._set_aside_before())[MAIN]:
            raise DataError(
                f"No checkpoint in {self._directory} is good: {', '.join(names)} are what is left."
                " Choose another --workdir to begin anew, or move those away."
            )
        return None

    def _set_aside_before(self) -> list[str]:
        with bucket_errors(self._directory):
            return sorted(p.name for p in self._directory.iterdir() if p.name.endswith(".corrupt"))

    def restore(self, step: int, like: State) -> tuple[State, dict[str, Any]]:
        """Read the checkpoint of `step`; as `restore_newest`.

        Raises:
            ConfigError: it holds other arrays than `like`.
            DataError: it can't be read, or isn't what was saved.
            WriteError: it was being saved, and that has failed.
        """
        self.settle()
        return self._restore(step, _abstract(like))

    def restore_on_one_device(self, step: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read the checkpoint of `step` as nested dictionaries on the first device.

        Raises:
            DataError: it can't be read, or isn't what was saved.
        """
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            self._stored(step),
        )
        return self._restore(step, abstract)

    def _stored(self, step: int) -> Any:
        """Shapes and types of what the checkpoint holds."""
        with self._read_errors(step):
            stored = self._manager.item_metadata(step)["state"]
            if stored is None:
                raise FlawError("its description is missing or damaged")
        return stored

    def _restore(self, step: int, abstract: Any) -> tuple[Any, dict[str, Any]]:
        self._check_same_arrays(step, abstract)
        with self._read_errors(step):
            # Not by the manager: when it fails in one process, it leaves the others waiting.
            state = self._states.restore(
                self._directory / str(step) / "state", args=ocp.args.StandardRestore(abstract)
            )
            saved = self._read_progress(step)
        # Arrays that are split over processes are summed by all of them, once all have read theirs.
        found = checksums(named_leaves(state))
        with self._read_errors(step):
            if flaw := describe(different(found, saved["checksums"])):
                raise FlawError(flaw)
            check_step(step, saved.get("step", own_step(state)))
        self._verified.add(step)
        return state, saved["progress"]

    def _check_same_arrays(self, step: int, abstract: Any) -> None:
        """Refuse to restore into another network; Orbax would convert types without a word."""
        stored, wanted = (
            {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in named_leaves(tree).items()}
            for tree in (self._stored(step), abstract)
        )
        if names := different(wanted, stored):
            shown = "; ".join(
                f"{name} is {stored.get(name, 'missing')} there, {wanted.get(name, 'nothing')} here"
                for name in names[:_MOST_DIFFERENCES]
            )
            more = f"; and {len(names) - _MOST_DIFFERENCES} more" * (len(names) > _MOST_DIFFERENCES)
            raise ConfigError(
                f"The checkpoint of step {step} in {self._directory} is of another network or"
                f" optimiser: {shown}{more}. Nothing was touched."
            )

    def progress(self, step: int) -> dict[str, Any]:
        """What was saved as `progress` with the checkpoint of `step`.

        Raises:
            DataError: it can't be read.
        """
        with self._read_errors(step):
            return self._read_progress(step)["progress"]

    def _read_progress(self, step: int) -> dict[str, Any]:
        folder = self._directory / str(step) / "progress"
        saved = unsealed(self._progress.restore(folder, args=ocp.args.JsonRestore()))
        check_step(step, saved.get("step"))
        return saved

    def _set_aside(self, step: int, flaw: str) -> None:
        """Rename a damaged checkpoint, so that it is neither used nor deleted."""
        with self._write_errors():
            if is_main():
                folder = self._directory / str(step)
                target = self._directory / f"{step}.corrupt"
                count = 1
                while target.exists():
                    count += 1
                    target = self._directory / f"{step}.{count}.corrupt"
                folder.rename(target)
                _log.warning(
                    "The checkpoint of step %d is damaged (%s); it is kept as %s.",
                    *(step, flaw, target),
                )
        self._verified.discard(step)
        self._manager.reload()

    def close(self) -> None:
        """Wait until everything is on disk, and has been read again.

        Raises:
            WriteError: a save that ran in the background has failed.
        """
        self.settle()
        self._reader.shutdown()
        with self._write_errors():
            self._manager.close()

    def finish_writing(self, *, timeout_s: float = 60.0) -> None:
        """Let a save under way reach the disk, because the run is about to end by an error.

        That error is what matters, so another one isn't raised; nor is it waited for processes
        that may be gone, beyond the time-out.
        """

        def wait() -> None:
            with contextlib.suppress(Exception):
                self._manager.wait_until_finished()

        waiting = threading.Thread(target=wait, daemon=True)
        waiting.start()
        waiting.join(timeout_s)

    @contextlib.contextmanager
    def _read_errors(self, step: int) -> Iterator[None]:
        try:
            with reading_together():
                yield
        except Exception as error:  # Orbax and TensorStore raise many kinds for damaged files
            folder = self._directory / str(step)
            others = ", ".join(str(s) for s in self.steps() if s != step) or "none"
            raise DataError(
                f"The checkpoint of step {step} can't be restored ({first_line(error)}). Move"
                f" {folder} away to use another one; there are: {others}."
            ) from error

    @contextlib.contextmanager
    def _write_errors(self) -> Iterator[None]:
        """Where writing fails in one process, it does in all of them, and its remains go."""
        mine: Exception | None = None
        try:
            yield
        except Exception as error:  # likewise, on top of whatever the file system says
            mine = error
        reasons = [
            reason for reason in all_gather_object(first_line(mine) if mine else None) if reason
        ]
        if not reasons:
            return
        failed, self._saving, self._verdict = self._saving, None, None
        self._broken = True
        with contextlib.suppress(Exception):  # if it can't be done now, the next save does it
            self._manager, self._broken = self._open(), False
        if any(word in reasons[0] for word in _NO_ROOM):
            self._make_room()
        raise WriteError(
            f"A checkpoint can't be written to {self._directory} ({reasons[0]});"
            f" {self._intact(but=failed)}."
        ) from mine

    def _intact(self, *, but: int | None = None) -> str:
        steps = [step for step in self.steps() if step != but]
        return f"checkpoints {', '.join(map(str, steps))} are intact" if steps else "there is none"

    def _make_room(self) -> None:
        """Delete what the next save would have pushed out, once it was there."""
        steps = self.steps()
        newest = max(self._verified & set(steps), default=None)
        if newest is None or self._keep is None:
            return
        kept = {*steps[len(steps) - self._keep + 1 :], self._manager.best_step()}
        for step in steps:
            if step < newest and step not in kept:
                with contextlib.suppress(Exception):  # the disk is in a bad state
                    self._manager.delete(step)
                    _log.warning("deleted checkpoint %d to make room for the next one", step)


def _matters(record: logging.LogRecord) -> bool:
    """Whether a message of absl's logger is for users: Orbax warns of what is meant here."""
    return record.levelno > logging.WARNING or record.module != "checkpoint_manager"


def _abstract(like: Any) -> Any:
    return jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
