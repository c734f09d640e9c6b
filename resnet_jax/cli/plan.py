"""resnet-jax plan --config=FILE --topology=…: goodput on machines that fail, and what to do."""

# ruff: noqa: PLC0415 - the environment must be prepared before JAX is imported

import argparse
import math
from typing import TYPE_CHECKING, Any

from rich.console import Console

from resnet_jax.cli.common.config_flag import add_config_argument, load_config
from resnet_jax.cli.common.pictures import check_picture
from resnet_jax.cli.common.tables import Table
from resnet_jax.errors import ConfigError, UsageError
from resnet_jax.utils.files import local_path

if TYPE_CHECKING:
    from ml_collections import ConfigDict

HELP = "Expected goodput, days and chip-hours on machines that fail, and the best interval to save."
EXAMPLE = (
    "resnet-jax plan --config=configs/imagenet.py:resnet50 --topology=v5e:4x4,v5e:16x16"
    " --mtbf-hours=50000 --save-s=5 --restart-s=180"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command line."""
    add_config_argument(parser)
    parser.add_argument(
        "--topology",
        required=True,
        metavar="CHIP:SHAPE,…",
        help="slices, such as v5e:4x4,v5e:16x16; as for resnet-jax compile",
    )
    parser.add_argument(
        "--mtbf-hours",
        type=_hours,
        required=True,
        metavar="H",
        help="mean time between failures of one chip or GPU; a slice of n fails n times as often;"
        " inf: no failures",
    )
    parser.add_argument(
        "--step-s",
        metavar="S,…",
        help="seconds of a step on each slice (default: of the compiled program, by data sheets)",
    )
    parser.add_argument(
        "--save-s", type=_not_negative, metavar="S", help="that training halts for a checkpoint"
    )
    parser.add_argument(
        "--restart-s", type=_not_negative, metavar="S", help="from a failure to the next step"
    )
    parser.add_argument(
        "--run",
        metavar="WORKDIR",
        help="a run whose goodput.json tells --save-s, --restart-s and the share of evaluation;"
        " of a run that was never killed, --restart-s lacks the time until the next process starts",
    )
    parser.add_argument(
        "--out", type=local_path, metavar="FILE", help="draw goodput over the interval"
    )


def _hours(text: str) -> float:
    """Parse --mtbf-hours; "inf" for machines that never fail."""
    return math.inf if text == "inf" else _positive(text)


def _positive(text: str) -> float:
    value = _not_negative(text)
    if not value:
        raise argparse.ArgumentTypeError(f"{text!r} isn't greater than 0")
    return value


def _not_negative(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:  # NaN isn't
        raise argparse.ArgumentTypeError(f"{text!r} isn't a finite number of at least 0")
    return value


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Plan the run on each slice."""
    from resnet_jax.profiling import slices

    names = args.topology.split(",")
    chips = {name: math.prod(slices.parse_slice(name)[1]) for name in names}
    if args.out:
        check_picture("--out", args.out)
    given = _step_times(args, names)
    if given is None:
        slices.prepare_environment(names)
    from resnet_jax.config.schema import validate
    from resnet_jax.profiling.goodput import Costs
    from resnet_jax.profiling.plan import Length, draw_plans, plan, read_measured
    from resnet_jax.utils.paths import as_path

    found = read_measured(as_path(args.run)) if args.run else None
    save_s = found.save_s if args.save_s is None and found else args.save_s
    restart_s = found.restart_s if args.restart_s is None and found else args.restart_s
    if save_s is None or restart_s is None:
        raise UsageError("--save-s and --restart-s are missing; --run takes them from a run.")
    config = load_config(args)
    validate(config)
    length = Length.of(config)
    other = found.other_s / found.step_s if found else 0.0
    plans = []
    for name in names:
        step_s = given[name] if given else _compiled_step_s(config, name)
        mtbf_s = 3600 * args.mtbf_hours / chips[name]
        costs = Costs(step_s, other * step_s, save_s, restart_s, mtbf_s)
        plans.append(plan(name, chips[name], costs, length))
    if args.out:
        draw_plans(args.out, plans, length)
    return {
        "config": args.config,
        "steps": length.steps,
        "unit": length.unit,
        "eval_every": length.eval_interval and length.eval_interval / length.per_unit,
        "mtbf_hours": None if math.isinf(args.mtbf_hours) else args.mtbf_hours,
        "step_s_by": "--step-s" if given else "data sheets",
        "plans": plans,
        "figure": str(args.out) if args.out else None,
    }


def _step_times(args: argparse.Namespace, names: list[str]) -> dict[str, float] | None:
    """--step-s by slice; None if it isn't given."""
    if args.step_s is None:
        return None
    try:
        values = [_positive(text) for text in args.step_s.split(",")]
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"--step-s: {error}.") from None
    if len(values) != len(names):
        raise UsageError(
            f"--step-s has {len(values)} values for {len(names)} slices; it needs one for each."
        )
    return dict(zip(names, values, strict=True))


def _compiled_step_s(config: "ConfigDict", name: str) -> float:
    """Seconds of a step of the compiled program, by data sheets.

    Raises:
        ConfigError: the program doesn't fit into the memory of a device.
    """
    from resnet_jax.profiling import compile as ahead
    from resnet_jax.profiling.slices import describe_slice

    slice_ = describe_slice(name)
    spec = ahead.make_spec(config, slice_)
    program = ahead.compile_training(spec)
    if isinstance(program, ahead.TooLarge):
        raise ConfigError(f"The run needs more memory than a device of {name} has.")
    return ahead.roofline(program, slice_).exposed_total_s


def show(document: dict[str, Any], console: Console) -> None:
    """Print a row for each slice."""
    numbers = ["fails every h", "step ms", f"save every ({document['unit']})", "steps", "goodput"]
    numbers += ["simulated", "days", "chip-hours", "as configured"]
    table = Table("slice", numbers=numbers)
    for row in document["plans"]:
        best, mtbf_s = row["best"], row["mtbf_s"]
        simulated = best["simulated"]
        table.add_row(
            row["topology"],
            "never" if mtbf_s is None else f"{mtbf_s / 3600:,.1f}",
            f"{1e3 * row['step_s']:.1f}",
            f"{best['checkpoint_every']:.3g}",
            f"{best['steps']:,}",
            f"{best['goodput']:.1%}",
            f"{simulated['goodput']:.1%} ± {simulated['standard_error']:.1%}" if simulated else "–",
            "never ends" if best["days"] is None else f"{best['days']:.2f}",
            "–" if best["chip_hours"] is None else f"{best['chip_hours']:,.0f}",
            f"{row['configured']['goodput']:.1%}",
        )
    console.print(table)
    first = document["plans"][0]
    console.print(
        f"{document['steps']:,} steps; step times by {document['step_s_by']}; a checkpoint halts"
        f" training for {first['save_s']:.3g} s, a start takes {first['restart_s']:.3g} s."
        " Goodput is the share of time in steps that count; the interval is Daly's (2006)."
    )
    evaluates = document["eval_every"]
    rows = (row[which] for row in document["plans"] for which in ("best", "configured"))
    if evaluates and any(row["checkpoint_every"] >= evaluates for row in rows):
        console.print(
            "Each evaluation on the validation split saves a checkpoint, so that eval_every bounds"
            f" the interval: now {evaluates:,.6g} {document['unit']}."
        )
    if document["figure"]:
        console.print(f"figure: {document['figure']}")
