"""Srivastava et al. 2015: highway networks train at depths at which plain networks don't."""

from resnet_jax.research.configs import cifar10, digits, plain_and_residual_digits
from resnet_jax.research.reports import difference, error_rows, loss_report
from resnet_jax.research.reproduction import Report, Reproduction, Row, Within
from resnet_jax.research.runner import Runner, TrainedRun

_SOURCE = "Srivastava et al. 2015, 1505.00387"
_QUOTED = "as quoted by He et al. 2015, table 6"
_PUBLISHED = {"highway19": 7.72, "highway32": 8.80}  # test errors in percent
_TOLERANCE = 0.6  # points above the published error; any lower error is accepted


def run_small(runner: Runner) -> Report:
    """56 layers on digits, with gates biased towards closed, compared with a plain network."""
    runs = {
        f"highway56{bias:+.0f}": digits(
            "resnet56", {"model.merge": "coupled_gates", "model.gate_bias": bias}
        )
        for bias in (-2.0, -4.0)
    }
    trained = runner.train({"plain56": plain_and_residual_digits()["plain56"], **runs})
    rows = tuple(
        Row(
            what=f"training loss of plain-56 less that of highway-56, bias {name[-2:]}, nats",
            published="trains, where plain doesn't",
            source=_SOURCE,
            data="digits",
            measured=difference(trained.get("plain56"), trained.get(name), TrainedRun.train_losses),
            accepts=Within(low=0.3),  # the same bound as for residual networks in he2015-fig6
        )
        for name in runs
    )
    labels = {"plain56": "plain"} | {name: f"gates, bias {name[-2:]}" for name in runs}
    return loss_report(rows, {labels[name]: run for name, run in trained.items()})


def run_paper(runner: Runner) -> Report:
    """The paper's networks on CIFAR-10 with the schedule of He et al. 2015, not the paper's."""
    fields = {"model.bn_group_size": None}  # the networks have no normalisation
    trained = runner.train({name: cifar10(name, fields) for name in _PUBLISHED})
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
