"""The table of differences between runs that `compare` and `sweep` print."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console

from resnet_jax.cli.common.tables import Table

_MANY = 3  # comparisons with the same reference


def show_differences(rows: Sequence[dict[str, Any]], console: Console) -> None:
    """Print how the error of each row differs from the first row's, and whether that is real.

    Args:
        rows: dicts with "label" and "versus", as from `compare_rows`.
        console: where to print.
    """
    compared = [row for row in rows[1:] if row["versus"]]
    if not compared:
        return
    # Imported here because JAX takes a second to import, which --help needn't wait for.
    from resnet_jax.research.significance import WANTED  # noqa: PLC0415

    title = f"difference of the error from {rows[0]['label']}, in points"
    seeds = f"seeds for {100 * WANTED:g} points"
    headings = ("run", "split", "difference", "95 % interval", "p", "test", seeds, "verdict")
    table = Table(*headings, title=title)
    for row in compared:
        table.add_row(row["label"], row["versus"]["split"], *_cells(row["versus"]))
    console.print(table)
    if len(compared) >= _MANY:
        console.print(
            f"{len(compared)} comparisons at 5 %: chance alone makes {0.05 * len(compared):.2g} of"
            " them seem real."
        )


def _cells(versus: dict[str, Any]) -> tuple[str, ...]:
    if versus["effect"] is None:
        return "–", "–", "–", "–", "–", versus["note"]
    difference = f"{_points(versus['effect']):+.2f}"
    if versus["is_real"] is None:
        return difference, "–", "–", "–", "–", f"undecided: {versus['note']}"
    interval = f"{_points(versus['high']):+.2f} … {_points(versus['low']):+.2f}"
    more = versus["more_seeds"]
    needed = "no more" if more == 0 else "more than 10,000" if more is None else f"{more:,} more"
    better = "better" if versus["effect"] > 0 else "worse"
    verdict = better if versus["is_real"] else "undecided"
    return difference, interval, f"{versus['p']:.2g}", versus["test"], needed, verdict


def _points(accuracy: float) -> float:
    """The difference of the error in points, of a difference of the accuracy in 0…1."""
    return -100 * accuracy
