"""process.json: the process that trains a run, and how it ended."""

import contextlib
import json
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from etils import epath

from resnet_jax.checkpoint.corruption import first_line
from resnet_jax.checkpoint.workdir import PROCESS, write_atomically
from resnet_jax.errors import ResnetJaxError, StoppedEarly
from resnet_jax.parallel.job.agreement import is_main

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def recorded_process(
    workdir: epath.Path, *, start_step: int, total_steps: int, check_workdir: Callable[[], None]
) -> Iterator[None]:
    """Write process.json when the context begins and when it ends, in the main process of a job.

    "steps" is the number of steps of the run, "start_step" the step that this process goes on from,
    "started" and "ended" are in seconds since 1970. "error" is the reason of a failure, and null
    after the last step or a stop on request. A process that is killed writes no "ended". A file
    that can't be written is a warning: no part of the run depends on it.

    Args:
        workdir: directory of the run.
        start_step, total_steps: as above.
        check_workdir: raises an error if the directory isn't this run's any more; nothing is
            written then.
    """
    if not is_main():
        yield
        return
    document: dict[str, Any] = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "processes": jax.process_count(),
        "devices": f"{jax.device_count()} × {jax.devices()[0].device_kind}",
        "steps": total_steps,
        "start_step": start_step,
        "started": time.time(),
        "ended": None,
        "error": None,
    }
    _write(workdir, document)
    try:
        yield
    except BaseException as error:
        document["error"] = _reason(error)
        raise
    finally:
        document["ended"] = time.time()
        with contextlib.suppress(ResnetJaxError):
            check_workdir()
            _write(workdir, document)


def _write(workdir: epath.Path, document: dict[str, Any]) -> None:
    try:
        write_atomically(workdir / PROCESS, json.dumps(document, indent=1) + "\n")
    except OSError as error:
        _log.warning("%s can't be written (%s).", workdir / PROCESS, error.strerror or error)


def _reason(error: BaseException) -> str | None:
    if isinstance(error, StoppedEarly):
        return None
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, ResnetJaxError):
        return str(error)
    return f"{type(error).__name__}: {first_line(error)}"
