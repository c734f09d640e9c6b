"""A copy of the numbers of metrics.jsonl for TensorBoard."""

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from etils import epath

from resnet_jax.checkpoint.workdir import METRICS, write_atomically
from resnet_jax.utils.paths import bucket_errors, is_remote

_log = logging.getLogger(__name__)

_NOT_SCALARS = ("step", "epoch", "split", "weights", "batches", "wall_s", "std", "seeds")


class TensorBoard:
    """Writes events for `tensorboard --logdir`; ends with a warning at the first failed write.

    Doesn't use the library's SummaryWriter: an error kills its thread, and a flush then never
    returns.
    """

    def __init__(self, folder: Path, *, start_step: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter  # noqa: PLC0415 - 0.2 s that
        from tensorboardX.proto.event_pb2 import Event, SessionLog  # noqa: PLC0415 - models
        from tensorboardX.summary import scalar  # noqa: PLC0415 - don't need

        self._event, self._scalar = Event, scalar
        self._folder = folder
        # The library's own names have seconds only: a quick restart would overwrite the file.
        suffix = f".{os.getpid()}.{time.time_ns()}"
        self._events: Any = None
        with self._warning():
            folder.mkdir(exist_ok=True)
            self._events = EventsWriter(str(folder / "events"), suffix)
        # TensorBoard hides what an earlier process wrote of these steps.
        session = SessionLog(status=SessionLog.START)
        self._write(step=start_step + 1, session_log=session)

    def write(self, record: dict[str, Any]) -> None:
        """Write the numbers of a record."""
        prefix = "_".join(filter(None, (record["split"], record.get("weights"))))
        for name, value in _scalars(record).items():
            summary = self._scalar(f"{prefix}/{name}", value)
            self._write(step=record["step"], summary=summary)

    def _write(self, **event: Any) -> None:
        self._try(lambda events: events.write_event(self._event(wall_time=time.time(), **event)))

    def sync(self, target: epath.Path) -> None:
        """Flush the events; if `target` is in a bucket, copy them there."""
        self._try(lambda events: events.flush())
        if self._events and is_remote(target):
            try:
                with bucket_errors(target):
                    target.mkdir(parents=True, exist_ok=True)
                    for events in self._folder.iterdir():
                        write_atomically(target / events.name, events.read_bytes())
            except OSError as error:  # the next copy contains these events, too
                _log.warning("%s can't be written (%s).", target, error.strerror or error)

    def close(self) -> None:
        """Flush the events and close their file."""
        self._try(lambda events: events.close())

    def _try(self, action: Callable[[Any], object]) -> None:
        with self._warning():
            if self._events:
                action(self._events)

    @contextlib.contextmanager
    def _warning(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._events = None
            _log.warning(
                "TensorBoard's copy of the record ends here (%s); %s goes on.",
                *(error.strerror or error, METRICS),
            )


def _scalars(record: dict[str, Any]) -> dict[str, float]:
    """Return the numbers of a record to plot, by name, including those of single seeds."""
    scalars = {k: v for k, v in record.items() if k not in _NOT_SCALARS}
    scalars |= {f"{name}_std": value for name, value in record.get("std", {}).items()}
    for name, values in record.get("seeds", {}).items():
        scalars |= {f"{name}_seed{number}": value for number, value in enumerate(values)}
    return scalars
