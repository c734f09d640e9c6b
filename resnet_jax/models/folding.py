"""Batch normalisation with running statistics, folded into the convolution before it.

With running statistics, normalisation is one factor and one offset for each channel. After a
convolution, the factor is a part of the kernel and the offset is the bias (Jacob et al. 2018,
1712.05877, section 3.2).
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import unfreeze
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import ClosedJaxpr, Jaxpr, Var
from jaxtyping import Array

from resnet_jax.models.layers import Conv
from resnet_jax.models.network import Network
from resnet_jax.models.norms import BatchNorm

_Path = tuple[str, ...]


class _Pair(NamedTuple):
    """A normalisation to be folded.

    Attributes:
        kernel, bias: paths of the convolution's arrays.
        norm: path of the normalisation.
        epsilon: of the normalisation.
    """

    kernel: _Path
    bias: _Path
    norm: _Path
    epsilon: float


def fold_batch_norm(
    model: Network, variables: Mapping[str, Any], image_shape: tuple[int, int, int]
) -> dict[str, Any]:
    """Fold batch normalisation into convolutions, for inference.

    `model.apply(folded, images)` computes what `model.apply(variables, images)` computes, up to
    rounding, and so do `model.features` and the derivatives with respect to the images. A
    normalisation is folded if its input is the result of a convolution that nothing else uses. In
    a pre-activation network some inputs are sums, whose normalisations stay. Networks without
    batch normalisation stay as they are. Folded variables can't be trained.

    Args:
        model: a network; its `dtype` doesn't matter.
        variables: the network's variables, "params" and "batch_stats", which stay as they are.
        image_shape: (h, w, c) of an image that the network takes.

    Returns:
        Variables in which a folded normalisation has the entry "folded" alone, and a convolution
        without a bias has a "folded_bias". Folded kernels and biases are float32 or wider.
    """
    pairs = tuple(_pairs(model, variables, image_shape))
    # One program, which compiles faster than the operations one by one.
    return jax.jit(_fold, static_argnums=1)(dict(variables), pairs) if pairs else dict(variables)


def _fold(variables: dict[str, Any], pairs: tuple[_Pair, ...]) -> dict[str, Any]:
    flat = flatten_dict(unfreeze(variables))
    for kernel, bias, norm, epsilon in pairs:
        scale, offset = (flat.pop(("params", *norm, name)) for name in ("scale", "bias"))
        mean, var = (flat.pop(("batch_stats", *norm, name)) for name in ("mean", "var"))
        wide = jnp.promote_types(flat[kernel].dtype, jnp.float32)
        factor = scale.astype(wide) * jax.lax.rsqrt(var.astype(wide) + epsilon)
        # The arrays of blocks in a loop have an axis for the blocks in front.
        flat["params", *norm, "folded"] = jnp.ones(scale.shape[:-1], bool)
        flat[kernel] = flat[kernel].astype(wide) * factor[..., None, None, None, :]
        flat[bias] = (flat.get(bias, 0) - mean.astype(wide)) * factor + offset.astype(wide)
    folded = unflatten_dict(flat)
    return {name: folded.get(name, {}) for name in variables}


def _pairs(
    model: Network, variables: Mapping[str, Any], image_shape: tuple[int, int, int]
) -> Iterator[_Pair]:
    """Paths of the convolutions and normalisations to be folded, and epsilons."""
    paths: dict[str, _Path] = {}  # of the layers whose result or argument has a tag
    epsilons: dict[str, float] = {}  # of the normalisations
    biases: dict[str, str] = {}  # names of the convolutions' biases

    def tagged(value: Array, layer: nn.Module) -> Array:
        tag = "/".join((type(layer).__name__, *layer.path))
        paths[tag] = layer.path
        if isinstance(layer, BatchNorm):
            epsilons[tag] = layer.epsilon
        if isinstance(layer, Conv):
            biases[tag] = "bias" if layer.use_bias else "folded_bias"
        return checkpoint_name(value, tag)

    def mark(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        layer = context.module
        if context.method_name != "__call__":
            return call(*args, **kwargs)
        if isinstance(layer, Conv) and not layer.weight_standardized:
            return tagged(call(*args, **kwargs), layer)
        if isinstance(layer, BatchNorm) and layer.has_variable("batch_stats", "mean"):
            return call(tagged(args[0], layer), *args[1:], **kwargs)
        return call(*args, **kwargs)

    def features(variables: Any, images: Array) -> Any:
        with nn.intercept_methods(mark):
            return model.apply(variables, images, method="features")

    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), variables)
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    jaxprs = list(_all_jaxprs(jax.make_jaxpr(features)(shapes, images).jaxpr))
    calls = Counter(e.params["name"] for j in jaxprs for e in j.eqns if e.primitive.name == "name")
    for jaxpr in jaxprs:
        for source, target in _only_uses(jaxpr):
            once = calls[source] == calls[target] == 1  # a layer may be called twice
            if once and source in biases and target in epsilons:
                conv = ("params", *paths[source])
                yield _Pair(
                    (*conv, "kernel"), (*conv, biases[source]), paths[target], epsilons[target]
                )


def _only_uses(jaxpr: Jaxpr) -> Iterator[tuple[str, str]]:
    """Pairs of tags: the value with the first tag is used once, to be given the second."""
    uses = Counter(v for eqn in jaxpr.eqns for v in eqn.invars if isinstance(v, Var))
    uses.update(v for v in jaxpr.outvars if isinstance(v, Var))
    sources: dict[Any, str] = {}
    for eqn in jaxpr.eqns:
        if eqn.primitive.name != "name":
            continue
        (value,), (result,) = eqn.invars, eqn.outvars
        if isinstance(value, Var) and value in sources and uses[value] == 1:
            yield sources[value], eqn.params["name"]
        sources[result] = eqn.params["name"]


def _all_jaxprs(jaxpr: Jaxpr) -> Iterator[Jaxpr]:
    """A program, and those within: the bodies of loops, for example."""
    yield jaxpr
    for eqn in jaxpr.eqns:
        for value in jax.tree.leaves(
            tuple(eqn.params.values()), is_leaf=lambda v: isinstance(v, ClosedJaxpr | Jaxpr)
        ):
            if isinstance(value, ClosedJaxpr | Jaxpr):
                yield from _all_jaxprs(value.jaxpr if isinstance(value, ClosedJaxpr) else value)
