"""He et al. 2015, figure 6 and table 6: plain and residual networks of growing depth."""

import functools
from typing import Any

from resnet_jax.research.configs import plain_and_residual_cifar10, plain_and_residual_digits
from resnet_jax.research.figures import COLORS, add_legend, journal_style, new_panels, plot_mean
from resnet_jax.research.reports import difference, error_rows
from resnet_jax.research.reproduction import Report, Reproduction, Row, Within
from resnet_jax.research.runner import Runner, TrainedRun

_TABLE, _FIGURE, _TEXT = (
    f"He et al. 2015, {where}" for where in ("table 6", "figure 6", "section 4.2")
)
_PUBLISHED = {
    "resnet20": 8.75,
    "resnet32": 7.51,
    "resnet44": 7.17,
    "resnet56": 6.97,
    "resnet110": 6.43,
    "resnet1202": 7.93,
}
_TOLERANCE = 0.6  # percentage points above the paper's error; any lower error is accepted


def run_small(runner: Runner) -> Report:
    """The claims on digits, with far smaller networks, images and schedules than the paper's."""
    trained = runner.train(plain_and_residual_digits())
    plain20, plain56, res20, res56 = (
        trained.get(name) for name in ("plain20", "plain56", "resnet20", "resnet56")
    )

    row = functools.partial(Row, source=_TEXT, data="digits")
    rows = (
        row(
            what="test error of plain-20 less that of ResNet-20, points",
            published="lower with shortcuts",
            measured=difference(plain20, res20, TrainedRun.test_errors),
            accepts=Within(low=15.0),
        ),
        row(
            what="test error of plain-56 less that of plain-20, points",
            published="higher when deeper",
            measured=difference(plain56, plain20, TrainedRun.test_errors),
            accepts=Within(low=15.0),
        ),
        row(
            what="training loss of plain-56 less that of plain-20, nats",
            published="higher: not overfitting",
            measured=difference(plain56, plain20, TrainedRun.train_losses),
            accepts=Within(low=0.3),
        ),
        row(
            what="training loss of plain-56 less that of ResNet-56, nats",
            published="lower with shortcuts",
            measured=difference(plain56, res56, TrainedRun.train_losses),
            accepts=Within(low=0.3),
        ),
    )
    return _report(rows, trained)


def run_paper(runner: Runner) -> Report:
    """The paper's networks, data and schedule."""
    trained = runner.train(plain_and_residual_cifar10())
    of_networks = error_rows(
        trained,
        _PUBLISHED,
        source=_TABLE,
        accepts=lambda published: Within(high=published + _TOLERANCE),
        label=lambda name: name.replace("resnet", "ResNet-"),
    )
    deeper = _PUBLISHED["resnet20"] - _PUBLISHED["resnet56"]
    measures = {"test error": TrainedRun.test_errors, "train loss": TrainedRun.train_losses}
    comparisons = (
        ("test error", "resnet20", "resnet56", 1.0, deeper, _TABLE),
        ("test error", "plain56", "plain20", 2.0, "higher when deeper", _FIGURE),
        ("train loss", "plain56", "plain20", 0.0, "higher: not overfitting", _FIGURE),
        ("test error", "plain56", "resnet56", 4.0, "lower with shortcuts", _FIGURE),
    )
    rows = tuple(
        Row(
            what=f"{what} of {name} less that of {baseline}",
            published=published,
            source=source,
            data="CIFAR-10",
            measured=difference(trained.get(name), trained.get(baseline), measures[what]),
            accepts=Within(low=least),
        )
        for what, name, baseline, least, published, source in comparisons
    )
    return _report((*of_networks, *rows), trained)


def _report(rows: tuple[Row, ...], trained: dict[str, TrainedRun]) -> Report:
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


REPRODUCTION = Reproduction(
    name="he2015-fig6",
    title="degradation, and residual learning",
    paper="He et al. 2015, 1512.03385",
    claim="Deeper plain networks have a higher training error; residual networks don't.",
    runs={"cpu": run_small, "full": run_paper},
)
