"""resnet-jax mlperf WORKDIR: a run's record in the format of MLPerf's logs."""

import argparse
from typing import Any

from rich.console import Console

from resnet_jax.errors import UsageError

HELP = "Print a run's record in the format of MLPerf Training's logs."
EXAMPLE = "resnet-jax mlperf runs/mlperf > result_0.txt"
_TARGET = 0.759  # ImageNet validation accuracy in MLPerf's rules for ResNet-50


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command line."""
    parser.add_argument("workdir", help="directory of the run")
    parser.add_argument(
        "--target",
        type=float,
        default=_TARGET,
        help=f"top-1 at which the run ends (default: {_TARGET})",
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Read the run's record."""
    from resnet_jax.logging.mlperf import mlperf_log  # noqa: PLC0415 - imports JAX

    if not 0 < args.target <= 1:
        raise UsageError(f"--target is {args.target}; it is a share, such as {_TARGET}.")
    return {"workdir": args.workdir, "lines": mlperf_log(args.workdir, target=args.target)}


def show(document: dict[str, Any], console: Console) -> None:
    """Print the lines as they are."""
    for line in document["lines"]:
        console.print(line)
