"""He et al. 2015, table 1: the sizes of the ImageNet networks, counted."""

import functools
import re

import numpy as np
from matplotlib.figure import Figure

from resnet_jax.models.presets import create_model
from resnet_jax.models.summary import Summary, summarize
from resnet_jax.research.figures import add_legend, journal_style, new_panels
from resnet_jax.research.reproduction import Report, Reproduction, Row, Within
from resnet_jax.research.runner import Runner

_SOURCE = "He et al. 2015, table 1"
_OF_152 = "He et al. 2015, section 4.1"
# Multiply-adds in 10⁹, which the paper calls FLOPs; whether the number includes the fully connected
# layers, as it does for VGG-19 but not for VGG-16; and the source.
_PUBLISHED = {
    "resnet18": (1.8, True, _SOURCE),
    "resnet34": (3.6, True, _SOURCE),
    "resnet50_v1": (3.8, True, _SOURCE),
    "resnet101_v1": (7.6, True, _SOURCE),
    "resnet152_v1": (11.3, True, _SOURCE),
    "vgg16": (15.3, False, _OF_152),
    "vgg19": (19.6, True, _OF_152),
}
_TOLERANCE = 0.02  # relative; the paper rounds some numbers down and others to the nearest
# Numbers of parameters of the networks of these names in torchvision.
_TORCHVISION = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50_v1": 25_557_032,
    "resnet101_v1": 44_549_160,
    "resnet152_v1": 60_192_808,
    "vgg16": 138_357_544,
    "vgg19": 143_667_240,
}


def run(runner: Runner) -> Report:
    """Count multiply-adds and parameters of each network, from shapes alone."""
    del runner
    summaries = {name: summarize(create_model(name), (224, 224, 3)) for name in _PUBLISHED}
    counts = {name: _macs(summary) for name, summary in summaries.items()}

    row = functools.partial(Row, data="arithmetic", exact=True)
    rows = []
    for name, (published, with_classifier, source) in _PUBLISHED.items():
        parts = counts[name]
        measured = sum(parts.values()) if with_classifier else sum(parts.values()) - parts["fc"]
        what = "" if with_classifier else " without fully connected layers"
        rows.append(
            row(
                what=f"{name}, multiply-adds{what}, 10⁹",
                published=published,
                source=source,
                measured=(measured,),
                accepts=Within((1 - _TOLERANCE) * published, (1 + _TOLERANCE) * published),
            )
        )
    rows += [
        row(
            what=f"{name}, parameters",
            published=params,
            source="torchvision",
            measured=(summaries[name].params,),
            accepts=Within(params, params),
        )
        for name, params in _TORCHVISION.items()
    ]
    smaller = sum(counts["resnet152_v1"].values()) / sum(counts["vgg16"].values())
    rows.append(
        row(
            what="multiply-adds of ResNet-152 / those of VGG-16",
            published="lower complexity",
            source=_OF_152,
            measured=(smaller,),
            accepts=Within(high=1.0),
        )
    )
    return Report(tuple(rows), _draw(counts), {"macs_1e9": counts})


def _macs(summary: Summary) -> dict[str, float]:
    """Multiply-adds in 10⁹ by part of the network: "stem", "stage 1", …, "fc"."""
    parts: dict[str, float] = {}
    for layer in summary.layers:
        stage = re.match(r"layer(\d)|conv(\d)_", layer.path)  # conv1_… in VGG
        if layer.kind == "Classifier":
            part = "fc"
        else:
            part = f"stage {stage[1] or stage[2]}" if stage else "stem"
        parts[part] = parts.get(part, 0.0) + layer.macs / 1e9
    return parts


def _draw(counts: dict[str, dict[str, float]]) -> Figure:
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


REPRODUCTION = Reproduction(
    name="he2015-table1",
    title="sizes of the ImageNet networks",
    paper="He et al. 2015, 1512.03385",
    claim="A ResNet-152 takes fewer multiply-adds than a VGG-16.",
    runs={"cpu": run, "full": run},
)
