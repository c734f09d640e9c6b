"""Flags that name a weight file and describe its network."""

# ruff: noqa: PLC0415 - JAX takes a second to import, which --help needn't wait for

import argparse
import ast
import dataclasses
from collections.abc import Sequence
from typing import Any

from resnet_jax.cli.common.completers import completes, preset_names, weights_names
from resnet_jax.utils.files import local_path


def add_weights_flags(group: argparse._ArgumentGroup) -> None:
    """Define --weights, --model and --field."""
    weights = group.add_argument(
        "--weights",
        type=local_path,
        metavar="FILE",
        help="safetensors or npz; a name of `resnet-jax list --weights`; or a model of the Hub:"
        " OWNER/NAME[@REVISION]",
    )
    completes(weights, weights_names, files=True)
    model = group.add_argument(
        "--model", help="preset of the network, such as resnet50, if the file doesn't name it"
    )
    completes(model, preset_names)
    group.add_argument(
        "--field",
        type=_field,
        action="append",
        metavar="NAME=VALUE",
        help="a field of the model that neither the preset nor the file has, such as shortcut=B or"
        " num_classes=7",
    )


def _field(text: str) -> tuple[str, Any]:
    """Name and value of "shortcut=B" or "stage_sizes=(3,4,6,3)"; other values are strings."""
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} isn't NAME=VALUE, such as shortcut=B")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return name, value


def refuse(args: argparse.Namespace, names: Sequence[str], why: str) -> None:
    """Refuse flags that have no effect together with others.

    Args:
        args: the parsed command line.
        names: the flags to refuse.
        why: the reason, the end of the message.

    Raises:
        UsageError: one of the flags is given.
    """
    from resnet_jax.errors import UsageError

    for name in names:
        value = getattr(args, name)
        if value or (value == 0 and value is not False):
            raise UsageError(f"--{name.replace('_', '-')} {why}.")


@dataclasses.dataclass(frozen=True)
class LoadedNetwork:
    """The network of a weight file.

    Attributes:
        name: the name of the preset, or of the nearest preset.
        model: the linen module, which has a classifier.
        variables: the network's variables.
        path: the path of the file on this machine.
        source: the file or reference as given, or the full name of weights of this package.
    """

    name: str
    model: Any
    variables: dict[str, Any]
    path: str
    source: str


def load_network(args: argparse.Namespace) -> LoadedNetwork:
    """Load the network that the flags describe, completed by the note in the file.

    Raises:
        UsageError: --model is missing, and the file has no note of its network.
        ConfigError: the fields are invalid, or the model has no classifier.
        DataError: the file can't be read, or holds another network.
    """
    from resnet_jax.errors import ConfigError, UsageError
    from resnet_jax.models.presets import create_model, preset_of
    from resnet_jax.weights.hub import full_name, local_file
    from resnet_jax.weights.load import find_model, load_weights

    name, fields, source = args.model, dict(args.field or ()), full_name(args.weights)
    path = local_file(source)
    if not name:
        of_file = find_model(path)
        if of_file is None:
            raise UsageError(
                f"--model is missing: {args.weights} doesn't say which network it's of."
            )
        name, of_file_fields = preset_of(of_file)
        fields = of_file_fields | fields
    model: Any = create_model(name, **fields)
    variables = load_weights(model, path)
    if not model.num_classes:
        raise ConfigError("The model has no classifier; --field num_classes=N gives it one.")
    return LoadedNetwork(name, model, variables, path, source)
