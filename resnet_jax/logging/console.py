"""Console output of a run: a progress bar on a terminal, plain lines elsewhere."""

import os
import shlex
import sys
import time
from collections.abc import Sequence
from typing import Any, TextIO, cast

import numpy as np
from etils import epath
from ml_collections import ConfigDict
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from resnet_jax.checkpoint.stop import NOTHING_LOST
from resnet_jax.checkpoint.workdir import CURVES, METRICS, SUMMARY
from resnet_jax.data.dataset_info import FROM_PYTHON
from resnet_jax.logging.display import clock_text, percent_text, seconds_left
from resnet_jax.parallel.job.agreement import is_main
from resnet_jax.utils.console import plain_console
from resnet_jax.utils.streams import LossyStream, escaped

_SECONDS_BETWEEN_LINES = 10.0
_MUCH_WAITING = 0.05  # share of the time from which on waiting is shown


class TrainingConsole:
    """Shows training and evaluation records; a context manager."""

    def __init__(self, *, total_steps: int, start_step: int) -> None:
        # Rich ends the process if nobody reads its output, and fails if the terminal is gone.
        # Only the main process of a job prints.
        # In a notebook Rich would take a cell for a terminal, and show each line as a document.
        self.console = plain_console(
            cast(TextIO, LossyStream(sys.stdout)),
            quiet=not is_main(),
            force_terminal=_is_terminal(sys.stdout),
            force_jupyter=False,
        )
        self._total = total_steps
        self._start_step = start_step
        self._last_line = float("-inf")
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=self.console,
            speed_estimate_period=600,  # log points may be minutes apart
            disable=not self.console.is_terminal,
        )
        self._task = self._bar.add_task(
            "compiling", total=total_steps, completed=start_step, numbers=""
        )

    def __enter__(self) -> "TrainingConsole":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self.console.print(escaped(text))

    def opening(
        self,
        workdir: epath.Path,
        config: ConfigDict,
        *,
        train_examples: int,
        devices: np.ndarray,
        on_record: bool,
        notices: Sequence[str],
    ) -> None:
        """Print what the run is about to do.

        Args:
            workdir: directory of the run.
            config: the run's configuration.
            train_examples: examples of the training split.
            devices: the devices that train.
            on_record: the run has its final scores.
            notices: more lines to print.
        """
        seeds = f", seeds {', '.join(map(str, config.seeds))}" if config.seeds else ""
        self.say(
            f"{config.model.name} on {config.data.name}: {train_examples:,} training images,"
            f" {self._total:,} steps of {config.batch_size},"
            f" {devices.size} × {devices.flat[0].device_kind}{seeds}"
        )
        if self._start_step:
            self.say(
                f"resuming {workdir} at step {self._start_step:,} of {self._total:,}"
                if self._start_step < self._total
                else f"{workdir} is trained already; "
                + ("its record is left as it is" if on_record else "it is scored again")
            )
        for notice in notices:
            self.say(notice)

    def stopped(self, step: int, workdir: epath.Path, reason: str = "") -> None:
        """Print that the run stopped early; after step 0 there is no checkpoint.

        Args:
            step: steps done.
            workdir: directory of the run.
            reason: of the callback that stopped the run; "" if a signal did.
        """
        self._bar.stop()
        if reason:
            self.say(f"stopped by {reason}")
        saved = f"stopped at step {step:,} of {self._total:,}, saved in {workdir};"
        self.say(f"{saved} the same command goes on from here" if step else NOTHING_LOST)

    def closing(self, summary: dict[str, Any], workdir: epath.Path) -> None:
        """Print the scores, the paths of the results, and commands to continue with."""
        self._bar.stop()
        scores = summary["final"].get("test") or summary["final"].get("validation")
        self.say("")
        if scores:
            self.say(
                f"top-1 {percent_text(scores)} of {scores['examples']:,}"
                f" {'test' if 'test' in summary['final'] else 'validation'} images"
                f" after {summary['epochs']:.3g} epochs and {clock_text(summary['wall_s'])}"
            )
        if averaged := summary["final"].get("test_ema"):
            self.say(f"moving averages: top-1 {percent_text(averaged)} on test")
        if summary["best"] and "test" in summary["best"]:
            best = summary["best"]
            self.say(
                f"best validation checkpoint: step {best['step']:,},"
                f" top-1 {percent_text(best['test'])} on test"
            )
        self.say(f"curves:   {workdir / CURVES}")
        self.say(f"numbers:  {workdir / SUMMARY}, {workdir / METRICS}")
        can_evaluate = summary["config"]["data"]["name"] != FROM_PYTHON
        run = shlex.quote(os.fspath(workdir))
        command = f"eval {run} --per-class --confusion confusion.png"
        self.say(f"next:     resnet-jax {command if can_evaluate else f'predict {run} IMAGE'}")
        if "tensorboard" in summary["config"]["trackers"]:
            self.say(f"          tensorboard --logdir {run}")

    def train(self, record: dict[str, Any]) -> None:
        """Show a log point of training."""
        numbers = (
            f"loss {record['loss']:.3f}  top-1 {record['top1']:.1%}"
            f"  {record['img_per_s']:,.0f} img/s"
        )
        if record.get("data_wait", 0) >= _MUCH_WAITING:
            numbers += f" ({record['data_wait']:.0%} of the time awaiting images)"
        self._bar.update(
            self._task,
            description=f"epoch {record['epoch']:.1f}",
            completed=record["step"],
            numbers=numbers,
        )
        now = time.monotonic()
        done = record["step"] >= self._total
        if self.console.is_terminal or (
            now - self._last_line < _SECONDS_BETWEEN_LINES and not done
        ):
            return
        self._last_line = now
        left_s = seconds_left(record, self._total)
        eta = "" if left_s is None else f"  ETA {clock_text(left_s)}"
        self.say(
            f"step {record['step']}/{self._total}  epoch {record['epoch']:.2f}  {numbers}{eta}"
        )

    def evaluation(self, record: dict[str, Any]) -> None:
        """Show the scores of a split."""
        weights = " (moving average)" if record["weights"] == "ema" else ""
        self.say(
            f"step {record['step']}/{self._total}  {record['split']}{weights}:"
            f" top-1 {percent_text(record)}  loss {record['loss']:.4f}"
            f"  ({record['examples']:,} images)"
        )


def _is_terminal(stream: TextIO | None) -> bool:
    """Whether a stream is a terminal; it may be closed, None, or an object with `write` alone."""
    try:
        return stream is not None and stream.isatty()
    except (AttributeError, ValueError):
        return False
