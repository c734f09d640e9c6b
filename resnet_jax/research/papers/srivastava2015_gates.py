"""Highway networks (Srivastava et al. 2015): identities of their gates, and initial biases.

A highway layer is y = T·H(x) + C·x. The paper couples the gates, C = 1 - T, and initialises the
bias of T to a negative value, so that x passes. A residual network is often described as a highway
network whose gates are open because of large positive biases. This holds for independent gates
only: with coupled gates, T = 1 gives C = 0, which is a plain network.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.models.presets import create_model, init_variables
from resnet_jax.research.figures import COLORS, COLUMN, journal_style, new_panels, plot_mean
from resnet_jax.research.gradients import gradient_norms, make_network
from resnet_jax.research.lesions import apply_lesioned
from resnet_jax.research.reproduction import Report, Reproduction, Row, Within
from resnet_jax.research.runner import Runner

_SOURCE = "Srivastava et al. 2015, 1505.00387"
_BIASES = (-6.0, -4.0, -2.0, 0.0, 2.0, 4.0)
_DEPTH = 56
_ROUNDING = Within(high=1e-5)  # relative to the largest logit, in float32


def set_gates(params: Any, *, bias: float, carry: float | None = None, kernel: bool = True) -> Any:
    """Set the biases of all gates; with `kernel=False` the gates also ignore their input."""
    biases = {"gate": bias, "carry_gate": -bias if carry is None else carry}

    def change(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        names = [key.key for key in path]
        if names[-2] not in biases:
            return leaf
        if names[-1] == "bias":
            return jnp.full_like(leaf, biases[names[-2]])
        return leaf if kernel else jnp.zeros_like(leaf)

    return jax.tree_util.tree_map_with_path(change, params)


def _without_gates(params: Any) -> Any:
    return {
        name: {k: v for k, v in tree.items() if "gate" not in k} if isinstance(tree, dict) else tree
        for name, tree in params.items()
    }


def identities(seed: int) -> dict[str, float]:
    """Largest difference of logits, over the largest logit, of pairs of equivalent networks."""
    fields: dict[str, Any] = {"stage_sizes": (2, 2, 2), "width": 8}
    shape = (16, 16, 3)
    of_network, of_images = jax.random.split(jax.random.key(seed))
    images = jax.random.normal(of_images, (4, *shape))

    def network(**more: Any) -> Any:
        return create_model("resnet20", **fields, **more)

    def logits(model: Any, params: Any, stats: Any) -> jax.Array:
        return model.apply({"params": params, "batch_stats": stats}, images)

    def gap(merge: str, gates: dict[str, Any], other: Any, *, deleted: bool = False) -> float:
        gated = network(merge=merge)
        variables = init_variables(gated, of_network, shape)
        stats = variables["batch_stats"]
        params = set_gates(variables["params"], kernel=False, **gates)
        plain = _without_gates(params)
        if deleted:
            kept = jnp.zeros(sum(other.stage_sizes), bool)
            wanted = apply_lesioned(other, {"params": plain, "batch_stats": stats}, images, kept)
        else:
            wanted = logits(other, plain, stats)
        found = logits(gated, params, stats)
        return float(jnp.abs(found - wanted).max() / jnp.abs(wanted).max())

    halves = network(shortcut_scale=0.5, branch_scale=0.5)
    no_shortcut, residual = network(shortcut="none"), network()
    return {
        "independent gates, both biases +20, and a residual network": gap(
            "independent_gates", {"bias": 20.0, "carry": 20.0}, residual
        ),
        "coupled gates, bias +50, and a plain network": gap(
            "coupled_gates", {"bias": 50.0}, no_shortcut
        ),
        "coupled gates, bias -50, and no units at all": gap(
            "coupled_gates", {"bias": -50.0}, residual, deleted=True
        ),
        "coupled gates, bias 0, and both paths × 0.5": gap("coupled_gates", {"bias": 0.0}, halves),
        "shortcut-only gates, bias -50, and a residual network": gap(
            "shortcut_gate", {"bias": -50.0}, residual
        ),
    }


def run(runner: Runner) -> Report:
    """Compare equivalent networks, and measure gradients for a range of initial biases."""
    gaps = identities(runner.seeds[0])
    rows = [
        Row(
            what=f"{what}: difference of logits / largest logit",
            published=None,
            source="algebra",
            data="initial values",
            measured=(gap,),
            accepts=_ROUNDING,
            exact=True,
        )
        for what, gap in gaps.items()
    ]

    def ratios(norms: np.ndarray) -> np.ndarray:
        return norms[:, 0] / norms[:, -1]

    gated = make_network(_DEPTH, merge="coupled_gates")
    swept = {
        bias: ratios(
            gradient_norms(gated, runner.seeds, change=functools.partial(set_gates, bias=bias))
        )
        for bias in _BIASES
    }
    plain = ratios(gradient_norms(make_network(_DEPTH, shortcut="none"), runner.seeds))
    residual = ratios(gradient_norms(make_network(_DEPTH), runner.seeds))
    for what, published, source, measured, accepts in (
        (
            "coupled gates, bias -6: gradient of the first unit's kernel / of the last's",
            "biases begin negative",
            _SOURCE,
            swept[-6.0],
            Within(0.05, 5.0),
        ),
        (
            "coupled gates, bias +4: that ratio / the one of a plain network",
            None,
            "algebra",
            swept[4.0] / plain,
            Within(0.1, 10.0),
        ),
    ):
        rows.append(
            Row(
                what=what,
                published=published,
                source=source,
                data="initial values",
                measured=tuple(measured.tolist()),
                accepts=accepts,
                ratio=True,
            )
        )
    with journal_style():
        figure, (axes,) = new_panels(1, width=COLUMN)
        plot_mean(
            axes,
            _BIASES,
            np.stack(list(swept.values()), axis=1),
            log=True,
            marker="o",
            label="coupled gates",
        )
        for value, label, color in ((plain, "plain", COLORS[1]), (residual, "residual", COLORS[2])):
            axes.axhline(value.mean(), linestyle="--", label=label, color=color)
        axes.set(
            xlabel="initial bias of the transform gates",
            ylabel="gradient, first / last unit",
        )
        axes.legend()
    data = {
        "ratio by bias": {str(bias): of.tolist() for bias, of in swept.items()},
        "plain": plain.tolist(),
        "residual": residual.tolist(),
        "identities": gaps,
    }
    return Report(tuple(rows), figure, data)


REPRODUCTION = Reproduction(
    name="srivastava2015-gates",
    title="highway gates: identities and biases",
    paper="Srivastava et al. 2015, 1505.00387",
    claim="Coupled gates must begin closed: with a positive bias a highway network is a plain one.",
    runs={"cpu": run, "full": run},
)
