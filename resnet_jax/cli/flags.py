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
    WriteError,
)
from resnet_jax.utils.streams import LossyStream, escaped, run_with_timeout

_INTERRUPTED = 130  # 128 + SIGINT, as shells count
_A_BUG = 1
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


def unwritten_output() -> int:
    """The exit code if what a command printed couldn't be written, which is reported; else 0.

    A reader that ends before the output does, as `head` does, has read what it wanted.
    """
    sys.stdout.flush()
    failure = getattr(sys.stdout, "failure", None)
    if failure is None or isinstance(failure, BrokenPipeError):
        return 0
    error = WriteError(f"Standard output can't be written ({failure.strerror or failure}).")
    _say(f"error: {error}")
    return error.exit_code


def report(error: BaseException) -> int | None:
    """Print on standard error why a command ends, and return its exit code; None for a bug."""
    if isinstance(error, KeyboardInterrupt):
        _say("interrupted; what was saved before is intact")
        return _INTERRUPTED
    if isinstance(error, StoppedEarly):
        _say(str(error))
        return error.exit_code
    if not isinstance(error, ResnetJaxError):
        explained = _device_error(error)
        if explained is None:
            return None
        error = explained
    _say(f"error: {error}")
    return error.exit_code


def _device_error(error: BaseException) -> ConfigError | None:
    """The sentence for an error raised because JAX can't start its devices; None for others."""
    # JAX raises plain RuntimeErrors, and AssertionErrors for some values of JAX_PLATFORMS.
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
    """Print on standard error; if that can't be written, the exit code has to tell it."""
    print(escaped(text), file=LossyStream(sys.stderr))


def end_with(message: str) -> NoReturn:
    """End the process at once, from any thread, because another one of its job is lost."""
    error = PeerError(f"{message} What was saved before is intact; start the job again.")
    try:
        # Where process 0 was lost, JAX is about to abort this one: there are milliseconds left.
        if not _write_at_once(escaped(f"error: {error}\n")):
            run_with_timeout(lambda: _say(f"error: {error}"), timeout_s=_WRITING_S)
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
        run_with_timeout(lambda: _say(NOTHING_LOST), timeout_s=_WRITING_S)
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
            run_with_timeout(_flush, timeout_s=_WRITING_S)
    finally:
        os._exit(code)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        LossyStream(stream).flush()


def _leave(code: int) -> NoReturn:
    """End a process that has failed, and give the others of its job time to do so too."""
    try:
        from resnet_jax.parallel.job.cluster import disconnect  # noqa: PLC0415 - imports JAX

        disconnect()
    finally:
        _end(code)


def exit_code_of(run: Callable[[], Any]) -> int:
    """Run a training function; 0 if it finished, 75 if it stopped early but saved.

    The process ends after this, so signals that ask it to stop are ignored from then on. If
    training fails, this ends the process with the exit code, and doesn't return.
    """
    from resnet_jax.checkpoint.stop import ignore_stop_signals  # noqa: PLC0415 - imports etils

    try:
        try:
            result = run()
        finally:
            ignore_stop_signals()
    except (Exception, KeyboardInterrupt) as error:
        code = report(error)
        if code is None:  # a bug, which keeps its traceback
            _say(traceback.format_exc().rstrip())
        _leave(_A_BUG if code is None else code)
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


def define_config_flag(help_text: str) -> flags.FlagHolder[Any]:
    """Define --config; exits with one line if a --flagfile can't be read, which this looks into."""
    from ml_collections import config_flags  # noqa: PLC0415

    try:
        return config_flags.DEFINE_config_file("config", None, help_text)
    except flags.Error as error:
        outlive_terminal()
        line = str(error).removeprefix("ERROR:: ").strip()
        sys.exit(report(UsageError(f"--flagfile: {line}")))


def parse_flags(argv: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Parse the command line for `absl.app.run`; exits with one line if it is wrong."""
    outlive_terminal()
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # ml_collections warns of what is an error
    try:
        rest = values(argv)
        check_is_config(values.config, argv)
    except (Exception, SystemExit) as error:
        explained = explain(error, argv, program=f"python {argv[0]}")
        if explained is not None:
            sys.exit(report(explained))
        if isinstance(error, SystemExit):  # absl has printed --help, and would end with 1
            sys.exit(0)
        raise
    return rest


def check_is_config(config: Any, argv: Sequence[str]) -> None:
    """Check what the config file of a command line has made.

    Raises:
        ConfigError: it isn't a ConfigDict.
        OSError: there is no such file; ml_collections says so when the config is first used.
    """
    from ml_collections import ConfigDict  # noqa: PLC0415 - --help needn't wait for it

    getattr(config, "to_dict", None)  # raises the OSError
    if not isinstance(config, ConfigDict):
        raise ConfigError(
            f"{_config_file(argv)}: get_config() returns a {type(config).__name__}, not a"
            " ConfigDict."
        )


def explain(error: BaseException, argv: Sequence[str], *, program: str) -> ResnetJaxError | None:
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
        if not file:
            return UsageError(f"--config is empty ({program} --help explains it)")
        if Path(file).is_dir():
            return ConfigError(f"--config: {file} is a folder, not a file.")
        if Path(file).exists():
            return ConfigError(f"--config: {file} can't be read ({error.strerror or error}).")
        return ConfigError(f"--config: there is no file {file}.")
    if isinstance(error, flags.Error):
        lines = str(error).strip().splitlines()
        if "parsing config file" in lines[0]:  # followed by a traceback
            return ConfigError(f"{file}: {lines[-1]}")
        line = re.sub(r"\s+", " ", str(error).strip())
        if missing := re.search(r"flag --(\w+)=None", line):
            if missing[1] == "config" and file:
                return ConfigError(f"{file}: get_config() returns None, not a ConfigDict.")
            return UsageError(f"--{missing[1]} is missing ({program} --help explains it)")
        if "--config." in line:
            return ConfigError(line)
        return UsageError(f"{line} ({program} --help lists the flags)")
    return None


def _config_file(argv: Sequence[str]) -> str:
    """The file's name in `--config FILE:ARGUMENT` or `--config=FILE:ARGUMENT`; "" without."""
    values = ""
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        flag, equals, value = argument.partition("=")
        if flag in ("--config", "-config"):
            values = value if equals else following
    return values.partition(":")[0]


def _mistake_in(file: str, error: BaseException | None) -> ConfigError | None:
    """An error raised in the config file itself, with its line: it is a user's program."""
    while error is not None:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [f.lineno for f in frames if Path(f.filename).name == Path(file).name]
        message = (str(error).strip().splitlines() or [""])[0]
        if isinstance(error, KeyError):
            message = message.strip("'\"")
        if isinstance(error, SyntaxError) and Path(error.filename or file).name == Path(file).name:
            lines, message = [error.lineno or 1], error.msg
        if lines and file:
            what = f"{type(error).__name__}: {message}".removesuffix(": ")
            return ConfigError(f"{file}, line {lines[-1]}: {what}")
        if isinstance(error, AttributeError) and error.name == "get_config":
            return ConfigError(f"{file} has no function get_config(), which makes the config.")
        error = error.__cause__ or error.__context__
    return None


def _unknown_field(argv: Sequence[str]) -> ConfigError | None:
    """The first `--config.NAME` that no config has."""
    from resnet_jax.config.field_names import unknown_field  # noqa: PLC0415
    from resnet_jax.config.schema import default_config, flatten  # noqa: PLC0415 - needs JAX

    known = flatten(default_config())
    for argument in argv[1:]:
        found = re.match(r"--?(?:no)?config\.([^=]+)", argument)
        if found and found[1] not in known:
            fields = ", ".join(name for name in known if name.startswith(f"{found[1]}."))
            if fields:
                return ConfigError(f"{found[1]} is a section of the config; its fields: {fields}.")
            return unknown_field(found[1], known)
    return None
