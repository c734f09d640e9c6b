"""Li et al. 2018: the loss around a trained network, along two filter-normalised directions."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from resnet_jax.research.configs import digits, plain_and_residual_cifar10
from resnet_jax.research.evaluation import load_images, make_evaluator
from resnet_jax.research.figures import journal_style, new_panels
from resnet_jax.research.reports import pair_seeds
from resnet_jax.research.reproduction import Report, Reproduction, Row, Within
from resnet_jax.research.runner import Runner, TrainedRun
from resnet_jax.research.table6 import DATA, NETWORKS

_SOURCE = "Li et al. 2018, 1712.09913"


def random_direction(params: Any, key: jax.Array) -> Any:
    """A Gaussian direction each of whose filters has the norm of the filter of `params` (sec. 4).

    A filter computes one output channel or logit. The direction is zero for all parameters but
    kernels.
    """

    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    keys = jax.random.split(key, len(leaves))

    def scaled(path: tuple[Any, ...], leaf: jax.Array, key: jax.Array) -> jax.Array:
        if path[-1].key != "kernel":
            return jnp.zeros_like(leaf)
        drawn = jax.random.normal(key, leaf.shape)
        axes = tuple(range(leaf.ndim - 1))
        norms = [jnp.sqrt(jnp.square(a).sum(axis=axes)) for a in (leaf, drawn)]
        return drawn * norms[0] / norms[1]

    drawn = [scaled(path, leaf, key) for (path, leaf), key in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(structure, drawn)


def landscape(
    trained: TrainedRun, seed: int, *, points: int, images: int
) -> Float[np.ndarray, "points points"]:
    """The training loss on a grid from -1 to 1 along two directions around the network.

    Running statistics aren't changed, as in the authors' code.
    """
    network = trained.network(seed)
    params, stats = network.variables["params"], network.variables["batch_stats"]
    first, second = (
        random_direction(params, key) for key in jax.random.split(jax.random.key(seed))
    )

    def apply(point: Any, inputs: Any) -> Any:
        params, a, b = point
        moved = jax.tree.map(lambda w, u, v: w + a * u + b * v, params, first, second)
        return network.model.apply({"params": moved, "batch_stats": stats}, inputs)

    evaluate = make_evaluator(apply, load_images(network, "train", most=images))
    steps = np.linspace(-1, 1, points, dtype=np.float32)
    return np.array(
        [[evaluate((params, a, b), network.normalization).loss for b in steps] for a in steps]
    )


def flat_share(losses: Float[np.ndarray, "points points"], *, rise: float) -> float:
    """Share of the grid on which the loss is less than `rise` nats above the loss at the centre."""
    middle = len(losses) // 2
    return float((losses < losses[middle, middle] + rise).mean())


def low_share(losses: Float[np.ndarray, "points points"]) -> float:
    """Share of the grid on which the loss is less than twice the loss at the centre.

    The share is large for a network that has learnt little, and small for a network that has
    fitted its training data.
    """
    middle = len(losses) // 2
    return float((losses < 2 * losses[middle, middle]).mean())


def _report(
    trained: dict[str, TrainedRun],
    names: Sequence[str],
    *,
    points: int,
    images: int,
    data: str,
    say: Callable[[str], object],
) -> Report:
    """`names` are pairs of a residual and a plain network; some may not be trained."""
    found = {}
    for name, run in trained.items():
        grids = []
        for seed in run.seeds:
            say(f"{name}, seed {seed}: the loss at {points**2} points")
            grids.append(landscape(run, seed, points=points, images=images))
        found[name] = np.stack(grids)
    rows = []
    for residual, plain in zip(names[::2], names[1::2], strict=True):
        for what, share in (
            ("within 1 nat of the centre", lambda grid: flat_share(grid, rise=1.0)),
            ("below twice the centre", low_share),
        ):
            measured: tuple[float, ...] = ()
            if residual in found and plain in found:
                wide, narrow = ([share(grid) for grid in found[n]] for n in (residual, plain))
                pairs = pair_seeds(trained[residual], wide, trained[plain], narrow)
                measured = tuple(of_wide - of_narrow for of_wide, of_narrow in pairs)
            rows.append(
                Row(
                    what=f"share of the plane with a loss {what}: {residual} less {plain}",
                    published="wider with shortcuts",
                    source=_SOURCE,
                    data=data,
                    measured=measured,
                    accepts=Within(low=0.0),
                )
            )
    with journal_style():
        figure, panels = new_panels(len(names), height=2.2)
        for axes, name in zip(panels, names, strict=True):
            if name not in found:
                continue
            steps = np.linspace(-1, 1, points)
            losses = np.log10(np.maximum(found[name][0], 1e-4))
            shown = axes.contourf(
                steps, steps, losses.T, levels=np.linspace(-2, 2, 17), extend="both"
            )
            axes.plot(0, 0, "w+")
            axes.set(title=name, xlabel="first direction", aspect="equal")
            axes.grid(visible=False)
        if found:
            figure.colorbar(
                shown, ax=panels, label="log₁₀ of the training loss (nats)", ticks=range(-2, 3)
            )
        panels[0].set(ylabel="second direction")
    return Report(tuple(rows), figure, {name: of.tolist() for name, of in found.items()})


def run_small(runner: Runner) -> Report:
    """20 and 44 layers on digits, with eight times the steps, so that the plain networks learn."""

    def longer(depth: int, fields: dict[str, Any]) -> ConfigDict:
        config = digits(f"resnet{depth}", {"schedule.name": "cosine", **fields})
        config.duration = config.eval_every = config.checkpoint_every = 8 * config.duration
        return config

    runs = {
        f"{kind}-{depth}": longer(depth, fields)
        for depth in (20, 44)
        for kind, fields in (("ResNet", {}), ("plain", {"model.shortcut": "none"}))
    }
    return _report(
        runner.train(runs), list(runs), points=11, images=512, data="digits", say=runner.say
    )


def run_cifar(runner: Runner) -> Report:
    """The finished runs with an eighth of the paper's steps, on 1,000 images of CIFAR-10."""
    trained = runner.collect(NETWORKS, weights=True)
    return _report(trained, NETWORKS, points=11, images=1000, data=DATA, say=runner.say)


def run_paper(runner: Runner) -> Report:
    """The networks of 56 layers of he2015-fig6 on CIFAR-10."""
    runs = {name: plain_and_residual_cifar10()[name] for name in ("resnet56", "plain56")}
    return _report(
        runner.train(runs), list(runs), points=25, images=5000, data="CIFAR-10", say=runner.say
    )


REPRODUCTION = Reproduction(
    name="li2018",
    title="loss landscapes",
    paper="Li et al. 2018, 1712.09913",
    claim="Shortcuts make the loss around a minimum smooth and wide.",
    runs={"cpu": run_small, "cifar": run_cifar, "full": run_paper},
)
