"""One clear line and an exit code for what a user can get wrong, instead of a traceback."""

import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import flags

from resnet_jax.errors import (
    STOPPED_EARLY,
    ConfigError,
    PeerError,
    ResnetJaxError,
    UsageError,
    did_you_mean,
)

_INTERRUPTED = 130  # 128 + SIGINT, as shells count


def report(error: ResnetJaxError) -> int:
    """Print the error on standard error and return its exit code."""
    print(f"error: {error}", file=sys.stderr)
    return error.exit_code


def end_with(message: str) -> NoReturn:
    """End the process at once, from any thread, because another one of its job is lost."""
    _end(report(PeerError(f"{message} What was saved before is intact; start the job again.")))


def _end(code: int) -> NoReturn:
    from resnet_jax.checkpoint.lock import release_all  # noqa: PLC0415 - imports etils

    release_all()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # an orderly end would wait for the others


def _leave(code: int) -> int:
    """Return the exit code of a process that has failed, or end it if its job can't follow."""
    from resnet_jax.parallel.process import disconnect  # noqa: PLC0415 - imports JAX

    return code if disconnect() else _end(code)


def exit_code_of(run: Callable[[], Any]) -> int:
    """Run a training function; 0 if it finished, 75 if it stopped early but saved.

    A failed process of several doesn't return if the others can't follow it within seconds.
    """
    try:
        result = run()
    except ResnetJaxError as error:
        return _leave(report(error))
    except KeyboardInterrupt:
        print("interrupted; what was saved before is intact", file=sys.stderr)
        return _leave(_INTERRUPTED)
    except Exception:  # a bug, which keeps its traceback
        traceback.print_exc()
        return _leave(1)
    return STOPPED_EARLY if result.stopped_early else 0


def show_progress() -> None:
    """Let the package say what takes long, such as a download, and keep other libraries quiet."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    ours = logging.getLogger("resnet_jax")
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    ours.propagate = False
    # JAX and Orbax explain themselves at length; what matters to a user comes as an exception.
    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("absl").setLevel(logging.ERROR)


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parse the command line for `absl.app.run`; exits with one line if it is wrong."""
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

    known = flatten(default_config())
    for argument in argv[1:]:
        found = re.match(r"--?(?:no)?config\.([^=]+)", argument)
        if found and found[1] not in known:
            fields = ", ".join(name for name in known if name.startswith(f"{found[1]}."))
            if fields:
                return ConfigError(f"{found[1]} is a section of the config; its fields: {fields}.")
            hint = did_you_mean(found[1], known)
            return ConfigError(f"There is no config field {found[1]!r}.{hint}")
    return None
