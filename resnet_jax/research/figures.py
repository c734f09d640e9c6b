"""Figures in a journal's style: fonts, widths, and colours for colour-blind readers."""

import contextlib
from collections.abc import Iterator
from typing import Any

import matplotlib as mpl
import numpy as np
from cycler import cycler
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from resnet_jax.logging.plots import new_figure

COLUMN, PAGE = 3.5, 7.2
"""Width of one column and of the page, in inches."""

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
"""The colours of Okabe & Ito, which colour-blind readers can tell apart."""

_STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.4,
    "axes.prop_cycle": cycler(color=COLORS),
    "pdf.fonttype": 42,  # embeds fonts, so that text can be selected
    "savefig.dpi": 300,
}


@contextlib.contextmanager
def journal_style() -> Iterator[None]:
    """Inside the context, figures are drawn and saved in the style."""
    with mpl.rc_context(_STYLE):  # type: ignore[arg-type]
        yield


def new_panels(
    columns: int, *, rows: int = 1, width: float = PAGE, height: float = 2.4
) -> tuple[Figure, list[Axes]]:
    """A figure that needs no display, and its panels, row by row; several panels get letters.

    Call it inside `journal_style`.

    Args:
        columns, rows: the grid of panels.
        width: width of the figure, in inches.
        height: height of each row, in inches.
    """
    figure = new_figure(width, height * rows)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    if len(panels) > 1:
        for letter, axes in zip("abcdefghijklmnop", panels, strict=False):
            axes.set_title(letter, loc="left", fontweight="bold")
    return figure, panels


def plot_mean(
    axes: Axes,
    x: ArrayLike,
    per_seed: Float[np.ndarray, "seeds points"],
    *,
    label: str | None = None,
    log: bool = False,
    **style: Any,
) -> None:
    """Plot the mean over seeds at each `x`, and a band of ± one standard deviation.

    With `log`, the axis is logarithmic, and mean and deviation are taken of the logarithms.
    """
    values = np.log(per_seed) if log else per_seed
    mean, std = values.mean(axis=0), values.std(axis=0, ddof=min(1, len(values) - 1))
    edges = (mean, mean - std, mean + std)
    middle, low, high = (np.exp(edge) if log else edge for edge in edges)
    (line,) = axes.plot(x, middle, label=label, **style)
    if len(values) > 1:
        axes.fill_between(x, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    if log:
        axes.set_yscale("log")


def add_legend(axes: Axes, **options: Any) -> None:
    """Add a legend, unless nothing was plotted."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(**options)
