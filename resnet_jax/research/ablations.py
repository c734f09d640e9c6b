"""Reproductions of tables whose rows are variants of one network."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from resnet_jax.research.configs import cifar10, digits
from resnet_jax.research.figures import COLORS, PAGE, journal_style, new_panels
from resnet_jax.research.reports import difference
from resnet_jax.research.reproduction import Report, Row, Within
from resnet_jax.research.runner import Runner, Size, TrainedRun


@dataclasses.dataclass(frozen=True)
class Variant:
    """A row of the paper's table.

    Attributes:
        label: as in the table.
        fields: the config fields, by dotted name, that turn the first variant into this one.
        error: the paper's test error in percent, or "fail"; None if the paper has none.
        excess: the accepted values of the variant's error less the first variant's, in points.
    """

    label: str
    fields: Mapping[str, Any]
    error: float | str | None
    excess: Within = dataclasses.field(default_factory=Within)


def ablation_runs(
    name: str, variants: Mapping[str, Variant], *, source: str, full_model: str
) -> dict[Size, Callable[[Runner], Report]]:
    """How a table of variants is reproduced at each size.

    The small size trains 56 layers on digits; the full size trains `full_model` on CIFAR-10 with a
    quarter of the steps of He et al. 2015.

    Args:
        name: the name of the reproduction, with which the names of its runs begin.
        variants: the rows by name. Each but the first is judged by its distance from the first.
        source: where the errors are published.
        full_model: name of a preset.
    """

    def small(fields: Mapping[str, Any]) -> ConfigDict:
        return digits("resnet56", {"model.scan": True, **fields})

    def full(fields: Mapping[str, Any]) -> ConfigDict:
        return cifar10(full_model, fields, share=0.25)

    def run(runner: Runner, make: Callable[[Mapping[str, Any]], ConfigDict], data: str) -> Report:
        configs = {f"{name}-{key}": make(variant.fields) for key, variant in variants.items()}
        runs = runner.train(configs)
        trained = {key: runs[f"{name}-{key}"] for key in variants if f"{name}-{key}" in runs}
        return _report(variants, trained, source=source, data=data)

    return {
        "cpu": lambda runner: run(runner, small, "digits"),
        "full": lambda runner: run(runner, full, "CIFAR-10"),
    }


def _report(
    variants: Mapping[str, Variant],
    trained: Mapping[str, TrainedRun],
    *,
    source: str,
    data: str,
) -> Report:
    first, *others = variants
    rows = tuple(
        Row(
            what=f"{variants[key].label}: test error less that of {variants[first].label}, points",
            published=_published(variants[key].error, variants[first].error),
            source=source,
            data=data,
            measured=difference(trained.get(key), trained.get(first), TrainedRun.test_errors),
            accepts=variants[key].excess,
        )
        for key in others
    )
    errors = {key: list(run.test_errors()) for key, run in trained.items()}
    return Report(rows, _draw(variants, trained, data), {"test_errors": errors})


def _published(error: float | str | None, first: float | str | None) -> float | str | None:
    if isinstance(error, float) and isinstance(first, float):
        return round(error - first, 2)
    return error


def _draw(variants: Mapping[str, Variant], trained: Mapping[str, TrainedRun], data: str) -> Figure:
    """Errors by variant: a dot for each seed, a line at their mean, and the paper's error."""
    with journal_style():
        height = 0.6 + 0.24 * len(variants)
        figure, (axes,) = new_panels(1, width=0.7 * PAGE, height=height)
        for place, (key, variant) in enumerate(variants.items()):
            if key in trained:
                errors = np.array(trained[key].test_errors())
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
