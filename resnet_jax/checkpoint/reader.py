"""Reading checkpoints with Orbax, verified by the checksums that were saved with them."""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from etils import epath

from resnet_jax.checkpoint.corruption import CorruptionError, describe, fail_together, short_reason
from resnet_jax.checkpoint.integrity import (
    check_run,
    check_step,
    checksums,
    different,
    named_leaves,
    own_step,
    unsealed,
)
from resnet_jax.checkpoint.retention import Manager, manager_options
from resnet_jax.errors import ConfigError, DataError
from resnet_jax.utils.paths import bucket_errors, is_remote

State = TypeVar("State")

_MAX_DIFFERENCES = 3


class CheckpointReader:
    """The checkpoints in a directory, for reading.

    Attributes:
        directory: of the checkpoints.
        manager: Orbax's manager of the directory.
    """

    def __init__(
        self,
        directory: epath.Path,
        *,
        run: Mapping[str, Any] | None = None,
        options: ocp.CheckpointManagerOptions | None = None,
    ) -> None:
        """Open the checkpoints in `directory`.

        Args:
            directory: of a run's checkpoints.
            run: values that identify the run, by name, to detect copies from other runs; JSON.
            options: of Orbax's manager; None only reads.
        """
        logging.getLogger("absl").addFilter(_is_relevant)
        # Orbax requires an absolute path; the path of a bucket is absolute.
        self.directory = directory if is_remote(directory) else directory.absolute()
        self._run = run or {}
        self._states = ocp.StandardCheckpointHandler()
        self._progress = ocp.JsonCheckpointHandler()
        self.manager = self._open(options or manager_options())

    def reopen(self, options: ocp.CheckpointManagerOptions) -> None:
        """Read the directory again, with a new manager."""
        self.manager = self._open(options)

    def _open(self, options: ocp.CheckpointManagerOptions) -> Manager:
        handlers = {"state": self._states, "progress": self._progress}
        with bucket_errors(self.directory):
            return Manager(self.directory, item_handlers=handlers, options=options)

    def steps(self) -> list[int]:
        """Steps of the checkpoints, in order."""
        return sorted(self.manager.all_steps())

    def restore(self, step: int, like: State) -> tuple[State, dict[str, Any]]:
        """Read the checkpoint of `step`.

        Args:
            step: of the checkpoint.
            like: a state of the same tree, shapes, types and shardings, or its description.

        Returns:
            The state, sharded as `like`, and the progress that was saved with it.

        Raises:
            ConfigError: the checkpoint holds other arrays than `like`.
            DataError: the checkpoint can't be read, or is corrupt.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        self._check_same_arrays(step, abstract)
        with self._read_errors(step):
            # Not by the manager: if it fails in one process, the others wait for it.
            state = self._states.restore(
                self.directory / str(step) / "state", args=ocp.args.StandardRestore(abstract)
            )
            saved = self._read_manifest(step)
        # Checksums of sharded arrays need all processes, so they are outside `_read_errors`.
        found = checksums(named_leaves(state))
        with self._read_errors(step):
            if names := different(found, saved["checksums"]):
                raise CorruptionError(describe(names))
            check_step(step, saved.get("step", own_step(state)))
        return state, saved["progress"]

    def restore_on_one_device(self, step: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read the checkpoint of `step` as nested dictionaries on the first device.

        Returns:
            The state, and the progress that was saved with it.

        Raises:
            DataError: the checkpoint can't be read, or is corrupt.
        """
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            self._stored(step),
        )
        return self.restore(step, abstract)

    def progress(self, step: int) -> dict[str, Any]:
        """The progress that was saved with the checkpoint of `step`.

        Raises:
            DataError: it can't be read, or is corrupt.
        """
        return self.manifest(step)["progress"]

    def manifest(self, step: int) -> dict[str, Any]:
        """What was saved beside the state: "progress", "checksums" by array, "run" and "step".

        Older versions didn't record "run" and "step".

        Raises:
            DataError: it can't be read, or is corrupt.
        """
        with self._read_errors(step):
            return self._read_manifest(step)

    def close(self) -> None:
        """Close Orbax's manager."""
        self.manager.close()

    def _stored(self, step: int) -> Any:
        """Shapes and types of the arrays of a checkpoint."""
        with self._read_errors(step):
            stored = self.manager.item_metadata(step)["state"]
            if stored is None:
                raise CorruptionError("its description is missing or damaged")
        return stored

    def _check_same_arrays(self, step: int, abstract: Any) -> None:
        """Refuse to restore another network; Orbax would convert types silently."""
        stored, wanted = (
            {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in named_leaves(tree).items()}
            for tree in (self._stored(step), abstract)
        )
        if names := different(wanted, stored):
            shown = "; ".join(
                f"{name} is {stored.get(name, 'missing')} there, {wanted.get(name, 'nothing')} here"
                for name in names[:_MAX_DIFFERENCES]
            )
            more = f"; and {len(names) - _MAX_DIFFERENCES} more" * (len(names) > _MAX_DIFFERENCES)
            raise ConfigError(
                f"The checkpoint of step {step} in {self.directory} is of another network or"
                f" optimiser: {shown}{more}. Nothing was touched."
            )

    def _read_manifest(self, step: int) -> dict[str, Any]:
        folder = self.directory / str(step) / "progress"
        saved = unsealed(self._progress.restore(folder, args=ocp.args.JsonRestore()))
        check_step(step, saved.get("step"))
        check_run(self._run, saved.get("run", {}))  # older versions didn't record "run"
        return saved

    @contextlib.contextmanager
    def _read_errors(self, step: int) -> Iterator[None]:
        """Raise a DataError in all processes if reading fails in one of them."""
        try:
            with fail_together():
                yield
        except Exception as error:  # Orbax and TensorStore raise many types for damaged files
            folder = self.directory / str(step)
            others = ", ".join(str(s) for s in self.steps() if s != step) or "none"
            if is_missing(folder):
                raise DataError(f"There is no checkpoint {folder}; there are: {others}.") from error
            raise DataError(
                f"The checkpoint of step {step} can't be restored ({short_reason(error)}). Move"
                f" {folder} away to use another one; there are: {others}."
            ) from error


def is_missing(folder: epath.Path) -> bool:
    """Return whether it is known that there is no such folder."""
    try:
        with bucket_errors(folder):
            return not folder.exists()
    except OSError:
        return False


def _is_relevant(record: logging.LogRecord) -> bool:
    """Filter for absl's logger: warnings of Orbax's manager are about settings made on purpose."""
    return record.levelno > logging.WARNING or record.module != "checkpoint_manager"
