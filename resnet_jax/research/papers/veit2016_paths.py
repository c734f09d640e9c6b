"""Veit et al. 2016, section 5 and figure 6: the paths through a residual network.

A path goes through the branch or the shortcut of each block: n blocks make 2ⁿ paths, of which
(n over k) go through k branches. The gradient of paths of one length is measured as in the paper:
in k blocks it flows back through the branch alone, in all others through the shortcut alone.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float
from matplotlib.figure import Figure
from scipy.stats import binom, spearmanr

from resnet_jax.models.block import ResidualBlock
from resnet_jax.models.resnet import ResNet
from resnet_jax.research.configs import plain_and_residual_cifar10, plain_and_residual_digits
from resnet_jax.research.evaluation import load_inputs
from resnet_jax.research.figures import journal_style, new_panels, plot_mean
from resnet_jax.research.lesions import block_names
from resnet_jax.research.reproduction import Report, Reproduction, Row, Within
from resnet_jax.research.runner import Runner
from resnet_jax.train.losses import cross_entropy

_TEXT, _FIGURE = "Veit et al. 2016, section 5", "Veit et al. 2016, figure 6"
_BLOCKS = 54  # of a ResNet-110
_DRAWS, _IMAGES = 10, 64


def path_gradient(
    model: ResNet,
    variables: Any,
    images: Float[Array, "n h w c"],
    labels: Array,
    through: Bool[Array, " blocks"],
) -> Float[Array, ""]:
    """Norm of the loss's gradient by the images, along the path whose branches are `through`."""
    numbers = {name: number for number, name in enumerate(block_names(model))}

    def route(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        block = context.module
        if not isinstance(block, ResidualBlock) or context.method_name != "merge":
            return call(*args, **kwargs)
        assert block.name
        x, shortcut, branch = args
        through_branch, stop = through[numbers[block.name]], jax.lax.stop_gradient
        return call(
            x,
            jnp.where(through_branch, stop(shortcut), shortcut),
            jnp.where(through_branch, branch, stop(branch)),
        )

    def loss(images: Array) -> Array:
        with nn.intercept_methods(route):
            logits: Any = model.apply(variables, images)
        return cross_entropy(logits, labels).mean()

    return jnp.linalg.norm(jax.grad(loss)(images))


def _by_length(runner: Runner, runs: dict[str, Any], name: str) -> np.ndarray | None:
    """Mean gradient of paths through 0, 1, … blocks, [seeds, lengths]."""
    trained = runner.train({name: runs[name]}).get(name)
    if trained is None:
        return None
    norms = []
    measure = jax.jit(path_gradient, static_argnums=0)
    for seed in trained.seeds:
        network = trained.network(seed)
        assert isinstance(network.model, ResNet)
        inputs, labels = load_inputs(network, most=_IMAGES)
        blocks, rng = len(block_names(network.model)), np.random.default_rng(seed)

        def one(length: int, blocks: int = blocks, rng: Any = rng) -> np.ndarray:
            through = np.zeros(blocks, bool)
            through[rng.choice(blocks, length, replace=False)] = True
            return through

        norms.append(
            [
                np.mean(
                    [
                        measure(network.model, network.variables, inputs, labels, one(length))
                        for _ in range(_DRAWS)
                    ]
                )
                for length in range(blocks + 1)
            ]
        )
    return np.array(norms)


def _report(runner: Runner, runs: dict[str, Any], name: str, data: str) -> Report:
    within = float(binom.cdf(35, _BLOCKS, 0.5) - binom.cdf(18, _BLOCKS, 0.5))
    effective = float(binom.cdf(17, _BLOCKS, 0.5) - binom.cdf(4, _BLOCKS, 0.5))
    found = _by_length(runner, runs, name)
    slopes, lengths = np.array([]), np.array([])
    if found is not None:
        blocks = found.shape[1] - 1
        steps = np.arange(blocks + 1)
        slopes = np.array([spearmanr(steps, of_seed)[0] for of_seed in found])
        weights = found * binom.pmf(steps, blocks, 0.5)
        lengths = (weights * steps).sum(axis=1) / weights.sum(axis=1) / blocks
    rows = (
        Row(
            what=f"paths of {_BLOCKS} units that go through 19 to 35, %",
            published="more than 95",
            source=_TEXT,
            data="arithmetic",
            measured=(100 * within,),
            accepts=Within(low=95.0),
            exact=True,
        ),
        Row(
            what=f"paths of {_BLOCKS} units that go through 5 to 17, %",
            published=0.45,
            source=_TEXT,
            data="arithmetic",
            measured=(100 * effective,),
            accepts=Within(0.445, 0.455),
            exact=True,
        ),
        Row(
            what="rank correlation of a path's gradient with its length",
            published="decreases",
            source=_FIGURE,
            data=data,
            measured=tuple(slopes.tolist()),
            accepts=Within(high=-0.9),
        ),
        Row(
            what="mean length of paths, weighted by gradient / number of units",
            published="5 to 17 of 54",
            source=_TEXT,
            data=data,
            measured=tuple(lengths.tolist()),
            accepts=Within(5 / _BLOCKS, 17 / _BLOCKS),
        ),
    )
    return Report(
        rows, _draw(found), {"gradient by length": [] if found is None else found.tolist()}
    )


def _draw(found: np.ndarray | None) -> Figure:
    with journal_style():
        figure, (paths, gradients, shares) = new_panels(3)
        steps = np.arange(_BLOCKS + 1)
        paths.bar(steps, 100 * binom.pmf(steps, _BLOCKS, 0.5), width=1.0)
        paths.axvspan(19, 35, alpha=0.15, color="C1")
        paths.set(
            xlabel="blocks gone through, of 54",
            ylabel="paths (%)",
            title="98 % of paths: 19 to 35",
        )
        if found is not None:
            steps = np.arange(found.shape[1])
            plot_mean(gradients, steps, found, log=True)
            total = found * binom.pmf(steps, len(steps) - 1, 0.5)
            plot_mean(shares, steps, 100 * total / total.sum(axis=1, keepdims=True))
        gradients.set(xlabel="blocks gone through", ylabel="gradient of a path")
        shares.set(xlabel="blocks gone through", ylabel="share of all gradient (%)")
    return figure


def run_small(runner: Runner) -> Report:
    """With the ResNet-56 of he2015-fig6 on digits."""
    return _report(runner, plain_and_residual_digits(), "resnet56", "digits")


def run_paper(runner: Runner) -> Report:
    """With the ResNet-110 of he2015-fig6 on CIFAR-10."""
    return _report(runner, plain_and_residual_cifar10(), "resnet110", "CIFAR-10")


REPRODUCTION = Reproduction(
    name="veit2016-paths",
    title="lengths of paths, and their gradients",
    paper="Veit et al. 2016, 1605.06431",
    claim="The gradient of a deep residual network comes by short paths.",
    runs={"cpu": run_small, "full": run_paper},
)
