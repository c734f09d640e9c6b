"""He et al. 2015, table 1: the sizes of the ImageNet networks, counted."""

from typing import Any

from resnet_jax.models.presets import create_model
from resnet_jax.models.summary import Summary, summarize
from resnet_jax.research.artefact import Artefact, Report, Row, Within
from resnet_jax.research.figures import COLUMN, journal_style, new_panels
from resnet_jax.research.lab import Lab

_SOURCE = "He et al. 2015, table 1"
# Multiply-adds in 10⁹, which the paper calls FLOPs. That of VGG-16 counts no fully connected
# layers, that of VGG-19 does.
_PUBLISHED = {
    "resnet18": 1.8,
    "resnet34": 3.6,
    "resnet50_v1": 3.8,
    "resnet101_v1": 7.6,
    "resnet152_v1": 11.3,
    "vgg16": 15.3,
    "vgg19": 19.6,
}
_TOLERANCE = 0.02  # shares; the paper rounds down here and to the nearest there


def run(lab: Lab) -> Report:
    """Count multiply-adds and parameters of each network, without computing anything."""
    del lab
    rows: list[Row] = []
    data: dict[str, Any] = {}
    for name, published in _PUBLISHED.items():
        summary = summarize(create_model(name), (224, 224, 3))
        counted = {"all layers": summary.macs / 1e9, "convolutions": _convolutions(summary) / 1e9}
        what = "convolutions" if name == "vgg16" else "all layers"
        data[name] = {"macs_1e9": counted, "params": summary.params}
        rows.append(
            Row(
                what=f"{name}, multiply-adds of {what}, 10⁹",
                published=published,
                source=_SOURCE,
                data="arithmetic",
                measured=(counted[what],),
                accepts=Within((1 - _TOLERANCE) * published, (1 + _TOLERANCE) * published),
                exact=True,
            )
        )
    with journal_style():
        figure, (axes,) = new_panels(1, width=COLUMN)
        for name, published in _PUBLISHED.items():
            axes.plot(published, data[name]["macs_1e9"]["all layers"], "o", color="C0")
            axes.annotate(name, (published, data[name]["macs_1e9"]["all layers"]))
        axes.axline((0, 0), slope=1, color="C7", linewidth=0.8, linestyle="--")
        axes.set(xlabel="published (10⁹ multiply-adds)", ylabel="counted")
    return Report(tuple(rows), figure, data)


def _convolutions(summary: Summary) -> int:
    return sum(layer.macs for layer in summary.layers if "Conv" in layer.kind)


ARTEFACT = Artefact(
    name="he2015-table1",
    title="sizes of the ImageNet networks",
    paper="He et al. 2015, 1512.03385",
    claim="A ResNet-152 takes fewer multiply-adds than a VGG-16.",
    runs={"cpu": run, "full": run},
)
