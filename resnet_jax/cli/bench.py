"""resnet-jax bench step|data --config=FILE: the speed of a config's steps, or of its input."""

import argparse
import math
from typing import Any

from rich.console import Console

from resnet_jax.cli.common.config_flag import add_config_argument, load_config
from resnet_jax.cli.common.tables import Table
from resnet_jax.errors import UsageError

HELP = "Measure the steps of a config, or its input pipeline, on this machine."
EXAMPLE = "resnet-jax bench step --config=configs/imagenet.py:resnet50 --config.batch_size=256"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command line."""
    parser.add_argument(
        "what",
        choices=["step", "data"],
        help="step: training, scoring and inference on random images; data: from disk to devices",
    )
    add_config_argument(parser)
    parser.add_argument(
        "--seconds", type=float, default=5.0, help="duration of each measurement (default: 5)"
    )
    parser.add_argument(
        "--train", action="store_true", help="with data: also train, and show how long steps wait"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure the steps or the input pipeline."""
    if not 0 < args.seconds < math.inf:
        raise UsageError(f"--seconds is {args.seconds}; it must be a number greater than 0.")
    if args.train and args.what != "data":
        raise UsageError("--train is for `resnet-jax bench data`.")
    config = load_config(args)
    if args.what == "step":
        from resnet_jax.profiling.bench import measure_speed  # noqa: PLC0415 - imports JAX

        return {"config": args.config, **measure_speed(config, seconds=args.seconds)}
    from resnet_jax.profiling.bench_data import measure_pipeline  # noqa: PLC0415

    return {
        "config": args.config,
        **measure_pipeline(config, seconds=args.seconds, train=args.train),
    }


def show(document: dict[str, Any], console: Console) -> None:
    """Print a table and a summary."""
    if "ceilings" in document:
        _show_speed(document, console)
        return
    table = Table("stage", numbers=("img/s",))
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


def _show_speed(document: dict[str, Any], console: Console) -> None:
    train, best = document["train"], document["ceilings"]
    table = Table("what", numbers=("img/s", "ms"))
    size = document["batch_size"]
    table.add_row(f"training, {size}", f"{train['img_per_s']:,.0f}", f"{train['step_ms']:,.2f}")
    scored = document["evaluation"]
    table.add_row(f"scoring, {scored['batch_size']}", f"{scored['img_per_s']:,.0f}", "")
    for batch, speed in document["inference"].items():
        table.add_row(f"inference, {batch}", f"{speed['img_per_s']:,.0f}", f"{speed['ms']:,.2f}")
    console.print(table)
    peak = "" if train["peak_gib"] is None else f", {train['peak_gib']:.2f} GiB at the peak"
    console.print(
        f"training: steps of {train['step_ms_min']:,.2f} to {train['step_ms_max']:,.2f} ms,"
        f" {train['mfu']:.1%} of {best['matmul_tflop_per_s']:,.2f} TFLOP/s (a matrix product here),"
        f" {train['bandwidth_share']:.0%} of {best['copy_gb_per_s']:,.0f} GB/s (a copy) by XLA's"
        f" count of bytes; compiled in {train['compile_s']:.1f} s, {train['program_gib']:.2f} GiB"
        f" of memory{peak}"
    )
