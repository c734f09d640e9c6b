"""A run's config on the command line: of train.py by absl, of subcommands by argparse."""

# ruff: noqa: PLC0415 - ml_collections takes a while to import, which --help needn't wait for

import argparse
import logging
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from resnet_jax.cli.common.config_errors import check_is_config, explain
from resnet_jax.cli.common.exits import outlive_terminal, report, unwritten_output
from resnet_jax.errors import UsageError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

CONFIG_MODULE = "config_config"
"""Name under which ml_collections imports the file of the flag --config."""

_OVERRIDE = r"--?(?:no)?config\.([^=]+)(=.*)?"  # the field, and the value unless it follows


def define_config_flag(help_text: str) -> flags.FlagHolder[Any]:
    """Define --config by absl; exit with one line if a --flagfile can't be read."""
    from ml_collections import config_flags

    try:
        return config_flags.DEFINE_config_file("config", None, help_text)
    except (flags.Error, UnicodeDecodeError) as error:
        outlive_terminal()
        line = str(error).removeprefix("ERROR:: ").strip()
        sys.exit(report(UsageError(f"--flagfile: {line}")))


def parse_flags(argv: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Parse the command line for `absl.app.run`; exit with one line if it is wrong."""
    outlive_terminal()
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # ml_collections warns, and then raises
    try:
        rest = values(_last_overrides(values.read_flags_from_files(argv, force_gnu=False)))
        check_is_config(values.config, argv)
    except (Exception, SystemExit) as error:
        explained = explain(error, argv, program=f"python {argv[0]}")
        if explained is not None:
            sys.exit(report(explained))
        if isinstance(error, SystemExit):  # absl has printed --help, and would exit with 1
            sys.exit(unwritten_output())
        raise
    return rest


def _last_overrides(argv: Sequence[str]) -> list[str]:
    """The command line with the last override of each field; absl would join tuples' values."""
    parts: list[tuple[str, list[str]]] = []  # (field, or "" for other arguments; words)
    follows = False  # the value of the last field
    for word in argv:
        found = re.fullmatch(_OVERRIDE, word, re.DOTALL)
        if follows and not re.match("--|-[a-z]", word):
            parts[-1][1].append(word)
        else:
            parts.append((found[1] if found else "", [word]))
        follows = found is not None and found[2] is None
    last = {field: number for number, (field, _) in enumerate(parts)}
    kept = [words for n, (field, words) in enumerate(parts) if not field or last[field] == n]
    return [word for words in kept for word in words]


def add_config_argument(parser: argparse.ArgumentParser) -> None:
    """Define `--config=FILE.py:ARGUMENT` and `--config.FIELD=VALUE` for a subcommand."""
    parser.add_argument(
        "--config",
        metavar="FILE.py:ARGUMENT",
        help="file that makes the config; --config.FIELD=VALUE overrides one of its fields",
    )
    parser.set_defaults(config_overrides=[])


def take_overrides(args: argparse.Namespace, unknown: Sequence[str]) -> list[str]:
    """Move the overrides from the arguments unknown to argparse into `args`.

    Returns:
        The other unknown arguments; all of them if the subcommand takes no config.
    """
    if not hasattr(args, "config_overrides"):
        return list(unknown)
    args.config_overrides = [
        argument for argument in unknown if re.fullmatch(_OVERRIDE, argument, re.DOTALL)
    ]
    return [argument for argument in unknown if argument not in args.config_overrides]


def load_config(args: argparse.Namespace) -> "ConfigDict":
    """The config of a subcommand that called `add_config_argument`.

    Raises:
        UsageError: --config is missing.
        ConfigError: no such file, field or value, or a mistake in the file.
    """
    from ml_collections import config_flags

    program = f"resnet-jax {args.subcommand}"
    if not args.config:
        raise UsageError(f"--config is missing ({program} --help explains it)")
    argv = [program, f"--config={args.config}", *args.config_overrides]
    # Separate flag values: absl's global flags belong to the calling program.
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, flag_values=values, sys_argv=argv)
    try:
        values(_last_overrides(argv))
        config = values.config
        check_is_config(config, argv)
    except (Exception, SystemExit) as error:
        explained = explain(error, argv, program=program)
        if explained is None:
            raise
        raise explained from None
    return config
