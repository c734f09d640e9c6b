"""Srivastava et al. 2015: highway networks train at depths at which plain networks don't."""

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

_BIASES = (-2.0, -4.0)
_RATES = (0.1, 0.8)
"""Learning rates for 128 examples. Gates with a bias of -2 multiply the gradients of their branches
by 0.12 at first."""


def run_small(runner: Runner) -> Report:
    """56 layers on digits, plain and with gates biased towards closed, at the best of two settings.

    The paper, too, takes the best of several rates and biases for each network.
    """
    plain = {
        f"plain-56, rate {rate}": _network(56, {"model.shortcut": "none"}, rate) for rate in _RATES
    }
    shallow, deep = (
        {
            f"highway-{depth}, bias {bias:+.0f}": _network(
                depth, {"model.merge": "coupled_gates", "model.gate_bias": bias}, max(_RATES)
            )
            for bias in _BIASES
        }
        for depth in (20, 56)
    )
    configs = plain | shallow | deep
    found = runner.train({_name(label): config for label, config in configs.items()})
    trained = {label: found[_name(label)] for label in configs if _name(label) in found}
    best_plain, best_shallow, best_deep = (
        _best([trained[label] for label in labels if label in trained])
        for labels in (plain, shallow, deep)
    )
    rows = (
        _row(
            "training loss of plain-56 less that of highway-56, nats",
            "trains, where plain doesn't",
            difference(best_plain, best_deep, TrainedRun.train_losses),
            Within(low=0.3),  # the same bound as for residual networks in he2015-fig6
        ),
        _row(
            "training loss of highway-56 less that of highway-20, nats",
            "independent of depth",
            difference(best_deep, best_shallow, TrainedRun.train_losses),
            Within(high=0.1),
        ),
    )
    return loss_report(rows, trained)


def _network(depth: int, fields: dict[str, Any], rate: float) -> ConfigDict:
    return digits(f"resnet{depth}", fields | {"schedule.base_lr": rate})


def _name(label: str) -> str:
    """The name of a run's folder."""
    return label.replace(", ", "_").replace(" ", "")


def _best(runs: list[TrainedRun]) -> TrainedRun | None:
    """The run with the lowest mean training loss; None without runs."""
    losses = [np.nan_to_num(np.mean(run.train_losses()), nan=np.inf) for run in runs]
    return runs[int(np.argmin(losses))] if runs else None


def _row(what: str, published: str, measured: tuple[float, ...], accepts: Within) -> Row:
    return Row(
        what=what,
        published=published,
        source=_SOURCE,
        data="digits",
        measured=measured,
        accepts=accepts,
    )


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
