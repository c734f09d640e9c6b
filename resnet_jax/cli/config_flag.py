"""A run's config on the command line of a subcommand, as train.py reads it."""

# ruff: noqa: PLC0415 - ml_collections takes a while to import, which --help needn't wait for

import argparse
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from resnet_jax.cli.flags import check_is_config, explain
from resnet_jax.errors import UsageError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

_OVERRIDE = r"--?(no)?config\.[^=]+(=.*)?"


def add_config_argument(parser: argparse.ArgumentParser) -> None:
    """Let a subcommand take `--config=FILE.py:ARGUMENT` and any `--config.FIELD=VALUE`."""
    parser.add_argument(
        "--config",
        metavar="FILE.py:ARGUMENT",
        help="file that makes the config; --config.FIELD=VALUE overrides one of its fields",
    )
    parser.set_defaults(config_overrides=[])


def take_overrides(args: argparse.Namespace, unknown: Sequence[str]) -> list[str]:
    """Put the overrides among the arguments that argparse doesn't know into `args`.

    Returns:
        Those that are none; all of them if the subcommand takes no config.
    """
    if not hasattr(args, "config_overrides"):
        return list(unknown)
    args.config_overrides = [one for one in unknown if re.fullmatch(_OVERRIDE, one, re.DOTALL)]
    return [one for one in unknown if one not in args.config_overrides]


def load_config(args: argparse.Namespace) -> "ConfigDict":
    """The config of a subcommand that has `add_config_argument`.

    Raises:
        UsageError: --config is missing.
        ConfigError: no such file, field or value, or a mistake in the file.
    """
    from absl import flags
    from ml_collections import config_flags

    program = f"resnet-jax {args.subcommand}"
    if not args.config:
        raise UsageError(f"--config is missing ({program} --help explains it)")
    argv = [program, f"--config={args.config}", *args.config_overrides]
    # Flags of their own: those of absl belong to the program that calls us.
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, flag_values=values, sys_argv=argv)
    try:
        values(argv)
        config = values.config
        check_is_config(config, argv)
    except (Exception, SystemExit) as error:
        explained = explain(error, argv, program=program)
        if explained is None:
            raise
        raise explained from None
    return config
