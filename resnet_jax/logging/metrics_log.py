"""metrics.jsonl and TensorBoard: the record of a run, which survives a restart without a seam."""

import contextlib
import json
import logging
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from etils import epath

from resnet_jax.checkpoint.workdir import METRICS, write_atomically
from resnet_jax.errors import DataError, WriteError
from resnet_jax.parallel.job.agreement import is_main
from resnet_jax.utils.paths import bucket_errors, is_remote

_log = logging.getLogger(__name__)

# Orders the record, but isn't plotted.
_NOT_SCALARS = ("step", "epoch", "split", "weights", "wall_s", "std", "seeds")
_BOARD = "tensorboard"


class MetricsLog:
    """Appends one JSON object per log point and mirrors its numbers to TensorBoard.

    `history` holds all records of the run, those before a restart included. Of the processes of a
    job only the main one writes. Files in a bucket can't be appended to: there the record is
    gathered on this host, and `sync` writes it as a whole. What can't be written, because a disk
    is full, stays in memory until it can: no run ends because of its log.
    """

    def __init__(self, workdir: epath.Path, *, start_step: int, records: int | None = None) -> None:
        """Open the record of a run that goes on at `start_step`.

        Records of later steps are dropped: the run will write them again. So is a last line that
        a crash left unfinished.

        Args:
            workdir: of the run.
            start_step: of the checkpoint that the run goes on from, or 0.
            records: how many there were at that checkpoint, if that is known. If there are more
                or fewer now, a warning says so.

        Raises:
            DataError: the record is damaged, or can't be read.
            OSError: it can't be written.
        """
        path = workdir / METRICS
        # Test scores are the last lines of a run; if it was killed there, they are written again.
        # So is what is measured before the first step, unless there is a checkpoint after it.
        self.history = [
            r
            for r in read_metrics(path)
            if r["step"] <= start_step and start_step and r["split"] != "test"
        ]
        self._writes = is_main()
        if not self._writes:
            return
        if records not in (None, len(self.history)):
            _log.warning(
                "%s has %d of the %d records that were written up to step %d; the run goes on, and"
                " its curves are drawn from what is there.",
                *(path, len(self.history), records, start_step),
            )
        self._workdir = workdir
        self._gathered = (
            tempfile.TemporaryDirectory(prefix="resnet_jax-") if is_remote(workdir) else None
        )
        folder = Path(self._gathered.name if self._gathered else workdir)
        self._path = folder / METRICS
        write_atomically(epath.Path(self._path), "".join(map(_line, self.history)))
        self._file = self._path.open("ab", buffering=0)
        self._unwritten: list[dict[str, Any]] = []
        self._board = _Board(folder / _BOARD, start_step=start_step)

    def write(self, record: dict[str, Any]) -> None:
        """Append a record; it must have "step" and "split"."""
        self.history.append(record)
        if not self._writes:
            return
        self._board.write(record)
        behind = bool(self._unwritten)
        self._unwritten.append(record)
        try:
            self._catch_up()
        except OSError as error:
            if not behind:
                _log.warning(
                    "%s can't be written (%s); its lines are kept in memory until it can.",
                    *(self._path, error.strerror or error),
                )

    def _catch_up(self) -> None:
        """Append what isn't in the file yet: all of it or, with an error, nothing."""
        lines = "".join(map(_line, self._unwritten)).encode()
        whole = os.fstat(self._file.fileno()).st_size
        try:
            while lines:
                lines = lines[self._file.write(lines) :]
        except OSError:
            os.ftruncate(self._file.fileno(), whole)
            raise
        self._unwritten.clear()

    def sync(self) -> None:
        """Make what was written durable.

        Raises:
            WriteError: it can't be.
        """
        if not self._writes:
            return
        try:
            self._catch_up()
            os.fsync(self._file.fileno())
            if self._gathered:
                write_atomically(self._workdir / METRICS, self._path.read_bytes())
        except OSError as error:
            raise WriteError(
                f"{self._workdir / METRICS} can't be written ({error.strerror or error})."
            ) from error
        self._board.sync(self._workdir / _BOARD)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if not self._writes:
            return
        try:
            self.sync()
        except WriteError:
            if error is None:  # else the run ends by that error, which matters more
                raise
        finally:
            self._file.close()
            self._board.close()
            if self._gathered:
                self._gathered.cleanup()


class _Board:
    """Numbers for `tensorboard --logdir`; a copy, which ends where it can't be written.

    Not by the library's SummaryWriter: its thread dies of an error, and then a flush never ends.
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
        with self._losses():
            folder.mkdir(exist_ok=True)
            self._events = EventsWriter(str(folder / "events"), suffix)
        # TensorBoard hides what an earlier process wrote of these steps.
        session = SessionLog(status=SessionLog.START)
        self._write(step=start_step + 1, session_log=session)

    def write(self, record: dict[str, Any]) -> None:
        prefix = "_".join(filter(None, (record["split"], record.get("weights"))))
        for name, value in _scalars(record).items():
            summary = self._scalar(f"{prefix}/{name}", value)
            self._write(step=record["step"], summary=summary)

    def _write(self, **event: Any) -> None:
        self._do(lambda events: events.write_event(self._event(wall_time=time.time(), **event)))

    def sync(self, target: epath.Path) -> None:
        """Send on what was written; if `target` is in a bucket, copy it there."""
        self._do(lambda events: events.flush())
        if self._events and is_remote(target):
            try:
                with bucket_errors(target):
                    target.mkdir(parents=True, exist_ok=True)
                    for events in self._folder.iterdir():
                        write_atomically(target / events.name, events.read_bytes())
            except OSError as error:  # the next copy has these events, too
                _log.warning("%s can't be written (%s).", target, error.strerror or error)

    def close(self) -> None:
        self._do(lambda events: events.close())

    def _do(self, action: Callable[[Any], object]) -> None:
        with self._losses():
            if self._events:
                action(self._events)

    @contextlib.contextmanager
    def _losses(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._events = None
            _log.warning(
                "TensorBoard's copy of the record ends here (%s); %s goes on.",
                *(error.strerror or error, METRICS),
            )


def _scalars(record: dict[str, Any]) -> dict[str, float]:
    """What is plotted of a record, that of single seeds included, by name."""
    scalars = {k: v for k, v in record.items() if k not in _NOT_SCALARS}
    scalars |= {f"{name}_std": value for name, value in record.get("std", {}).items()}
    for name, values in record.get("seeds", {}).items():
        scalars |= {f"{name}_seed{number}": value for number, value in enumerate(values)}
    return scalars


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, allow_nan=False) + "\n"


def read_metrics(path: epath.PathLike) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl, without a last line that a crash left unfinished.

    Raises:
        DataError: another line is damaged, or the file can't be read.
    """
    path = epath.Path(path)
    try:
        with bucket_errors(path):
            if not path.is_file():
                return []
            text = path.read_bytes().decode(errors="replace")
    except OSError as error:
        raise DataError(f"{path} can't be read ({error.strerror or error}).") from None
    lines = text.splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    records: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(_checked(json.loads(line, parse_constant=_refuse)))
            _check_same_seeds(records)
        except (ValueError, RecursionError) as error:
            why = "not JSON" if isinstance(error, json.JSONDecodeError) else error
            raise DataError(
                f"Line {number} of {path} is damaged ({why}). Checkpoints don't depend on it:"
                " remove the line, or the file, and start the run again."
            ) from None
    return records


# What every version has written, by split.
_NEEDED = {"train": ("epoch", "loss", "top1", "lr", "img_per_s"), "diagnostics": ("epoch",)}
_NEEDED_OF_SCORES = ("epoch", "loss", "top1")
_SPREAD = ("std", "seeds")  # of several seeds: by metric the deviation, and the values of each


def _checked(record: Any) -> dict[str, Any]:
    """The record, if what is read of records has the right types.

    Raises:
        ValueError: saying what is wrong.
    """
    if not isinstance(record, dict):
        raise ValueError("no JSON object")
    split = record.get("split")
    if not isinstance(split, str):
        raise ValueError('"split" is no text')
    if type(record.get("step")) is not int or record["step"] < 0:
        raise ValueError('"step" is no number of a step')
    needed = _NEEDED.get(split, _NEEDED_OF_SCORES)
    if missing := [name for name in needed if name not in record]:
        raise ValueError(f'"{missing[0]}" is missing')
    if not isinstance(record.get("weights", ""), str):
        raise ValueError('"weights" is no text')
    for name, value in record.items():
        if name in _SPREAD:
            _check_spread(name, value, [n for n in needed if n in _NEEDED_OF_SCORES[1:]])
        elif name not in ("split", "weights"):
            _check_number(name, value)
    return record


def _check_spread(name: str, values: Any, needed: list[str]) -> None:
    if not isinstance(values, dict):
        raise ValueError(f'"{name}" is no JSON object')
    if missing := [metric for metric in needed if metric not in values]:
        raise ValueError(f'"{missing[0]}" is missing in "{name}"')
    for metric, value in values.items():
        if name == "seeds" and not isinstance(value, list):
            raise ValueError(f'"{metric}" in "{name}" is no list')
        for one in value if name == "seeds" else [value]:
            _check_number(metric, one)


def _check_number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f'"{name}" is no finite number')


def _check_same_seeds(records: list[dict[str, Any]]) -> None:
    """Check that the last record has values of as many seeds as the first, for each metric."""
    counts = {len(v) for r in (records[0], records[-1]) for v in r.get("seeds", {}).values()}
    if len(counts) > 1 or ("seeds" in records[0]) != ("seeds" in records[-1]):
        raise ValueError("other seeds than in the first line")


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no finite number")
