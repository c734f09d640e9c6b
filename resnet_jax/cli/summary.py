"""resnet-jax summary MODEL: layers, parameters, multiply-adds, activation memory."""

import argparse
import dataclasses
from typing import Any

from rich.console import Console
from rich.table import Table

HELP = "Show the layers of a model, its parameters, multiply-adds and activation memory."
EXAMPLE = "resnet-jax summary resnet50 --image-size 160"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command line."""
    parser.add_argument("model", help="name of a preset, such as resnet50 or resnet110")
    parser.add_argument("--image-size", type=int, help="height and width (default: the paper's)")
    parser.add_argument("--channels", type=int, help="of the images (default: the paper's)")
    parser.add_argument("--num-classes", type=int, help="default: the paper's")
    parser.add_argument("--dtype", default="float32", help="of the activations (default: float32)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Trace the model; nothing is computed."""
    # JAX takes a second to import, which --help needn't wait for.
    from resnet_jax.errors import UsageError  # noqa: PLC0415
    from resnet_jax.models.presets import create_model, find_preset  # noqa: PLC0415
    from resnet_jax.models.summary import summarize  # noqa: PLC0415

    fields: dict[str, Any] = {"dtype": args.dtype}
    for name in ("image_size", "channels", "num_classes"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} is {value}; it must be at least 1.")
    if args.num_classes:
        fields["num_classes"] = args.num_classes
    model = create_model(args.model, **fields)
    height, _, channels = find_preset(args.model).image_shape
    size, channels = args.image_size or height, args.channels or channels
    summary = summarize(model, (size, size, channels))
    return {
        "model": args.model,
        "image_shape": [size, size, channels],
        "dtype": str(model.dtype),
        "params": summary.params,
        "macs": summary.macs,
        "activation_bytes": summary.activation_bytes,
        "layers": [dataclasses.asdict(layer) for layer in summary.layers],
    }


def show(document: dict[str, Any], console: Console) -> None:
    """Print a table of the layers and the totals."""
    shape = "×".join(map(str, document["image_shape"]))
    table = Table(title=f"{document['model']}, one {shape} image, {document['dtype']}")
    for heading in ("layer", "kind"):
        table.add_column(heading, no_wrap=True)
    for heading in ("output", "parameters", "MACs"):
        table.add_column(heading, justify="right", no_wrap=True)
    for layer in document["layers"]:
        output = "×".join(map(str, layer["output_shape"]))
        macs = f"{layer['macs']:,}" if layer["macs"] else ""
        table.add_row(layer["path"], layer["kind"], output, f"{layer['params']:,}", macs)
    console.print(table)
    console.print(f"parameters   {document['params']:>16,}")
    console.print(f"MACs         {document['macs']:>16,}  multiply-adds (papers call them FLOPs)")
    mebibytes = document["activation_bytes"] / 2**20
    console.print(f"activations  {mebibytes:>12.1f} MiB  outputs of these layers, per image")
