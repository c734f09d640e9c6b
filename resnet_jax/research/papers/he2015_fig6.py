"""He et al. 2015, figure 6 and table 6: what depth does to plain and to residual networks."""

from typing import Any

from ml_collections import ConfigDict

from resnet_jax.research.configs import cifar10, digits
from resnet_jax.research.figures import COLORS, add_legend, journal_style, new_panels, plot_mean
from resnet_jax.research.reproduction import Artefact, Report, Row, Within
from resnet_jax.research.runner import Lab, Trained

_TABLE, _FIGURE, _TEXT = (
    f"He et al. 2015, {where}" for where in ("table 6", "figure 6", "section 4.2")
)
_PUBLISHED = {20: 8.75, 32: 7.51, 44: 7.17, 56: 6.97, 110: 6.43, 1202: 7.93}
_TOLERANCE = 0.6  # percentage points above the paper's error; below it all is well


def small_runs() -> dict[str, ConfigDict]:
    """Plain and residual networks of 20 and 56 layers on digits, by name."""
    return {
        f"{kind}{depth}": digits(f"resnet{depth}", fields)
        for depth in (20, 56)
        for kind, fields in (("plain", {"model.shortcut": "none"}), ("resnet", None))
    }


def paper_runs() -> dict[str, ConfigDict]:
    """Those of the paper on CIFAR-10 by name, the cheapest first."""
    runs = {f"resnet{depth}": cifar10(f"resnet{depth}") for depth in (20, 32, 44, 56)}
    runs |= {
        f"plain{depth}": cifar10(f"resnet{depth}", {"model.shortcut": "none"}) for depth in (20, 56)
    }
    return runs | {f"resnet{depth}": cifar10(f"resnet{depth}") for depth in (110, 1202)}


def difference(of: Trained | None, than: Trained | None, metric: str) -> tuple[float, ...]:
    """`metric` of each seed of a run less that of another's; () if one is missing."""
    if of is None or than is None:
        return ()
    return tuple(a - b for a, b in zip(getattr(of, metric), getattr(than, metric), strict=True))


def run_small(lab: Lab) -> Report:
    """The claims on digits: far smaller networks, images and schedules than the paper's."""
    trained = lab.train(small_runs())
    plain20, plain56, res20, res56 = (
        trained.get(name) for name in ("plain20", "plain56", "resnet20", "resnet56")
    )

    def row(what: str, measured: tuple[float, ...], least: float, published: str) -> Row:
        return Row(
            what=what,
            published=published,
            source=_TEXT,
            data="digits",
            measured=measured,
            accepts=Within(low=least),
        )

    rows = (
        row(
            "test error of plain-20 less that of ResNet-20, points",
            difference(plain20, res20, "test_errors"),
            15.0,
            "lower with shortcuts",
        ),
        row(
            "test error of plain-56 less that of plain-20, points",
            difference(plain56, plain20, "test_errors"),
            15.0,
            "higher when deeper",
        ),
        row(
            "training loss of plain-56 less that of plain-20, nats",
            difference(plain56, plain20, "train_losses"),
            0.3,
            "higher: not overfitting",
        ),
        row(
            "training loss of plain-56 less that of ResNet-56, nats",
            difference(plain56, res56, "train_losses"),
            0.3,
            "lower with shortcuts",
        ),
    )
    return _report(rows, trained)


def run_paper(lab: Lab) -> Report:
    """The paper's networks, data and schedule."""
    trained = lab.train(paper_runs())
    rows = [
        Row(
            what=f"ResNet-{depth}, test error, %",
            published=published,
            source=_TABLE,
            data="CIFAR-10",
            measured=trained[f"resnet{depth}"].test_errors if f"resnet{depth}" in trained else (),
            accepts=Within(high=published + _TOLERANCE),
        )
        for depth, published in _PUBLISHED.items()
    ]
    comparisons = (
        ("resnet20", "resnet56", "test_errors", 1.0, _PUBLISHED[20] - _PUBLISHED[56], _TABLE),
        ("plain56", "plain20", "test_errors", 2.0, "higher when deeper", _FIGURE),
        ("plain56", "plain20", "train_losses", 0.0, "higher: not overfitting", _FIGURE),
        ("plain56", "resnet56", "test_errors", 4.0, "lower with shortcuts", _FIGURE),
    )
    for of, than, metric, least, published, source in comparisons:
        rows.append(
            Row(
                what=f"{metric.replace('_', ' ')[:-1]} of {of} less that of {than}",
                published=published,
                source=source,
                data="CIFAR-10",
                measured=difference(trained.get(of), trained.get(than), metric),
                accepts=Within(low=least),
            )
        )
    return _report(tuple(rows), trained)


def _report(rows: tuple[Row, ...], trained: dict[str, Trained]) -> Report:
    data: dict[str, Any] = {}
    with journal_style():
        figure, (plain, residual) = new_panels(2)
        for name, run in trained.items():
            kind, depth = name[:-2], name.removeprefix("plain").removeprefix("resnet")
            axes = plain if kind.startswith("plain") else residual
            color = COLORS[sum(line.get_linestyle() == "-" for line in axes.lines)]
            epochs, losses = run.curve("train", "loss")
            _, scores = run.curve("test", "top1")
            error = 100 * (1 - scores[:, -1])
            spread = f" ± {error.std(ddof=1):.1f}" if len(error) > 1 else ""
            label = f"{depth} layers: test error {error.mean():.1f}{spread} %"
            plot_mean(axes, epochs, losses, label=label, color=color, log=True)
            data[name] = {"epochs": epochs.tolist(), "train_loss": losses.tolist()}
            data[name]["test_error"] = error.tolist()
        lowest = min(axes.get_ylim()[0] for axes in (plain, residual))
        highest = max(axes.get_ylim()[1] for axes in (plain, residual))
        for axes, title in ((plain, "plain"), (residual, "residual")):
            axes.set(title=title, xlabel="epoch", ylim=(lowest, highest))
            add_legend(axes, loc="lower left")
        plain.set(ylabel="training loss (nats)")
    return Report(rows, figure, data)


ARTEFACT = Artefact(
    name="he2015-fig6",
    title="degradation, and residual learning",
    paper="He et al. 2015, 1512.03385",
    claim="Deeper plain networks have a higher training error; residual networks don't.",
    runs={"cpu": run_small, "full": run_paper},
)
