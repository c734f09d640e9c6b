"""Recovery from losses, gradients and parameters that stop being finite: `config.nonfinite`."""

import dataclasses
from collections.abc import Sequence
from typing import NoReturn

import jax
import numpy as np

from resnet_jax.checkpoint.checkpointer import Checkpointer
from resnet_jax.errors import NumericalError
from resnet_jax.parallel.mesh import put_global
from resnet_jax.train.metrics import TrainMetrics, nonfinite_steps
from resnet_jax.train.nonfinite import NonfiniteError, NonfiniteRecord
from resnet_jax.train.saving import Saver
from resnet_jax.train.spec import TrainSpec
from resnet_jax.train.state import TrainState
from resnet_jax.train.step import all_finite

_all_finite = jax.jit(all_finite)


class Recovery:
    """What a run does about numbers that aren't finite, by `config.nonfinite.policy`.

    "abort" ends the run, "skip" leaves the step out (`train_step`), and "rollback" goes back to the
    newest checkpoint.
    """

    def __init__(
        self, spec: TrainSpec, record: NonfiniteRecord, checkpoints: Checkpointer, saver: Saver
    ) -> None:
        """Check nothing yet."""
        self._spec, self._record = spec, record
        self._checkpoints, self._saver = checkpoints, saver
        self._policy = spec.config.nonfinite.policy

    def count_skipped(self, metrics: Sequence[TrainMetrics], step: int) -> None:
        """With the policy "skip", record the steps that were skipped since the last log point.

        Raises:
            NumericalError: more were skipped than the config allows.
        """
        nonfinite = sum(int(sums.nonfinite) for sums in metrics)
        if nonfinite and self._policy == "skip":
            self._record.write(nonfinite_steps(metrics), "skipped")
            what = f"{nonfinite} of the steps before {step} weren't finite"
            self._record.add(nonfinite, f"{what}, and were skipped")

    def count_skipped_before(self, state: TrainState, step: int) -> TrainState:
        """Record what another policy has skipped before the checkpoint of `state`, and forget it.

        With this policy, such steps would count as failures of steps to come.

        Raises:
            NumericalError: more were skipped than the config allows.
        """
        metrics = self._spec.fetch_metrics(state)
        skipped = sum(int(sums.nonfinite) for sums in metrics)
        if self._policy == "skip" or not skipped:
            return state
        self._record.write(nonfinite_steps(metrics), "skipped")
        self._record.add(skipped, f"{skipped} of the steps before {step} were skipped")

        def zeros(leaf: jax.Array) -> jax.Array:
            return put_global(np.zeros(leaf.shape, leaf.dtype), leaf.sharding)

        meter = dataclasses.replace(
            state.meter,
            nonfinite=zeros(state.meter.nonfinite),
            nonfinite_steps=zeros(state.meter.nonfinite_steps),
        )
        return state.replace(meter=meter)

    def check_metrics(self, metrics: Sequence[TrainMetrics], step: int) -> None:
        """Check the steps since the last log point, unless such steps are skipped.

        Raises:
            NonfiniteError: a loss or gradient wasn't finite.
        """
        if self._has_failed(metrics):
            self._raise("The loss or its gradient", metrics, step)

    def check_state(self, state: TrainState, step: int) -> None:
        """Check losses and gradients since the last log point, parameters, statistics and averages.

        Raises:
            NonfiniteError: a loss, gradient, parameter or statistic isn't finite.
        """
        metrics = self._spec.fetch_metrics(state)
        finite = bool(_all_finite((state.params, state.batch_stats, state.ema)))
        if not finite or self._has_failed(metrics):
            self._raise("A loss, gradient, parameter or statistic", metrics, step)

    def _has_failed(self, metrics: Sequence[TrainMetrics]) -> bool:
        return self._policy != "skip" and any(sums.nonfinite for sums in metrics)

    def _raise(self, what: str, metrics: Sequence[TrainMetrics], step: int) -> NoReturn:
        seeds = self._spec.seeds.phrase([bool(sums.nonfinite) for sums in metrics])
        raise NonfiniteError(f"{what}{seeds}", step, nonfinite_steps(metrics))

    def roll_back(self, found: NonfiniteError, step: int) -> TrainState:
        """Return the state of the newest checkpoint, moved to `step`.

        The batches since the checkpoint led to the fault, and none of them is trained on again
        (Chowdhery et al. 2022, 2204.02311, section 5.1). The caller saves the state.

        Raises:
            NumericalError: the policy isn't "rollback", the run has gone back too often, or there
                is no checkpoint.
        """
        restored = None
        if self._policy == "rollback":
            self._saver.settle_or_count(step, last=True)
            restored = self._checkpoints.restore_newest(self._spec.abstract_state)
        if restored is None:
            self._record.write(found.steps, "the run ended")
            raise self.error(found)
        good, state, progress = restored
        self._record.write(found.steps, f"went back to step {good}")
        self._record.add(1, f"{found}; went back to the checkpoint of step {good}")
        self._saver.went_back(good, progress["best"])
        return state.moved_to(step).replace(meter=self._spec.empty_metrics())

    def error(self, found: NonfiniteError) -> NumericalError:
        """Return the error that ends the run; says which checkpoint is finite."""
        self._checkpoints.finish_writing()  # of an earlier step, and finite
        saved = self._checkpoints.steps()
        safe = (
            f"The checkpoint of step {saved[-1]} is from before" if saved else "Nothing was saved"
        )
        return NumericalError(
            f"{found}. {safe}; a lower schedule.base_lr, a schedule.warmup or optimizer.clip_norm"
            " usually helps."
        )
