"""resnet-jax prepare SOURCE --out=DATA_DIR --name=NAME: write images as a TFDS folder."""

import argparse
from typing import Any

from rich.console import Console

from resnet_jax.cli.common.image_progress import image_progress
from resnet_jax.utils.files import local_path

HELP = "Write a folder of images, or ImageNet's archives, as a TFDS folder; every image is checked."
EXAMPLE = "resnet-jax prepare downloads/imagenet --out=data --name=imagenet2012 --size=256"
_SHOWN = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command line."""
    parser.add_argument(
        "source",
        type=local_path,
        help="CLASS/name.jpg or SPLIT/CLASS/name.jpg; or ILSVRC2012_img_train.tar and …_val.tar",
    )
    parser.add_argument(
        "--out", type=local_path, required=True, help="folder of data sets: data.dir"
    )
    parser.add_argument("--name", required=True, help="name of the data set, such as my_photos")
    parser.add_argument(
        "--size", type=int, metavar="N", help="scale the shorter side of larger images to N pixels"
    )
    parser.add_argument(
        "--quality", type=int, default=90, help="quality of scaled JPEGs (default: 90)"
    )
    parser.add_argument(
        "--corrupt",
        choices=["stop", "skip"],
        default="stop",
        help="stop at damaged images, or skip them (default: stop)",
    )
    parser.add_argument("--shards", type=int, help="files per split (default: one per 128 MiB)")
    parser.add_argument("--workers", type=int, default=-1, help="processes (default: one per core)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Prepare, with a progress bar on a terminal."""
    from resnet_jax.data.prepare.prepare import Options, prepare  # noqa: PLC0415 - imports NumPy
    from resnet_jax.errors import UsageError  # noqa: PLC0415

    if args.shards is not None and args.shards < 1:
        raise UsageError(f"--shards is {args.shards}; it must be at least 1.")
    options = Options(args.size, args.quality, args.corrupt)
    with image_progress(transient=False) as progress:
        return prepare(
            args.source,
            args.out,
            args.name,
            options,
            shards=args.shards,
            workers=args.workers,
            progress=progress,
        )


def show(document: dict[str, Any], console: Console) -> None:
    """Print what was written, and what was left out."""
    counts = ", ".join(f"{split} {count:,}" for split, count in document["splits"].items())
    size = document["bytes"] / 1e6
    console.print(f"{document['folder']}: {counts}; {size:,.1f} MB")
    for image in document["bad"][:_SHOWN]:
        text = f"left out: {image['image']} of {image['split']} ({image['reason']})"
        console.print(text)
    if (more := len(document["bad"]) - _SHOWN) > 0:
        console.print(f"left out: {more:,} more, listed in report.json")
