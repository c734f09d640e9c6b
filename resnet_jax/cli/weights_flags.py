"""Flags that name a weight file and the network it's of, for the commands that take one."""

# ruff: noqa: PLC0415 - JAX takes a second to import, which --help needn't wait for

import argparse
import ast
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def add_weights_flags(group: argparse._ArgumentGroup) -> None:
    """Let a subcommand take --weights, --model and --field."""
    group.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="safetensors or npz, or a model of the Hub: OWNER/NAME[@REVISION]",
    )
    group.add_argument("--model", help="name of its preset, such as resnet50")
    group.add_argument(
        "--field",
        type=_field,
        action="append",
        metavar="NAME=VALUE",
        help="of the model, where it isn't the preset's, such as shortcut=B or num_classes=7",
    )


def _field(text: str) -> tuple[str, Any]:
    """Name and value of "shortcut=B" or "stage_sizes=(3,4,6,3)"; what isn't a literal is a text."""
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} isn't NAME=VALUE, such as shortcut=B")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return name, value


def refuse(args: argparse.Namespace, names: Sequence[str], why: str) -> None:
    """Refuse flags that mean nothing beside others.

    Raises:
        UsageError: one of them is given; the message says `why` not.
    """
    from resnet_jax.errors import UsageError

    for name in names:
        value = getattr(args, name)
        if value or (value == 0 and value is not False):
            raise UsageError(f"--{name.replace('_', '-')} {why}.")


def load_network(args: argparse.Namespace) -> tuple[Any, dict[str, Any], str]:
    """The network that the flags describe.

    Returns:
        The linen module, which has a classifier, its variables, and the path of the file on this
        machine.

    Raises:
        UsageError: --model is missing.
        ConfigError: it can't be the model.
        DataError: the file can't be read, or is another network's.
    """
    from resnet_jax.errors import ConfigError, UsageError
    from resnet_jax.models.presets import create_model
    from resnet_jax.weights.hub import local_file
    from resnet_jax.weights.load import load_weights

    if not args.model:
        raise UsageError("--model is missing: a weight file doesn't say which network it's of.")
    model: Any = create_model(args.model, **dict(args.field or ()))
    path = local_file(args.weights)
    variables = load_weights(model, path)
    if not model.num_classes:
        raise ConfigError("The model has no classifier; --field num_classes=N gives it one.")
    return model, variables, path
