"""resnet-jax build: oneDNN's convolutions for a CPU."""

import argparse
from typing import Any

from rich.console import Console

HELP = "Compile and check oneDNN's convolutions, which CPUs then use."
EXAMPLE = "pip install -e '.[cpu]' && resnet-jax build"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command line."""
    parser.add_argument(
        "--background",
        action="store_true",
        help="start it as a process of low priority, if it wasn't started before, and return",
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Compile the library and check it."""
    from resnet_jax.ops.native.build import build, build_in_background  # noqa: PLC0415
    from resnet_jax.ops.native.library import LIBRARY  # noqa: PLC0415

    if args.background:
        return {"library": str(LIBRARY), "started": build_in_background()}
    return {"library": str(LIBRARY), **build()}


def show(document: dict[str, Any], console: Console) -> None:
    """Print the path of the library and the result of the check."""
    if "started" in document:
        if document["started"]:
            console.print(
                "oneDNN's convolutions, which are faster on a CPU, are being compiled in the"
                " background for later runs; resnet-jax doctor shows the result"
            )
        return
    console.print(f"compiled: {document['library']}, with oneDNN {document['oneDNN']}")
    console.print(
        f"checked: {document['checked']} random convolutions and gradients are right;"
        f" {document['refused']} others, which oneDNN has no kernel for, are left to XLA"
    )
    console.print(
        "used where a CPU device computes whole arrays: one device, fixed shards (mesh.shards), or"
        " seeds of its own; RESNET_JAX_NATIVE=0 leaves it alone"
    )
