"""Saving and restoring train states with Orbax, in the background."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from etils import epath

from resnet_jax.checkpoint.workdir import is_remote
from resnet_jax.errors import DataError, WriteError

State = TypeVar("State")

_LONGEST_REASON = 160  # characters; TensorStore describes its whole configuration


def merit(scores: Mapping[str, Any]) -> tuple[float, float]:
    """What makes one checkpoint better than another: top-1, and the loss between equals."""
    return scores["top1"], -scores["loss"]


class Checkpointer:
    """The checkpoints of one run: the newest few, and the best on the validation split."""

    def __init__(self, directory: epath.Path, *, keep: int | None) -> None:
        """Open or create the checkpoints in `directory`.

        Args:
            directory: of this run's checkpoints.
            keep: how many of the newest to keep, beside the best; None only reads.
        """
        managers = ocp.checkpoint_managers
        policy = managers.AnyPreservationPolicy(
            [
                managers.LatestN(keep),
                managers.BestN(get_metric_fn=merit, n=1, keep_checkpoints_without_metrics=False),
            ]
        )
        self._manager = ocp.CheckpointManager(
            # Orbax wants it absolute; what is in a bucket is.
            directory if is_remote(directory) else directory.absolute(),
            item_handlers={
                "state": ocp.StandardCheckpointHandler(),
                "progress": ocp.JsonCheckpointHandler(),
            },
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policy,
                best_fn=merit,  # without it Orbax forgets the metrics when the process ends
                cleanup_tmp_directories=keep is not None,
                read_only=keep is None,
                create=keep is not None,
            ),
        )

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

        Args:
            step: number of the checkpoint.
            state: a tree of arrays; it may be donated as soon as this returns.
            progress: what else the run must know to go on; a JSON object.
            metrics: {"top1", "loss"} on the validation split, if it was just scored.

        Raises:
            WriteError: this save, or the one before, which ran in the background, has failed.
        """
        with self._write_errors():
            self._manager.check_for_errors()
            if step in self._manager.all_steps():
                return  # the same run has been here before: the state is the same to the bit
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(progress)
                ),
                metrics=metrics,
                force=True,
            )

    def restore(self, step: int, like: State) -> tuple[State, dict[str, Any]]:
        """Read the checkpoint of `step`.

        Args:
            step: one of `steps()`.
            like: a state of the same tree, shapes, types and shardings.

        Returns:
            The state, laid out as `like`, and the progress that was saved with it.

        Raises:
            DataError: it can't be read.
        """
        return self._restore(step, jax.tree.map(ocp.utils.to_shape_dtype_struct, like))

    def restore_on_one_device(self, step: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read the checkpoint of `step` as nested dictionaries on the first device.

        Raises:
            DataError: it can't be read.
        """
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        with self._read_errors(step):
            stored = self._manager.item_metadata(step)["state"]
            if stored is None:
                raise ValueError("its description is missing or damaged")
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), stored
        )
        return self._restore(step, abstract)

    def _restore(self, step: int, abstract: Any) -> tuple[Any, dict[str, Any]]:
        with self._read_errors(step):
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(abstract), progress=ocp.args.JsonRestore()
                ),
            )
        return restored["state"], restored["progress"]

    def progress(self, step: int) -> dict[str, Any]:
        """What was saved as `progress` with the checkpoint of `step`.

        Raises:
            DataError: it can't be read.
        """
        with self._read_errors(step):
            arguments = ocp.args.Composite(progress=ocp.args.JsonRestore())
            return self._manager.restore(step, args=arguments)["progress"]

    def close(self) -> None:
        """Wait until everything is on disk.

        Raises:
            WriteError: a save that ran in the background has failed.
        """
        with self._write_errors():
            self._manager.wait_until_finished()
            self._manager.close()

    @contextlib.contextmanager
    def _read_errors(self, step: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax and TensorStore raise many kinds for damaged files
            folder = self._manager.directory / str(step)
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
            whole = sorted(p.name for p in self._manager.directory.iterdir() if p.name.isdecimal())
            safe = f"checkpoints {', '.join(whole)} are intact" if whole else "nothing was saved"
            raise WriteError(
                f"A checkpoint can't be written to {self._manager.directory}"
                f" ({_first_line(error)}); {safe}."
            ) from error


def _first_line(error: Exception) -> str:
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return line if len(line) <= _LONGEST_REASON else line[:_LONGEST_REASON] + " …"
