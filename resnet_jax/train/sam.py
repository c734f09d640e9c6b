"""Sharpness-aware minimisation (SAM; Foret et al. 2020, 2010.01412)."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import optax


@dataclasses.dataclass(frozen=True)
class SamConfig:
    """Settings of `sharpness_aware`.

    Attributes:
        radius: length ρ of the ascent step; 0 disables SAM.
        every: steps between sharpness-aware steps, the first of which is step 0.
    """

    radius: float = 0.0
    every: int = 1


def sharpness_aware(
    config: SamConfig,
    gradient: Callable[[Any], Any],
    params: Any,
    gradients: Any,
    *,
    step: jax.Array,
) -> Any:
    """Return the gradient at w + ρ g / ‖g‖, where the loss is highest to first order.

    Args:
        config: the settings.
        gradient: the gradient of the loss as a function of the parameters.
        params: the parameters w.
        gradients: the gradient g at w, which is returned in all other steps.
        step: number of the step, from 0.
    """
    if not config.radius:
        return gradients

    def at_ascent(gradients: Any) -> Any:
        length = config.radius / (optax.tree.norm(gradients) + 1e-12)
        return gradient(jax.tree.map(lambda w, g: w + length * g, params, gradients))

    due = step % config.every == 0
    return jax.lax.cond(due, at_ascent, lambda gradients: gradients, gradients)
