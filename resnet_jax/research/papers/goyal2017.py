"""Goyal et al. 2017, tables 1 and 2: batches k times as large, k times the rate, a warm-up."""

from collections.abc import Callable
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from resnet_jax.research.configs import cifar10, digits
from resnet_jax.research.figures import add_legend, journal_style, new_panels
from resnet_jax.research.reproduction import Report, Reproduction, Row, Within
from resnet_jax.research.runner import Runner

_SOURCE = "Goyal et al. 2017, tables 1, 2"
# Label → (the rate is scaled, the rate is warmed up, published excess error). The excess is the
# error with a batch 32 times as large less the 23.60 % of the small batch, in points.
_WAYS = {
    "rate × k, gradual warm-up": (True, True, 23.74 - 23.60),
    "rate × k, no warm-up": (True, False, 24.84 - 23.60),
    "rate as it was": (False, True, 41.67 - 23.60),
}
_ALIKE = 0.5  # points


def _run(
    runner: Runner,
    make: Callable[[int, bool, bool], ConfigDict],
    factors: tuple[int, ...],
    bounds: tuple[Within, ...],
    data: str,
) -> Report:
    """Train with each factor of the batch size in each of `_WAYS`; judge the largest factor.

    Args:
        runner: trains the runs.
        make: from factor, whether the rate is scaled, and whether it is warmed up to a config.
        factors: factors of the batch size beside 1.
        bounds: the accepted excess error with the largest factor, for each of `_WAYS`.
        data: the data set, for the rows.
    """
    configs = {"goyal2017-1": make(1, True, True)}
    for factor in factors:
        for number, (scaled, warm, _) in enumerate(_WAYS.values()):
            configs[f"goyal2017-{factor}-{number}"] = make(factor, scaled, warm)
    errors = {name: np.array(run.test_errors()) for name, run in runner.train(configs).items()}
    base = errors.get("goyal2017-1")
    rows = []
    for number, (way, (_, _, published)) in enumerate(_WAYS.items()):
        found = errors.get(f"goyal2017-{factors[-1]}-{number}")
        excess = np.array([]) if found is None or base is None else found - base
        rows.append(
            Row(
                what=f"batch × {factors[-1]}, {way}: test error added, points",
                published=round(published, 2),
                source=f"{_SOURCE} (ImageNet, × 32)",
                data=data,
                measured=tuple(excess.tolist()),
                accepts=bounds[number],
            )
        )
    with journal_style():
        figure, (axes,) = new_panels(1, width=4.5)
        for number, way in enumerate(_WAYS):
            names = ["goyal2017-1", *(f"goyal2017-{factor}-{number}" for factor in factors)]
            shown = [errors[name] for name in names if name in errors]
            if len(shown) == len(names):
                means = [of.mean() for of in shown]
                stds = [of.std(ddof=1) if len(of) > 1 else 0.0 for of in shown]
                axes.errorbar((1, *factors), means, stds, marker="o", capsize=2, label=way)
        axes.set(xlabel="batch size, times the small one", ylabel="test error (%)", xscale="log")
        axes.set_xticks((1, *factors), [str(k) for k in (1, *factors)])
        add_legend(axes)
    data_shown: dict[str, Any] = {name: of.tolist() for name, of in errors.items()}
    return Report(tuple(rows), figure, data_shown)


def run_small(runner: Runner) -> Report:
    """A ResNet-8 on digits for 20 epochs, with batches of 16 to 256."""

    def make(factor: int, scaled: bool, warm: bool) -> ConfigDict:
        config = digits("resnet20", {"model.stage_sizes": (1, 1, 1)})
        config.model.width, config.model.stem_width = 16, 16
        config.data.crop_padding = 1
        config.batch_size = 16 * factor
        config.duration_unit, config.duration = "epochs", 20.0
        config.eval_every = config.checkpoint_every = 20.0
        config.optimizer.nesterov = True
        config.schedule.name, config.schedule.warmup = "step", 5.0 * warm
        config.schedule.boundaries, config.schedule.scales = (12.0, 16.0), (1.0, 0.1, 0.01)
        config.schedule.base_lr = 0.05
        config.schedule.reference_batch = 16 if scaled else config.batch_size
        return config

    bounds = (Within(high=_ALIKE), Within(low=0.0), Within(low=_ALIKE))
    return _run(runner, make, (4, 16), bounds, "digits")


def run_paper(runner: Runner) -> Report:
    """A ResNet-20 on CIFAR-10 with batches of 128 and 2,048 and the schedule of He et al. 2015."""

    def make(factor: int, scaled: bool, warm: bool) -> ConfigDict:
        config = cifar10("resnet20", {"optimizer.nesterov": True})
        config.batch_size = 128 * factor
        config.schedule.warmup = config.duration / 18 * warm  # 5 of the paper's 90 epochs
        config.schedule.reference_batch = 128 if scaled else config.batch_size
        return config

    bounds = (Within(high=_ALIKE), Within(low=0.0), Within(low=3.0))
    return _run(runner, make, (16,), bounds, "CIFAR-10")


REPRODUCTION = Reproduction(
    name="goyal2017",
    title="the linear scaling rule",
    paper="Goyal et al. 2017, 1706.02677",
    claim="Large batches train as small ones do, if the rate grows with them, after a warm-up.",
    runs={"cpu": run_small, "full": run_paper},
)
