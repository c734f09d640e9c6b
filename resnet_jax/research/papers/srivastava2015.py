"""Srivastava et al. 2015: highway networks train at depths at which plain networks don't."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from resnet_jax.research.configs import cifar10, digits
from resnet_jax.research.reports import difference, error_rows, loss_report
from resnet_jax.research.reproduction import Report, Reproduction, Row, Within
from resnet_jax.research.runner import Runner, TrainedRun

_SOURCE = "Srivastava et al. 2015, 1505.00387"
_QUOTED = "as quoted by He et al. 2015, table 6"
_PUBLISHED = {"highway19": 7.72, "highway32": 8.80}  # test errors in percent
_TOLERANCE = 0.6  # points above the published error; any lower error is accepted

_TRAINS = Within(low=0.3)  # the same bound as for residual networks in he2015-fig6
_INDEPENDENT = "independent of depth", Within(high=0.1)
_BIASES = (-2.0, -4.0)
_PLAIN = {"model.shortcut": "none"}


def run_small(runner: Runner) -> Report:
    """Highway networks and plain networks on digits, each at the best of two settings.

    The paper, too, takes the best of several rates and biases for each network.
    """
    residual = _train(runner, _gated_residual())
    released = _train(runner, _released())
    trained = residual | released
    no_plain = "trains, where plain doesn't", _TRAINS
    no_hints = "trains directly, where FitNets need hints", _TRAINS
    rows = (
        _row("plain-56", "highway-56", trained, *no_plain),
        _row("highway-56", "highway-20", trained, *_INDEPENDENT),
        _row("plain-19", "highway-19", trained, *no_hints),
        _row("plain-32", "highway-32", trained, *no_hints),
        _row("highway-32", "highway-19", trained, *_INDEPENDENT),
    )
    return loss_report(rows, residual, released)


def _gated_residual() -> dict[str, ConfigDict]:
    """Residual networks with gates, and a plain network, by label.

    Gates with a bias of -2 multiply the gradients of their branches by 0.12 at first. Gated
    networks therefore have the higher of the two learning rates, which are for 128 examples.
    """
    rates = (0.1, 0.8)
    configs = {
        f"plain-56, rate {rate}": digits("resnet56", _PLAIN | {"schedule.base_lr": rate})
        for rate in rates
    }
    gates = {"model.merge": "coupled_gates", "schedule.base_lr": max(rates)}
    return configs | {
        f"highway-{depth}, bias {bias:+.0f}": digits(
            f"resnet{depth}", gates | {"model.gate_bias": bias}
        )
        for depth in (20, 56)
        for bias in _BIASES
    }


def _released() -> dict[str, ConfigDict]:
    """The authors' networks, and their plain twins without gates and shortcuts, by label.

    The networks have half the authors' widths, and no dropout, which would raise the training loss.
    The learning rates are for 128 examples.
    """
    rates = (0.05, 0.1)
    length = 240 * 32.0  # examples
    common: dict[str, Any] = {
        "model.width": None,
        "model.stem_width": None,
        "model.last_width": 50,
        "model.head_dropout": 0.0,
        "optimizer.nesterov": True,
        "duration": length,
        "eval_every": length,
        "checkpoint_every": length,
        "schedule.base_lr": min(rates),
    }
    configs = {}
    for depth, widths in ((19, (16, 40, 64)), (32, (12, 28, 28))):
        network = common | {"model.stage_widths": widths}
        for rate in rates:
            plain = network | _PLAIN | {"model.merge": "add", "schedule.base_lr": rate}
            configs[f"plain-{depth}, rate {rate}"] = digits(f"highway{depth}", plain)
        for bias in _BIASES:
            gated = network | {"model.gate_bias": bias}
            configs[f"highway-{depth}, bias {bias:+.0f}"] = digits(f"highway{depth}", gated)
    return configs


def _train(runner: Runner, configs: Mapping[str, ConfigDict]) -> dict[str, TrainedRun]:
    """The runs by label."""
    names = {label: label.replace(", ", "_").replace(" ", "") for label in configs}
    found = runner.train({names[label]: config for label, config in configs.items()})
    return {label: found[name] for label, name in names.items() if name in found}


def _row(
    network: str,
    baseline: str,
    trained: Mapping[str, TrainedRun],
    published: str,
    accepts: Within,
) -> Row:
    """The training loss of a network less that of another, each at its best setting."""
    best, other = _best(network, trained), _best(baseline, trained)
    return Row(
        what=f"training loss of {network} less that of {baseline}, nats",
        published=published,
        source=_SOURCE,
        data="digits",
        measured=difference(best, other, TrainedRun.last_epoch_losses),
        accepts=accepts,
    )


def _best(network: str, trained: Mapping[str, TrainedRun]) -> TrainedRun | None:
    """The run of a network with the lowest mean training loss; None without runs."""
    runs = [run for label, run in trained.items() if label.startswith(f"{network}, ")]
    losses = [np.nan_to_num(np.mean(run.last_epoch_losses()), nan=np.inf) for run in runs]
    return runs[int(np.argmin(losses))] if runs else None


_STEPS, _BATCH = 200_000, 100
_RECIPE: dict[str, Any] = {
    "model.bn_group_size": None,  # the networks have no normalisation
    "data.crop_padding": 8,
    "batch_size": _BATCH,
    "duration": float(_STEPS * _BATCH),
    "eval_every": _STEPS * _BATCH / 16,
    "checkpoint_every": _STEPS * _BATCH / 16,
    "schedule.base_lr": 0.025,
    "schedule.reference_batch": _BATCH,
    "schedule.boundaries": tuple(float(_BATCH * step) for step in (100_000, 150_000, 175_000)),
    "schedule.scales": (1.0, 0.1, 0.01, 0.001),
    "optimizer.nesterov": True,
    "optimizer.weight_decay": 0.001,
    "optimizer.decay_exempt": ("bias", "norm"),
    "optimizer.scalar_rate": 2.0,  # of biases
}
"""The solver that the authors released with their network of 19 layers."""


def run_paper(runner: Runner) -> Report:
    """The paper's networks on CIFAR-10."""
    trained = runner.train({name: cifar10(name, _RECIPE) for name in _PUBLISHED})
    rows = error_rows(
        trained,
        _PUBLISHED,
        source=_QUOTED,
        accepts=lambda published: Within(high=published + _TOLERANCE),
    )
    return loss_report(rows, trained)


REPRODUCTION = Reproduction(
    name="srivastava2015",
    title="highway networks",
    paper="Srivastava et al. 2015, 1505.00387",
    claim="With gates that begin closed, networks train at depths at which plain ones don't.",
    runs={"cpu": run_small, "full": run_paper},
)
