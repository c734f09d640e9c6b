"""metrics.jsonl: the records of a run, complete over restarts."""

import hashlib
import json
import logging
import os
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from etils import epath

from resnet_jax.checkpoint.workdir import METRICS, write_atomically
from resnet_jax.errors import DataError, WriteError
from resnet_jax.logging.prometheus import PrometheusFile
from resnet_jax.logging.trackers import Trackers
from resnet_jax.parallel.job.agreement import is_main
from resnet_jax.utils.paths import as_path, is_remote, read_document

_log = logging.getLogger(__name__)


class MetricsLog:
    """Appends one JSON object per record, and copies its numbers to the trackers.

    Only the main process of a job writes. Files in a bucket can't be appended to: there the
    records are gathered on this host, and `sync` writes the whole file. Records that can't be
    written, for example because a disk is full, stay in memory until they can: `write` never ends
    a run.

    Attributes:
        history: all records of the run, including those before a restart.
    """

    def __init__(
        self,
        workdir: epath.Path,
        *,
        start_step: int,
        records: int | None = None,
        total_steps: int = 0,
        prometheus_dir: str = "",
        trackers: Trackers | None = None,
    ) -> None:
        """Open the log of a run that goes on at `start_step`.

        Records of later steps are dropped: the run will write them again. An unfinished last line
        of a crash is dropped, too.

        Args:
            workdir: directory of the run.
            start_step: step of the checkpoint that the run goes on from, or 0.
            records: number of records at that checkpoint, if known. A different number is a
                warning.
            total_steps: steps of the run.
            prometheus_dir: folder of a `PrometheusFile` that gets the records, too; "" for none.
            trackers: get the records, too; ended by the caller, after this log.

        Raises:
            DataError: metrics.jsonl is damaged, or can't be read.
            OSError: metrics.jsonl can't be written.
        """
        path = workdir / METRICS
        # Test scores are the last records of a run; a run that was killed there writes them again.
        # So are diagnostics of step 0, unless there is a checkpoint of a later step.
        self.history = [
            r
            for r in read_metrics(path)
            if r["step"] <= start_step and start_step and r["split"] != "test"
        ]
        self._digest = _digest_of(self.history)
        self._writes = is_main()
        self._trackers = trackers or Trackers()
        if not self._writes:
            return
        if records not in (None, len(self.history)):
            _log.warning(
                "%s has %d of the %d records that were written up to step %d; the run goes on, and"
                " its curves are drawn from what is there.",
                *(path, len(self.history), records, start_step),
            )
        self._workdir = workdir
        self._prometheus: PrometheusFile | None = None
        if prometheus_dir:
            self._prometheus = PrometheusFile(
                as_path(prometheus_dir), workdir, total_steps=total_steps
            )
        self._gathered = (
            tempfile.TemporaryDirectory(prefix="resnet_jax-") if is_remote(workdir) else None
        )
        folder = Path(self._gathered.name if self._gathered else workdir)
        self._path = folder / METRICS
        write_atomically(epath.Path(self._path), records_text(self.history))
        self._file = self._path.open("ab", buffering=0)
        self._unwritten: list[dict[str, Any]] = []

    def write(self, record: dict[str, Any]) -> None:
        """Append a record; it must have "step" and "split"."""
        self.history.append(record)
        self._digest.update(_line(record).encode())
        if not self._writes:
            return
        self._trackers.record(record)
        if self._prometheus:
            self._prometheus.write(self.history)
        behind = bool(self._unwritten)
        self._unwritten.append(record)
        try:
            self._write_pending()
        except OSError as error:
            if not behind:
                _log.warning(
                    "%s can't be written (%s); its lines are kept in memory until it can.",
                    *(self._path, error.strerror or error),
                )

    def digest(self) -> str:
        """SHA-256 of all records so far; see `records_digest`."""
        return self._digest.hexdigest()

    def _write_pending(self) -> None:
        """Append all records that aren't in the file yet or, with an error, none."""
        lines = records_text(self._unwritten).encode()
        whole = os.fstat(self._file.fileno()).st_size
        try:
            while lines:
                lines = lines[self._file.write(lines) :]
        except OSError:
            os.ftruncate(self._file.fileno(), whole)
            raise
        self._unwritten.clear()

    def sync(self) -> None:
        """Make all records durable.

        Raises:
            WriteError: metrics.jsonl can't be written.
        """
        if not self._writes:
            return
        try:
            self._write_pending()
            os.fsync(self._file.fileno())
            if self._gathered:
                write_atomically(self._workdir / METRICS, self._path.read_bytes())
        except OSError as error:
            raise WriteError(
                f"{self._workdir / METRICS} can't be written ({error.strerror or error})."
            ) from error
        self._trackers.sync()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if not self._writes:
            return
        try:
            self.sync()
        except WriteError:
            if error is None:  # else the run ends by the other error, which matters more
                raise
        finally:
            self._file.close()
            if self._prometheus:
                self._prometheus.close(self.history)
            if self._gathered:
                self._gathered.cleanup()


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, allow_nan=False) + "\n"


def records_text(records: Iterable[dict[str, Any]]) -> str:
    """The content of a metrics.jsonl with these records."""
    return "".join(map(_line, records))


def records_digest(records: Iterable[dict[str, Any]]) -> str:
    """SHA-256 of the lines of these records, in hexadecimal."""
    return _digest_of(records).hexdigest()


def _digest_of(records: Iterable[dict[str, Any]]) -> "hashlib._Hash":
    digest = hashlib.sha256()
    for record in records:
        digest.update(_line(record).encode())
    return digest


def read_metrics(path: epath.PathLike) -> list[dict[str, Any]]:
    """Return the records of a metrics.jsonl, without an unfinished last line of a crash.

    Raises:
        DataError: a line is damaged, or the file can't be read.
    """
    records, damaged = salvage_metrics(path)
    if damaged:
        number, why = next(iter(damaged.items()))
        raise DataError(
            f"Line {number} of {path} is damaged ({why}). Checkpoints don't depend on it:"
            " remove the line, or the file, and start the run again."
        )
    return records


def salvage_metrics(path: epath.PathLike) -> tuple[list[dict[str, Any]], dict[int, str]]:
    """Return the records of the lines that aren't damaged, and why the others are, by line number.

    An unfinished last line of a crash is left out. Lines are numbered from 1.

    Raises:
        DataError: the file can't be read.
    """
    path = epath.Path(path)
    try:
        text = read_document(path).decode(errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return [], {}
    except OSError as error:
        raise DataError(f"{path} can't be read ({error.strerror or error}).") from None
    lines = text.splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    records: list[dict[str, Any]] = []
    damaged: dict[int, str] = {}
    for number, line in enumerate(lines, start=1):
        try:
            record = _checked(json.loads(line, parse_constant=refuse_constant))
            _check_same_seeds(records[0] if records else record, record)
        except (ValueError, RecursionError) as error:
            why = "not JSON" if isinstance(error, json.JSONDecodeError) else str(error)
            damaged[number] = why
        else:
            records.append(record)
    return records, damaged


# Fields that every version of this package has written, by split.
_NEEDED = {"train": ("epoch", "loss", "top1", "lr", "img_per_s"), "diagnostics": ("epoch",)}
_NEEDED_OF_SCORES = ("epoch", "loss", "top1")
_TEXTS = ("weights", "batches")
_COUNTS, _LARGEST_COUNT = ("step", "epoch", "wall_s"), 1e15  # no run has so many of any
_SPREAD = ("std", "seeds")  # with several seeds: metric → standard deviation, and → values


def _checked(record: Any) -> dict[str, Any]:
    """Return the record if all fields that this package reads have the right types."""
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
    for name in _TEXTS:
        if not isinstance(record.get(name, ""), str):
            raise ValueError(f'"{name}" is no text')
    for name, value in record.items():
        if name in _SPREAD:
            _check_spread(name, value, [n for n in needed if n in _NEEDED_OF_SCORES[1:]])
        elif name not in ("split", *_TEXTS):
            _check_number(name, value)
    for name in _COUNTS:
        if not 0 <= record.get(name, 0) <= _LARGEST_COUNT:
            raise ValueError(f'"{name}" is negative or too large')
    return record


def _check_spread(name: str, values: Any, needed: list[str]) -> None:
    if not isinstance(values, dict):
        raise ValueError(f'"{name}" is no JSON object')
    if missing := [metric for metric in needed if metric not in values]:
        raise ValueError(f'"{missing[0]}" is missing in "{name}"')
    for metric, value in values.items():
        if name == "seeds" and not isinstance(value, list):
            raise ValueError(f'"{metric}" in "{name}" is no list')
        for item in value if name == "seeds" else [value]:
            _check_number(metric, item)


def _check_number(name: str, value: Any) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not abs(value) <= sys.float_info.max:  # isfinite() fails for long integers
        raise ValueError(f'"{name}" is no finite number')


def _check_same_seeds(first: dict[str, Any], record: dict[str, Any]) -> None:
    """Check that a record has as many seeds as the first, for each metric."""
    counts = {len(v) for r in (first, record) for v in r.get("seeds", {}).values()}
    if len(counts) > 1 or ("seeds" in first) != ("seeds" in record):
        raise ValueError("other seeds than in the first line")


def refuse_constant(constant: str) -> NoReturn:
    """Refuse NaN and Infinity, which JSON doesn't have."""
    raise ValueError(f"{constant} is no finite number")
