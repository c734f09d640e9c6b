"""diagnostics.png: what was measured, over the course of the run."""

import io
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float
from matplotlib.axes import Axes

from resnet_jax.checkpoint.workdir import DIAGNOSTICS, write_atomically
from resnet_jax.train.report import new_figure

# Name of a family of measures → label of its axis.
_OVER_TIME = {
    "grad_norm": "norm of the gradient",
    "activation_rms": "activation, root mean square",
    "update_ratio": "update / weight",
    "bn_drift": "drift of running statistics",
    "gate_openness": "openness of gates",
    "sharpness": "largest eigenvalue of the Hessian",
}
_LINEAR = ("gate_openness",)


def draw_diagnostics(
    workdir: epath.Path,
    history: list[dict[str, Any]],
    similarities: Float[np.ndarray, "units units"] | None,
    *,
    title: str,
) -> None:
    """Draw all that the records of split "diagnostics" hold, and the last similarities."""
    records = [r for r in history if r["split"] == "diagnostics"]
    names = [name for name in records[-1] if isinstance(records[-1][name], float)]
    families = [
        family for family in _OVER_TIME if any(name.split("/")[0] == family for name in names)
    ]
    with_signal = any(name.startswith("signal_var/") for name in names)
    panels = len(families) + with_signal + (similarities is not None)
    if not panels:
        return
    columns = min(4, panels)
    figure = new_figure(3.4 * columns, 2.8 * -(-panels // columns))
    figure.suptitle(title)
    axes = iter(figure.subplots(-(-panels // columns), columns, squeeze=False).flat)
    for family in families:
        _plot_family(next(axes), records, [n for n in names if n.split("/")[0] == family], family)
    if with_signal:
        _plot_signal(next(axes), records)
    if similarities is not None:
        panel = next(axes)
        image = panel.imshow(similarities, vmin=0, vmax=1, origin="lower", cmap="magma")
        panel.set(xlabel="unit", ylabel="unit", title="similarity (CKA)")
        figure.colorbar(image)
    for rest in axes:
        rest.set_visible(False)
    picture = io.BytesIO()
    figure.savefig(picture, dpi=150, format="png")
    write_atomically(workdir / DIAGNOSTICS, picture.getvalue())


def _plot_family(axes: Axes, records: list[dict[str, Any]], names: list[str], family: str) -> None:
    for name in names:
        shown = [r for r in records if name in r]
        epochs = [r["epoch"] for r in shown]
        label = name.partition("/")[2]
        (line,) = axes.plot(epochs, [r[name] for r in shown], marker=".", label=label)
        if "std" in shown[0]:
            low, high = ([r[name] + sign * r["std"][name] for r in shown] for sign in (-1, 1))
            axes.fill_between(epochs, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    positive = all(r.get(name, 1) > 0 for r in records for name in names)
    if positive and family not in _LINEAR:
        axes.set_yscale("log")
    axes.set(xlabel="epoch", title=_OVER_TIME[family])
    _tidy(axes)


def _plot_signal(axes: Axes, records: list[dict[str, Any]]) -> None:
    for record, style in ((records[0], ":"), (records[-1], "-")):
        for name, color in (("signal_mean2", "C0"), ("signal_var", "C1")):
            values = [v for k, v in record.items() if k.startswith(f"{name}/")]
            what = "squared mean" if name == "signal_mean2" else "variance"
            label = f"{what}, step {record['step']:,}"
            axes.plot(range(1, len(values) + 1), values, style, color=color, label=label)
    axes.set(xlabel="unit", title="signal of units, by channel", yscale="log")
    _tidy(axes)


def _tidy(axes: Axes) -> None:
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=7)
