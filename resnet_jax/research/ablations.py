"""Tables in which the rows of a paper are variants of one network."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from resnet_jax.research.figures import (
    COLORS,
    PAGE,
    add_legend,
    journal_style,
    new_panels,
    plot_mean,
)
from resnet_jax.research.reproduction import Report, Row, Within
from resnet_jax.research.runner import Lab, Trained


@dataclasses.dataclass(frozen=True)
class Variant:
    """A row of the paper's table.

    Attributes:
        label: as in the table.
        fields: of the config, by dotted name, that make it out of the first variant.
        error: the paper's test error in percent, or "fail"; None if it has none.
        excess: what its error may be more than that of the first variant, in points.
    """

    label: str
    fields: Mapping[str, Any]
    error: float | str | None
    excess: Within = dataclasses.field(default_factory=Within)


def run_variants(
    lab: Lab,
    variants: Mapping[str, Variant],
    make: Callable[[Mapping[str, Any]], ConfigDict],
    *,
    source: str,
    data: str,
    name: str,
) -> Report:
    """Train all variants; each but the first is judged by its distance from the first.

    Args:
        lab: where.
        variants: by name.
        make: the config of the fields of a variant.
        source: of the published errors.
        data: they are trained on.
        name: of the artefact, which the names of its runs begin with.
    """
    configs = {f"{name}-{key}": make(variant.fields) for key, variant in variants.items()}
    runs = lab.train(configs)
    trained = {key: runs[f"{name}-{key}"] for key in variants if f"{name}-{key}" in runs}
    first, *others = variants
    rows = []
    for key in others:
        ours, base = (
            np.array(trained[k].test_errors if k in trained else ()) for k in (key, first)
        )
        excess = ours - base if len(ours) and len(base) else np.array([])
        rows.append(
            Row(
                what=f"{variants[key].label}: test error less that of"
                f" {variants[first].label}, points",
                published=_published(variants[key].error, variants[first].error),
                source=source,
                data=data,
                measured=tuple(excess.tolist()),
                accepts=variants[key].excess,
            )
        )
    errors = {key: list(run.test_errors) for key, run in trained.items()}
    return Report(tuple(rows), _draw(variants, trained, data), {"test_errors": errors})


def _published(error: float | str | None, first: float | str | None) -> float | str | None:
    if isinstance(error, float) and isinstance(first, float):
        return round(error - first, 2)
    return error


def _draw(variants: Mapping[str, Variant], trained: Mapping[str, Trained], data: str) -> Figure:
    """Errors by variant: a dot for each seed, a line at their mean, the paper's beside them."""
    with journal_style():
        height = 0.6 + 0.24 * len(variants)
        figure, (axes,) = new_panels(1, width=0.7 * PAGE, height=height)
        for place, (key, variant) in enumerate(variants.items()):
            if key in trained:
                errors = np.array(trained[key].test_errors)
                axes.plot(errors, np.full(len(errors), place), "o", color=COLORS[0], alpha=0.5)
                axes.plot([errors.mean()] * 2, [place - 0.3, place + 0.3], color=COLORS[0])
            if isinstance(variant.error, float):
                axes.plot(variant.error, place, "D", color=COLORS[1], markerfacecolor="none")
        axes.plot([], [], "o", color=COLORS[0], alpha=0.5, label=f"a seed here, on {data}")
        axes.plot([], [], "D", color=COLORS[1], markerfacecolor="none", label="paper, CIFAR-10")
        labels = [
            f"{v.label} (paper: {v.error})" if isinstance(v.error, str) else v.label
            for v in variants.values()
        ]
        axes.set_yticks(range(len(variants)), labels)
        axes.set(xlabel="test error (%)", xlim=(0, None))
        axes.invert_yaxis()
        axes.legend(loc="upper right")
    return figure


def loss_report(rows: tuple[Row, ...], trained: Mapping[str, Trained]) -> Report:
    """The rows, with a figure of training losses by label."""
    data = {}
    with journal_style():
        figure, (axes,) = new_panels(1, width=4.5)
        for label, run in trained.items():
            epochs, losses = run.curve("train", "loss")
            plot_mean(axes, epochs, losses, label=label, log=True)
            data[label] = {"train_loss": losses.tolist(), "test_error": list(run.test_errors)}
        axes.set(xlabel="epoch", ylabel="training loss (nats)")
        add_legend(axes)
    return Report(rows, figure, data)
