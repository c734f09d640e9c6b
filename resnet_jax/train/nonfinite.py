"""What is done about numbers that stop being finite, and the record of where they did."""

import json
import logging
from collections.abc import Sequence
from typing import Any

from etils import epath

from resnet_jax.checkpoint.workdir import NONFINITE, write_atomically
from resnet_jax.data.loaders.sampler import IndexSampler
from resnet_jax.errors import NumericalError
from resnet_jax.parallel.job.agreement import is_main
from resnet_jax.utils.paths import bucket_errors

_log = logging.getLogger(__name__)


class NonfiniteError(Exception):
    """Something isn't finite after `step` steps; `steps` are those it came from, as `numbered`."""

    def __init__(self, what: str, step: int, steps: list[tuple[int, int]]) -> None:
        super().__init__(f"{what} stopped being finite at or shortly before step {step}")
        # The last one, if none is known: parameters may overflow by a gradient that is finite.
        self.step, self.steps = step, steps or [(0, step - 1)]


class NonfiniteRecord:
    """nonfinite.jsonl: for each step that wasn't finite, the examples of its batch.

    `count` is how many times the run has gone on all the same.
    """

    def __init__(
        self, workdir: epath.Path, orders: Sequence[IndexSampler], *, limit: int, count: int
    ) -> None:
        """Go on with the record of a run, which has gone on `count` times of at most `limit`.

        `orders` are those of the examples, of each seed.
        """
        self._path, self._orders = workdir / NONFINITE, orders
        self._limit, self.count = limit, count
        self._unwritten: list[str] = []

    def write(self, steps: list[tuple[int, int]], outcome: str) -> None:
        """Write down what the batches of these steps were: {"step", "outcome", "ids", "epochs"}.

        Steps are numbered from 0, and examples by their place in the training split. Of several
        seeds a line also has the "seed".

        What can't be written, because a disk is full, stays in memory until it can.
        """
        lines = [self._line(number, step, outcome) for number, step in steps]
        if is_main():
            behind = bool(self._unwritten)
            self._unwritten += lines
            self._catch_up(warn=not behind)

    def sync(self) -> None:
        """Try again to write what couldn't be written."""
        if self._unwritten:
            self._catch_up(warn=False)

    def _catch_up(self, *, warn: bool) -> None:
        try:
            with bucket_errors(self._path):
                before = self._path.read_bytes() if self._path.exists() else b""
            known = before.splitlines()  # a run that was resumed may come here again
            new = [line for line in map(str.encode, self._unwritten) if line not in known]
            write_atomically(self._path, before + b"".join(line + b"\n" for line in new))
        except OSError as error:
            if warn:
                _log.warning(
                    "%s can't be written (%s); its lines are kept in memory until it can.",
                    *(self._path, error.strerror or error),
                )
        else:
            self._unwritten.clear()

    def _line(self, number: int, step: int, outcome: str) -> str:
        order = self._orders[number]
        ids, epochs = order.take(step, 1)
        line: dict[str, Any] = {"step": step, "outcome": outcome}
        if len(self._orders) > 1:
            line["seed"] = order.seed
        return json.dumps(line | {"ids": ids[0].tolist(), "epochs": epochs[0].tolist()})

    def go_on(self, times: int, what: str) -> None:
        """Count `times` more.

        Raises:
            NumericalError: that is more often than the config allows.
        """
        self.count += times
        _log.warning("%s (%d of at most %d); see %s", what, self.count, self._limit, self._path)
        if self.count > self._limit:
            raise NumericalError(
                f"{what}, the {self.count}th of at most {self._limit} (nonfinite.limit). What was"
                f" saved is finite; the examples are in {self._path}. A lower schedule.base_lr, a"
                " schedule.warmup or optimizer.clip_norm usually helps."
            )
