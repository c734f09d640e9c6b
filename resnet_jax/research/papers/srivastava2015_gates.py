"""Highway networks (Srivastava et al. 2015): what their gates must do for depth to be harmless.

A highway layer is y = T·H(x) + C·x; the paper couples the gates, C = 1 - T, and begins with T's
bias negative, so that x passes. It is often written that a residual network is a highway network
whose gates are open through strongly positive biases. That is so for independent gates only: with
the paper's coupled ones, T = 1 leaves C = 0, which is a plain network.
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
from resnet_jax.research.reproduction import Artefact, Report, Row, Within
from resnet_jax.research.runner import Lab

_SOURCE = "Srivastava et al. 2015, 1505.00387"
_BIASES = (-6.0, -4.0, -2.0, 0.0, 2.0, 4.0)
_DEPTH = 56
_ROUNDING = Within(high=1e-5)  # of the largest logit, in float32


def set_gates(params: Any, *, bias: float, carry: float | None = None, kernel: bool = True) -> Any:
    """Parameters in which all gates have these biases and, without `kernel`, see no input."""
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
    """Largest difference of logits, relative to the largest logit, of networks that are one."""
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


def run(lab: Lab) -> Report:
    """Compare networks that must be the same, and measure gradients for a range of biases."""
    gaps = identities(lab.seeds[0])
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
            gradient_norms(gated, lab.seeds, change=functools.partial(set_gates, bias=bias))
        )
        for bias in _BIASES
    }
    plain = ratios(gradient_norms(make_network(_DEPTH, shortcut="none"), lab.seeds))
    residual = ratios(gradient_norms(make_network(_DEPTH), lab.seeds))
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


ARTEFACT = Artefact(
    name="srivastava2015-gates",
    title="highway gates: identities and biases",
    paper="Srivastava et al. 2015, 1505.00387",
    claim="Coupled gates must begin closed: with a positive bias a highway network is a plain one.",
    runs={"cpu": run, "full": run},
)
