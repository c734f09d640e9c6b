"""resnet-jax list PATTERN: the models, weights, data sets or recipes that there are."""

import argparse
import fnmatch
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from rich.console import Console

from resnet_jax.cli.common.tables import Table

if TYPE_CHECKING:
    from resnet_jax.models.published import Published

HELP = "List the models, with sizes and published errors; or weights, data sets or recipes."
EXAMPLE = "resnet-jax list 'resnet5*', or resnet-jax list --weights"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command line."""
    parser.add_argument(
        "pattern",
        nargs="?",
        default="*",
        help="pattern of names with * and ? as in a shell, in quotes (default: all)",
    )
    kind = parser.add_mutually_exclusive_group()
    for name, what in (
        ("weights", "the weights that come with this package"),
        ("data", "the data sets whose sizes are known, and where their images come from"),
        ("recipes", "the published training recipes, with what their authors report"),
    ):
        kind.add_argument(
            f"--{name}", dest="kind", action="store_const", const=name, help=f"list {what}"
        )
    parser.set_defaults(kind="models")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Find the rows whose names match the pattern."""
    rows = {
        "models": _find_models,
        "weights": _find_weights,
        "data": _find_data,
        "recipes": _find_recipes,
    }[args.kind](args.pattern)
    return {args.kind: rows}


# JAX takes a second to import, which --help needn't wait for.
# ruff: noqa: PLC0415


def _find_models(pattern: str) -> list[dict[str, Any]]:
    from resnet_jax.models.presets import PRESETS, list_models
    from resnet_jax.models.published import PUBLISHED
    from resnet_jax.models.sizes import preset_sizes

    sizes = preset_sizes()
    return [
        {
            "model": name,
            "params": sizes[name].params,
            "macs": sizes[name].macs,
            "image_shape": list(PRESETS[name].image_shape),
            "published": _published(PUBLISHED[name]) if name in PUBLISHED else None,
        }
        for name in _checked(list_models(pattern), pattern, PRESETS, "model's")
    ]


def _find_weights(pattern: str) -> list[dict[str, Any]]:
    from resnet_jax.weights.zoo import list_weights

    names = [own.name for own in list_weights()]
    return [own.card for own in _checked(list_weights(pattern), pattern, names, "weights'")]


def _find_data(pattern: str) -> list[dict[str, Any]]:
    from resnet_jax.data.dataset_info import KNOWN_SETS

    names = _checked(fnmatch.filter(KNOWN_SETS, pattern), pattern, KNOWN_SETS, "data set's")
    return [
        {
            "data": name,
            "image_shape": list(KNOWN_SETS[name].image_shape),
            "classes": KNOWN_SETS[name].num_classes,
            "examples": dict(KNOWN_SETS[name].lengths),
            "origin": KNOWN_SETS[name].origin,
        }
        for name in names
    ]


def _find_recipes(pattern: str) -> list[dict[str, Any]]:
    from resnet_jax.config.recipes import RECIPES, make

    rows = []
    for name in _checked(fnmatch.filter(RECIPES, pattern), pattern, RECIPES, "recipe's"):
        recipe = RECIPES[name]
        config = make(name, data=recipe.data)
        rows.append(
            {
                "recipe": name,
                "data": recipe.data,
                "epochs": config.duration,
                "batch_size": config.batch_size,
                "optimizer": config.optimizer.name,
                "published": recipe.published,
                "source": recipe.source,
            }
        )
    return rows


def _checked(found: list[Any], pattern: str, names: Iterable[str], whose: str) -> list[Any]:
    """What was found, or a UsageError if that is nothing."""
    from resnet_jax.errors import UsageError, did_you_mean

    if not found:
        hint = did_you_mean(pattern, names)
        raise UsageError(f"No {whose} name matches {pattern!r}.{hint}")
    return found


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
    """Print a table of the rows."""
    ((kind, rows),) = document.items()
    table = {
        "models": _models_table,
        "weights": _weights_table,
        "data": _data_table,
        "recipes": _recipes_table,
    }[kind](rows)
    console.print(table)
    if kind == "data":
        console.print(
            "Also `folder`, for images in folders named after their classes, and every data set"
            " that TFDS has prepared."
        )
    if kind == "recipes":
        console.print(
            "--config=configs/imagenet.py:MODEL,RECIPE or configs/cifar10.py:MODEL,RECIPE, or"
            " resnet_jax.config.recipes.make(RECIPE, model=MODEL, data=DATA)"
        )


def _models_table(rows: list[dict[str, Any]]) -> Table:
    table = Table()
    table.add_column("model", no_wrap=True)
    for heading in ("parameters", "MACs", "image"):
        table.add_column(heading, justify="right")
    table.add_column("published top-1 error")
    for row in rows:
        published = row["published"]
        error = f"{published['top1_error_percent']:.2f} %, {published['data']}" if published else ""
        macs = f"{row['macs'] / 1e6:,.1f} M"
        shape = _shape(row["image_shape"])
        table.add_row(row["model"], f"{row['params']:,}", macs, shape, error)
    return table


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


def _data_table(rows: list[dict[str, Any]]) -> Table:
    table = Table()
    table.add_column("data set", no_wrap=True)
    for heading in ("image", "classes"):
        table.add_column(heading, justify="right")
    for heading in ("examples", "origin"):
        table.add_column(heading)
    for row in rows:
        examples = ", ".join(f"{split} {count:,}" for split, count in row["examples"].items())
        shape, classes = _shape(row["image_shape"]), f"{row['classes']:,}"
        table.add_row(row["data"], shape, classes, examples, row["origin"])
    return table


def _recipes_table(rows: list[dict[str, Any]]) -> Table:
    table = Table()
    table.add_column("recipe", no_wrap=True)
    table.add_column("for", no_wrap=True)
    for heading in ("epochs", "batch"):
        table.add_column(heading, justify="right")
    for heading in ("optimiser", "published top-1", "source"):
        table.add_column(heading)
    for row in rows:
        table.add_row(
            *(row["recipe"], row["data"], f"{row['epochs']:g}", f"{row['batch_size']:,}"),
            *(row["optimizer"], row["published"], row["source"]),
        )
    return table


def _shape(image_shape: list[int]) -> str:
    return "×".join(map(str, image_shape))
