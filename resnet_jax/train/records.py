"""The records of a run: lines of metrics.jsonl, and the content of summary.json."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from etils import epath

from resnet_jax.checkpoint.workdir import CURVES, DIAGNOSTICS
from resnet_jax.config.schema import streams
from resnet_jax.data.datasets import Dataset
from resnet_jax.data.loaders.loader import DeviceBatches
from resnet_jax.data.loaders.sampler import batches_digest
from resnet_jax.logging.console import TrainingConsole
from resnet_jax.logging.metrics_log import MetricsLog
from resnet_jax.logging.plots import Figures, confusion_png, contact_sheet_png, draw_curves
from resnet_jax.logging.provenance import provenance
from resnet_jax.logging.summary import write_summary
from resnet_jax.logging.trackers import PICTURES, Trackers
from resnet_jax.parallel.job.agreement import is_main
from resnet_jax.train.clock import Clock
from resnet_jax.train.evaluate import Evaluation
from resnet_jax.train.goodput import Goodput
from resnet_jax.train.inputs import augmented_inputs
from resnet_jax.train.metrics import TrainMetrics
from resnet_jax.train.saving import RunFacts
from resnet_jax.train.spec import TrainSpec
from resnet_jax.train.state import TrainState

if TYPE_CHECKING:
    from resnet_jax.train.diagnostics.probe import Measured


class Recorder:
    """Makes the records of a run; writes them to the log and shows them on the console."""

    def __init__(
        self,
        spec: TrainSpec,
        workdir: epath.Path,
        *,
        log: MetricsLog,
        trackers: Trackers,
        console: TrainingConsole,
        clock: Clock,
        goodput: Goodput,
    ) -> None:
        """Write nothing yet; figures go to `workdir`."""
        self._goodput = goodput
        self._spec, self._workdir = spec, workdir
        self._log, self._console, self._clock = log, console, clock
        self._trackers = trackers
        self._orders = spec.orders()
        self._figures = Figures(workdir)
        self._title = f"{spec.config.model.name} on {spec.config.data.name}"

    def inputs(self, state: TrainState, batches: DeviceBatches) -> None:
        """Show the trackers what the network sees of the first batch.

        Args:
            state: before the first step.
            batches: of the first dispatch.
        """
        if self._trackers:
            with self._clock.paused(state, "start_up"):
                self._trackers.picture(
                    0,
                    f"{PICTURES}/augmented_inputs",
                    lambda: contact_sheet_png(augmented_inputs(state, batches, self._spec)),
                )

    def training(self, step: int, metrics: Sequence[TrainMetrics], *, waited_s: float) -> None:
        """Record means over the examples since the last log point, unless a seed has none.

        Args:
            step: number of steps done.
            metrics: sums of each seed, on the host.
            waited_s: seconds that training waited for images since the last log point.
        """
        images_per_step = self._spec.intervals.batch_size * len(metrics)
        speed, elapsed_s = self._clock.lap(step, images_per_step)
        self._goodput.reached(step)
        if not all(sums.steps for sums in metrics):
            return
        means = [sums.means() for sums in metrics]
        for values, single in zip(means, self._spec.singles, strict=True):
            values["lr"] = float(single.schedule(step - 1))
        record = {
            **self._position(step),
            "examples": step * self._spec.intervals.batch_size,
            "split": "train",
            **self._spec.seeds.summarize(means),
            "batches": batches_digest(self._orders, last_trained(self._log.history), step),
            "img_per_s": round(speed, 1),
            "wall_s": self._wall_s(),
        }
        if streams(self._spec.config):
            record["data_wait"] = round(min(1.0, waited_s / elapsed_s), 4)
        self._log.write(record)
        self._console.train(record)

    def evaluation(self, step: int, scores: Mapping[str, Evaluation], *, show: bool = True) -> None:
        """Record the scores of `step` by split, with "_ema" for moving averages."""
        for name, scored in scores.items():
            split, _, weights = name.partition("_")
            record = {
                **self._position(step),
                "split": split,
                "weights": weights or "raw",
                "wall_s": self._wall_s(),
                **scored.scalars(),
            }
            self._log.write(record)
            if show:
                self._console.evaluation(record)

    def diagnostics(self, step: int, measured: "Sequence[Measured]") -> None:
        """Record and draw the diagnostics of each seed; the figure has their means."""
        from resnet_jax.train.diagnostics.figure import draw_diagnostics  # noqa: PLC0415

        record = {
            **self._position(step),
            "split": "diagnostics",
            **self._spec.seeds.summarize([measure.scalars for measure in measured]),
            "wall_s": self._wall_s(),
        }
        self._log.write(record)
        matrices = [
            measure.similarities for measure in measured if measure.similarities is not None
        ]
        similarities = np.mean(matrices, axis=0) if matrices else None
        if is_main():
            self._figures.draw(
                DIAGNOSTICS,
                lambda: draw_diagnostics(
                    self._workdir, self._log.history, similarities, title=self._title
                ),
            )

    def summary(
        self,
        dataset: Dataset,
        facts: RunFacts,
        *,
        evaluation: Mapping[str, Evaluation],
        best: dict[str, Any] | None,
    ) -> None:
        """Write summary.json, after all records are durable, and draw the curves.

        Args:
            dataset: the data.
            facts: of the run.
            evaluation: final scores by name, "test_best" included.
            best: {"step", "top1", "loss"} of the best checkpoint, or None.

        Raises:
            WriteError: metrics.jsonl can't be written.
        """
        self._log.sync()  # summary.json means that everything else is there
        history, config, intervals = self._log.history, self._spec.config, self._spec.intervals
        final = {name: scored.scalars() for name, scored in evaluation.items()}
        best_scores = final.pop("test_best", None)
        if best and best_scores:
            best = best | {"test": best_scores}
        speeds = [r["img_per_s"] for r in history if r["split"] == "train"]
        summary = {
            "model": config.model.name,
            "data": {
                "name": dataset.name,
                "fingerprint": dataset.fingerprint,
                "examples": dataset.lengths,
                "skipped": [dataclasses.asdict(example) for example in dataset.skipped],
            },
            "init_from": facts.init_from,
            "convolutions": facts.convolutions,
            **({"extensions": facts.extensions} if facts.extensions else {}),
            "environments": list(facts.environments),
            "records": {"lines": len(history), "sha256": self._log.digest()},
            **({"seeds": list(config.seeds)} if config.seeds else {"seed": config.seed}),
            "steps": intervals.total_steps,
            "epochs": round(intervals.epoch(intervals.total_steps), 4),
            "final": final,
            "best": best,
            "wall_s": round(self._clock.wall_s(), 1),
            "img_per_s": round(statistics.median(speeds), 1) if speeds else None,
            "goodput": self._goodput.totals(),
            **provenance(),
            "config": config.to_dict(),
        }
        if is_main():
            self._figures.draw(
                CURVES, lambda: draw_curves(self._workdir, history, title=self._title)
            )
            write_summary(self._workdir, summary)
        for name, scored in evaluation.items():
            self._show_confusion(name, scored, dataset.class_names)
        self._console.closing(summary, self._workdir)

    def _show_confusion(self, name: str, scored: Evaluation, class_names: tuple[str, ...]) -> None:
        """Show the trackers the confusion matrix of a final evaluation."""
        confusion = scored.confusion
        if confusion is not None:
            self._trackers.picture(
                self._spec.intervals.total_steps,
                f"{PICTURES}/confusion_{name}",
                lambda: confusion_png(confusion, class_names),
            )

    def _position(self, step: int) -> dict[str, float]:
        return {"step": step, "epoch": round(self._spec.intervals.epoch(step), 4)}

    def _wall_s(self) -> float:
        return round(self._clock.wall_s(), 3)


def last_trained(history: Sequence[Mapping[str, Any]]) -> int:
    """Return the step of the last training record; 0 if there is none."""
    return next((int(r["step"]) for r in reversed(history) if r["split"] == "train"), 0)


def recorded_scores(summary: dict[str, Any]) -> dict[str, Evaluation]:
    """Return the `evaluation` of a summary that `Recorder.summary` wrote, without confusions."""
    scores = dict(summary["final"])
    if summary["best"] and "test" in summary["best"]:
        scores["test_best"] = summary["best"]["test"]
    return {name: Evaluation.from_scalars(scalars) for name, scalars in scores.items()}
