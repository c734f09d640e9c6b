"""One clear line and an exit code for what a user can get wrong, instead of a traceback."""

import logging
import os
import re
import select
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO, cast

from absl import flags

from resnet_jax.errors import (
    STOPPED_EARLY,
    ConfigError,
    PeerError,
    ResnetJaxError,
    StoppedEarly,
    UsageError,
)
from resnet_jax.output import LossyStream, briefly, escaped

_INTERRUPTED = 130  # 128 + SIGINT, as shells count
_WRITING_S = 1.0


def outlive_terminal() -> None:
    """Let standard output and error be lost where they can't be written, and all else go on."""
    # A file that is opened takes the lowest free number. One of a run must not get 1 or 2, to
    # which libraries in C write their messages.
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, LossyStream):
            setattr(sys, name, cast(TextIO, LossyStream(stream)))


def report(error: ResnetJaxError) -> int:
    """Print the error on standard error and return its exit code."""
    _say(f"error: {error}")
    return error.exit_code


def _say(text: str) -> None:
    """Print on standard error; if that can't be written, the exit code has to tell it."""
    print(escaped(text), file=LossyStream(sys.stderr))


def end_with(message: str) -> NoReturn:
    """End the process at once, from any thread, because another one of its job is lost."""
    error = PeerError(f"{message} What was saved before is intact; start the job again.")
    try:
        # Where process 0 was lost, JAX is about to abort this one: there are milliseconds left.
        if not _write_at_once(escaped(f"error: {error}\n")):
            briefly(lambda: report(error), timeout_s=_WRITING_S)
    finally:
        _end(error.exit_code, flush=_speaks_for_all())


def _write_at_once(text: str) -> bool:
    """Write to standard error, if it takes that without a moment's delay."""
    data = text.encode(errors="replace")
    try:
        poll = select.poll()
        poll.register(2, select.POLLOUT)
        ready = bool(poll.poll(0)) and len(data) <= select.PIPE_BUF
        return ready and os.write(2, data) == len(data)
    except OSError:
        return False


def _speaks_for_all() -> bool:
    """Whether this process may have printed something that isn't written yet."""
    distributed = sys.modules.get("jax._src.distributed")
    return distributed is None or not distributed.global_state.process_id


def end_early() -> NoReturn:
    """End the process at once, from any thread, because it was told to and has nothing to save."""
    from resnet_jax.checkpoint.stop import NOTHING_LOST  # noqa: PLC0415

    try:
        briefly(lambda: _say(NOTHING_LOST), timeout_s=_WRITING_S)
    finally:
        _end(STOPPED_EARLY)


def _end(code: int, *, flush: bool = True) -> NoReturn:
    """End the process within seconds, whatever its other threads wait for.

    An orderly end would wait for them, and for the other processes of the job.
    """
    try:
        from resnet_jax.checkpoint.lock import release_all  # noqa: PLC0415 - imports etils

        release_all()
        if flush:
            briefly(_flush, timeout_s=_WRITING_S)
    finally:
        os._exit(code)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        LossyStream(stream).flush()


def _leave(code: int) -> NoReturn:
    """End a process that has failed, and give the others of its job time to do so too."""
    try:
        from resnet_jax.parallel.process import disconnect  # noqa: PLC0415 - imports JAX

        disconnect()
    finally:
        _end(code)


def exit_code_of(run: Callable[[], Any]) -> int:
    """Run a training function; 0 if it finished, 75 if it stopped early but saved.

    If it fails, this ends the process with the exit code, and doesn't return.
    """
    try:
        result = run()
    except StoppedEarly as stop:
        _say(str(stop))
        _leave(stop.exit_code)
    except ResnetJaxError as error:
        _leave(report(error))
    except KeyboardInterrupt:
        _say("interrupted; what was saved before is intact")
        _leave(_INTERRUPTED)
    except Exception:  # a bug, which keeps its traceback
        _say(traceback.format_exc().rstrip())
        _leave(1)
    return STOPPED_EARLY if result.stopped_early else 0


class _EscapedLines(logging.Formatter):
    """What is logged, but for what would steer a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return escaped(super().format(record))


def show_progress() -> None:
    """Let the package say what takes long, such as a download, and keep other libraries quiet."""
    handler = logging.StreamHandler()
    handler.setFormatter(_EscapedLines())
    ours = logging.getLogger("resnet_jax")
    ours.handlers = [handler]  # not beside that of an earlier command in this process
    ours.setLevel(logging.INFO)
    ours.propagate = False
    # JAX and Orbax explain themselves at length; what matters to a user comes as an exception.
    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("absl").setLevel(logging.CRITICAL)


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parse the command line for `absl.app.run`; exits with one line if it is wrong."""
    outlive_terminal()
    try:
        rest = flags.FLAGS(argv)
        # A config file that is missing makes a config that fails when it is first looked at.
        flags.FLAGS.config.to_dict()
    except SystemExit:  # absl has printed --help, and would end with 1
        sys.exit(0)
    except Exception as error:
        explained = explain(error, argv, program=f"python {argv[0]}")
        if explained is None:
            raise
        sys.exit(report(explained))
    return rest


def explain(error: Exception, argv: Sequence[str], *, program: str) -> ResnetJaxError | None:
    """The sentence for what went wrong while a config was made from a command line.

    Args:
        error: what was raised.
        argv: the command line, after the program's name.
        program: whose `--help` lists the flags.

    Returns:
        The explained error; None for a bug.
    """
    if isinstance(error, ResnetJaxError):  # raised by the config file
        return error
    unknown = _unknown_field(argv)
    if unknown:
        return unknown
    file = _config_file(argv)
    if mistake := _mistake_in(file, error):
        return mistake
    if isinstance(error, OSError):
        return ConfigError(f"--config: there is no file {file}.")
    if isinstance(error, flags.Error):
        line = re.sub(r"\s+", " ", str(error).strip())
        if missing := re.search(r"flag --(\w+)=None", line):
            return UsageError(f"--{missing[1]} is missing ({program} --help explains it)")
        if "--config." in line:
            return ConfigError(line)
        return UsageError(f"{line} ({program} --help lists the flags)")
    return None


def _config_file(argv: Sequence[str]) -> str:
    """The file's name in `--config FILE:ARGUMENT` or `--config=FILE:ARGUMENT`."""
    found = re.search(r"--?config[= ]([^ :]+)", " ".join(argv))
    return found[1] if found else "--config"


def _mistake_in(file: str, error: BaseException | None) -> ConfigError | None:
    """An error raised in the config file itself, with its line: it is a user's program."""
    while error is not None:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [f.lineno for f in frames if Path(f.filename).name == Path(file).name]
        if lines:
            message = (str(error).strip().splitlines() or [""])[0].strip("'\"")
            return ConfigError(f"{file}, line {lines[-1]}: {type(error).__name__}: {message}")
        error = error.__cause__ or error.__context__
    return None


def _unknown_field(argv: Sequence[str]) -> ConfigError | None:
    """The first `--config.NAME` that no config has."""
    from resnet_jax.train.config import default_config, flatten  # noqa: PLC0415 - needs JAX
    from resnet_jax.train.field_names import unknown_field  # noqa: PLC0415

    known = flatten(default_config())
    for argument in argv[1:]:
        found = re.match(r"--?(?:no)?config\.([^=]+)", argument)
        if found and found[1] not in known:
            fields = ", ".join(name for name in known if name.startswith(f"{found[1]}."))
            if fields:
                return ConfigError(f"{found[1]} is a section of the config; its fields: {fields}.")
            return unknown_field(found[1], known)
    return None
