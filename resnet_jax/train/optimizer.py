"""Optimisers: update rules, weight decay groups and learning rates of parameter groups."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import optax
import optax.contrib
from jaxtyping import Array, Float

from resnet_jax.errors import ConfigError
from resnet_jax.train.layerwise import scale_by_lars, scale_by_trust_ratio
from resnet_jax.train.param_groups import (
    PARAMETER_GROUPS,
    distances_from_head,
    in_head,
    parameter_groups,
)
from resnet_jax.utils.registry import Registry

Decay = Literal["l2", "decoupled"]

_DECAYS: dict[str, tuple[Decay, ...]] = {
    "lars": ("l2",),
    "lamb": ("decoupled",),
    "adamw": ("decoupled",),
    "muon": ("decoupled",),
}
"""Kinds of weight decay of optimisers that don't have both."""


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Settings of `make_optimizer`: `config.optimizer`.

    Attributes:
        name: the update rule, see `make_optimizer`.
        momentum: momentum, β₁ of "lamb" and "adamw"; a scalar array where it varies with the seeds.
        nesterov: use Nesterov's momentum.
        beta2, epsilon: of "lamb", "adamw" and the AdamW part of "muon".
        trust_coefficient: η of "lars".
        weight_decay: weight decay; a scalar array where it varies with the seeds.
        decay: "l2" or "decoupled".
        decay_exempt: parameter groups without weight decay.
        clip_norm: largest global norm of the gradient; 0 disables clipping.
        trainable: "all" or "head".
        layer_decay: factor of the learning rate per stage of distance from the classifier.
        scalar_rate: factor of the learning rate of all parameters but kernels.

    Raises:
        ConfigError: unknown name or group, or a decay that is unknown or that the optimiser
            doesn't have.
    """

    name: str
    momentum: float | Float[Array, ""]
    nesterov: bool
    beta2: float
    epsilon: float
    trust_coefficient: float
    weight_decay: float | Float[Array, ""]
    decay: Decay
    decay_exempt: tuple[str, ...]
    clip_norm: float
    trainable: str
    layer_decay: float
    scalar_rate: float

    def __post_init__(self) -> None:
        OPTIMIZERS.find("optimizer.name is", self.name)
        if self.decay not in get_args(Decay):
            known = ", ".join(get_args(Decay))
            raise ConfigError(f"optimizer.decay is {self.decay!r}; it can be {known}.")
        decays = _DECAYS.get(self.name, get_args(Decay))
        if self.decay not in decays:
            raise ConfigError(
                f"optimizer.decay is {self.decay!r}; that of {self.name} is {decays[0]!r}."
            )
        for group in self.decay_exempt:
            if group not in PARAMETER_GROUPS:
                known = ", ".join(PARAMETER_GROUPS)
                raise ConfigError(
                    f"optimizer.decay_exempt names {group!r}; parameter groups are {known}."
                )


def make_optimizer(
    config: OptimizerConfig, schedule: optax.Schedule
) -> optax.GradientTransformation:
    """Make the optimiser `config.name`.

    - "sgd": velocity ← momentum · velocity + gradient; parameter −= lr · velocity. The learning
      rate multiplies the velocity, as in PyTorch; Caffe puts it inside the velocity.
    - "lars": SGD with a learning rate per layer, inside the velocity; see `scale_by_lars`.
    - "adamw": Adam (Kingma & Ba 2014, 1412.6980); `momentum` is its β₁.
    - "lamb": AdamW with updates scaled per layer; see `scale_by_trust_ratio`.
    - "muon": orthogonalised momentum for convolutions, see `_orthogonalize`; AdamW for all other
      parameters.

    Weight decay "l2" is added to the gradient (the papers). "decoupled" is added after the
    momentum and so scales with the learning rate only (Loshchilov & Hutter 2017, 1711.05101).
    Parameter groups in `decay_exempt` don't decay. The layer-wise rates of LARS and LAMB don't
    apply to them either, as in MLPerf and in timm.

    For fine-tuning a `ResNet`: with `layer_decay` below 1 the learning rate of parameters at
    distance d from the classifier, see `distances_from_head`, is multiplied by its d-th power
    (Howard & Ruder 2018, 1801.06146, section 3.2; there by layer, here by stage). `scalar_rate`
    multiplies the learning rate of all parameters but kernels, as Fixup's authors do. With
    `trainable` "head" only the classifier is updated: all other parameters have no optimiser
    state, and their gradients don't count for clipping.

    Args:
        config: the settings.
        schedule: learning rate by step.
    """
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    optimizer = optax.chain(clip, *OPTIMIZERS[config.name](config, schedule))
    if config.layer_decay < 1:
        optimizer = optax.chain(optimizer, _scale_by_distance(config.layer_decay))
    if config.scalar_rate != 1:
        optimizer = optax.chain(optimizer, _scale_scalars(config.scalar_rate))
    if config.trainable == "head":
        rules = {True: optimizer, False: optax.set_to_zero()}
        optimizer = optax.partition(rules, in_head)
    return optimizer


Transformations = list[optax.GradientTransformation]
"""What is applied to the clipped gradient, in order."""


def _decay_mask(config: OptimizerConfig) -> Callable[[Any], Any]:
    """The mask of the parameters that decay."""
    exempt = config.decay_exempt
    return lambda params: jax.tree.map(lambda group: group not in exempt, parameter_groups(params))


def weight_decay(config: OptimizerConfig) -> optax.GradientTransformation:
    """Add `config.weight_decay` times the parameters, but for the groups of `decay_exempt`."""
    return optax.add_decayed_weights(config.weight_decay, mask=_decay_mask(config))


def _momentum(config: OptimizerConfig) -> optax.GradientTransformation:
    return optax.trace(decay=config.momentum, nesterov=config.nesterov)


def _adam(config: OptimizerConfig) -> optax.GradientTransformation:
    return optax.scale_by_adam(
        b1=config.momentum, b2=config.beta2, eps=config.epsilon, nesterov=config.nesterov
    )


def _sgd(config: OptimizerConfig, schedule: optax.Schedule) -> Transformations:
    rules = [weight_decay(config), _momentum(config)]
    return [
        *(rules if config.decay == "l2" else reversed(rules)),
        optax.scale_by_learning_rate(schedule),
    ]


def _lars(config: OptimizerConfig, schedule: optax.Schedule) -> Transformations:
    lars = scale_by_lars(coefficient=config.trust_coefficient, weight_decay=config.weight_decay)
    rate = optax.scale_by_learning_rate(schedule)
    return [optax.masked(lars, _decay_mask(config)), rate, _momentum(config)]


def _lamb(config: OptimizerConfig, schedule: optax.Schedule) -> Transformations:
    trust = optax.masked(scale_by_trust_ratio(), _decay_mask(config))
    return [_adam(config), weight_decay(config), trust, optax.scale_by_learning_rate(schedule)]


def _adamw(config: OptimizerConfig, schedule: optax.Schedule) -> Transformations:
    return [_adam(config), weight_decay(config), optax.scale_by_learning_rate(schedule)]


def _muon(config: OptimizerConfig, schedule: optax.Schedule) -> Transformations:
    first = _orthogonalize(config, others=_adam(config))
    return [first, weight_decay(config), optax.scale_by_learning_rate(schedule)]


OPTIMIZERS: Registry[Callable[[OptimizerConfig, optax.Schedule], Transformations]] = Registry(
    "optimizer",
    {"sgd": _sgd, "lars": _lars, "lamb": _lamb, "adamw": _adamw, "muon": _muon},
)
"""Update rules by the name in `config.optimizer.name`."""


def register_optimizer(
    name: str, make: Callable[[OptimizerConfig, optax.Schedule], optax.GradientTransformation]
) -> None:
    """Add an optimiser, for `config.optimizer.name`.

    Integers of the optimiser's state that are named "count", "step_count" or "step", as in the
    states of optax, are step counts: they go on at a step that is skipped, and after a rollback
    they are set to the step of the run (`config.nonfinite`). Give other integers other names. To
    accumulate gradients, use `config.accumulate`: the step counts inside `optax.MultiSteps` count
    updates, and a rollback would set them to the step of the run.

    Args:
        name: an identifier.
        make: called with the fields of `config.optimizer` and the learning rate by step; returns
            the transformation of the clipped gradient to the update, its sign and the learning
            rate included. Weight decay is `weight_decay(config)`, if the rule has it.

    Raises:
        ConfigError: the name isn't an identifier, or is taken.
    """

    def transformations(config: OptimizerConfig, schedule: optax.Schedule) -> Transformations:
        return [make(config, schedule)]

    OPTIMIZERS.register(name, transformations, module=make.__module__)


def _orthogonalize(
    config: OptimizerConfig, *, others: optax.GradientTransformation
) -> optax.GradientTransformation:
    """Orthogonalise the momentum of convolutions (Jordan 2024, kellerjordan.github.io/posts/muon).

    A kernel [h, w, in, out] is a matrix [h·w·in, out]. The result is multiplied by
    0.2 √max(h·w·in, out), the size of AdamW's updates (Liu et al. 2025, 2502.16982, section 2.2),
    so that one learning rate and one weight decay suit both. `others` updates all parameters that
    aren't kernels of convolutions, the classifier included.
    """

    def matrices(kernels: Any) -> Any:
        # Each kernel of a stack (`model.scan`) is a matrix.
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
