"""process.json: the process that trains a run, and how it ended."""

import contextlib
import json
import logging
import os
import socket
import time
from collections.abc import Callable
from typing import Any

import jax
from etils import epath

from resnet_jax.checkpoint.lock import LOCK
from resnet_jax.checkpoint.lock_file import read_lock
from resnet_jax.checkpoint.workdir import PROCESS, SUMMARY, write_atomically
from resnet_jax.errors import ResnetJaxError, StoppedEarly
from resnet_jax.parallel.job.agreement import is_main
from resnet_jax.utils.messages import first_line
from resnet_jax.utils.paths import bucket_errors

_log = logging.getLogger(__name__)


class ProcessRecord:
    """process.json: written when this is made and when its context ends, by the main process.

    "token" is the token of the lock. "steps" is the number of steps of the run, "start_step" the
    step that this process goes on from; both are null until they are known. "started" and "ended"
    are in seconds since 1970. "error" is the reason of a failure, and null after the last step or a
    stop on request. A process that is killed writes no "ended". A file that can't be written is a
    warning: no part of the run depends on it.
    """

    def __init__(self, workdir: epath.Path, check_workdir: Callable[[], None]) -> None:
        """Write that this process has begun.

        Args:
            workdir: directory of the run, which is locked.
            check_workdir: raises an error if the directory isn't this run's any more; nothing is
                written then at the end.
        """
        self._workdir, self._check_workdir = workdir, check_workdir
        self._document: dict[str, Any] = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "token": _token(workdir),
            "processes": jax.process_count(),
            "devices": f"{jax.device_count()} × {jax.devices()[0].device_kind}",
            "steps": None,
            "start_step": None,
            "started": time.time(),
            "ended": None,
            "error": None,
        }
        # The record of a finished run stays, unless the run is trained again.
        self._is_kept = not _is_finished(workdir)
        self._write()

    def __enter__(self) -> "ProcessRecord":
        return self

    def __exit__(self, _: object, error: BaseException | None, *__: object) -> None:
        self.end(error)

    def trains(self, *, start_step: int, total_steps: int) -> None:
        """Write the step that this process goes on from, and the number of steps of the run."""
        self._document |= {"start_step": start_step, "steps": total_steps}
        self._is_kept = True
        self._write()

    def end(self, error: BaseException | None = None) -> None:
        """Write that this process has ended, and by which error; only the first call counts."""
        if self._document["ended"] is not None:
            return
        self._document["error"] = _reason(error) if error else None
        self._document["ended"] = time.time()
        with contextlib.suppress(ResnetJaxError):
            self._check_workdir()
            self._write()

    def _write(self) -> None:
        if not self._is_kept or not is_main():
            return
        path = self._workdir / PROCESS
        try:
            write_atomically(path, json.dumps(self._document, indent=1) + "\n")
        except OSError as error:
            _log.warning("%s can't be written (%s).", path, error.strerror or error)


def _token(workdir: epath.Path) -> str | None:
    """The token of the lock; None if the lock can't be read."""
    try:
        holder = read_lock(workdir / LOCK)
    except OSError:
        return None
    return holder.token if holder else None


def _is_finished(workdir: epath.Path) -> bool:
    try:
        with bucket_errors(workdir):
            return bool((workdir / SUMMARY).exists())
    except OSError:
        return False


def _reason(error: BaseException) -> str | None:
    if isinstance(error, StoppedEarly):
        return None
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, ResnetJaxError):
        return str(error)
    return f"{type(error).__name__}: {first_line(error)}"
