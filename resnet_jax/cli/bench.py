"""resnet-jax bench data --config=FILE: how fast images are read, and whether a step waits."""

import argparse
from typing import Any

from rich.console import Console
from rich.table import Table

from resnet_jax.cli.config_flag import add_config_argument, load_config
from resnet_jax.errors import UsageError

HELP = "Measure the input pipeline of a config on this machine, stage by stage."
EXAMPLE = "resnet-jax bench data --config=configs/imagenet.py:resnet50 --config.batch_size=256"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command line."""
    parser.add_argument("what", choices=["data"], help="data: from disk to the devices")
    add_config_argument(parser)
    parser.add_argument(
        "--seconds", type=float, default=5.0, help="for each measurement (default: 5)"
    )
    parser.add_argument(
        "--train", action="store_true", help="also train, and tell how long a step waits for images"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure."""
    if args.seconds <= 0:
        raise UsageError(f"--seconds is {args.seconds}; it must be greater than 0.")
    config = load_config(args)
    from resnet_jax.train.bench_data import measure_pipeline  # noqa: PLC0415 - imports JAX

    return {
        "config": args.config,
        **measure_pipeline(config, seconds=args.seconds, train=args.train),
    }


def show(document: dict[str, Any], console: Console) -> None:
    """Print a table of the stages, and what came of all of them."""
    table = Table("stage")
    table.add_column("img/s", justify="right")
    for stage, rate in document["img_per_s"].items():
        table.add_row(stage, f"{rate:,.0f}")
    console.print(table)
    console.print(
        f"{document['mean_bytes'] / 1000:,.0f} kB per image; {document['workers']} processes on"
        f" {document['cores']} cores, {document['end_to_end_per_core']:,.0f} img/s per core"
    )
    if training := document.get("training"):
        console.print(
            f"training: {training['img_per_s']:,.0f} img/s,"
            f" {training['data_wait']:.1%} of the time waiting for images"
        )
