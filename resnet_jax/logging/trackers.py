"""Trackers: services that show the numbers and pictures of runs, such as TensorBoard.

A tracker gets a copy of the records of metrics.jsonl. It never ends a run: a tracker that fails is
dropped with a warning.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, Protocol

from resnet_jax.checkpoint.workdir import METRICS
from resnet_jax.errors import StoppedEarly
from resnet_jax.utils.messages import first_line

_log = logging.getLogger(__name__)

Value = bool | int | float | str
"""A hyper-parameter."""

Outcome = Literal["finished", "stopped", "failed"]
"""How a process of a run ends; a run that has stopped may go on in another process."""

_NOT_SCALARS = ("step", "epoch", "split", "weights", "batches", "wall_s", "std", "seeds")
_PROGRESS = ("lr", "grad_norm", "examples", "img_per_s", "data_wait")
"""Numbers of a training record that aren't scores."""

# Trackers sort groups of tags by name. The groups with a "z" come after the scores.
_PROGRESS_GROUP, _DIAGNOSTICS_GROUP = "z_training", "z_diagnostics"
PICTURES = "z_pictures"
"""Group of the pictures."""


class Tracker(Protocol):
    """A service that shows runs. A method may raise any exception, which ends the tracking alone.

    Attributes:
        title: name of the service, for messages.
    """

    title: str

    def hyperparameters(self, values: Mapping[str, Value]) -> None:
        """Show the config of the run; called once, first.

        Args:
            values: by the dotted names of the fields.
        """

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Show numbers.

        Args:
            step: training steps done. It may be less than in an earlier call: the scores of the
                best checkpoint come last.
            values: by tag, such as "train/loss".
        """

    def picture(self, step: int, tag: str, png: bytes) -> None:
        """Show a picture, the content of a PNG file."""

    def sync(self) -> None:
        """Make durable what was shown; called before each checkpoint."""

    def end(self, outcome: Outcome) -> None:
        """End the tracking by this process; called once, last."""


class Trackers:
    """The trackers of a run; a context manager that ends them.

    Attributes:
        outcome: what the trackers are told at the end; "failed" unless the run sets another, or
            a signal stops it.
    """

    def __init__(self, trackers: Mapping[str, Tracker] | None = None) -> None:
        """Track by these trackers, by the name in `config.trackers`; none by default."""
        self.outcome: Outcome = "failed"
        self._active = dict(trackers or {})

    def __bool__(self) -> bool:
        """Whether any tracker is left."""
        return bool(self._active)

    def hyperparameters(self, values: Mapping[str, Value]) -> None:
        """Show the config of the run."""
        self._each(lambda tracker: tracker.hyperparameters(values))

    def record(self, record: Mapping[str, Any]) -> None:
        """Show the numbers of a record of metrics.jsonl."""
        if self._active:
            values = scalars_of(record)
            self._each(lambda tracker: tracker.scalars(record["step"], values))

    def picture(self, step: int, tag: str, draw: Callable[[], bytes]) -> None:
        """Show the picture that `draw` returns, the content of a PNG file.

        A picture that can't be drawn is a warning.
        """
        if not self._active:
            return
        try:
            png = draw()
        except Exception as error:  # of the devices' memory or the drawing library
            _log.warning("%s can't be drawn (%s); the run goes on.", tag, reason_of(error))
            return
        self._each(lambda tracker: tracker.picture(step, tag, png))

    def sync(self) -> None:
        """Make durable what was shown."""
        self._each(lambda tracker: tracker.sync())

    def __enter__(self) -> "Trackers":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind and issubclass(kind, StoppedEarly):
            self.outcome = "stopped"
        self._each(lambda tracker: tracker.end(self.outcome))
        self._active.clear()

    def _each(self, action: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._active.items()):
            try:
                action(tracker)
            except Exception as error:  # of the service's client, the network or the disk
                del self._active[name]
                warn_of_end(tracker.title, error)


def warn_of_end(title: str, error: Exception) -> None:
    """Warn that a service gets no more of the record."""
    _log.warning(
        "%s's copy of the record ends here (%s); %s goes on.", title, reason_of(error), METRICS
    )


def reason_of(error: Exception) -> str:
    """Return a short reason for a failure, for a message."""
    strerror = error.strerror if isinstance(error, OSError) else None
    return strerror or first_line(error).rstrip(".") or type(error).__name__


def scalars_of(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a record to plot, by tag, including those of single seeds."""
    split = record["split"]
    scores = "_".join(filter(None, (split, record.get("weights"))))

    def tags() -> Iterator[tuple[str, str, float]]:
        for name, value in record.items():
            if name not in _NOT_SCALARS:
                yield name, name, value
        for name, value in record.get("std", {}).items():
            yield name, f"{name}_std", value
        for name, values in record.get("seeds", {}).items():
            yield from ((name, f"{name}_seed{i}", value) for i, value in enumerate(values))

    found: dict[str, float] = {}
    for metric, name, value in tags():
        group = scores
        if split == "diagnostics":
            group = _DIAGNOSTICS_GROUP
        elif split == "train" and metric in _PROGRESS:
            group = _PROGRESS_GROUP
        elif metric == "examples":
            continue  # the size of the split
        found[f"{group}/{name}"] = value
    return found
