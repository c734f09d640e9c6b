"""Norms, signals, statistics, updates, gates and similarities of one network on a probe batch.

The network is in training mode, without dropout and without updates of running statistics. Each
measure is a function of the results of one forward and one backward pass, a `Pass`.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import traverse_util
from jaxtyping import Array, Float, Int

from resnet_jax.models.block import ResidualBlock
from resnet_jax.models.highway import HighwayNet
from resnet_jax.models.layers import Conv
from resnet_jax.models.norms import BatchNorm
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.surgery import unstack_units
from resnet_jax.ops.batch_norm import maps_of
from resnet_jax.train.losses import LOSSES

Diagnosed = ResNet | HighwayNet

_WITHOUT: dict[str, Any] = {
    "scan": False,
    "remat": False,
    "dropout": 0.0,
    "shortcut_dropout": 0.0,
    "head_dropout": 0.0,
    "stochastic_depth": 0.0,
}


class Pass(NamedTuple):
    """Results of a forward and backward pass; blocks are in the order of the computation.

    Attributes:
        params, gradients: parameters and their gradients.
        taps: feature maps by name: "stem", "stage1", …
        blocks: name of a block → its output [n, h, w, c].
        drifts: drift of the mean and of the variance of each normalisation, see `bn_drift`.
        gates: "gate" or "carry_gate" → mean openness of each gate.
        updates: what the optimiser would add to the parameters.
    """

    params: Any
    gradients: Any
    taps: dict[str, Array]
    blocks: dict[str, Array]
    drifts: list[tuple[Array, Array]]
    gates: dict[str, list[Array]]
    updates: Any


def probe_twin(model: Diagnosed) -> Diagnosed:
    """Return the network with its blocks unrolled and without dropout."""
    known = {field.name for field in dataclasses.fields(model)}
    return model.copy(**{k: v for k, v in _WITHOUT.items() if k in known})


def take_pass(
    model: Diagnosed,
    variables: Any,
    inputs: Float[Array, "n h w c"],
    labels: Int[Array, " n"],
    *,
    optimizer: optax.GradientTransformation,
    opt_state: Any,
) -> Pass:
    """Run `probe_twin(model)` forwards and backwards, with the cross-entropy as loss.

    `variables` and `opt_state` are those of `model`, scanned or not.
    """
    twin = probe_twin(model)

    def loss(params: Any) -> tuple[Array, Any]:
        blocks: dict[str, Array] = {}
        drifts: list[tuple[Array, Array]] = []
        gates: dict[str, list[Array]] = {"gate": [], "carry_gate": []}

        def note(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
            y, module = call(*args, **kwargs), context.module
            if context.method_name != "__call__":
                return y
            if isinstance(module, ResidualBlock):
                blocks[str(module.name)] = y
            elif isinstance(module, BatchNorm) and module.train:
                running: Any = module.variables["batch_stats"]
                drifts.append(_drift(maps_of(args[0]), running["mean"], running["var"]))
            elif isinstance(module, Conv) and module.name in gates:
                gates[module.name].append(nn.sigmoid(y.astype(jnp.float32)).mean())
            return y

        whole = unstack_units({**variables, "params": params})
        with nn.intercept_methods(note):
            taps: Any = twin.apply(whole, inputs, train=True, update_stats=False, method="features")
        logits = taps["logits"]
        targets = jax.nn.one_hot(labels, logits.shape[-1])
        maps = {name: tap for name, tap in taps.items() if tap.ndim == 4}
        return LOSSES["softmax"](logits, targets).mean(), (maps, blocks, drifts, gates)

    params = variables["params"]
    gradients, (taps, blocks, drifts, gates) = jax.grad(loss, has_aux=True)(params)
    updates, _ = optimizer.update(gradients, opt_state, params)
    return Pass(params, gradients, taps, blocks, drifts, gates, updates)


def _drift(x: Array, running_mean: Array, running_var: Array) -> tuple[Array, Array]:
    x = x.astype(jnp.float32)
    mean, var = x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2)) + 1e-5
    return (
        (jnp.abs(running_mean - mean) / jnp.sqrt(var)).mean(),
        jnp.abs(jnp.log((running_var + 1e-5) / var)).mean(),
    )


def _part(name: str, *, stages: int) -> str:
    """Return the part of the network that a module belongs to: "stem", "stage1", …, "fc".

    `bn_final` of a `ResNet` and `conv_last` of a `HighwayNet` end the last stage. The convolution
    between the image and the first stage is the stem, also that of a `HighwayNet`.

    Args:
        name: of a module of the network.
        stages: number of stages.
    """
    if name in ("bn_final", "conv_last"):
        return f"stage{stages}"
    if block := re.match(r"layer(\d+)_", name):
        return f"stage{block[1]}"
    if opening := re.fullmatch(r"conv([2-9]|\d{2,})", name):  # of a stage of a `HighwayNet`
        return f"stage{opening[1]}"
    return "fc" if name.startswith("fc") else "stem"


def _norms_by_part(tree: Any) -> dict[str, Array]:
    squares: dict[str, Array] = {}
    stages = max(int(found[1]) for name in tree if (found := re.match(r"layer(\d+)_", name)))
    for path, leaf in traverse_util.flatten_dict(tree).items():
        part = _part(path[0], stages=stages)
        squares[part] = squares.get(part, jnp.float32(0)) + jnp.square(leaf).sum()
    return {part: jnp.sqrt(total) for part, total in squares.items()}


def norms(of: Pass) -> dict[str, Array]:
    """Return for each part the norm of the gradient and the root mean square of the output."""
    gradients = {f"grad_norm/{part}": n for part, n in _norms_by_part(of.gradients).items()}
    outputs = {
        f"activation_rms/{name}": jnp.sqrt(jnp.square(tap.astype(jnp.float32)).mean())
        for name, tap in of.taps.items()
    }
    return gradients | outputs


def signal(of: Pass) -> dict[str, Array]:
    """Return the squared means and the variances of the channels of each block's output.

    Both are averaged over the channels.

    Brock et al. 2021 (2101.08692), section 3, plot these over depth.
    """
    found = {}
    for name, y in of.blocks.items():
        wide = y.astype(jnp.float32)
        found[f"signal_mean2/{name}"] = jnp.square(wide.mean(axis=(0, 1, 2))).mean()
        found[f"signal_var/{name}"] = wide.var(axis=(0, 1, 2)).mean()
    return found


def bn_drift(of: Pass) -> dict[str, Array]:
    """Return the distance between the running statistics and the probe's, means over channels.

    For means in standard deviations of the probe; for variances between their logarithms.
    """
    if not of.drifts:
        return {}
    means, variances = (jnp.stack(values).mean() for values in zip(*of.drifts, strict=True))
    return {"bn_drift/mean": means, "bn_drift/log_var": variances}


def updates(of: Pass) -> dict[str, Array]:
    """Return for each part the norm of the optimiser's update over the norm of the parameters."""
    steps, weights = _norms_by_part(of.updates), _norms_by_part(of.params)
    return {f"update_ratio/{part}": steps[part] / (weights[part] + 1e-12) for part in steps}


def gates(of: Pass) -> dict[str, Array]:
    """Return the mean openness, 0 to 1, of the gates of the branches and of the shortcuts."""
    names = {"gate": "gate_openness/transform", "carry_gate": "gate_openness/carry"}
    return {names[k]: jnp.stack(values).mean() for k, values in of.gates.items() if values}


def similarities(of: Pass) -> Float[Array, "blocks blocks"]:
    """Return the linear CKA of the outputs of each pair of blocks, 0 to 1.

    ⟨K, L⟩ / ‖K‖ ‖L‖ of the centred Gram matrices K and L of the examples (Kornblith et al. 2019,
    1905.00414).
    """
    grams = []
    for y in of.blocks.values():
        flat = y.astype(jnp.float32).reshape(len(y), -1)
        flat -= flat.mean(axis=0)
        gram = flat @ flat.T
        grams.append((gram / (jnp.linalg.norm(gram) + 1e-12)).ravel())
    stacked = jnp.stack(grams)
    return stacked @ stacked.T


def cka(of: Pass) -> dict[str, Array]:
    """Return the mean similarity of different blocks."""
    matrix = similarities(of)
    blocks = len(matrix)
    return {"cka/mean": (matrix.sum() - jnp.trace(matrix)) / max(1, blocks * (blocks - 1))}


MEASURES: dict[str, Callable[[Pass], dict[str, Array]]] = {
    "norms": norms,
    "signal": signal,
    "bn_drift": bn_drift,
    "updates": updates,
    "gates": gates,
    "cka": cka,
}
"""Measures by their names in `config.diagnostics.what`, where "sharpness" is allowed, too."""
