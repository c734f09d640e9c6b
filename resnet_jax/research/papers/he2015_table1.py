"""He et al. 2015, table 1: the sizes of the ImageNet networks, counted."""

import re
from typing import Any

import numpy as np

from resnet_jax.models.presets import create_model
from resnet_jax.models.summary import Summary, summarize
from resnet_jax.research.figures import add_legend, journal_style, new_panels
from resnet_jax.research.reproduction import Artefact, Report, Row, Within
from resnet_jax.research.runner import Lab

_SOURCE = "He et al. 2015, table 1"
_VGG = "He et al. 2015, section 3.3"
# Multiply-adds in 10⁹, which the paper calls FLOPs, and whether they count fully connected layers:
# those of VGG-16 don't, those of VGG-19 do.
_PUBLISHED = {
    "resnet18": (1.8, True, _SOURCE),
    "resnet34": (3.6, True, _SOURCE),
    "resnet50_v1": (3.8, True, _SOURCE),
    "resnet101_v1": (7.6, True, _SOURCE),
    "resnet152_v1": (11.3, True, _SOURCE),
    "vgg16": (15.3, False, _VGG),
    "vgg19": (19.6, True, _VGG),
}
_TOLERANCE = 0.02  # shares; the paper rounds some down and some to the nearest
# Numbers of parameters of torchvision's networks of these names.
_TORCHVISION = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50_v1": 25_557_032,
    "resnet101_v1": 44_549_160,
    "resnet152_v1": 60_192_808,
    "vgg16": 138_357_544,
    "vgg19": 143_667_240,
}


def run(lab: Lab) -> Report:
    """Count multiply-adds and parameters of each network, without computing anything."""
    del lab
    summaries = {name: summarize(create_model(name), (224, 224, 3)) for name in _PUBLISHED}
    counts = {name: _macs(summary) for name, summary in summaries.items()}

    def row(
        what: str, published: float | str, source: str, measured: float, accepts: Within
    ) -> Row:
        return Row(
            what=what,
            published=published,
            source=source,
            data="arithmetic",
            measured=(measured,),
            accepts=accepts,
            exact=True,
        )

    rows = []
    for name, (published, with_classifier, source) in _PUBLISHED.items():
        parts = counts[name]
        measured = sum(parts.values()) if with_classifier else sum(parts.values()) - parts["fc"]
        what = "" if with_classifier else " without fully connected layers"
        rows.append(
            row(
                f"{name}, multiply-adds{what}, 10⁹",
                published,
                source,
                measured,
                Within((1 - _TOLERANCE) * published, (1 + _TOLERANCE) * published),
            )
        )
    for name, params in _TORCHVISION.items():
        found = summaries[name].params
        rows.append(
            row(f"{name}, parameters", params, "torchvision", found, Within(params, params))
        )
    smaller = sum(counts["resnet152_v1"].values()) / sum(counts["vgg16"].values())
    what = "multiply-adds of ResNet-152 / those of VGG-16"
    rows.append(row(what, "lower complexity", _VGG, smaller, Within(high=1.0)))
    return Report(tuple(rows), _draw(counts), {"macs_1e9": counts})


def _macs(summary: Summary) -> dict[str, float]:
    """Multiply-adds in 10⁹ by the part of the network: "stem", "stage 1", …, "fc"."""
    parts: dict[str, float] = {}
    for layer in summary.layers:
        stage = re.match(r"layer(\d)|conv(\d)_", layer.path)  # the latter in VGGs
        if layer.kind == "Classifier":
            part = "fc"
        else:
            part = f"stage {stage[1] or stage[2]}" if stage else "stem"
        parts[part] = parts.get(part, 0.0) + layer.macs / 1e9
    return parts


def _draw(counts: dict[str, dict[str, float]]) -> Any:
    parts = ("stem", *(f"stage {number}" for number in range(1, 6)), "fc")
    with journal_style():
        figure, (axes,) = new_panels(1, width=5.0)
        bottom = np.zeros(len(counts))
        for part in parts:
            heights = np.array([of.get(part, 0.0) for of in counts.values()])
            axes.bar(range(len(counts)), heights, bottom=bottom, width=0.6, label=part)
            bottom += heights
        published = [_PUBLISHED[name][0] for name in counts]
        axes.plot(range(len(counts)), published, "_", color="black", markersize=22, label="paper")
        axes.set_xticks(range(len(counts)), [name.removesuffix("_v1") for name in counts])
        axes.set(ylabel="multiply-adds per image (10⁹)")
        axes.grid(visible=False, axis="x")
        add_legend(axes)
    return figure


ARTEFACT = Artefact(
    name="he2015-table1",
    title="sizes of the ImageNet networks",
    paper="He et al. 2015, 1512.03385",
    claim="A ResNet-152 takes fewer multiply-adds than a VGG-16.",
    runs={"cpu": run, "full": run},
)
