"""Scores of a train state on the held-out splits."""

import math
from collections.abc import Mapping

from resnet_jax.train.evaluate import Evaluation, Evaluator, SeedEvaluator, bounded
from resnet_jax.train.nonfinite import NonfiniteError
from resnet_jax.train.state import TrainState


class Scorer:
    """Scores the variables of a state and their moving averages.

    Attributes:
        splits: names of the splits.
    """

    def __init__(
        self, evaluators: Mapping[str, Evaluator | SeedEvaluator], *, bound_losses: bool
    ) -> None:
        """Score by these evaluators.

        Args:
            evaluators: the evaluator of each split.
            bound_losses: replace losses of single seeds that overflow by the largest float32, so
                that a seed that diverged doesn't end the other seeds.
        """
        self.splits = tuple(evaluators)
        self._evaluators, self._bound_losses = evaluators, bound_losses

    def __call__(self, split: str, state: TrainState, step: int) -> dict[str, Evaluation]:
        """Return the scores of the variables as `split` and of moving averages as `{split}_ema`.

        Args:
            split: name of the split.
            state: the state.
            step: steps done, for the message of the error.

        Raises:
            NonfiniteError: a metric isn't finite, because logits overflow.
        """
        evaluator = self._evaluators[split]
        scores = {split: evaluator(state.variables(), state.normalization)}
        if state.ema is not None:
            averaged = evaluator(state.variables(ema=True), state.normalization)
            scores[f"{split}_ema"] = averaged
        if self._bound_losses:
            scores = {name: bounded(scored) for name, scored in scores.items()}
        for name, scored in scores.items():
            for metric, value in scored.metrics.items():
                if not math.isfinite(value):
                    raise NonfiniteError(f"The {metric} on {name}", step, [])
        return scores
