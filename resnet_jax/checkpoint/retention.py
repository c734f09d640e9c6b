"""Retention of checkpoints: the newest few, the best, the newest verified, and sparse ones."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orbax.checkpoint as ocp

_managers = ocp.checkpoint_managers


def best_fn(scores: Mapping[str, Any]) -> tuple[float, float]:
    """Sort key of checkpoints, larger is better: top-1 accuracy, then lower loss."""
    return scores["top1"], -scores["loss"]


@dataclasses.dataclass
class _NewestVerified:
    """An Orbax policy: keep the newest verified checkpoint, and all later checkpoints."""

    steps: set[int]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        newest = max((c.step for c in checkpoints if c.step in self.steps), default=-1)
        return [c.step >= newest for c in checkpoints]


@dataclasses.dataclass
class _Sparse:
    """An Orbax policy: keep the steps of `sparse_steps`."""

    period: Callable[[int], int]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        kept = sparse_steps([c.step for c in checkpoints], self.period)
        return [c.step in kept for c in checkpoints]


def sparse_steps(steps: Sequence[int], period: Callable[[int], int]) -> set[int]:
    """Return the first step of each period; none of the period of step 0.

    The choice doesn't change when the other steps are deleted.

    Args:
        steps: of checkpoints, ascending.
        period: number of the period of a step; never decreases.
    """
    before = [0, *steps[:-1]]
    return {s for s, last in zip(steps, before, strict=True) if period(s) > period(last)}


def manager_options(
    keep: int | None = None,
    verified: set[int] | None = None,
    *,
    period: Callable[[int], int] | None = None,
    create: bool = False,
) -> ocp.CheckpointManagerOptions:
    """Options of Orbax's manager of a run's checkpoints.

    Args:
        keep: how many of the newest checkpoints to keep when another one is saved; None only reads.
        verified: steps of verified checkpoints; the policy reads it at each save.
        period: of a step, of which the first checkpoint is kept; None keeps none for that.
        create: create the directory if it doesn't exist.
    """
    policies = [
        _managers.LatestN(keep),
        _managers.BestN(get_metric_fn=best_fn, n=1, keep_checkpoints_without_metrics=False),
        _NewestVerified(set() if verified is None else verified),
        *([_Sparse(period)] if period else []),
    ]
    return ocp.CheckpointManagerOptions(
        preservation_policy=_managers.AnyPreservationPolicy(policies),
        best_fn=best_fn,  # without it Orbax forgets the metrics when the process ends
        cleanup_tmp_directories=keep is not None,
        read_only=keep is None,
        create=create,
    )


class Manager(ocp.CheckpointManager):
    """Orbax's manager, without errors for damaged scores when it opens checkpoints."""

    def metrics(self, step: int) -> Any:
        """The scores saved with a checkpoint; None if there are none or they are damaged."""
        with contextlib.suppress(ValueError, LookupError, TypeError, RecursionError):
            scores = super().metrics(step)
            if scores and all(map(math.isfinite, best_fn(scores))):
                return scores
        return None
