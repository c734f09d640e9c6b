"""When a run logs, evaluates, saves and ends."""

import dataclasses
import math
from collections.abc import Collection

import ml_collections

from resnet_jax.config.schema import streams
from resnet_jax.errors import ConfigError
from resnet_jax.train.data_sizes import duration_unit


@dataclasses.dataclass(frozen=True)
class Intervals:
    """When a run logs, evaluates, saves and ends; the config's durations in examples and steps.

    Attributes:
        batch_size: examples per step.
        train_examples: examples of the training split.
        total_steps: steps of the run.
        log_every: steps between log points.
        steps_per_dispatch: largest number of steps per dispatch, at most `total_steps`; the
            batches of a dispatch have this many steps.
        eval_every, checkpoint_every: examples between evaluations and between checkpoints.
        keep_every: examples between checkpoints that are never deleted; 0 for none.
        diagnose_every: examples between diagnostics; 0 disables them.
    """

    batch_size: int
    train_examples: int
    total_steps: int
    log_every: int
    steps_per_dispatch: int
    eval_every: int
    checkpoint_every: int
    keep_every: int
    diagnose_every: int

    @classmethod
    def make(cls, config: ml_collections.ConfigDict, *, train_examples: int) -> "Intervals":
        """Convert the durations of `config`.

        Raises:
            ConfigError: the training split is smaller than a batch, or the run has no steps or too
                many.
        """
        if train_examples < config.batch_size:
            raise ConfigError(
                f"data.train is {config.data.train!r}, {train_examples} examples, which is less"
                f" than one batch of {config.batch_size}; lower batch_size."
            )
        unit = duration_unit(config, train_examples)
        total_steps = round(min(config.duration * unit / config.batch_size, 2.0**31))
        if total_steps < 1:
            raise ConfigError(
                f"duration is {config.duration} {config.duration_unit}, which is 0 steps of"
                f" {config.batch_size} examples; nothing would be trained."
            )
        if total_steps >= 2**31:
            raise ConfigError(f"duration is {config.duration}; it must be less than 2**31 steps.")
        steps_per_dispatch = min(config.steps_per_dispatch, total_steps)
        return cls(
            batch_size=config.batch_size,
            train_examples=train_examples,
            total_steps=total_steps,
            log_every=config.log_every,
            # Images that are decoded as they're needed come a step at a time.
            steps_per_dispatch=1 if streams(config) else steps_per_dispatch,
            eval_every=max(1, round(config.eval_every * unit)),
            checkpoint_every=max(1, round(config.checkpoint_every * unit)),
            keep_every=math.ceil(config.keep_every * unit),
            diagnose_every=math.ceil(config.diagnostics.every * unit),
        )

    def epoch(self, step: int) -> float:
        """Return the passes over the training split after `step` steps."""
        return step * self.batch_size / self.train_examples

    def logs_at(self, step: int) -> bool:
        """Return whether metrics are logged after `step` steps."""
        return step % self.log_every == 0 or step == self.total_steps

    def evaluates_at(self, step: int) -> bool:
        """Return whether the validation split is scored after `step` steps."""
        return self._passes(step, self.eval_every)

    def saves_at(self, step: int) -> bool:
        """Return whether a checkpoint is due after `step` steps."""
        return self._passes(step, self.checkpoint_every)

    def kept_after(self, step: int) -> int:
        """Return how many multiples of `keep_every` examples `step` steps have reached."""
        return step * self.batch_size // self.keep_every if self.keep_every else 0

    def diagnoses_at(self, step: int) -> bool:
        """Return whether diagnostics are due after `step` steps; with diagnostics, step 0 is."""
        return bool(self.diagnose_every) and (step == 0 or self._passes(step, self.diagnose_every))

    def next_action(
        self, step: int, *, stop_at_step: int | None, ends: Collection[int] = ()
    ) -> int:
        """Return the next step after which the dispatch ends or a periodic action is due.

        Args:
            step: number of steps done.
            stop_at_step: the run stops after this step.
            ends: other steps after which a dispatch ends.
        """
        steps = [
            step + self.steps_per_dispatch,
            self.total_steps,
            (step // self.log_every + 1) * self.log_every,
            self._next_passing(step, self.eval_every),
            self._next_passing(step, self.checkpoint_every),
        ]
        if self.diagnose_every:
            steps.append(self._next_passing(step, self.diagnose_every))
        given = ends if stop_at_step is None else (*ends, stop_at_step)
        return min(*steps, *(end for end in given if end > step))

    def _passes(self, step: int, every: int) -> bool:
        """Return whether this step crosses a multiple of `every` examples, or is the last."""
        examples = step * self.batch_size
        crossed = examples // every > (examples - self.batch_size) // every
        return crossed or step == self.total_steps

    def _next_passing(self, step: int, every: int) -> int:
        goal = (step * self.batch_size // every + 1) * every
        return math.ceil(goal / self.batch_size)
