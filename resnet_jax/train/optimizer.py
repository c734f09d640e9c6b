"""Learning-rate schedules counted in examples, weight decay by group, SGD with momentum."""

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from resnet_jax.errors import ConfigError, did_you_mean
from resnet_jax.train.groups import (
    PARAMETER_GROUPS,
    distances_from_head,
    in_head,
    parameter_groups,
)

ScheduleName = Literal["constant", "step", "cosine"]
Decay = Literal["l2", "decoupled"]


def make_schedule(
    config: ml_collections.ConfigDict, *, batch_size: int, unit: float, total_steps: int
) -> optax.Schedule:
    """Make the learning rate as a function of the step.

    The peak is `base_lr` × batch_size / `reference_batch` (linear scaling, Goyal et al. 2017,
    1706.02677). It is reached from zero by a linear warm-up of length `warmup`; after that,
    "constant" stays, "cosine" falls to zero at the end of the run (Loshchilov & Hutter 2016,
    1608.03983), and "step" multiplies the peak by `scales[i]` up to `boundaries[i]`, and by the
    last scale thereafter.

    Args:
        config: `config.schedule`; lengths are in the config's duration unit.
        batch_size: examples per step.
        unit: examples in one duration unit.
        total_steps: length of the run in steps.

    Raises:
        ConfigError: unknown name, or boundaries that don't rise or don't fit the scales.
    """
    name, known = config.name, get_args(ScheduleName)
    if name not in known:
        hint = did_you_mean(name, known)
        raise ConfigError(f"schedule.name is {name!r}; it can be {', '.join(known)}.{hint}")
    peak = config.base_lr * batch_size / config.reference_batch
    if peak > np.finfo(np.float32).max:
        raise ConfigError(
            f"schedule.base_lr is {config.base_lr}: a learning rate of {peak:.3g} isn't a float32."
        )
    warmup = config.warmup * unit / batch_size  # in steps, not necessarily a whole number
    if warmup >= total_steps:
        raise ConfigError(
            f"schedule.warmup is {config.warmup}, as long as the whole run or longer: the learning"
            " rate would never reach its peak."
        )
    edges = jnp.asarray([b * unit / batch_size for b in config.boundaries], jnp.float32)
    if name == "step":
        rising = all(a < b for a, b in zip(config.boundaries, config.boundaries[1:], strict=False))
        if len(config.scales) != len(config.boundaries) + 1 or not rising:
            raise ConfigError(
                f"schedule.boundaries {tuple(config.boundaries)} must rise, and schedule.scales"
                f" {tuple(config.scales)} must have one value more than there are boundaries."
            )

    def learning_rate(step: jax.Array) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        if name == "constant":
            scale = jnp.ones(())
        elif name == "cosine":
            progress = (step - warmup) / max(total_steps - warmup, 1.0)
            scale = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(progress, 0.0, 1.0)))
        else:
            scale = jnp.asarray(config.scales, jnp.float32)[jnp.searchsorted(edges, step, "right")]
        ramp = jnp.minimum(1.0, (step + 1) / (warmup + 1)) if warmup else 1.0
        return peak * scale * ramp

    return learning_rate


def make_optimizer(
    config: ml_collections.ConfigDict, schedule: optax.Schedule
) -> optax.GradientTransformation:
    """SGD with momentum: velocity ← momentum · velocity + gradient; parameter −= lr · velocity.

    The learning rate multiplies the velocity, as in PyTorch; Caffe puts it inside the velocity.
    Weight decay "l2" is added to the gradient (the papers); "decoupled" is added after the
    momentum and so scales with the learning rate only (Loshchilov & Hutter 2017, 1711.05101).
    `decay_exempt` names parameter groups that don't decay.

    For fine-tuning a `ResNet`: with `layer_decay` below 1 the learning rate of parameters at
    distance d from the classifier, see `distances_from_head`, is multiplied by its d-th power
    (Howard & Ruder 2018, 1801.06146, section 3.2; there by layer, here by stage). With `trainable`
    "head" all but the classifier is left alone, has no state here, and doesn't count for clipping.

    Args:
        config: `config.optimizer`.
        schedule: learning rate by step.

    Raises:
        ConfigError: unknown kind of decay or unknown group.
    """
    if config.decay not in get_args(Decay):
        known = ", ".join(get_args(Decay))
        raise ConfigError(f"optimizer.decay is {config.decay!r}; it can be {known}.")
    for group in config.decay_exempt:
        if group not in PARAMETER_GROUPS:
            known = ", ".join(PARAMETER_GROUPS)
            raise ConfigError(
                f"optimizer.decay_exempt names {group!r}; parameter groups are {known}."
            )

    def decays(params: Any) -> Any:
        return jax.tree.map(lambda g: g not in config.decay_exempt, parameter_groups(params))

    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    decay = optax.add_decayed_weights(config.weight_decay, mask=decays)
    momentum = optax.trace(decay=config.momentum, nesterov=config.nesterov)
    order = [decay, momentum] if config.decay == "l2" else [momentum, decay]
    optimizer = optax.chain(clip, *order, optax.scale_by_learning_rate(schedule))
    if config.layer_decay < 1:
        optimizer = optax.chain(optimizer, _scale_by_distance(config.layer_decay))
    if config.trainable == "head":
        rules = {True: optimizer, False: optax.set_to_zero()}
        optimizer = optax.partition(rules, in_head)
    return optimizer


def _scale_by_distance(decay: float) -> optax.GradientTransformation:
    def scale(updates: Any, _: Any) -> Any:
        return jax.tree.map(lambda u, d: u * decay**d, updates, distances_from_head(updates))

    return optax.stateless(scale)
