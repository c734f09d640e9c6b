"""resnet-jax compile --config=FILE: memory and speed on TPUs or GPUs, without having them."""

# ruff: noqa: PLC0415 - the environment must be prepared before JAX is imported

import argparse
from typing import TYPE_CHECKING, Any

from rich.console import Console

from resnet_jax.cli.common.config_flag import add_config_argument, load_config
from resnet_jax.cli.common.tables import Table
from resnet_jax.errors import UsageError, WriteError
from resnet_jax.utils.files import local_path

if TYPE_CHECKING:
    from ml_collections import ConfigDict

HELP = "Compile a run's steps for TPUs or GPUs that needn't be there: memory, bytes, collectives."
EXAMPLE = "resnet-jax compile --config=configs/imagenet.py:resnet50 --topology=v5e:16x16"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command line."""
    add_config_argument(parser)
    target = parser.add_mutually_exclusive_group()
    target.add_argument(
        "--topology",
        metavar="CHIP:SHAPE",
        help="a TPU slice such as v5e:16x16 or v5p:4x4x4, GPUs of a node such as h200:8, or nodes"
        " and GPUs of each such as h100:4x8",
    )
    target.add_argument(
        "--all", action="store_true", help="a small slice of each kind of TPU, a node of each GPU"
    )
    parser.add_argument(
        "--batch-per-chip",
        type=int,
        metavar="N",
        help="per TPU chip or GPU; default: the config's batch, shared out",
    )
    parser.add_argument(
        "--train-only", action="store_true", help="leave out the compilation of the evaluation"
    )
    parser.add_argument(
        "--hlo", type=local_path, metavar="FILE", help="keep the compiled step's text"
    )
    parser.add_argument(
        "--verify", action="store_true", help="compile with the largest batch that seems to fit"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Compile for each slice, and describe the programs."""
    from resnet_jax.profiling import slices

    if not (args.topology or args.all):
        raise UsageError(
            "--topology is missing; give a slice of any size, such as"
            f" {', '.join(slices.smallest_slices())}."
        )
    if args.hlo and args.all:
        raise UsageError("--hlo keeps the text of a single program; leave out --all.")
    if args.hlo and not args.hlo.parent.is_dir():
        raise WriteError(f"--hlo: there is no folder {args.hlo.parent}.")
    names = [args.topology]
    missing: list[str] = []
    if args.all:
        names, missing = slices.compilable_slices()
    slices.prepare_environment(names)
    config = load_config(args)
    runs = [_compile(config, name, args) for name in names]
    return {"runs": runs, "missing": missing} if args.all else runs[0]


def _compile(config: "ConfigDict", name: str, args: argparse.Namespace) -> dict[str, Any]:
    from resnet_jax.profiling import compile as ahead
    from resnet_jax.profiling.slices import describe_slice

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
        _show_sweep(document, console)
        return
    _show_memory(document, console)
    if "roofline" not in document:  # the compiler refused the program
        return
    _show_work(document, console)
    _show_kernels(document, console)
    _show_collectives(document, console)
    _show_time(document, console)


def _size(number: float | None) -> str:
    if number is None:
        return "?"
    small = number < 2**27
    return f"{number / 2**20:.2f} MiB" if small else f"{number / 2**30:.2f} GiB"


def _title(document: dict[str, Any]) -> str:
    unit = document["unit"]  # "chip" or "GPU"
    return (
        f"{document['model']} in {document['dtype']} on {document['topology']}:"
        f" {document['chips']} {unit}s ({document['chip']}),"
        f" {document['batch_per_chip']:,} images per {unit},"
        f" batch {document['batch_size']:,}"
    )


def _show_memory(document: dict[str, Any], console: Console) -> None:
    memory = document["memory"]
    unit = document["unit"]
    per = unit if document["devices"] == document["chips"] else "core (a chip has two)"
    console.print(_title(document))
    table = Table(f"memory per {per}", numbers=("",))
    rows = {
        "parameters": "parameter_bytes",
        "optimiser": "optimizer_bytes",
        "statistics, averages, other state": "other_state_bytes",
        "examples": "example_bytes",
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
        verdict += f" About {document['largest_batch_per_chip']:,} images per {unit} would"
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
    accessed = document.get("accessed_mb_per_image")
    more = f" ({accessed:.1f} MB accessed, on-chip memory included)" if accessed else ""
    console.print(
        f"Per image {document['gflop_per_image']:.2f} GFLOP (a multiply-add is two) and"
        f" {document['mb_per_image']:.1f} MB of HBM traffic{more}."
    )


def _show_kernels(document: dict[str, Any], console: Console) -> None:
    kernels = document["kernels"]
    if not kernels:
        return
    table = Table("kernels", numbers=("count", "MB per image", "of the traffic"))
    total = sum(row["bytes"] for row in kernels)
    shown = [row for row in kernels if row["bytes"] >= total / 1000]
    for row in shown:
        share = row["bytes"] / total
        table.add_row(
            row["kind"],
            f"{row['count']:,}",
            f"{share * document['mb_per_image']:.1f}",
            f"{share:.1%}",
        )
    if rest := [row for row in kernels if row not in shown]:
        table.add_row("other", f"{sum(row['count'] for row in rest):,}", "0.0", "")
    console.print(table)


def _show_collectives(document: dict[str, Any], console: Console) -> None:
    table = Table("collective", numbers=("devices", "count", "MB per step"))
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
    time, unit = document["roofline"], document["unit"]
    console.print(
        f"By data sheets a step takes {1e3 * time['step_s']:.2f} ms:"
        f" arithmetic {1e3 * time['compute_s']:.2f} ms or memory {1e3 * time['memory_s']:.2f} ms"
        f" (it's bound by {time['bound_by']}), then {1e3 * time['exposed_s']:.2f} ms of collectives"
        " that nothing overlaps."
    )
    nodes = f" {time['img_per_s_per_node']:,.0f} per node," if "img_per_s_per_node" in time else ""
    console.print(
        f"That is {time['img_per_s_per_chip']:,.0f} img/s per {unit},{nodes}"
        f" {time['img_per_s']:,.0f} in all ({time['img_per_s_if_hidden']:,.0f} with all"
        f" communication hidden); {time['mfu']:.1%} of the peak."
    )
    latency = "NCCL's latencies" if unit == "GPU" else "1 µs per hop of the interconnect"
    console.print(
        f"Assumed: data sheets' peak and bandwidths, arrays without padding, {latency}, no time for"
        " input or host. Real programs are slower (docs/scaling.md)."
    )


def _show_sweep(sweep: dict[str, Any], console: Console) -> None:
    runs = sweep["runs"]
    console.print(f"{runs[0]['model']} in {runs[0]['dtype']}")
    numbers = ("images", "peak GiB", "of", "GFLOP", "MB", "img/s", "largest")
    table = Table(names=("topology",), numbers=numbers)
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
        "Memory is per device; ! doesn't fit. GFLOP and MB of HBM traffic are per image;"
        " images, the most of them that should fit, and img/s by data sheets are per chip or GPU."
    )
    for line in sweep["missing"]:
        console.print(line)
