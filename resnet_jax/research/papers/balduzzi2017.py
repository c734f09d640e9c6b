"""Balduzzi et al. 2017: gradients of plain networks approach white noise with depth.

The network is a function f: ℝ → ℝ with layers of 200 rectified units. The reproduction measures
how df/dx at neighbouring x correlates. The size "cifar" measures the same of trained networks,
along lines between images.
"""

import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from resnet_jax.models.resnet import ResNet
from resnet_jax.research.evaluation import load_inputs
from resnet_jax.research.figures import add_legend, journal_style, new_panels, plot_mean
from resnet_jax.research.reports import pair_seeds
from resnet_jax.research.reproduction import Report, Reproduction, Row, Within
from resnet_jax.research.runner import Runner, TrainedRun
from resnet_jax.research.table6 import DATA

_SOURCE = "Balduzzi et al. 2017, 1702.08591"
Kind = Literal["plain", "residual", "residual, scaled"]
_KINDS: tuple[Kind, ...] = ("plain", "residual", "residual, scaled")
_WIDTH, _POINTS, _LAGS, _LAG = 200, 256, 16, 8
_DEPTHS = (2, 10, 24, 50)


def derivative(
    key: Array, x: Float[Array, " points"], *, depth: int, kind: Kind
) -> Float[Array, " points"]:
    """df/dx of a random network of `depth` layers of 200 units at each x.

    Weights are Gaussian with the standard deviation of He's initialisation. Those of the first
    layer and all biases have a standard deviation of 1. A residual layer adds relu(W h + b) to h; a
    "scaled" residual layer divides it by √depth first.
    """
    of_first, of_last, *of_layers = jax.random.split(key, depth + 2)
    weights = [jax.random.normal(k, (_WIDTH, _WIDTH + 1)) for k in of_layers]
    first = jax.random.normal(of_first, (_WIDTH, 2))
    last = jax.random.normal(of_last, (_WIDTH,)) / math.sqrt(_WIDTH)
    scale = 1 / math.sqrt(depth) if kind == "residual, scaled" else 1.0

    def f(x: Array) -> Array:
        h = jax.nn.relu(first[:, 0] * x + first[:, 1])
        for w in weights:
            z = jax.nn.relu(math.sqrt(2 / _WIDTH) * w[:, :-1] @ h + w[:, -1])
            h = z if kind == "plain" else h + scale * z
        return last @ h

    return jax.vmap(jax.grad(f))(x)


def autocorrelation(series: Float[np.ndarray, " points"], lags: int) -> Float[np.ndarray, " lags"]:
    """The autocovariance of a series over its variance, at lags 0, 1, …, `lags` - 1."""
    centred = series - series.mean()
    return np.array(
        [
            (centred[: len(centred) - lag] * centred[lag:]).sum() / np.square(centred).sum()
            for lag in range(lags)
        ]
    )


def run(runner: Runner) -> Report:
    """Measure the correlation for each kind of network, depth and seed."""
    x = jnp.linspace(-2, 2, _POINTS)
    found: dict[tuple[Kind, int], np.ndarray] = {}
    examples: dict[Kind, np.ndarray] = {}
    for kind in _KINDS:
        for depth in _DEPTHS:
            gradient = jax.jit(lambda k, d=depth, kind=kind: derivative(k, x, depth=d, kind=kind))
            series = [np.asarray(gradient(jax.random.key(seed))) for seed in runner.seeds]
            found[kind, depth] = np.stack([autocorrelation(values, _LAGS) for values in series])
            if depth == _DEPTHS[-1]:
                examples[kind] = series[0]

    def at_lag(kind: Kind, depth: int) -> np.ndarray:
        return found[kind, depth][:, _LAG]

    deep, shallow = _DEPTHS[-1], _DEPTHS[0]

    measure = f"autocorrelation of df/dx at lag {_LAG} of {_POINTS}"
    row = functools.partial(Row, source=_SOURCE, data="initial values")
    rows = (
        row(
            what=f"{measure}: plain, {deep} layers less {shallow}",
            published="white noise with depth",
            measured=tuple(at_lag("plain", deep) - at_lag("plain", shallow)),
            accepts=Within(high=-0.2),
        ),
        row(
            what=f"{measure}: residual, scaled, less plain, {deep} layers",
            published="far more resistant",
            measured=tuple(at_lag("residual, scaled", deep) - at_lag("plain", deep)),
            accepts=Within(low=0.2),
        ),
    )
    with journal_style():
        figure, panels = new_panels(3, rows=2, height=1.8)
        for axes, kind in zip(panels[:3], _KINDS, strict=True):
            axes.plot(x, examples[kind], linewidth=0.7)
            axes.set(title=f"{kind}, {deep} layers", xlabel="x")
        panels[0].set(ylabel="df/dx")
        for axes, kind in zip(panels[3:], _KINDS, strict=True):
            for depth in _DEPTHS:
                lags = np.arange(_LAGS)
                plot_mean(axes, lags, found[kind, depth], label=f"{depth} layers")
            axes.set(xlabel="lag", ylim=(-0.1, 1.05))
        panels[3].set(ylabel="autocorrelation")
        panels[5].legend(loc="lower left")
    data: dict[str, Any] = {f"{kind}, {depth}": a.tolist() for (kind, depth), a in found.items()}
    return Report(rows, figure, data)


_PAIRS, _PATH_POINTS = 16, 128
_TRAINED = ("plain20", "plain56", "resnet20", "resnet56")


@functools.partial(jax.jit, static_argnums=0, static_argnames="points")
def path_derivatives(
    model: ResNet,
    variables: Any,
    starts: Float[Array, "pairs h w c"],
    ends: Float[Array, "pairs h w c"],
    labels: Int[Array, " pairs"],
    *,
    points: int,
) -> Float[Array, "pairs points"]:
    """The derivative of a logit along the straight line between two images, for pairs of images.

    Args:
        model, variables: the network.
        starts, ends: normalised images.
        labels: the index of the logit for each pair.
        points: the number of equidistant points, both ends included.
    """

    def of_pair(pair: tuple[Array, Array, Array]) -> Array:
        start, end, label = pair

        def logit(t: Array) -> Array:
            logits: Any = model.apply(variables, (start + t * (end - start))[None])
            return logits[0, label]

        return jax.vmap(jax.grad(logit))(jnp.linspace(0.0, 1.0, points))

    return jax.lax.map(of_pair, (starts, ends, labels))


def _path_correlations(trained: TrainedRun) -> Float[np.ndarray, "seeds lags"]:
    """The autocorrelation of `path_derivatives`, averaged over pairs of test images."""
    found = []
    for seed in trained.seeds:
        network = trained.network(seed)
        assert isinstance(network.model, ResNet)
        inputs, labels = load_inputs(network, most=2 * _PAIRS)
        pairs = (inputs[:_PAIRS], inputs[_PAIRS:], labels[:_PAIRS])
        derivatives = path_derivatives(
            network.model, network.variables, *pairs, points=_PATH_POINTS
        )
        series = np.asarray(derivatives)
        found.append(np.mean([autocorrelation(values, _LAGS) for values in series], axis=0))
    return np.array(found)


def run_cifar(runner: Runner) -> Report:
    """Trained networks: the logit of an image's class, on the way to another image of CIFAR-10."""
    trained = runner.collect(_TRAINED, weights=True)
    found = {name: _path_correlations(run) for name, run in trained.items()}

    def at_lag(name: str, baseline: str) -> tuple[float, ...]:
        if name not in found or baseline not in found:
            return ()
        values, others = (found[n][:, _LAG].tolist() for n in (name, baseline))
        pairs = pair_seeds(trained[name], values, trained[baseline], others)
        return tuple(value - other for value, other in pairs)

    measure = f"autocorrelation of a logit's derivative at lag {_LAG} of {_PATH_POINTS}"
    row = functools.partial(Row, source=_SOURCE, data=f"{DATA}, trained")
    rows = tuple(
        row(
            what=f"{measure}: {name} less {baseline}",
            published=published,
            measured=at_lag(name, baseline),
            accepts=accepts,
        )
        for name, baseline, published, accepts in (
            ("plain56", "plain20", "white noise with depth", Within(high=0.0)),
            ("resnet56", "plain56", "far more resistant", Within(low=0.0)),
            ("resnet20", "plain20", "far more resistant", Within(low=0.0)),
        )
    )
    with journal_style():
        figure, (axes,) = new_panels(1, width=4.5)
        for name, correlations in found.items():
            plot_mean(axes, np.arange(_LAGS), correlations, label=name)
        axes.set(xlabel=f"lag, of {_PATH_POINTS} points", ylabel="autocorrelation")
        add_legend(axes)
    return Report(rows, figure, {name: of.tolist() for name, of in found.items()})


REPRODUCTION = Reproduction(
    name="balduzzi2017",
    title="shattered gradients",
    paper="Balduzzi et al. 2017, 1702.08591",
    claim="Gradients of deep plain networks resemble white noise; those of residual ones don't.",
    runs={"cpu": run, "cifar": run_cifar, "full": run},
)
