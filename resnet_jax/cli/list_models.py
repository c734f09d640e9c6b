"""resnet-jax list PATTERN: the available models, with their sizes and published errors."""

import argparse
from typing import TYPE_CHECKING, Any

from rich.console import Console

from resnet_jax.cli.common.tables import Table

if TYPE_CHECKING:
    from resnet_jax.models.published import Published

HELP = "List the models, with parameters, multiply-adds and what others published of them."
EXAMPLE = "resnet-jax list 'resnet5*'"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command line."""
    parser.add_argument(
        "pattern",
        nargs="?",
        default="*",
        help="pattern of names with * and ? as in a shell, in quotes (default: all)",
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Find the models whose names match the pattern."""
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
    """Print a table of the models."""
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
