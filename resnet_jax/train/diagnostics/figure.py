"""diagnostics.png: the diagnostics of a run over its epochs."""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from etils import epath
from jaxtyping import Float
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from resnet_jax.checkpoint.workdir import DIAGNOSTICS, write_atomically
from resnet_jax.logging.plots import new_figure, picture_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Family of measures → title of its panel.
_OVER_TIME = {
    "grad_norm": "norm of the gradient",
    "activation_rms": "activation, root mean square",
    "update_ratio": "update / weight",
    "bn_drift": "drift of running statistics",
    "gate_openness": "openness of gates",
    "sharpness": "largest eigenvalue of the Hessian",
}
_LINEAR = ("gate_openness",)
_OF_PARTS = ("grad_norm", "activation_rms", "update_ratio")
"""Families with one line per part of the network: "stem", "stage1", …, "fc"."""


def draw_diagnostics(
    workdir: epath.Path,
    history: list[dict[str, Any]],
    similarities: Float[np.ndarray, "blocks blocks"] | None,
    *,
    title: str,
) -> None:
    """Draw the records of the split "diagnostics" and the last similarities.

    Raises:
        OSError: the file can't be written.
    """
    figure = make_figure(history, similarities, title=title)
    if figure is None:
        return
    write_atomically(workdir / DIAGNOSTICS, picture_of(figure, "png", dpi=150))


def make_figure(
    history: list[dict[str, Any]],
    similarities: Float[np.ndarray, "blocks blocks"] | None,
    *,
    title: str,
) -> "Figure | None":
    """Return the figure of `draw_diagnostics`; None if there is nothing to draw."""
    records = [r for r in history if r["split"] == "diagnostics"]
    names = [name for name in records[-1] if isinstance(records[-1][name], float)]
    families = [
        family for family in _OVER_TIME if any(name.split("/")[0] == family for name in names)
    ]
    with_signal = any(name.startswith("signal_var/") for name in names)
    panels = len(families) + with_signal + (similarities is not None)
    if not panels:
        return None
    parts = sorted(
        {n.partition("/")[2] for n in names if n.split("/")[0] in _OF_PARTS}, key=_position
    )
    colors = _colors(parts)
    columns = min(4, panels)
    figure = new_figure(3.4 * columns, 3.1 * -(-panels // columns))
    figure.suptitle(title)
    axes = iter(figure.subplots(-(-panels // columns), columns, squeeze=False).flat)
    of_parts: dict[str, Any] = {}  # part → a line of it
    for family in families:
        panel = next(axes)
        of_family = [n for n in names if n.split("/")[0] == family]
        lines = _plot_family(panel, records, of_family, family, colors)
        if family in _OF_PARTS:
            of_parts |= lines
        elif len(lines) > 1:
            _legend_below(panel)
    if of_parts:
        known = [part for part in parts if part in of_parts]
        figure.legend(
            handles=[of_parts[part] for part in known],
            loc="outside lower center",
            ncols=min(len(known), 3 * columns),
            frameon=False,
            fontsize=8,
        )
    if with_signal:
        _plot_signal(next(axes), records)
    if similarities is not None:
        _plot_similarities(next(axes), similarities)
    for rest in axes:
        rest.set_visible(False)
    return figure


def _position(part: str) -> tuple[float, list[int], str]:
    """Return a sort key: the position of a part or block in the network."""
    place = {"stem": 0, "fc": 2}.get(part, 1)
    return place, [int(number) for number in re.findall(r"\d+", part)], part


def _colors(parts: Iterable[str]) -> dict[str, Any]:
    """Return a colour for each part, for all panels; stages get darker towards the stem."""
    stages = [part for part in parts if part not in ("stem", "fc")]
    shades = colormaps["viridis"](np.linspace(0, 0.85, len(stages)))
    return {"stem": "0.6", "fc": "C3", **dict(zip(stages, shades, strict=True))}


def _plot_family(
    axes: Axes,
    records: list[dict[str, Any]],
    names: list[str],
    family: str,
    colors: dict[str, Any],
) -> dict[str, Any]:
    """Plot the measures `names` of one family; return the line of each part.

    Lines are in the order of the legend: the order of the network, or by their last value,
    largest first.
    """
    lines = {}
    ends = {name: [r[name] for r in records if name in r][-1] for name in names}
    parts = {name: name.partition("/")[2] for name in names}
    of_parts = family in _OF_PARTS
    for name in sorted(names, key=lambda n: _position(parts[n]) if of_parts else (-ends[n], [], n)):
        part = parts[name]
        shown = [r for r in records if name in r]
        epochs = [r["epoch"] for r in shown]
        style = {"color": colors[part]} if of_parts else {}
        (line,) = axes.plot(epochs, [r[name] for r in shown], marker=".", label=part, **style)
        lines[part] = line
        if "std" in shown[0]:
            low, high = ([r[name] + sign * r["std"][name] for r in shown] for sign in (-1, 1))
            axes.fill_between(epochs, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    positive = all(r.get(name, 1) > 0 for r in records for name in names)
    if positive and family not in _LINEAR:
        axes.set_yscale("log")
    axes.set(xlabel="epoch", title=_OVER_TIME[family])
    _tidy(axes)
    return lines


def _plot_signal(axes: Axes, records: list[dict[str, Any]]) -> None:
    for record, style in ((records[0], ":"), (records[-1], "-")):
        for name, color in (("signal_mean2", "C0"), ("signal_var", "C1")):
            blocks = sorted((k for k in record if k.startswith(f"{name}/")), key=_position)
            what = "squared mean" if name == "signal_mean2" else "variance"
            label = f"{what}, step {record['step']:,}"
            values = [record[block] for block in blocks]
            axes.plot(range(1, len(blocks) + 1), values, style, color=color, label=label)
            axes.set_xlim(0.5, len(blocks) + 0.5)
    axes.set(xlabel="block", title="signal of blocks, by channel", yscale="log")
    axes.xaxis.set_major_locator(_whole_numbers())
    _tidy(axes)
    _legend_below(axes)


def _plot_similarities(axes: Axes, similarities: Float[np.ndarray, "blocks blocks"]) -> None:
    """Plot the matrix, with blocks counted from 1, as in the panel of signals."""
    ends = (0.5, len(similarities) + 0.5)
    image = axes.imshow(
        similarities, vmin=0, vmax=1, origin="lower", cmap="magma", extent=(*ends, *ends)
    )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(_whole_numbers())
    axes.set(xlabel="block", ylabel="block", title="similarity (CKA)", xlim=ends, ylim=ends)
    axes.figure.colorbar(image)


def _whole_numbers() -> MaxNLocator:
    return MaxNLocator(integer=True, min_n_ticks=1)


def _tidy(axes: Axes) -> None:
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _legend_below(axes: Axes) -> None:
    """Put the legend below the panel, where it covers no line."""
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, frameon=False, fontsize=7)
