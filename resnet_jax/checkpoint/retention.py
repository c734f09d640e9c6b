"""Which checkpoints are kept: the newest few, the best, and the newest that is known to be good."""

import contextlib
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import orbax.checkpoint as ocp

_managers = ocp.checkpoint_managers


def merit(scores: Mapping[str, Any]) -> tuple[float, float]:
    """What makes one checkpoint better than another: top-1, and the loss between equals."""
    return scores["top1"], -scores["loss"]


@dataclasses.dataclass
class _NewestVerified:
    """An Orbax policy: keep the newest checkpoint that was found to be good, and all after it."""

    steps: set[int]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        newest = max((c.step for c in checkpoints if c.step in self.steps), default=-1)
        return [c.step >= newest for c in checkpoints]


def retention(keep: int | None, verified: set[int]) -> Any:
    """An Orbax policy: what is kept when another checkpoint is saved.

    Args:
        keep: how many of the newest; None for all.
        verified: steps that were found to be good, as they are when it's asked.
    """
    return _managers.AnyPreservationPolicy(
        [
            _managers.LatestN(keep),
            _managers.BestN(get_metric_fn=merit, n=1, keep_checkpoints_without_metrics=False),
            _NewestVerified(verified),
        ]
    )


class Manager(ocp.CheckpointManager):
    """Orbax's own, but for damaged scores, which would keep it from opening any checkpoint."""

    def metrics(self, step: int) -> Any:
        """The scores that were saved with a checkpoint; None without, or if they are damaged."""
        with contextlib.suppress(ValueError, LookupError, TypeError, RecursionError):
            scores = super().metrics(step)
            if scores and all(map(math.isfinite, merit(scores))):
                return scores
        return None
