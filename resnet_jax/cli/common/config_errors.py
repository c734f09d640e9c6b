"""One-line messages for mistakes on the command line and in the config file."""

import os
import re
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from resnet_jax.cli.common.exits import environment_error
from resnet_jax.errors import ConfigError, ResnetJaxError, UsageError


def check_is_config(config: Any, argv: Sequence[str]) -> None:
    """Check the object that the config file returned.

    Raises:
        ConfigError: it isn't a ConfigDict, or lacks a field.
        OSError: there is no such file; ml_collections raises it when the config is first used.
    """
    from ml_collections import ConfigDict  # noqa: PLC0415 - --help needn't wait for it

    getattr(config, "to_dict", None)  # raises the OSError
    if not isinstance(config, ConfigDict):
        raise ConfigError(
            f"{_config_file(argv)}: get_config() returns a {type(config).__name__}, not a"
            " ConfigDict."
        )
    from resnet_jax.config.schema import check_complete  # noqa: PLC0415 - needs JAX

    check_complete(config)


def explain(error: BaseException, argv: Sequence[str], *, program: str) -> ResnetJaxError | None:
    """The one-line error for an exception raised while a command line became a config.

    Args:
        error: the exception.
        argv: the command line, with the program's name.
        program: the command whose `--help` lists the flags.

    Returns:
        The error to report; None for a bug.
    """
    if isinstance(error, ResnetJaxError):  # raised by the config file
        return error
    if explained := environment_error(error):
        return explained
    unknown = _unknown_field(argv)
    if unknown:
        return unknown
    file = _config_file(argv)
    if mistake := _mistake_in(file, error):
        return mistake
    if isinstance(error, OSError):
        if not file:
            return UsageError(f"--config is empty ({program} --help explains it)")
        if os.path.isdir(file):
            return ConfigError(f"--config: {file} is a folder, not a file.")
        if os.path.exists(file):
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
    """The file in `--config FILE:ARGUMENT` or `--config=FILE:ARGUMENT`; "" without --config."""
    values = ""
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        flag, equals, value = argument.partition("=")
        if flag in ("--config", "-config"):
            values = value if equals else following
    return values.partition(":")[0]


def _mistake_in(file: str, error: BaseException | None) -> ConfigError | None:
    """An error that the config file raised, with the line; None if another file raised it."""
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
    """An error for the first `--config.NAME` that isn't a field; None if all are fields."""
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
