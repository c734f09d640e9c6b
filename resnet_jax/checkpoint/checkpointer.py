"""Saving train states with Orbax in the background, verified; and restoring the newest good one.

With each state go the checksums of its arrays. They are compared with what lies on disk after each
save, and with what was restored. A checkpoint that fails is renamed STEP.corrupt, never deleted.
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from etils import epath

from resnet_jax.buckets import is_remote
from resnet_jax.checkpoint.integrity import checksums, different, named_leaves, read_back
from resnet_jax.errors import ConfigError, DataError, WriteError
from resnet_jax.parallel.process import MAIN, exchange, is_main, wait_for_all

State = TypeVar("State")

_log = logging.getLogger(__name__)

_LONGEST_REASON = 160  # characters; TensorStore describes its whole configuration
_MOST_DIFFERENCES = 3
_POLL_S = 0.02
# Of TensorStore's statuses those that say nothing about the files.
_PASSING = ("PERMISSION_DENIED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED")


def merit(scores: Mapping[str, Any]) -> tuple[float, float]:
    """What makes one checkpoint better than another: top-1, and the loss between equals."""
    return scores["top1"], -scores["loss"]


@dataclasses.dataclass
class _NewestVerified:
    """An Orbax policy: keep the newest checkpoint that was found to be good, and all after it."""

    steps: set[int]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        newest = max((c.step for c in checkpoints if c.step in self.steps), default=-1)
        return [c.step >= newest for c in checkpoints]


class Checkpointer:
    """The checkpoints of one run: the newest few, the best, and the newest verified one."""

    def __init__(self, directory: epath.Path, *, keep: int | None) -> None:
        """Open or create the checkpoints in `directory`.

        Args:
            directory: of this run's checkpoints.
            keep: how many of the newest to keep, beside the best and what is needed until the
                newest has been verified; None only reads.
        """
        managers = ocp.checkpoint_managers
        self._verified: set[int] = set()
        policy = managers.AnyPreservationPolicy(
            [
                managers.LatestN(keep),
                managers.BestN(get_metric_fn=merit, n=1, keep_checkpoints_without_metrics=False),
                _NewestVerified(self._verified),
            ]
        )
        self._states = ocp.StandardCheckpointHandler()
        self._progress = ocp.JsonCheckpointHandler()
        # Orbax wants it absolute; what is in a bucket is.
        self._directory = directory if is_remote(directory) else directory.absolute()
        self._manager = ocp.CheckpointManager(
            self._directory,
            item_handlers={"state": self._states, "progress": self._progress},
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policy,
                best_fn=merit,  # without it Orbax forgets the metrics when the process ends
                cleanup_tmp_directories=keep is not None,
                read_only=keep is None,
                create=keep is not None,
            ),
        )
        self._reader = concurrent.futures.ThreadPoolExecutor(1, "verify checkpoints")
        self._verification: tuple[int, concurrent.futures.Future[str | None]] | None = None

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
            WriteError: this save, or the one before, which ran in the background, has failed.
        """
        if step in self._manager.all_steps():
            return  # the same run has been here before: the state is the same to the bit
        self._finish_last_save()
        sums = checksums(named_leaves(state))
        with self._write_errors():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    progress=ocp.args.JsonSave(_sealed({"progress": progress, "checksums": sums})),
                ),
                metrics=metrics,
                force=True,
            )
        if is_main():
            self._verification = step, self._reader.submit(self._flaw_on_disk, step, sums)

    def _finish_last_save(self) -> bool:
        """Wait until it is on disk and was read again; set aside what isn't what was saved.

        Returns:
            Whether all was well.
        """
        with self._write_errors():
            self._manager.wait_until_finished()
        step: int = -1
        flaw: str | None = ""
        if self._verification:
            step, future = self._verification
            flaw, self._verification = future.result(), None
        step, flaw = exchange((step, flaw))[MAIN]
        if flaw:
            self._set_aside(step, f"{flaw}, though it was just written")
        elif flaw is not None and step >= 0:
            self._verified.add(step)
        return not flaw

    def _flaw_on_disk(self, step: int, sums: Mapping[str, str]) -> str | None:
        """What is wrong with a checkpoint, once it is on disk; "" for nothing, None if that can't
        be told.
        """
        while self._manager.is_saving_in_progress():
            time.sleep(_POLL_S)
        folder = self._directory / str(step)
        if not folder.exists():
            return None  # it couldn't be written, which the manager tells
        try:
            arrays = read_back(folder / "state", sums)
        except DataError as error:
            return str(error) if _is_damage(error.__cause__ or error) else None
        return _describe(different(checksums(arrays), sums))

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
        for step in reversed(exchange(self.steps())[MAIN]):
            try:
                restored = self._restore(step, _abstract(like))
            except DataError as error:
                cause = error.__cause__ or error
                if not _is_damage(cause):
                    raise
                self._set_aside(step, _first_line(cause))
                failed.append(step)
                continue
            if failed:
                _log.warning("using the checkpoint of step %d", step)
            return step, *restored
        if failed:
            raise DataError(
                f"No checkpoint in {self._directory} is good; those of steps"
                f" {', '.join(map(str, failed))} were renamed STEP.corrupt. Choose another"
                " --workdir to begin anew."
            )
        return None

    def restore(self, step: int, like: State) -> tuple[State, dict[str, Any]]:
        """Read the checkpoint of `step`; as `restore_newest`.

        Raises:
            ConfigError: it holds other arrays than `like`.
            DataError: it can't be read, or isn't what was saved.
            WriteError: it was being saved, and that has failed.
        """
        with self._write_errors():
            self._manager.wait_until_finished()
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
                raise ValueError("its description is missing or damaged")
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
            if flaw := _describe(different(found, saved["checksums"])):
                raise ValueError(flaw)
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
        return _unsealed(self._progress.restore(folder, args=ocp.args.JsonRestore()))

    def _set_aside(self, step: int, flaw: str) -> None:
        """Rename a damaged checkpoint, so that it is neither used nor deleted."""
        if is_main():
            folder = self._directory / str(step)
            target = self._directory / f"{step}.corrupt"
            count = 1
            while target.exists():
                count += 1
                target = self._directory / f"{step}.{count}.corrupt"
            folder.rename(target)
            _log.warning(
                "The checkpoint of step %d is damaged (%s); it is kept as %s.", step, flaw, target
            )
        wait_for_all(f"set aside {step}")
        self._verified.discard(step)
        self._manager.reload()

    def close(self) -> None:
        """Wait until everything is on disk, and has been read again.

        Raises:
            WriteError: a save that ran in the background has failed.
        """
        good = self._finish_last_save()
        self._reader.shutdown()
        with self._write_errors():
            self._manager.close()
        if not good:
            raise WriteError(
                f"The last checkpoint in {self._directory} isn't what was saved; see above. Start"
                f" the run again: it goes on from {self.steps()[-1:] or 'the beginning'}."
            )

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
            with _together():
                yield
        except Exception as error:  # Orbax and TensorStore raise many kinds for damaged files
            folder = self._directory / str(step)
            others = ", ".join(str(s) for s in self.steps() if s != step) or "none"
            raise DataError(
                f"The checkpoint of step {step} can't be restored ({_first_line(error)}). Move"
                f" {folder} away to use another one; there are: {others}."
            ) from error

    @contextlib.contextmanager
    def _write_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # likewise, on top of whatever the file system says
            whole = sorted(p.name for p in self._directory.iterdir() if p.name.isdecimal())
            safe = f"checkpoints {', '.join(whole)} are intact" if whole else "nothing was saved"
            raise WriteError(
                f"A checkpoint can't be written to {self._directory}"
                f" ({_first_line(error)}); {safe}."
            ) from error


def _abstract(like: Any) -> Any:
    return jax.tree.map(ocp.utils.to_shape_dtype_struct, like)


def _sealed(document: dict[str, Any]) -> dict[str, Any]:
    return document | {"seal": _seal(document)}


def _unsealed(document: dict[str, Any]) -> dict[str, Any]:
    """The document without its seal.

    Raises:
        ValueError: it isn't what was sealed.
    """
    inner = {name: value for name, value in document.items() if name != "seal"}
    if document.get("seal") != _seal(inner):
        raise ValueError("its progress fails its checksum")
    return inner


def _seal(document: dict[str, Any]) -> str:
    text = json.dumps(document, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _describe(names: Sequence[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{names[0]}{more} fails its checksum" if names else ""


class _UnreachableError(Exception):
    """Another process couldn't read its part, for a reason outside of the checkpoint."""


@contextlib.contextmanager
def _together() -> Iterator[None]:
    """Read something in every process; where one of them fails, all do.

    Each reads the parts of its own devices. If it alone found one damaged, the others would wait
    for it, or go on with another checkpoint.
    """
    mine: Exception | None = None
    try:
        yield
    except Exception as error:
        mine = error
    told = exchange(None if mine is None else [_is_damage(mine), _first_line(mine)])
    if mine and len(told) == 1:
        raise mine
    if failed := [each for each in told if each]:
        damage, reason = min(failed)  # it condemns nothing while one couldn't look
        raise (ValueError if damage else _UnreachableError)(reason) from mine


def _is_damage(error: BaseException) -> bool:
    """Whether the checkpoint itself is to blame, not the way to it."""
    passing = (PermissionError, TimeoutError, ConnectionError, MemoryError, _UnreachableError)
    return not isinstance(error, passing) and not any(word in str(error) for word in _PASSING)


def _first_line(error: BaseException) -> str:
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return line if len(line) <= _LONGEST_REASON else line[:_LONGEST_REASON] + " …"
