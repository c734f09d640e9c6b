"""Veit et al. 2016, figures 3 and 5: blocks deleted or reordered after training."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import kendalltau, spearmanr

from resnet_jax.inference.network import TrainedNetwork
from resnet_jax.models.resnet import ResNet
from resnet_jax.research.configs import plain_and_residual_cifar10, plain_and_residual_digits
from resnet_jax.research.evaluation import load_images, make_evaluator
from resnet_jax.research.figures import add_legend, journal_style, new_panels, plot_mean
from resnet_jax.research.lesions import apply_lesioned, block_names, interchangeable, reorder
from resnet_jax.research.reports import network_label
from resnet_jax.research.reproduction import Report, Reproduction, Row, Within
from resnet_jax.research.runner import Runner, TrainedRun
from resnet_jax.research.table6 import DATA

_FIG3, _FIG5 = "Veit et al. 2016, figure 3", "Veit et al. 2016, figure 5"
_DRAWS = 10  # of blocks to delete, or of orders, for each point
_SWAPS = (1, 2, 4, 8, 16, 32)


def _lesions(
    trained: TrainedRun, name: str, *, images: int | None, say: Callable[[str], object]
) -> dict[str, np.ndarray]:
    """Test errors in %, [seeds, …]: "whole"; without "one" block; without "several", by number;
    "shuffled", by the number of swaps, with "tau", the rank correlation of their orders.

    The test images are the first `images`, or all. `say` takes a line for each seed.
    """
    found: dict[str, list[Any]] = {
        key: [] for key in ("whole", "one", "several", "shuffled", "tau")
    }
    networks = {seed: trained.network(seed) for seed in trained.seeds}
    first = next(iter(networks.values()))
    model = first.model
    assert isinstance(model, ResNet)

    def apply(lesioned: Any, inputs: Any) -> Any:
        variables, kept = lesioned
        return apply_lesioned(model, variables, inputs, kept)

    data = load_images(first, "test", most=images)
    evaluate = make_evaluator(apply, data)
    for seed, network in networks.items():
        blocks, rng = len(block_names(model)), np.random.default_rng(seed)
        evaluations = 1 + blocks + _DRAWS * (blocks - 1 + len(_SWAPS))
        say(f"{name}, seed {seed}: {evaluations} tests of {len(data.labels):,} images")

        def error(
            kept: np.ndarray, variables: Any = None, network: TrainedNetwork = network
        ) -> float:
            lesioned = (variables or network.variables, kept)
            return 100 * (1 - evaluate(lesioned, network.normalization).top1)

        whole = np.ones(blocks, bool)
        found["whole"].append(error(whole))
        found["one"].append([error(np.arange(blocks) != number) for number in range(blocks)])
        found["several"].append(
            [
                np.mean([error(_without(rng, blocks, count)) for _ in range(_DRAWS)])
                for count in range(1, blocks)
            ]
        )
        groups = interchangeable(model)
        shuffled, taus = [], []
        for swaps in _SWAPS:
            orders = [_swapped(rng, groups, swaps) for _ in range(_DRAWS)]
            errors = [error(whole, reorder(network.variables, o, groups)) for o in orders]
            shuffled.append(np.mean(errors))
            taus.append(np.mean([_tau(order, groups) for order in orders]))
        found["shuffled"].append(shuffled)
        found["tau"].append(taus)
    return {key: np.array(of) for key, of in found.items()}


def _without(rng: np.random.Generator, blocks: int, count: int) -> np.ndarray:
    kept = np.ones(blocks, bool)
    kept[rng.choice(blocks, count, replace=False)] = False
    return kept


def _swapped(rng: np.random.Generator, groups: list[list[str]], swaps: int) -> list[list[str]]:
    """The groups after a number of random swaps of two blocks of the same group."""
    order = [list(group) for group in groups]
    for _ in range(swaps):
        group = order[rng.integers(len(order))]
        if len(group) > 1:
            a, b = rng.choice(len(group), 2, replace=False)
            group[a], group[b] = group[b], group[a]
    return order


def _tau(order: list[list[str]], groups: list[list[str]]) -> float:
    """Kendall's rank correlation of an order with the order of training."""
    place = {name: number for number, name in enumerate(itertools.chain(*groups))}
    places = [place[name] for name in itertools.chain(*order)]
    return float(kendalltau(places, range(len(places)))[0])


def _report(
    trained: dict[str, TrainedRun],
    deep: str,
    data: str,
    *,
    most_lost: float,
    chance: float,
    images: int | None = None,
    say: Callable[[str], object],
) -> Report:
    found = {name: _lesions(run, name, images=images, say=say) for name, run in trained.items()}

    def measured(name: str, of: Any) -> tuple[float, ...]:
        return tuple(np.asarray(of(found[name])).tolist()) if name in found else ()

    def median_lost(of: dict[str, np.ndarray]) -> np.ndarray:
        return np.median(of["one"], axis=1) - of["whole"]

    def rank_correlation(of: dict[str, np.ndarray]) -> list[float]:
        return [spearmanr(range(len(row)), row)[0] for row in of["several"]]

    def order_correlation(of: dict[str, np.ndarray]) -> list[float]:
        pairs = zip(of["tau"], of["shuffled"], strict=True)
        return [spearmanr(taus, errors)[0] for taus, errors in pairs]

    row = functools.partial(Row, data=data)
    rows = (
        row(
            what="plain-20: median test error without one unit, %",
            published="chance levels",
            source=_FIG3,
            measured=measured("plain20", lambda of: np.median(of["one"], axis=1)),
            accepts=Within(low=chance),
        ),
        *(
            row(
                what=f"{network_label(name)}: median test error without one unit less that of all,"
                " points",
                published="minimal impact",
                source=_FIG3,
                measured=measured(name, median_lost),
                accepts=Within(high=most_lost),
            )
            for name in dict.fromkeys(("resnet20", deep))
        ),
        row(
            what="rank correlation of the error with the number of units deleted",
            published="increases smoothly",
            source=_FIG5,
            measured=measured(deep, rank_correlation),
            accepts=Within(low=0.9),
        ),
        row(
            what="rank correlation of the error with Kendall's τ of the order",
            published="decreases smoothly",
            source=_FIG5,
            measured=measured(deep, order_correlation),
            accepts=Within(high=-0.9),
        ),
    )
    data_shown = {
        name: {key: values.tolist() for key, values in of.items()} for name, of in found.items()
    }
    return Report(rows, _draw(found, deep), data_shown)


def _draw(found: dict[str, dict[str, np.ndarray]], deep: str) -> Figure:
    with journal_style():
        figure, (one, several, order) = new_panels(3)
        for name in dict.fromkeys(("plain20", "resnet20", deep)):
            if name in found:
                of, label = found[name], network_label(name)
                blocks = np.arange(1, of["one"].shape[1] + 1)
                plot_mean(one, blocks, of["one"], label=label, marker="o", markersize=3)
                color = one.lines[-1].get_color()
                one.axhline(of["whole"].mean(), color=color, linestyle=":", linewidth=0.8)
        one.set(xlabel="block deleted", ylabel="test error (%)", ylim=(0, 100))
        add_legend(one)
        if deep in found:
            of = found[deep]
            plot_mean(several, np.arange(1, of["several"].shape[1] + 1), of["several"])
            plot_mean(order, of["tau"].mean(axis=0), of["shuffled"], marker="o")
            order.invert_xaxis()
        several.set(xlabel=f"blocks deleted of {network_label(deep)}", ylim=(0, 100))
        order.set(xlabel="Kendall's τ with the order of training", ylim=(0, 100))
    return figure


def run_small(runner: Runner) -> Report:
    """On digits."""
    runs = plain_and_residual_digits()
    trained = runner.train({name: runs[name] for name in ("plain20", "resnet20", "resnet56")})
    return _report(trained, "resnet56", "digits", most_lost=8.0, chance=70.0, say=runner.say)


def run_cifar(runner: Runner) -> Report:
    """The finished runs with an eighth of the steps, on the first 1,000 test images of CIFAR-10."""
    trained = runner.collect(("plain20", "resnet20", "resnet56"), weights=True)
    return _report(
        trained, "resnet56", DATA, most_lost=8.0, chance=75.0, images=1000, say=runner.say
    )


def run_paper(runner: Runner) -> Report:
    """On CIFAR-10, with the networks of he2015-fig6."""
    runs = plain_and_residual_cifar10()
    trained = runner.train({name: runs[name] for name in ("plain20", "resnet20", "resnet110")})
    return _report(trained, "resnet110", "CIFAR-10", most_lost=1.0, chance=75.0, say=runner.say)


REPRODUCTION = Reproduction(
    name="veit2016-lesion",
    title="units deleted and shuffled",
    paper="Veit et al. 2016, 1605.06431",
    claim="Deleting a unit barely hurts a residual network, and ruins a plain one.",
    runs={"cpu": run_small, "cifar": run_cifar, "full": run_paper},
)
