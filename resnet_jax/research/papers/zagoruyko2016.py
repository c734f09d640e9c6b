"""Zagoruyko & Komodakis 2016: wide and shallow, or deep and thin."""

import numpy as np

from resnet_jax.config import recipes
from resnet_jax.models.presets import create_model
from resnet_jax.models.published import PUBLISHED
from resnet_jax.models.summary import summarize
from resnet_jax.research.configs import digits
from resnet_jax.research.reports import difference, error_rows, loss_report
from resnet_jax.research.reproduction import Report, Reproduction, Row, Within
from resnet_jax.research.runner import Runner, TrainedRun

_SOURCE = "Zagoruyko & Komodakis 2016, the authors' README"
_PUBLISHED = {name: PUBLISHED[name].error for name in ("preresnet164", "wrn28_10")}
_TOLERANCE = 0.35  # points


def run_small(runner: Runner) -> Report:
    """Pre-activation networks of about 200,000 parameters on digits.

    One has 14 layers of 18 channels, the other 56 layers of 8 channels.
    """
    kinds = {"wide": ("preresnet20", (2, 2, 2), 18), "deep": ("preresnet56", (9, 9, 9), 8)}
    configs, params = {}, {}
    for name, (preset, sizes, width) in kinds.items():
        fields = {"stage_sizes": sizes, "width": width, "stem_width": width}
        configs[f"zagoruyko2016-{name}"] = digits(
            preset, {f"model.{key}": value for key, value in fields.items()}
        )
        model = create_model(preset, num_classes=10, **fields)
        params[name] = summarize(model, (8, 8, 1)).params
    trained = runner.train(configs)
    wide, deep = (trained.get(f"zagoruyko2016-{name}") for name in kinds)
    speed = (_seconds(deep) / _seconds(wide),) if wide and deep else ()
    rows = (
        Row(
            what="parameters of the wide network / of the deep one",
            published=None,
            source="by design",
            data="arithmetic",
            measured=(params["wide"] / params["deep"],),
            accepts=Within(0.9, 1.1),
            exact=True,
        ),
        Row(
            what="test error of the wide network less that of the deep one, points",
            published="as good or better",
            source=_SOURCE,
            data="digits",
            measured=difference(wide, deep, TrainedRun.test_errors),
            accepts=Within(high=1.0),
        ),
        Row(
            what="time of the deep network's steps / of the wide one's",
            published="slower",
            source=_SOURCE,
            data="digits",
            measured=speed,
            accepts=Within(low=1.0),
            ratio=True,
        ),
    )
    labels = {"14 layers, 18 channels": wide, "56 layers, 8 channels": deep}
    return loss_report(rows, {label: run for label, run in labels.items() if run})


def _seconds(run: TrainedRun) -> float:
    """Median training time of an image, in seconds."""
    return float(1 / np.median(run.rates))


def run_paper(runner: Runner) -> Report:
    """Wide and thin pre-activation networks on CIFAR-10 by the authors' recipe."""
    trained = runner.train(
        {name: recipes.make("wide_resnet", model=name, data="cifar10") for name in _PUBLISHED}
    )
    rows = error_rows(
        trained,
        _PUBLISHED,
        source=_SOURCE,
        accepts=lambda published: Within(published - _TOLERANCE, published + _TOLERANCE),
    )
    return loss_report(rows, trained)


REPRODUCTION = Reproduction(
    name="zagoruyko2016",
    title="wide against deep",
    paper="Zagoruyko & Komodakis 2016, 1605.07146",
    claim="Wide, shallow networks do as well as thin, deep ones of their size, and train faster.",
    runs={"cpu": run_small, "full": run_paper},
)
