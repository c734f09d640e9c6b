"""Srivastava et al. 2015: highway networks train at depths at which plain ones don't."""

from ml_collections import ConfigDict

from resnet_jax.research.ablations import loss_report
from resnet_jax.research.configs import cifar10, digits
from resnet_jax.research.papers.he2015_fig6 import difference, small_runs
from resnet_jax.research.reproduction import Artefact, Report, Row, Within
from resnet_jax.research.runner import Lab

_SOURCE = "Srivastava et al. 2015, 1505.00387"
_QUOTED = "as quoted by He et al. 2015, table 6"
_PUBLISHED = {"highway19": 7.72, "highway32": 8.80}  # test errors in percent
_TOLERANCE = 0.6  # points above; below all is well


def _gated(bias: float) -> ConfigDict:
    return digits("resnet56", {"model.merge": "coupled_gates", "model.gate_bias": bias})


def run_small(lab: Lab) -> Report:
    """56 layers on digits, with gates that begin more or less closed, against a plain network."""
    runs = {f"highway56{bias:+.0f}": _gated(bias) for bias in (-2.0, -4.0)}
    trained = lab.train({"plain56": small_runs()["plain56"], **runs})
    rows = tuple(
        Row(
            what=f"training loss of plain-56 less that of highway-56, bias {name[-2:]}, nats",
            published="trains, where plain doesn't",
            source=_SOURCE,
            data="digits",
            measured=difference(trained.get("plain56"), trained.get(name), "train_losses"),
            accepts=Within(low=0.3),  # what he2015-fig6 asks of residual networks
        )
        for name in runs
    )
    labels = {"plain56": "plain"} | {name: f"gates, bias {name[-2:]}" for name in runs}
    return loss_report(rows, {labels[name]: run for name, run in trained.items()})


def run_paper(lab: Lab) -> Report:
    """The paper's networks on CIFAR-10 with the schedule of He et al. 2015, which isn't theirs."""
    fields = {"model.bn_group_size": None}  # nothing is normalised
    trained = lab.train({name: cifar10(name, fields) for name in _PUBLISHED})
    rows = tuple(
        Row(
            what=f"{name}, test error, %",
            published=published,
            source=_QUOTED,
            data="CIFAR-10",
            measured=trained[name].test_errors if name in trained else (),
            accepts=Within(high=published + _TOLERANCE),
        )
        for name, published in _PUBLISHED.items()
    )
    return loss_report(rows, trained)


ARTEFACT = Artefact(
    name="srivastava2015",
    title="highway networks",
    paper="Srivastava et al. 2015, 1505.00387",
    claim="With gates that begin closed, networks train at depths at which plain ones don't.",
    runs={"cpu": run_small, "full": run_paper},
)
