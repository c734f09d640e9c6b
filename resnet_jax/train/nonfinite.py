"""Steps that weren't finite: the error, and nonfinite.jsonl, the record of their examples."""

import contextlib
import json
import logging
from collections.abc import Sequence
from typing import Any

from etils import epath

from resnet_jax.checkpoint.workdir import NONFINITE, write_atomically
from resnet_jax.data.loaders.sampler import IndexSampler
from resnet_jax.errors import NumericalError
from resnet_jax.parallel.job.agreement import is_main
from resnet_jax.utils.paths import read_document

_log = logging.getLogger(__name__)


class NonfiniteError(Exception):
    """A number isn't finite.

    Attributes:
        step: the number of steps that were done.
        steps: (index of the seed, step) of each step that caused it, as from `nonfinite_steps`.
    """

    def __init__(self, what: str, step: int, steps: list[tuple[int, int]]) -> None:
        super().__init__(f"{what} stopped being finite at or shortly before step {step}")
        # The last step if none is known: parameters may overflow with a finite gradient.
        self.step, self.steps = step, steps or [(0, step - 1)]


class NonfiniteRecord:
    """nonfinite.jsonl: the examples of each batch whose step wasn't finite.

    Attributes:
        count: how often the run has skipped a step or gone back.
    """

    def __init__(
        self, workdir: epath.Path, orders: Sequence[IndexSampler], *, limit: int, count: int
    ) -> None:
        """Continue the record of a run.

        Args:
            workdir: directory of the run.
            orders: order of the examples of each seed.
            limit: largest `count`.
            count: so far.
        """
        self._path, self._orders = workdir / NONFINITE, orders
        self._limit, self.count = limit, count
        self._unwritten: list[str] = []

    def write(self, steps: list[tuple[int, int]], outcome: str) -> None:
        """Record the batches of these steps: {"step", "outcome", "ids", "epochs"}.

        Steps count from 0; ids are positions in the training split. With several seeds a line also
        has the "seed". Lines that can't be written, for example because a disk is full, stay in
        memory until they can.
        """
        lines = [self._line(number, step, outcome) for number, step in steps]
        if is_main():
            behind = bool(self._unwritten)
            self._unwritten += lines
            self._write_pending(warn=not behind)

    def sync(self) -> None:
        """Try again to write the lines that couldn't be written."""
        if self._unwritten:
            self._write_pending(warn=False)

    def _write_pending(self, *, warn: bool) -> None:
        before = b""
        try:
            with contextlib.suppress(FileNotFoundError):
                before = read_document(self._path)
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

    def add(self, times: int, what: str) -> None:
        """Add to `count`, with a warning that says `what` happened.

        Raises:
            NumericalError: the count is over the limit.
        """
        self.count += times
        _log.warning("%s (%d of at most %d); see %s", what, self.count, self._limit, self._path)
        if self.count > self._limit:
            raise NumericalError(
                f"{what}: {self.count} of at most {self._limit} (nonfinite.limit). What was"
                f" saved is finite; the examples are in {self._path}. A lower schedule.base_lr, a"
                " schedule.warmup or optimizer.clip_norm usually helps."
            )
