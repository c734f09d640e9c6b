"""TensorBoard as a tracker: event files in the run's directory."""

import io
import logging
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath
from PIL import Image

from resnet_jax.checkpoint.workdir import TENSORBOARD, write_atomically
from resnet_jax.logging.trackers import Outcome, Value
from resnet_jax.utils.paths import bucket_errors, is_remote

_log = logging.getLogger(__name__)


class TensorBoard:
    """Writes events for `tensorboard --logdir`; see `Tracker`.

    The events of a run in a bucket are written on this host, and copied at each `sync`. Doesn't use
    the library's SummaryWriter: an error kills its thread, and a flush then never returns.
    """

    title = "TensorBoard"

    def __init__(self, workdir: epath.Path, *, start_step: int, metrics: Sequence[str]) -> None:
        """Open an event file.

        Args:
            workdir: directory of the run; the events are in its folder tensorboard.
            start_step: TensorBoard hides what an earlier process wrote of later steps.
            metrics: tags that are shown beside the hyper-parameters.

        Raises:
            OSError: the file can't be written.
        """
        from tensorboardX import summary  # noqa: PLC0415 - 0.2 s that models don't need
        from tensorboardX.event_file_writer import EventsWriter  # noqa: PLC0415
        from tensorboardX.proto import event_pb2  # noqa: PLC0415

        self._summary, self._protos, self._metrics = summary, event_pb2, metrics
        self._session_end: Any = None
        self._target = workdir / TENSORBOARD
        self._gathered = (
            tempfile.TemporaryDirectory(prefix="resnet_jax-") if is_remote(workdir) else None
        )
        self._folder = Path(self._gathered.name) if self._gathered else Path(self._target)
        self._folder.mkdir(exist_ok=True)
        # The library's own names have seconds only: a quick restart would overwrite the file.
        suffix = f".{os.getpid()}.{time.time_ns()}"
        self._events = EventsWriter(str(self._folder / "events"), suffix)
        session = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(step=start_step + 1, session_log=session)

    def hyperparameters(self, values: Mapping[str, Value]) -> None:
        """Begin a session of the HParams dashboard."""
        experiment, start, self._session_end = self._summary.hparams(
            dict(values), dict.fromkeys(self._metrics)
        )
        self._write(summary=experiment)
        self._write(summary=start)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write numbers by tag."""
        for tag, value in values.items():
            self._write(step=step, summary=self._summary.scalar(tag, value))

    def picture(self, step: int, tag: str, png: bytes) -> None:
        """Write a picture as it is."""
        width, height = Image.open(io.BytesIO(png)).size
        image = self._summary.Summary.Image(
            height=height, width=width, colorspace=3, encoded_image_string=png
        )
        value = self._summary.Summary.Value(tag=tag, image=image)
        self._write(step=step, summary=self._summary.Summary(value=[value]))

    def sync(self) -> None:
        """Flush the events; of a run in a bucket, copy them there."""
        self._events.flush()
        if self._gathered:
            try:
                with bucket_errors(self._target):
                    self._target.mkdir(parents=True, exist_ok=True)
                    for events in self._folder.iterdir():
                        write_atomically(self._target / events.name, events.read_bytes())
            except OSError as error:  # the next copy contains these events, too
                _log.warning("%s can't be written (%s).", self._target, error.strerror or error)

    def end(self, outcome: Outcome) -> None:
        """Close the file."""
        if outcome == "finished" and self._session_end:
            self._write(summary=self._session_end)
        self.sync()
        self._events.close()
        if self._gathered:
            self._gathered.cleanup()

    def _write(self, **event: Any) -> None:
        self._events.write_event(self._protos.Event(wall_time=time.time(), **event))
