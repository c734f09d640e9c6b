"""Learning rates as functions of the step, with lengths counted in examples."""

import dataclasses
import itertools
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax

from resnet_jax.errors import ConfigError, did_you_mean

ScheduleName = Literal["constant", "step", "cosine", "linear", "poly"]


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """Settings of `make_schedule`: `config.schedule`. Lengths are in the config's duration unit.

    Attributes:
        name: shape of the schedule, see `make_schedule`.
        base_lr, reference_batch: the peak is base_lr × batch_size / reference_batch.
        warmup: length of the linear warm-up.
        warmup_from: learning rate at the start of the warm-up, as a share of the peak.
        final: learning rate at the end of "cosine", "linear" and "poly", as a share of the peak.
        power: exponent of "poly".
        boundaries, scales: of "step"; one scale more than boundaries.

    Raises:
        ConfigError: unknown name, or boundaries that don't rise or don't fit the scales.
    """

    name: ScheduleName
    base_lr: float
    reference_batch: int
    warmup: float
    warmup_from: float
    final: float
    power: float
    boundaries: tuple[float, ...]
    scales: tuple[float, ...]

    def __post_init__(self) -> None:
        known = get_args(ScheduleName)
        if self.name not in known:
            hint = did_you_mean(self.name, known)
            raise ConfigError(
                f"schedule.name is {self.name!r}; it can be {', '.join(known)}.{hint}"
            )
        if self.name == "step":
            rise = all(a < b for a, b in itertools.pairwise(self.boundaries))
            if len(self.scales) != len(self.boundaries) + 1 or not rise:
                raise ConfigError(
                    f"schedule.boundaries {tuple(self.boundaries)} must rise, and schedule.scales"
                    f" {tuple(self.scales)} must have one value more than there are boundaries."
                )


def make_schedule(
    config: ScheduleConfig, *, batch_size: int, unit: float, total_steps: int
) -> optax.Schedule:
    """Make the learning rate as a function of the step.

    The peak is `base_lr` × batch_size / `reference_batch` (linear scaling, Goyal et al. 2017,
    1706.02677), after a linear warm-up of length `warmup` from the share `warmup_from` of the
    peak. `name` is the shape after the warm-up:

    - "constant" stays at the peak;
    - "step" multiplies the peak by `scales[i]` up to `boundaries[i]`, and by the last scale
      thereafter;
    - "cosine" (Loshchilov & Hutter 2016, 1608.03983), "linear" and "poly" fall to the share
      `final` of the peak at the end of the run. With t rising from 0 to 1 over that time, the
      excess over the final value is proportional to (1 + cos πt) / 2, 1 - t, and
      (1 - t) ** `power`.

    Args:
        config: the settings.
        batch_size: examples per step.
        unit: examples in one duration unit.
        total_steps: length of the run in steps.

    Raises:
        ConfigError: a peak that isn't a float32, or a warm-up as long as the run.
    """
    name = config.name
    peak = config.base_lr * batch_size / config.reference_batch
    if peak > float(np.finfo(np.float32).max):
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

    def scale(step: jax.Array) -> jax.Array:
        if name == "constant":
            return jnp.ones(())
        if name == "step":
            return jnp.asarray(config.scales, jnp.float32)[jnp.searchsorted(edges, step, "right")]
        progress = jnp.clip((step - warmup) / max(total_steps - warmup, 1.0), 0.0, 1.0)
        if name == "cosine":
            left = 0.5 * (1 + jnp.cos(jnp.pi * progress))
        else:
            left = (1 - progress) ** (config.power if name == "poly" else 1)
        return config.final + (1 - config.final) * left if config.final else left

    def ramp(step: jax.Array) -> jax.Array | float:
        if not warmup:
            return 1.0
        if config.warmup_from:
            return config.warmup_from + (1 - config.warmup_from) * jnp.minimum(1.0, step / warmup)
        return jnp.minimum(1.0, (step + 1) / (warmup + 1))  # a first step of rate 0 would be lost

    def learning_rate(step: jax.Array) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        falling, rising = scale(step), ramp(step)
        return peak * falling * rising

    return learning_rate
