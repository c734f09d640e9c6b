"""Optimisers: what they do with gradients, to which parameters, and at which rates."""

import math
from typing import Any, Literal, get_args

import jax
import ml_collections
import optax
import optax.contrib

from resnet_jax.errors import ConfigError, did_you_mean
from resnet_jax.train.layerwise import scale_by_lars, scale_by_trust_ratio
from resnet_jax.train.param_groups import (
    PARAMETER_GROUPS,
    distances_from_head,
    in_head,
    parameter_groups,
)

OptimizerName = Literal["sgd", "lars", "lamb", "adamw", "muon"]
Decay = Literal["l2", "decoupled"]

_DECAYS: dict[OptimizerName, tuple[Decay, ...]] = {
    "sgd": ("l2", "decoupled"),
    "lars": ("l2",),
    "lamb": ("decoupled",),
    "adamw": ("decoupled",),
    "muon": ("decoupled",),
}


def make_optimizer(
    config: ml_collections.ConfigDict, schedule: optax.Schedule
) -> optax.GradientTransformation:
    """The optimiser that `name` says.

    - "sgd": velocity ← momentum · velocity + gradient; parameter −= lr · velocity. The learning
      rate multiplies the velocity, as in PyTorch; Caffe puts it inside the velocity.
    - "lars": SGD with a rate for each layer, which is inside the velocity, see `scale_by_lars`.
    - "adamw": Adam (Kingma & Ba 2014, 1412.6980); `momentum` is its β₁.
    - "lamb": AdamW whose steps are in proportion to each layer, see `scale_by_trust_ratio`.
    - "muon": the momentum of each convolution orthogonalised, see `_muon`; AdamW for the rest.

    Weight decay "l2" is added to the gradient (the papers); "decoupled" is added after the
    momentum and so scales with the learning rate only (Loshchilov & Hutter 2017, 1711.05101).
    `decay_exempt` names parameter groups that don't decay. The rates of LARS and LAMB for single
    layers aren't for them either, as in MLPerf and in timm.

    For fine-tuning a `ResNet`: with `layer_decay` below 1 the learning rate of parameters at
    distance d from the classifier, see `distances_from_head`, is multiplied by its d-th power
    (Howard & Ruder 2018, 1801.06146, section 3.2; there by layer, here by stage). `scalar_rate`
    multiplies the rate of all parameters but kernels, as Fixup's authors do. With `trainable`
    "head" all but the classifier is left alone, has no state here, and doesn't count for clipping.

    Args:
        config: `config.optimizer`.
        schedule: learning rate by step.

    Raises:
        ConfigError: unknown name or group, or a kind of decay that is unknown or that the
            optimiser doesn't have.
    """
    _check(config)
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    optimizer = optax.chain(clip, *_transformations(config, schedule))
    if config.layer_decay < 1:
        optimizer = optax.chain(optimizer, _scale_by_distance(config.layer_decay))
    if config.scalar_rate != 1:
        optimizer = optax.chain(optimizer, _scale_scalars(config.scalar_rate))
    if config.trainable == "head":
        rules = {True: optimizer, False: optax.set_to_zero()}
        optimizer = optax.partition(rules, in_head)
    return optimizer


def _check(config: ml_collections.ConfigDict) -> None:
    if config.name not in get_args(OptimizerName):
        known = ", ".join(get_args(OptimizerName))
        hint = did_you_mean(config.name, get_args(OptimizerName))
        raise ConfigError(f"optimizer.name is {config.name!r}; it can be {known}.{hint}")
    if config.decay not in get_args(Decay):
        known = ", ".join(get_args(Decay))
        raise ConfigError(f"optimizer.decay is {config.decay!r}; it can be {known}.")
    if config.decay not in _DECAYS[config.name]:
        raise ConfigError(
            f"optimizer.decay is {config.decay!r}; that of {config.name} is"
            f" {_DECAYS[config.name][0]!r}."
        )
    for group in config.decay_exempt:
        if group not in PARAMETER_GROUPS:
            known = ", ".join(PARAMETER_GROUPS)
            raise ConfigError(
                f"optimizer.decay_exempt names {group!r}; parameter groups are {known}."
            )


def _transformations(
    config: ml_collections.ConfigDict, schedule: optax.Schedule
) -> list[optax.GradientTransformation]:
    """What is done with gradients that are clipped, in order."""

    def decays(params: Any) -> Any:
        return jax.tree.map(lambda g: g not in config.decay_exempt, parameter_groups(params))

    decay = optax.add_decayed_weights(config.weight_decay, mask=decays)
    momentum = optax.trace(decay=config.momentum, nesterov=config.nesterov)
    adam = optax.scale_by_adam(
        b1=config.momentum, b2=config.beta2, eps=config.epsilon, nesterov=config.nesterov
    )
    rate = optax.scale_by_learning_rate(schedule)
    if config.name == "lars":
        lars = scale_by_lars(coefficient=config.trust_coefficient, weight_decay=config.weight_decay)
        return [optax.masked(lars, decays), rate, momentum]
    if config.name == "lamb":
        return [adam, decay, optax.masked(scale_by_trust_ratio(), decays), rate]
    if config.name == "adamw":
        return [adam, decay, rate]
    if config.name == "muon":
        return [_muon(config, others=adam), decay, rate]
    return [decay, momentum, rate] if config.decay == "l2" else [momentum, decay, rate]


def _muon(
    config: ml_collections.ConfigDict, *, others: optax.GradientTransformation
) -> optax.GradientTransformation:
    """Orthogonalise the momentum of convolutions (Jordan 2024, kellerjordan.github.io/posts/muon).

    A kernel [h, w, in, out] is a matrix [h·w·in, out]. The result is multiplied by
    0.2 √max(h·w·in, out), the size of AdamW's steps (Liu et al. 2025, 2502.16982, section 2.2), so
    that one learning rate and one weight decay are right for both: all that isn't the kernel of a
    convolution, the classifier too, is for `others`.
    """

    def matrices(kernels: Any) -> Any:
        # Of a stack of kernels (`model.scan`) each is a matrix.
        numbers = optax.contrib.MuonDimensionNumbers(reduction_axis=(-4, -3, -2), output_axis=-1)
        return jax.tree.map(lambda _: numbers, kernels)

    def resize(updates: Any, _: Any) -> Any:
        return jax.tree.map(
            lambda u: u * 0.2 * math.sqrt(max(math.prod(u.shape[-4:-1]), u.shape[-1])), updates
        )

    orthogonalized = optax.contrib.scale_by_muon(
        beta=config.momentum,
        eps=config.epsilon,
        nesterov=config.nesterov,
        weight_dimension_numbers=matrices,
    )
    rules = {"muon": optax.chain(orthogonalized, optax.stateless(resize)), "adamw": others}
    return optax.partition(
        rules, lambda params: jax.tree.map(lambda p: "muon" if p.ndim >= 4 else "adamw", params)
    )


def _scale_by_distance(decay: float) -> optax.GradientTransformation:
    def scale(updates: Any, _: Any) -> Any:
        return jax.tree.map(lambda u, d: u * decay**d, updates, distances_from_head(updates))

    return optax.stateless(scale)


def _scale_scalars(rate: float) -> optax.GradientTransformation:
    def scale(updates: Any, _: Any) -> Any:
        groups = parameter_groups(updates)
        return jax.tree.map(lambda u, g: u if g == "kernel" else u * rate, updates, groups)

    return optax.stateless(scale)
