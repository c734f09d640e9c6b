"""He et al. 2015, figure 7: standard deviations of layer responses in trained networks."""

from typing import Any

import jax
import numpy as np
from flax import linen as nn

from resnet_jax.models.norms import BatchNorm
from resnet_jax.research.configs import plain_and_residual_cifar10, plain_and_residual_digits
from resnet_jax.research.evaluation import load_inputs
from resnet_jax.research.figures import add_legend, journal_style, new_panels, plot_mean
from resnet_jax.research.reports import pair_seeds
from resnet_jax.research.reproduction import Report, Reproduction, Row, Within
from resnet_jax.research.runner import Runner, TrainedRun
from resnet_jax.research.table6 import DATA, NETWORKS

_SOURCE = "He et al. 2015, figure 7"
_IMAGES = 1000


def response_stds(model: nn.Module, variables: Any, images: jax.Array) -> dict[str, jax.Array]:
    """Standard deviation of each layer's response, by the path of the layer.

    A response is the output of a batch normalisation in a block, before the nonlinearity and the
    addition.
    """
    found: dict[str, jax.Array] = {}

    def record(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        y, module = call(*args, **kwargs), context.module
        if isinstance(module, BatchNorm) and context.method_name == "__call__":
            path = "/".join(module.path)
            if path.startswith("layer"):
                found[path] = y.std()
        return y

    with nn.intercept_methods(record):
        model.apply(variables, images)
    return found


def _of_run(trained: TrainedRun) -> np.ndarray:
    """`response_stds` of each seed: [seeds, layers], in the order of computation."""
    stds = []
    for seed in trained.seeds:
        network = trained.network(seed)
        inputs, _ = load_inputs(network, most=_IMAGES)
        found = jax.jit(response_stds, static_argnums=0)(network.model, network.variables, inputs)
        stds.append([float(found[path]) for path in sorted(found, key=_place)])
    return np.array(stds)


def _place(path: str) -> tuple[int, int, str]:
    block, norm = path.split("/")
    stage, number = block.removeprefix("layer").split("_")
    return int(stage), int(number), norm


def _report(
    trained: dict[str, TrainedRun], order: tuple[tuple[str, str], ...], data: str
) -> Report:
    found = {name: _of_run(run) for name, run in trained.items()}
    rows = []
    for less, more in order:
        ratios: tuple[float, ...] = ()
        if less in found and more in found:
            means = {name: found[name].mean(axis=1).tolist() for name in (less, more)}
            pairs = pair_seeds(trained[more], means[more], trained[less], means[less])
            ratios = tuple(of_more / of_less for of_more, of_less in pairs)
        rows.append(
            Row(
                what=f"mean response of {more} / that of {less}",
                published="greater than 1",
                source=_SOURCE,
                data=data,
                measured=ratios,
                accepts=Within(low=1.0),
                ratio=True,
            )
        )
    with journal_style():
        figure, (by_layer, ranked) = new_panels(2)
        for name, stds in found.items():
            plot_mean(by_layer, np.arange(1, stds.shape[1] + 1), stds, label=name)
            descending = -np.sort(-stds, axis=1)
            plot_mean(ranked, np.arange(1, stds.shape[1] + 1), descending, label=name)
        by_layer.set(xlabel="layer", ylabel="standard deviation of the response")
        ranked.set(xlabel="layer, by its response")
        add_legend(ranked)
    return Report(tuple(rows), figure, {name: stds.tolist() for name, stds in found.items()})


def run_small(runner: Runner) -> Report:
    """On digits, on which only the deep networks differ."""
    runs = plain_and_residual_digits()
    trained = runner.train({name: runs[name] for name in ("resnet56", "plain56")})
    return _report(trained, (("resnet56", "plain56"),), "digits")


def run_cifar(runner: Runner) -> Report:
    """The finished runs with an eighth of the paper's steps on CIFAR-10."""
    order = (("resnet20", "plain20"), ("resnet56", "plain56"), ("resnet56", "resnet20"))
    return _report(runner.collect(NETWORKS, weights=True), order, DATA)


def run_paper(runner: Runner) -> Report:
    """On CIFAR-10, with the networks of he2015-fig6."""
    order = (("resnet20", "plain20"), ("resnet56", "resnet20"), ("resnet110", "resnet56"))
    runs, names = plain_and_residual_cifar10(), ("resnet20", "plain20", "resnet56", "resnet110")
    return _report(runner.train({name: runs[name] for name in names}), order, "CIFAR-10")


REPRODUCTION = Reproduction(
    name="he2015-fig7",
    title="responses of the layers",
    paper="He et al. 2015, 1512.03385",
    claim="Residual functions respond less than plain layers, and less the deeper the network.",
    runs={"cpu": run_small, "cifar": run_cifar, "full": run_paper},
)
