"""metrics.jsonl and TensorBoard: the record of a run, which survives a restart without a seam."""

import json
import os
from pathlib import Path
from typing import Any, TextIO

from resnet_jax.checkpoint.workdir import METRICS, write_atomically
from resnet_jax.errors import DataError

# Orders the record, but isn't plotted.
_NOT_SCALARS = ("step", "epoch", "split", "weights")


class MetricsLog:
    """Appends one JSON object per log point and mirrors its numbers to TensorBoard.

    `history` holds all records of the run, those before a restart included.
    """

    def __init__(self, workdir: Path, *, start_step: int) -> None:
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
        lines = [json.dumps(record, allow_nan=False) + "\n" for record in self.history]
        write_atomically(path, "".join(lines))
        self._file: TextIO = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=start_step + 1)

    def write(self, record: dict[str, Any]) -> None:
        """Append a record; it must have "step" and "split"."""
        self.history.append(record)
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()
        prefix = "_".join(filter(None, (record["split"], record.get("weights"))))
        for name, value in record.items():
            if name not in _NOT_SCALARS:
                self._board.add_scalar(f"{prefix}/{name}", value, record["step"])

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._board.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl, without a last line that a crash left unfinished.

    Raises:
        DataError: another line is damaged.
    """
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
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
