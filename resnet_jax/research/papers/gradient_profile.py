"""Gradient norms by depth at initialisation: do the gradients of plain networks vanish?

He et al. 2015 rule out vanishing gradients as the cause of the degradation of deep plain networks;
later accounts often give that cause. With batch normalisation, the gradients of a plain network
*grow* towards the input by a factor per layer. Without normalisation and with He's initialisation
they keep their size, and the gradients of a residual network explode, because its paths add up.
"""

import numpy as np
from matplotlib.axes import Axes

from resnet_jax.research.figures import journal_style, new_panels, plot_mean
from resnet_jax.research.gradients import gradient_norms, make_network
from resnet_jax.research.reproduction import Report, Reproduction, Row, Within
from resnet_jax.research.runner import Runner

_KINDS = {
    "plain": {"shortcut": "none"},
    "residual": {},
    "pre-activation": {"order": "preact"},
}
_DEPTHS, _DEPTHS_UNNORMALISED = (20, 56, 110), (20, 56)
_HE = "He et al. 2015, section 4.1"
_ZHANG = "Zhang et al. 2019, abstract"


def run(runner: Runner) -> Report:
    """Measure the norm of every 3×3 kernel's gradient, for each seed."""
    norms = {
        (kind, depth): gradient_norms(make_network(depth, **fields), runner.seeds)
        for kind, fields in _KINDS.items()
        for depth in _DEPTHS
    }
    bare = {
        (kind, depth): gradient_norms(make_network(depth, norm="none", **fields), runner.seeds)
        for kind, fields in _KINDS.items()
        if kind != "pre-activation"
        for depth in _DEPTHS_UNNORMALISED
    }
    ratio = {key: of[:, 0] / of[:, -1] for key, of in norms.items()}
    bare_ratio = {key: of[:, 0] / of[:, -1] for key, of in bare.items()}

    of = "gradient of the first unit's kernel / of the last's"
    growth = bare["residual", 56].mean(axis=1) / bare["residual", 20].mean(axis=1)
    plain, residual = ratio["plain", 56], ratio["residual", 56]
    none = (None, "no published value")
    rows = tuple(
        Row(
            what=what,
            published=published,
            source=source,
            data="initial values",
            measured=tuple(measured),
            accepts=accepts,
            ratio=True,
        )
        for what, (published, source), measured, accepts in (
            (f"plain-56: {of}", ("not vanishing", _HE), plain, Within(low=1.0)),
            (f"ResNet-56: {of}", none, residual, Within(4, 30)),
            ("the ratio of plain-56 / that of ResNet-56", none, plain / residual, Within(low=50.0)),
            (
                "the ratio of plain-110 / that of ResNet-110",
                none,
                ratio["plain", 110] / ratio["residual", 110],
                Within(low=1e4),
            ),
            (
                f"plain-56 without normalisation: {of}",
                none,
                bare_ratio["plain", 56],
                Within(0.05, 5.0),
            ),
            (
                "ResNets without normalisation: mean gradient of 56 layers / of 20",
                ("exploding", _ZHANG),
                growth,
                Within(low=100.0),
            ),
        )
    )
    with journal_style():
        figure, panels = new_panels(4)
        for axes, depth in zip(panels, _DEPTHS, strict=False):
            for kind in _KINDS:
                _plot(axes, norms[kind, depth], kind)
            axes.set(title=f"{depth} layers, with BN")
        for kind in ("plain", "residual"):
            _plot(panels[3], bare[kind, 56], kind)
        panels[3].set(title="56 layers, no BN")
        panels[0].set(ylabel="norm of the kernel's gradient")
        panels[0].legend()
    data = {
        f"{kind}-{depth}{suffix}": of.tolist()
        for found, suffix in ((norms, ""), (bare, ", no normalisation"))
        for (kind, depth), of in found.items()
    }
    return Report(rows, figure, data)


def _plot(axes: Axes, norms: np.ndarray, kind: str) -> None:
    plot_mean(axes, np.arange(1, norms.shape[1] + 1), norms, label=kind, log=True)
    axes.set(xlabel="layer")


REPRODUCTION = Reproduction(
    name="grad-profile",
    title="gradient norms at initialisation",
    paper="He et al. 2015, 1512.03385",
    claim="Deep plain networks with batch normalisation don't suffer from vanishing gradients.",
    runs={"cpu": run, "full": run},
)
