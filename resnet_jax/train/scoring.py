"""Scores of a train state on the held-out splits."""

import math
from collections.abc import Mapping

from resnet_jax.train.evaluate import Evaluation, Evaluator, bounded
from resnet_jax.train.nonfinite import NonfiniteError
from resnet_jax.train.spec import TrainSpec
from resnet_jax.train.state import TrainState
from resnet_jax.train.watchdog import Watchdog


class Scorer:
    """Scores the variables of a state and their moving averages.

    Attributes:
        splits: names of the splits.
    """

    def __init__(
        self, evaluators: Mapping[str, Evaluator], spec: TrainSpec, watchdog: Watchdog
    ) -> None:
        """Score by these evaluators, by the name of the split, and tell `watchdog` of each."""
        self.splits = tuple(evaluators)
        self._evaluators, self._seeds, self._watchdog = evaluators, spec.seeds, watchdog
        # A seed that diverged doesn't end the other seeds.
        self._bounded = spec.seeds.stacked and spec.step.skip_nonfinite

    def __call__(self, split: str, state: TrainState, step: int) -> dict[str, Evaluation]:
        """Return the scores of the variables as `split` and of moving averages as `{split}_ema`.

        Args:
            split: name of the split.
            state: the state.
            step: steps done, for the message of the error.

        Raises:
            NonfiniteError: a metric isn't finite: logits overflow, or a registered metric fails.
        """
        variables = {split: state.variables()}
        if state.ema is not None:
            variables[f"{split}_ema"] = state.variables(ema=True)
        evaluator, normalization = self._evaluators[split], state.normalization
        scores = {}
        for name, arrays in variables.items():
            self._watchdog.now(f"scoring step {step} as {name}")
            scores[name] = self._seeds.evaluate(evaluator, arrays, normalization)
        if self._bounded:
            scores = {name: bounded(scored) for name, scored in scores.items()}
        for name, scored in scores.items():
            for metric, value in scored.metrics.items():
                if not math.isfinite(value):
                    raise NonfiniteError(f"The {metric} on {name}", step, [])
        return scores
