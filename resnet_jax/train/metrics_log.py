"""metrics.jsonl and TensorBoard: the record of a run, which survives a restart without a seam."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from etils import epath

from resnet_jax.buckets import is_remote
from resnet_jax.checkpoint.workdir import METRICS, write_atomically
from resnet_jax.errors import DataError
from resnet_jax.parallel.process import is_main

# Orders the record, but isn't plotted.
_NOT_SCALARS = ("step", "epoch", "split", "weights")
_BOARD = "tensorboard"


class MetricsLog:
    """Appends one JSON object per log point and mirrors its numbers to TensorBoard.

    `history` holds all records of the run, those before a restart included. Of the processes of a
    job only the main one writes. Files in a bucket can't be appended to: there the record is
    gathered on this host, and `sync` writes it as a whole.
    """

    def __init__(self, workdir: epath.Path, *, start_step: int) -> None:
        """Open the record of a run that goes on at `start_step`.

        Records of later steps are dropped: the run will write them again. So is a last line that
        a crash left unfinished.
        """
        from tensorboardX import SummaryWriter  # noqa: PLC0415 - 0.2 s that models don't need

        path = workdir / METRICS
        # Test scores are the last lines of a run; if it was killed there, they are written again.
        self.history = [
            r for r in read_metrics(path) if r["step"] <= start_step and r["split"] != "test"
        ]
        self._writes = is_main()
        if not self._writes:
            return
        self._workdir = workdir
        self._gathered = (
            tempfile.TemporaryDirectory(prefix="resnet_jax-") if is_remote(workdir) else None
        )
        folder = Path(self._gathered.name if self._gathered else workdir)
        self._path = folder / METRICS
        write_atomically(epath.Path(self._path), "".join(map(_line, self.history)))
        self._file = self._path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder / _BOARD), purge_step=start_step + 1)

    def write(self, record: dict[str, Any]) -> None:
        """Append a record; it must have "step" and "split"."""
        self.history.append(record)
        if not self._writes:
            return
        self._file.write(_line(record))
        self._file.flush()
        prefix = "_".join(filter(None, (record["split"], record.get("weights"))))
        for name, value in record.items():
            if name not in _NOT_SCALARS:
                self._board.add_scalar(f"{prefix}/{name}", value, record["step"])

    def sync(self) -> None:
        """Make what was written durable."""
        if not self._writes:
            return
        self._board.flush()
        os.fsync(self._file.fileno())
        if self._gathered:
            write_atomically(self._workdir / METRICS, self._path.read_bytes())
            board = self._workdir / _BOARD
            board.mkdir(parents=True, exist_ok=True)
            for events in (self._path.parent / _BOARD).iterdir():
                write_atomically(board / events.name, events.read_bytes())

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: object) -> None:
        if not self._writes:
            return
        try:
            self.sync()
        finally:
            self._file.close()
            self._board.close()
            if self._gathered:
                self._gathered.cleanup()


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, allow_nan=False) + "\n"


def read_metrics(path: epath.PathLike) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl, without a last line that a crash left unfinished.

    Raises:
        DataError: another line is damaged.
    """
    path = epath.Path(path)
    if not path.is_file():
        return []
    lines = path.read_bytes().decode(errors="replace").splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            records.append({**record, "step": int(record["step"]), "split": str(record["split"])})
        except (ValueError, TypeError, KeyError):
            raise DataError(
                f"Line {number} of {path} is damaged. Checkpoints don't depend on it: remove the"
                " line, or the file, and start the run again."
            ) from None
    return records
