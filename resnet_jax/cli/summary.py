"""resnet-jax summary MODEL: layers, parameters, multiply-adds, activation memory."""

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

from rich.console import Console

from resnet_jax.cli.common.completers import completes, preset_names
from resnet_jax.cli.common.config_flag import add_config_argument, load_config
from resnet_jax.cli.common.tables import Table

if TYPE_CHECKING:
    from resnet_jax.models.network import Network

HELP = "Show the layers of a model, its parameters, multiply-adds and activation memory."
EXAMPLE = (
    "resnet-jax summary resnet50 --image-size 160, or"
    " resnet-jax summary --config=configs/cifar10.py:resnet56 --config.model.shortcut=B"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command line."""
    model = parser.add_argument(
        "model", nargs="?", help="name of a preset, such as resnet50 or resnet110"
    )
    completes(model, preset_names)
    add_config_argument(parser)
    parser.add_argument("--image-size", type=int, help="height and width (default: the paper's)")
    parser.add_argument(
        "--channels", type=int, help="channels of the images (default: the paper's)"
    )
    parser.add_argument("--num-classes", type=int, help="default: the paper's")
    parser.add_argument(
        "--dtype", help="dtype of the activations (default: the config's, or float32)"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Trace the model, without computing anything."""
    # JAX takes a second to import, which --help needn't wait for.
    from resnet_jax.errors import UsageError  # noqa: PLC0415
    from resnet_jax.models.summary import summarize  # noqa: PLC0415

    for name in ("image_size", "channels", "num_classes"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} is {value}; it must be at least 1.")
    name, model, (height, width, channels) = _model(args)
    height, width = args.image_size or height, args.image_size or width
    channels = args.channels or channels
    summary = summarize(model, (height, width, channels))
    return {
        "model": name,
        "image_shape": [height, width, channels],
        "dtype": str(model.dtype),
        "params": summary.params,
        "macs": summary.macs,
        "activation_bytes": summary.activation_bytes,
        "layers": [dataclasses.asdict(layer) for layer in summary.layers],
    }


def _model(args: argparse.Namespace) -> tuple[str, "Network", tuple[int, int, int]]:
    """(Name of the preset, model, shape of its images)."""
    from resnet_jax.config.schema import model_overrides  # noqa: PLC0415
    from resnet_jax.data.dataset_info import find_known  # noqa: PLC0415
    from resnet_jax.errors import UsageError  # noqa: PLC0415
    from resnet_jax.models.presets import create_model, find_preset  # noqa: PLC0415

    if bool(args.model) == bool(args.config or args.config_overrides):
        raise UsageError("give either a model's name or --config (resnet-jax summary --help).")
    name, fields, known, size = args.model, {}, None, None
    if not name:
        config = load_config(args)
        name, fields = config.model.name, model_overrides(config)
        size = config.data.image_size
        known = find_known(config.data.name, image_size=size)
    shape = find_preset(name).image_shape
    if known:
        fields["num_classes"], shape = known.num_classes, known.image_shape
    elif size:
        shape = (size, size, shape[-1])
    if args.num_classes:
        fields["num_classes"] = args.num_classes
    if args.dtype:
        fields["dtype"] = args.dtype
    model = create_model(name, **fields)
    return name, model, shape


def show(document: dict[str, Any], console: Console) -> None:
    """Print a table of the layers and the totals."""
    shape = "×".join(map(str, document["image_shape"]))
    table = Table(
        names=("layer", "kind"),
        numbers=("output", "parameters", "MACs"),
        title=f"{document['model']}, one {shape} image, {document['dtype']}",
    )
    for layer in document["layers"]:
        output = "×".join(map(str, layer["output_shape"]))
        macs = f"{layer['macs']:,}" if layer["macs"] else ""
        table.add_row(layer["path"], layer["kind"], output, f"{layer['params']:,}", macs)
    console.print(table)
    console.print(f"parameters   {document['params']:>16,}")
    console.print(f"MACs         {document['macs']:>16,}  multiply-adds (papers call them FLOPs)")
    mebibytes = document["activation_bytes"] / 2**20
    console.print(f"activations  {mebibytes:>12.1f} MiB  outputs of these layers, per image")
