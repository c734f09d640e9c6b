"""When things happen in a run, and how its batches are divided."""

import dataclasses
import math

import ml_collections
from jax.sharding import Mesh

from resnet_jax.config.schema import streams
from resnet_jax.errors import ConfigError
from resnet_jax.parallel.mesh import check_divisible


@dataclasses.dataclass(frozen=True)
class Plan:
    """When a run logs, evaluates, saves and ends; the config's durations in examples and steps."""

    batch_size: int
    train_examples: int
    total_steps: int
    log_every: int  # steps
    steps_per_dispatch: int
    eval_every: int  # examples
    checkpoint_every: int  # examples
    diagnose_every: int  # examples; 0 for never

    @classmethod
    def make(cls, config: ml_collections.ConfigDict, *, train_examples: int) -> "Plan":
        """Convert the durations of `config`.

        Raises:
            ConfigError: the training split is smaller than a batch, or the run has no steps.
        """
        if train_examples < config.batch_size:
            raise ConfigError(
                f"data.train is {config.data.train!r}, {train_examples} examples, which is less"
                f" than one batch of {config.batch_size}; lower batch_size."
            )
        unit = train_examples if config.duration_unit == "epochs" else 1
        total_steps = round(min(config.duration * unit / config.batch_size, 2.0**31))
        if total_steps < 1:
            raise ConfigError(
                f"duration is {config.duration} {config.duration_unit}, which is 0 steps of"
                f" {config.batch_size} examples; nothing would be trained."
            )
        if total_steps >= 2**31:
            raise ConfigError(f"duration is {config.duration}; it must be less than 2**31 steps.")
        return cls(
            batch_size=config.batch_size,
            train_examples=train_examples,
            total_steps=total_steps,
            log_every=config.log_every,
            # Images that are decoded as they're needed come a step at a time.
            steps_per_dispatch=1 if streams(config) else config.steps_per_dispatch,
            eval_every=max(1, round(config.eval_every * unit)),
            checkpoint_every=max(1, round(config.checkpoint_every * unit)),
            diagnose_every=math.ceil(config.diagnostics.every * unit),
        )

    def epoch(self, step: int) -> float:
        """Passes over the training split after `step` steps."""
        return step * self.batch_size / self.train_examples

    def logs_at(self, step: int) -> bool:
        """Whether metrics are fetched after `step` steps."""
        return step % self.log_every == 0 or step == self.total_steps

    def evaluates_at(self, step: int) -> bool:
        """Whether the validation split is scored after `step` steps."""
        return self._passes(step, self.eval_every)

    def saves_at(self, step: int) -> bool:
        """Whether a checkpoint is due after `step` steps."""
        return self._passes(step, self.checkpoint_every)

    def diagnoses_at(self, step: int) -> bool:
        """Whether the network's inside is measured after `step` steps; before the first it is."""
        return bool(self.diagnose_every) and (step == 0 or self._passes(step, self.diagnose_every))

    def next_pause(self, step: int, *, stop_at_step: int | None) -> int:
        """The next step after which the host has something to do."""
        pauses = [
            step + self.steps_per_dispatch,
            self.total_steps,
            (step // self.log_every + 1) * self.log_every,
            self._next_passing(step, self.eval_every),
            self._next_passing(step, self.checkpoint_every),
        ]
        if self.diagnose_every:
            pauses.append(self._next_passing(step, self.diagnose_every))
        if stop_at_step is not None and stop_at_step > step:
            pauses.append(stop_at_step)
        return min(pauses)

    def _passes(self, step: int, every: int) -> bool:
        """Whether this step crosses a multiple of `every` examples, or is the last."""
        examples = step * self.batch_size
        crossed = examples // every > (examples - self.batch_size) // every
        return crossed or step == self.total_steps

    def _next_passing(self, step: int, every: int) -> int:
        goal = (step * self.batch_size // every + 1) * every
        return math.ceil(goal / self.batch_size)


def check_batch(config: ml_collections.ConfigDict, mesh: Mesh | None) -> None:
    """Check that batches split into micro-batches, over the mesh if there is one, and into groups.

    Raises:
        ConfigError: they don't.
    """
    micro_batches = config.accumulate
    if config.batch_size % micro_batches:
        raise ConfigError(
            f"batch_size is {config.batch_size}, which doesn't split into accumulate ="
            f" {micro_batches} micro-batches."
        )
    what = "batch_size / accumulate" if micro_batches > 1 else "batch_size"
    if mesh:
        check_divisible(what, config.batch_size // micro_batches, mesh)
    group = config.model.bn_group_size
    if group and config.batch_size // micro_batches % group:
        raise ConfigError(
            f"{what} is {config.batch_size // micro_batches}, which doesn't split into groups of"
            f" model.bn_group_size = {group}."
        )
