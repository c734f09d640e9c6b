"""resnet-jax compile --config=FILE: memory and speed of a config on a TPU slice, ahead of time."""

# ruff: noqa: PLC0415 - the environment must be prepared before JAX is imported

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from resnet_jax.cli.common.config_flag import add_config_argument, load_config
from resnet_jax.cli.common.tables import Table
from resnet_jax.errors import UsageError, WriteError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

HELP = "Compile a run's steps for a TPU slice that needn't be there: memory, bytes, collectives."
EXAMPLE = "resnet-jax compile --config=configs/imagenet.py:resnet50 --topology=v5e:16x16"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command line."""
    add_config_argument(parser)
    target = parser.add_mutually_exclusive_group()
    target.add_argument("--topology", metavar="CHIP:SHAPE", help="such as v5e:16x16 or v5p:4x4x4")
    target.add_argument("--all", action="store_true", help="a small slice of each kind of chip")
    parser.add_argument(
        "--batch-per-chip", type=int, metavar="N", help="default: the config's batch, shared out"
    )
    parser.add_argument(
        "--train-only", action="store_true", help="leave out the compilation of the evaluation"
    )
    parser.add_argument("--hlo", type=Path, metavar="FILE", help="keep the compiled step's text")
    parser.add_argument(
        "--verify", action="store_true", help="compile with the largest batch that seems to fit"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Compile for each slice, and describe the programs."""
    from resnet_jax.profiling.tpu import CHIPS, parse_slice, prepare_environment

    if not (args.topology or args.all):
        shapes = ", ".join(chip.smallest for chip in CHIPS.values())
        raise UsageError(f"--topology is missing; it can be {shapes}, or any larger slice.")
    # v3 is retired; it remains for comparison with published numbers.
    names = [c.smallest for c in CHIPS.values() if c.name != "v3"] if args.all else [args.topology]
    for name in names:
        parse_slice(name)
    if args.hlo and (args.all or not args.hlo.parent.is_dir()):
        raise WriteError(
            f"--hlo {args.hlo}: it takes a file in a folder that exists, and no --all."
        )
    prepare_environment()
    config = load_config(args)
    runs = [_compile(config, name, args) for name in names]
    return {"runs": runs} if args.all else runs[0]


def _compile(config: "ConfigDict", name: str, args: argparse.Namespace) -> dict[str, Any]:
    from resnet_jax.profiling import compile as ahead
    from resnet_jax.profiling.tpu import describe_slice

    slice_ = describe_slice(name)
    spec = ahead.make_spec(config, slice_, batch_per_chip=args.batch_per_chip)
    program = ahead.compile_training(spec)
    document = ahead.describe(spec, program, slice_)
    document["config"] = args.config
    if args.hlo and isinstance(program, ahead.Program):
        try:
            args.hlo.write_text(program.text, encoding="utf-8")
        except OSError as error:
            raise WriteError(
                f"--hlo {args.hlo} can't be written ({error.strerror or error})."
            ) from None
    if not args.train_only:
        scoring = ahead.compile_evaluation(spec)
        if isinstance(scoring, ahead.TooLarge):
            document["evaluation"] = {"fits": False}
        elif scoring:
            document["evaluation"] = {
                "peak_bytes": scoring.peak_bytes,
                "fits": scoring.peak_bytes <= document["memory"]["limit_bytes"],
                "compile_s": round(scoring.compile_s, 1),
            }
    largest = document.get("largest_batch_per_chip")
    if args.verify and largest:
        spec = ahead.make_spec(config, slice_, batch_per_chip=largest)
        again = ahead.describe(spec, ahead.compile_training(spec), slice_)
        document["largest_batch_verified"] = again["memory"]["fits"]
        document["largest_batch_peak_bytes"] = again["memory"]["peak_bytes"]
    return document


def show(document: dict[str, Any], console: Console) -> None:
    """Print the report of a slice, or a table of several slices."""
    if "runs" in document:
        _show_sweep(document["runs"], console)
        return
    _show_memory(document, console)
    if "roofline" not in document:
        if document["memory"]["fits"]:
            console.print("No estimate of the time: blocks are looped over, and counted only once.")
        return
    _show_work(document, console)
    _show_collectives(document, console)
    _show_time(document, console)


def _size(number: float | None) -> str:
    if number is None:
        return "?"
    small = number < 2**27
    return f"{number / 2**20:.2f} MiB" if small else f"{number / 2**30:.2f} GiB"


def _title(document: dict[str, Any]) -> str:
    return (
        f"{document['model']} in {document['dtype']} on {document['topology']}:"
        f" {document['chips']} chips ({document['chip']}), {document['batch_per_chip']:,} images"
        f" per chip, batch {document['batch_size']:,}"
    )


def _show_memory(document: dict[str, Any], console: Console) -> None:
    memory = document["memory"]
    per = "chip" if document["devices"] == document["chips"] else "core (a chip has two)"
    console.print(_title(document))
    table = Table(f"memory per {per}")
    table.add_column("", justify="right")
    rows = {
        "parameters": "parameter_bytes",
        "optimiser": "optimizer_bytes",
        "statistics, averages, other state": "other_state_bytes",
        f"examples of {document['steps_per_dispatch']} steps": "example_bytes",
        "activations, gradients, work space": "activation_bytes",
        "program": "program_bytes",
        "peak": "peak_bytes",
        "available to a program": "limit_bytes",
    }
    for label, name in rows.items():
        if name in memory:
            table.add_row(label, _size(memory[name]))
    console.print(table)
    verdict = "It fits." if memory["fits"] else "It doesn't fit."
    if document.get("largest_batch_per_chip") is not None:
        verdict += f" About {document['largest_batch_per_chip']:,} images per chip would"
        if "largest_batch_verified" in document:
            fits = "verified" if document["largest_batch_verified"] else "but compiled they do not"
            verdict += f" ({fits}: {_size(document['largest_batch_peak_bytes'])})"
        verdict += "."
    evaluation = document.get("evaluation")
    if evaluation:
        verdict += " Evaluation fits" if evaluation["fits"] else " Evaluation doesn't fit"
        if "peak_bytes" in evaluation:
            verdict += f" ({_size(evaluation['peak_bytes'])})"
        verdict += "."
    console.print(verdict)


def _show_work(document: dict[str, Any], console: Console) -> None:
    console.print(
        f"Per image {document['gflop_per_image']:.2f} GFLOP (a multiply-add is two) and"
        f" {document['mb_per_image']:.1f} MB of main memory's traffic"
        f" ({document['accessed_mb_per_image']:.1f} MB accessed, on-chip memory included)."
    )


def _show_collectives(document: dict[str, Any], console: Console) -> None:
    table = Table("collective")
    for heading in ("devices", "count", "MB per step"):
        table.add_column(heading, justify="right")
    table.add_column("schedule")
    for row in document["collectives"]:
        table.add_row(
            row["kind"],
            str(row["group_size"]),
            str(row["count"]),
            f"{row['bytes'] / 1e6:.2f}",
            "asynchronous" if row["asynchronous"] else "synchronous",
        )
    console.print(table)
    gradient = document["gradient_reduction"]
    if gradient["bytes_per_parameter"]:
        console.print(
            f"Gradients of kernels are summed as {', '.join(gradient['dtypes'])}:"
            f" {gradient['bytes_per_parameter']:.1f} bytes per parameter."
        )


def _show_time(document: dict[str, Any], console: Console) -> None:
    time = document["roofline"]
    console.print(
        f"By data sheets a step takes {1e3 * time['step_s']:.2f} ms:"
        f" arithmetic {1e3 * time['compute_s']:.2f} ms or memory {1e3 * time['memory_s']:.2f} ms"
        f" (it's bound by {time['bound_by']}), then {1e3 * time['exposed_s']:.2f} ms of collectives"
        " that the compiler has made synchronous."
    )
    console.print(
        f"That is {time['img_per_s_per_chip']:,.0f} img/s per chip, {time['img_per_s']:,.0f} img/s"
        f" for the slice ({time['img_per_s_if_hidden']:,.0f} with all communication hidden);"
        f" {time['mfu']:.1%} of the peak."
    )
    console.print(
        "Assumed: data sheets' peak and bandwidths, arrays without padding, 1 µs per hop of the"
        " interconnect, no time for input or host. Real programs are slower (docs/scaling.md)."
    )


def _show_sweep(runs: list[dict[str, Any]], console: Console) -> None:
    console.print(f"{runs[0]['model']} in {runs[0]['dtype']}")
    table = Table()
    table.add_column("slice", no_wrap=True)
    for heading in ("images", "peak GiB", "of", "GFLOP", "MB", "img/s", "largest"):
        table.add_column(heading, justify="right")
    for document in runs:
        memory, time = document["memory"], document.get("roofline")
        peak = "?" if memory["peak_bytes"] is None else f"{memory['peak_bytes'] / 2**30:.2f}"
        table.add_row(
            document["topology"],
            f"{document['batch_per_chip']:,}",
            peak if memory["fits"] else f"{peak} !",
            f"{memory['limit_bytes'] / 2**30:.2f}",
            f"{document['gflop_per_image']:.2f}" if time else "",
            f"{document['mb_per_image']:.1f}" if time else "",
            f"{time['img_per_s_per_chip']:,.0f}" if time else "",
            f"{document['largest_batch_per_chip']:,}" if time else "",
        )
    console.print(table)
    console.print(
        "Memory is per device; ! doesn't fit. GFLOP and MB of main memory's traffic are per image;"
        " images, the most of them that should fit, and img/s by data sheets are per chip."
    )
