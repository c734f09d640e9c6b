"""How commands end: one line on standard error and an exit code, instead of a traceback."""

import contextlib
import errno
import logging
import os
import select
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TextIO, cast

from resnet_jax.errors import (
    STOPPED_EARLY,
    ConfigError,
    PeerError,
    ResnetJaxError,
    StoppedEarly,
    UsageError,
    WriteError,
)
from resnet_jax.utils.streams import LossyStream, escaped, run_with_timeout

_INTERRUPTED = 130  # 128 + SIGINT, as shells count
A_BUG = 1
_WRITING_S = 1.0


def outlive_terminal() -> None:
    """Ignore errors of writing to standard output and standard error, such as a closed terminal."""
    # A file takes the lowest free descriptor when it is opened. A run's files must not get 1 or 2,
    # to which C libraries write their messages.
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, LossyStream):
            setattr(sys, name, cast(TextIO, LossyStream(stream)))


def unwritten_output() -> int:
    """The exit code after an output error, which is reported; 0 without an error.

    A closed pipe isn't an error: its reader, such as `head`, has read enough.
    """
    sys.stdout.flush()
    failure = getattr(sys.stdout, "failure", None)
    if failure is None or isinstance(failure, BrokenPipeError):
        return 0
    error = WriteError(f"Standard output can't be written ({failure.strerror or failure}).")
    _say(f"error: {error}")
    return error.exit_code


def report(error: BaseException) -> int | None:
    """Print the reason for the end of a command, and return its exit code; None for a bug."""
    if isinstance(error, KeyboardInterrupt):
        _say("interrupted; what was saved before is intact")
        return _INTERRUPTED
    if isinstance(error, StoppedEarly):
        _say(str(error))
        return error.exit_code
    if not isinstance(error, ResnetJaxError):
        explained = (
            _exit_call(error)
            or _long_name(error)
            or environment_error(error)
            or _device_error(error)
        )
        if explained is None:
            return None
        error = explained
    _say(f"error: {error}")
    return error.exit_code


def _exit_call(error: BaseException) -> ConfigError | None:
    """A message for `sys.exit` in code of the user's that a command calls; None for others.

    The exit code that the code chose would claim a success, or the cause of another failure.
    """
    if not isinstance(error, SystemExit):
        return None
    where = traceback.extract_tb(error.__traceback__)[-1]
    return ConfigError(
        f"{where.filename}, line {where.lineno}, has called sys.exit({error.code!r}). Code that a"
        " run calls may raise an exception, but not end the process. What was saved before is"
        " intact."
    )


def _long_name(error: BaseException) -> UsageError | None:
    """A message for a file's name that is too long for any file; None for others.

    pathlib raises an error for such a name even where it is asked whether the file exists.
    """
    if not isinstance(error, OSError) or error.errno != errno.ENAMETOOLONG:
        return None
    return UsageError(f"{error.filename}: {error.strerror}.")


def environment_error(error: BaseException | None) -> ConfigError | None:
    """A message for the error of importing JAX with a variable that it can't read; None for others.

    The error may be the cause of `error`, or the one that was handled when `error` was raised.
    """
    while error is not None:
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        if frames and frames[-1].f_globals.get("__name__") == "jax._src.config":
            for name, value in os.environ.items():
                if name.startswith("JAX_") and name.lower() in str(error).lower():
                    return ConfigError(
                        f"The environment variable {name} is {value!r}, which JAX doesn't accept;"
                        " correct or unset it."
                    )
        error = error.__cause__ or error.__context__
    return None


def _device_error(error: BaseException) -> ConfigError | None:
    """A message for an error that JAX raises if it can't start its devices; None for others."""
    # JAX raises RuntimeError, and AssertionError for some values of JAX_PLATFORMS.
    if not isinstance(error, RuntimeError | AssertionError) or "jax" not in sys.modules:
        return None
    try:
        sys.modules["jax"].devices()
    except (RuntimeError, AssertionError) as found:
        reason = " ".join(str(found).split()).rstrip(".") or "no device"
        platforms = os.environ.get("JAX_PLATFORMS")
        setting = f" with JAX_PLATFORMS={platforms!r}; unset it" if platforms else ""
        return ConfigError(
            f"JAX can't start its devices ({reason}){setting}. `resnet-jax doctor` says more."
        )
    return None


def _say(text: str) -> None:
    """Print on standard error, ignoring write errors."""
    print(escaped(text), file=LossyStream(sys.stderr))


def end_with(message: str) -> NoReturn:
    """End the process at once, from any thread, because another process of the job is lost."""
    error = PeerError(f"{message} What was saved before is intact; start the job again.")
    try:
        # If process 0 is lost, JAX aborts this process within seconds.
        if not _write_at_once(escaped(f"error: {error}\n")):
            run_with_timeout(lambda: _say(f"error: {error}"), timeout_s=_WRITING_S)
    finally:
        _end(error.exit_code, flush=_speaks_for_all())


def _write_at_once(text: str) -> bool:
    """Write to standard error if that doesn't block; return whether all was written."""
    data = text.encode(errors="replace")
    try:
        poll = select.poll()
        poll.register(2, select.POLLOUT)
        ready = bool(poll.poll(0)) and len(data) <= select.PIPE_BUF
        return ready and os.write(2, data) == len(data)
    except OSError:
        return False


def _speaks_for_all() -> bool:
    """Whether this process prints for its job, so that its output must be flushed."""
    distributed = sys.modules.get("jax._src.distributed")
    return distributed is None or not distributed.global_state.process_id


def end_early(message: str) -> NoReturn:
    """End the process at once, from any thread, on a signal before there is state to save."""
    try:
        run_with_timeout(lambda: _say(message), timeout_s=_WRITING_S)
    finally:
        _end(STOPPED_EARLY)


def _end(code: int, *, flush: bool = True) -> NoReturn:
    """End the process within seconds, without waiting for other threads or processes."""
    try:
        from resnet_jax.checkpoint.lock import release_all  # noqa: PLC0415 - imports etils

        release_all()
        if flush:
            run_with_timeout(_flush, timeout_s=_WRITING_S)
    finally:
        os._exit(code)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        LossyStream(stream).flush()


def _leave(code: int) -> NoReturn:
    """End a failed process, after the other processes of the job had time to fail too."""
    try:
        from resnet_jax.parallel.job.cluster import disconnect  # noqa: PLC0415 - imports JAX

        disconnect()
    finally:
        _end(code)


def exit_code_of(run: Callable[[], Any]) -> int:
    """Run a training function; return 0 if it finished, 75 if it stopped early and saved.

    Afterwards stop signals are ignored, because the process is about to end. If training fails,
    this function ends the process with the exit code and doesn't return.
    """
    from resnet_jax.checkpoint.stop import ignore_stop_signals  # noqa: PLC0415 - imports etils

    try:
        try:
            result = run()
        finally:
            ignore_stop_signals()
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        code = report(error)
        if code is None:  # a bug: print its traceback
            _say(traceback.format_exc().rstrip())
        _leave(A_BUG if code is None else code)
    return STOPPED_EARLY if result.stopped_early else 0


@contextlib.contextmanager
def last_work() -> Iterator[None]:
    """Ignore stop signals from the end of this context on, because the process is about to end.

    Enter it within a `StopRequest`. Otherwise a second signal would kill the process while it
    prints its results, and replace its exit code.
    """
    from resnet_jax.checkpoint.stop import ignore_stop_signals  # noqa: PLC0415 - imports etils

    try:
        yield
    finally:
        ignore_stop_signals()


class _EscapedLines(logging.Formatter):
    """Escapes control characters in log lines."""

    def format(self, record: logging.LogRecord) -> str:
        return escaped(super().format(record))


def show_progress() -> None:
    """Show this package's log messages, such as downloads, and hide those of other libraries."""
    handler = logging.StreamHandler()
    handler.setFormatter(_EscapedLines())
    ours = logging.getLogger("resnet_jax")
    ours.handlers = [handler]  # replaces the handler of an earlier command
    ours.setLevel(logging.INFO)
    ours.propagate = False
    # JAX and Orbax log at length; what matters to users is raised as an exception.
    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("absl").setLevel(logging.CRITICAL)
