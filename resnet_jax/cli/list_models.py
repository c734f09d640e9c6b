"""resnet-jax list PATTERN: the available models or weights, with their sizes and errors."""

import argparse
from typing import TYPE_CHECKING, Any

from rich.console import Console

from resnet_jax.cli.common.tables import Table

if TYPE_CHECKING:
    from resnet_jax.models.published import Published

HELP = "List the models, with parameters, multiply-adds and what others published of them."
EXAMPLE = "resnet-jax list 'resnet5*', or resnet-jax list --weights"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command line."""
    parser.add_argument(
        "pattern",
        nargs="?",
        default="*",
        help="pattern of names with * and ? as in a shell, in quotes (default: all)",
    )
    parser.add_argument(
        "--weights", action="store_true", help="list the weights that come with this package"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Find the models or weights whose names match the pattern."""
    if args.weights:
        return _find_weights(args.pattern)
    # JAX takes a second to import, which --help needn't wait for.
    from resnet_jax.errors import UsageError, did_you_mean  # noqa: PLC0415
    from resnet_jax.models.presets import PRESETS, list_models  # noqa: PLC0415
    from resnet_jax.models.published import PUBLISHED  # noqa: PLC0415
    from resnet_jax.models.sizes import preset_sizes  # noqa: PLC0415

    names, sizes = list_models(args.pattern), preset_sizes()
    if not names:
        hint = did_you_mean(args.pattern, PRESETS)
        raise UsageError(f"No model's name matches {args.pattern!r}.{hint}")
    return {
        "models": [
            {
                "model": name,
                "params": sizes[name].params,
                "macs": sizes[name].macs,
                "image_shape": list(PRESETS[name].image_shape),
                "published": _published(PUBLISHED[name]) if name in PUBLISHED else None,
            }
            for name in names
        ]
    }


def _find_weights(pattern: str) -> dict[str, Any]:
    from resnet_jax.errors import UsageError, did_you_mean  # noqa: PLC0415
    from resnet_jax.weights.zoo import list_weights  # noqa: PLC0415

    found = list_weights(pattern)
    if not found:
        hint = did_you_mean(pattern, [own.name for own in list_weights()])
        raise UsageError(f"No weights' name matches {pattern!r}.{hint}")
    return {"weights": [own.card for own in found]}


def _published(row: "Published") -> dict[str, Any]:
    title, url = row.source
    return {
        "top1_error_percent": row.error,
        "data": row.data,
        "recipe": row.recipe,
        "source": title,
        "url": url,
    }


def show(document: dict[str, Any], console: Console) -> None:
    """Print a table of the models or weights."""
    if "weights" in document:
        console.print(_weights_table(document["weights"]))
        return
    table = Table()
    table.add_column("model", no_wrap=True)
    for heading in ("parameters", "MACs", "image"):
        table.add_column(heading, justify="right")
    table.add_column("published top-1 error")
    for row in document["models"]:
        published = row["published"]
        error = f"{published['top1_error_percent']:.2f} %, {published['data']}" if published else ""
        image = "×".join(map(str, row["image_shape"]))
        table.add_row(
            row["model"], f"{row['params']:,}", f"{row['macs'] / 1e6:,.1f} M", image, error
        )
    console.print(table)


def _weights_table(cards: list[dict[str, Any]]) -> Table:
    table = Table()
    table.add_column("weights", no_wrap=True)
    for heading in ("data", "parameters", "top-1", "calibration error"):
        table.add_column(heading, justify="right")
    for heading in ("training", "licence"):
        table.add_column(heading)
    for card in cards:
        scores = card["scores"]
        table.add_row(
            *(card["name"], card["data"]["name"], f"{card['params']:,}"),
            f"{100 * scores['top1']:.2f} % of {scores['examples']:,}",
            f"{100 * scores['calibration_error']:.1f} %",
            *(card["note"], card["licence"]),
        )
    return table
