"""resnet-jax predict WORKDIR IMAGE…: classify image files with a checkpoint of a run."""

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console

HELP = "Classify image files with a checkpoint of a run."
EXAMPLE = "resnet-jax predict runs/cifar10 cat.png frog.jpg --resize"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command line."""
    parser.add_argument("workdir", help="directory of the run")
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="PNG or JPEG files")
    parser.add_argument(
        "--checkpoint", default="last", help="last, best (on validation), or a step (default: last)"
    )
    parser.add_argument("--ema", action="store_true", help="use the moving averages")
    parser.add_argument(
        "--resize",
        action="store_true",
        help="scale, crop the centre and convert colours where an image doesn't fit the model",
    )
    parser.add_argument("--top", type=int, default=5, help="classes to show (default: 5)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Restore, read the images, classify them in one batch."""
    from resnet_jax.data.image_files import read_image  # noqa: PLC0415 - imports Pillow
    from resnet_jax.errors import UsageError  # noqa: PLC0415
    from resnet_jax.train.restore import restore_run  # noqa: PLC0415 - imports JAX

    if args.top < 1:
        raise UsageError(f"--top is {args.top}; it must be at least 1.")
    run = restore_run(args.workdir, checkpoint=args.checkpoint, ema=args.ema)
    images = [read_image(path, run.image_shape, resize=args.resize) for path in args.images]
    predictions = []
    for path, probabilities in zip(args.images, run.predict(images), strict=True):
        order = probabilities.argsort()[::-1][: args.top]
        top = [
            {"class": run.class_names[i], "index": int(i), "probability": float(probabilities[i])}
            for i in order
        ]
        predictions.append({"image": str(path), "top": top})
    return {"workdir": args.workdir, "step": run.step, "predictions": predictions}


def show(document: dict[str, Any], console: Console) -> None:
    """Print one line per image, the likeliest class first."""
    for prediction in document["predictions"]:
        classes = ", ".join(f"{top['class']} {top['probability']:.1%}" for top in prediction["top"])
        console.print(f"{prediction['image']}: {classes}", markup=False)
