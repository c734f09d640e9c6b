"""Rows and figures that several reproductions share."""

from collections.abc import Callable, Mapping, Sequence

from resnet_jax.research.figures import add_legend, journal_style, new_panels, plot_mean
from resnet_jax.research.reproduction import Report, Row, Within
from resnet_jax.research.runner import TrainedRun


def difference(
    run: TrainedRun | None,
    baseline: TrainedRun | None,
    measure: Callable[[TrainedRun], Sequence[float]],
) -> tuple[float, ...]:
    """The measure of each common seed of a run minus the baseline's; () if a run is missing.

    Args:
        run, baseline: runs of some seeds.
        measure: one value per seed, such as `TrainedRun.test_errors`.
    """
    if run is None or baseline is None:
        return ()
    pairs = pair_seeds(run, measure(run), baseline, measure(baseline))
    return tuple(value - other for value, other in pairs)


def pair_seeds(
    run: TrainedRun, values: Sequence[float], baseline: TrainedRun, others: Sequence[float]
) -> list[tuple[float, float]]:
    """Pairs of values for the seeds that a run and its baseline both have.

    Args:
        run, baseline: runs of some seeds.
        values, others: one value per seed of `run`, and of `baseline`.
    """
    of_baseline = dict(zip(baseline.seeds, others, strict=True))
    of_run = zip(run.seeds, values, strict=True)
    return [(value, of_baseline[seed]) for seed, value in of_run if seed in of_baseline]


def network_label(name: str) -> str:
    """How tables and figures write the name of a CIFAR network: "ResNet-20" for "resnet20"."""
    return name.replace("plain", "plain-").replace("resnet", "ResNet-")


def error_rows(
    trained: Mapping[str, TrainedRun],
    published: Mapping[str, float],
    *,
    source: str,
    accepts: Callable[[float], Within],
    label: Callable[[str], str] = str,
) -> tuple[Row, ...]:
    """A row for the test error on CIFAR-10 of each network.

    Args:
        trained: the runs by the name of the network; runs beyond the budget are missing.
        published: the papers' errors in percent by the name of the network.
        source: where they are published.
        accepts: the values that count as reproduced, given the published error.
        label: how a row names a network.
    """
    return tuple(
        Row(
            what=f"{label(name)}, test error, %",
            published=error,
            source=source,
            data="CIFAR-10",
            measured=trained[name].test_errors() if name in trained else (),
            accepts=accepts(error),
            images=trained[name].test_images if name in trained else None,
        )
        for name, error in published.items()
    )


def loss_report(rows: tuple[Row, ...], *panels: Mapping[str, TrainedRun]) -> Report:
    """The rows, with a figure of the training losses by label; each mapping has a panel."""
    data = {}
    with journal_style():
        if len(panels) == 1:
            figure, axes_of = new_panels(1, width=4.5)
            legend = {}
        else:
            figure, axes_of = new_panels(len(panels), height=3.2)
            legend = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.18), "ncols": 2}
        for axes, trained in zip(axes_of, panels, strict=True):
            for label, run in trained.items():
                epochs, losses = run.curve("train", "loss")
                plot_mean(axes, epochs, losses, label=label, log=True)
                data[label] = {"train_loss": losses.tolist(), "test_error": list(run.test_errors())}
            axes.set(xlabel="epoch", ylabel="training loss (nats)")
            add_legend(axes, **legend)
    return Report(rows, figure, data)
