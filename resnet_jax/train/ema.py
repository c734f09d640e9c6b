"""Exponential moving averages of parameters and running statistics."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax


@dataclasses.dataclass(frozen=True)
class EmaConfig:
    """Settings of `update_ema`.

    Attributes:
        decay: share of the old average that an update keeps; 0 disables the averages.
        every: steps between updates.
        warmup: update number t, from 0, has a decay of at most (1 + t) / (10 + t), as in
            TensorFlow. The averages then forget the initial values soon.
    """

    decay: float = 0.0
    every: int = 1
    warmup: bool = False


def update_ema(config: EmaConfig, ema: Any, variables: Any, *, step: jax.Array) -> Any:
    """Return the averages after a training step.

    Args:
        config: the settings.
        ema: averages before the step, {"params", "batch_stats"}; None without averages.
        variables: variables after the step, a tree like `ema`.
        step: number of the step, from 0.
    """
    if not config.decay:
        return ema
    decay: Any = config.decay
    if config.warmup:
        updates = step // config.every  # so far
        decay = jnp.minimum(decay, (1 + updates) / (10 + updates))

    def update(ema: Any) -> Any:
        return optax.incremental_update(variables, ema, 1 - decay)

    if config.every == 1:
        return update(ema)
    return jax.lax.cond((step + 1) % config.every == 0, update, lambda ema: ema, ema)
