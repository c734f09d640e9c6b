"""He et al. 2015, figure 6 and table 6: plain and residual networks of growing depth."""

from typing import Any

from matplotlib.figure import Figure

from resnet_jax.models.published import PUBLISHED
from resnet_jax.research.configs import plain_and_residual_cifar10, plain_and_residual_digits
from resnet_jax.research.figures import COLORS, add_legend, journal_style, new_panels, plot_mean
from resnet_jax.research.reports import difference, error_rows, network_label
from resnet_jax.research.reproduction import Report, Reproduction, Row, Within
from resnet_jax.research.runner import Runner, TrainedRun
from resnet_jax.research.table6 import DATA, NETWORKS

_TABLE, _FIGURE, _TEXT = (
    f"He et al. 2015, {where}" for where in ("table 6", "figure 6", "section 4.2")
)
_PUBLISHED = {
    name: PUBLISHED[name].error
    for name in ("resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "resnet1202")
}
_TOLERANCE = 0.6  # percentage points above the paper's error; any lower error is accepted


def run_small(runner: Runner) -> Report:
    """The claims on digits, with far smaller networks, images and schedules than the paper's."""
    trained = runner.train(plain_and_residual_digits())
    rows = _comparisons(
        trained,
        "digits",
        ("test error", "plain20", "resnet20", 15.0, "lower with shortcuts", _TEXT),
        ("test error", "plain56", "plain20", 15.0, "higher when deeper", _TEXT),
        ("training loss", "plain56", "plain20", 0.3, "higher: not overfitting", _TEXT),
        ("training loss", "plain56", "resnet56", 0.3, "lower with shortcuts", _TEXT),
        ("training loss", "resnet20", "resnet56", 0.0, "lower when deeper", _TEXT),
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
        label=network_label,
    )
    deeper = _PUBLISHED["resnet20"] - _PUBLISHED["resnet56"]
    rows = _comparisons(
        trained,
        "CIFAR-10",
        ("test error", "resnet20", "resnet56", 1.0, deeper, _TABLE),
        ("test error", "plain56", "plain20", 2.0, "higher when deeper", _FIGURE),
        ("training loss", "plain56", "plain20", 0.0, "higher: not overfitting", _FIGURE),
        ("training loss", "resnet20", "resnet56", 0.0, "lower when deeper", _FIGURE),
        ("test error", "plain56", "resnet56", 4.0, "lower with shortcuts", _FIGURE),
    )
    return _report((*of_networks, *rows), trained)


def run_cifar(runner: Runner) -> Report:
    """The finished runs with an eighth of the paper's steps on CIFAR-10."""
    trained = runner.collect(NETWORKS)
    deeper = _PUBLISHED["resnet20"] - _PUBLISHED["resnet56"]
    rows = _comparisons(
        trained,
        DATA,
        ("test error", "plain56", "plain20", 2.0, "higher when deeper", _FIGURE),
        ("training error", "plain56", "plain20", 0.0, "higher: not overfitting", _FIGURE),
        ("training error", "resnet20", "resnet56", 0.0, "lower when deeper", _FIGURE),
        ("test error", "plain56", "resnet56", 4.0, "lower with shortcuts", _FIGURE),
        ("test error", "resnet20", "resnet56", 0.0, round(deeper, 2), f"{_TABLE}, 64,000 steps"),
    )
    return Report(rows, _draw_errors(trained), {name: _data(run) for name, run in trained.items()})


def _data(run: TrainedRun) -> dict[str, Any]:
    return {
        "seeds": list(run.seeds),
        "test_error": list(run.test_errors()),
        "train_error": list(run.train_errors()),
    }


def _draw_errors(trained: dict[str, TrainedRun]) -> Figure:
    """As the paper's figure 6: dashed lines are training errors, bold lines held-out errors."""
    with journal_style():
        figure, panels = new_panels(2)
        for axes, kind in zip(panels, ("plain", "resnet"), strict=True):
            for depth, color in (("20", COLORS[0]), ("56", COLORS[1])):
                if f"{kind}{depth}" not in trained:
                    continue
                run = trained[f"{kind}{depth}"]
                label = f"{network_label(kind)}{depth} (n = {len(run.seeds)})"
                for split, line, name in (("train", "--", None), ("validation", "-", label)):
                    epochs, top1 = run.curve(split, "top1")
                    plot_mean(
                        *(axes, epochs, 100 * (1 - top1)),
                        label=name,
                        color=color,
                        linestyle=line,
                        linewidth=0.7 if split == "train" else 1.2,
                    )
            title = "plain" if kind == "plain" else "residual"
            axes.set(title=title, xlabel="epoch", ylim=(0, 60))
            add_legend(axes)
        panels[0].set(ylabel="error (%); dashed: training")
    return figure


def _comparisons(
    trained: dict[str, TrainedRun],
    data: str,
    *comparisons: tuple[str, str, str, float, float | str, str],
) -> tuple[Row, ...]:
    """A row for each (measure, network, baseline, least difference, published, source)."""
    measures = {
        "test error": (TrainedRun.test_errors, "points"),
        "training loss": (TrainedRun.train_losses, "nats"),
        "training error": (TrainedRun.train_errors, "points"),
    }
    return tuple(
        Row(
            what=f"{what} of {network_label(name)} less that of {network_label(baseline)},"
            f" {measures[what][1]}",
            published=published,
            source=source,
            data=data,
            measured=difference(trained.get(name), trained.get(baseline), measures[what][0]),
            accepts=Within(low=least),
        )
        for what, name, baseline, least, published, source in comparisons
    )


def _report(rows: tuple[Row, ...], trained: dict[str, TrainedRun]) -> Report:
    data: dict[str, Any] = {}
    with journal_style():
        figure, (plain, residual) = new_panels(2)
        for name, run in trained.items():
            depth = name.removeprefix("plain").removeprefix("resnet")
            axes = plain if name.startswith("plain") else residual
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
    claim="Deeper plain networks have a higher training error; deeper residual networks don't.",
    runs={"cpu": run_small, "cifar": run_cifar, "full": run_paper},
)
