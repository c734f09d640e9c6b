"""A file for Prometheus, by the textfile collector of its node_exporter."""

import hashlib
import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from etils import epath

from resnet_jax.checkpoint.newest import newest_checkpoint
from resnet_jax.checkpoint.workdir import write_atomically
from resnet_jax.errors import DataError
from resnet_jax.logging.recorded_goodput import read_goodput
from resnet_jax.utils.paths import is_remote

if TYPE_CHECKING:
    from prometheus_client.metrics_core import GaugeMetricFamily

_log = logging.getLogger(__name__)

_SECONDS_BETWEEN_WRITES = 5.0
_SHARE = 0.01  # of the time that may go into writing: of a run in a bucket it reads the bucket

# Metric → the field of a training record, and the help text.
_TRAINING = {
    "train_loss": ("loss", "Mean loss of the training examples since the last log point, nats."),
    "train_top1": ("top1", "Top-1 accuracy on the training examples since the last log point."),
    "learning_rate": ("lr", "Learning rate."),
    "images_per_second": ("img_per_s", "Training speed, over all seeds."),
    "data_wait_ratio": ("data_wait", "Share of the time in which training waited for images."),
}
_SCORES = {
    "score_loss": ("loss", "Mean loss of a scored split, nats."),
    "score_top1": ("top1", "Top-1 accuracy on a scored split."),
}


class PrometheusFile:
    """Writes the last numbers of a run in the text format of Prometheus.

    The file is replaced atomically, at log points that are at least five seconds apart, as often as
    takes at most a hundredth of the time, and when the run ends. A file that can't be written is a
    warning, not an error.
    """

    def __init__(self, folder: epath.Path, workdir: epath.Path, *, total_steps: int) -> None:
        """Write nothing yet.

        Args:
            folder: of the textfile collector; several runs of a host may share it.
            workdir: directory of the run, the label of all metrics.
            total_steps: steps of the run.
        """
        # Runs of the same relative name may have begun in different folders.
        self._label = os.fspath(workdir) if is_remote(workdir) else os.path.abspath(workdir)
        name = re.sub(r"[^A-Za-z0-9._-]+", "_", workdir.name)
        digest = hashlib.sha256(os.fsencode(self._label)).hexdigest()[:8]
        self.path = folder / f"resnet_jax-{name}-{digest}.prom"
        self._workdir, self._total_steps = workdir, total_steps
        self._logged, self._not_before = time.time(), float("-inf")
        self._has_failed = False

    def write(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Write the last records, unless the file was written a moment ago."""
        self._logged = time.time()
        if time.monotonic() >= self._not_before:
            self._write(history, running=True)

    def close(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Write the last records, and that the run doesn't run any more."""
        self._write(history, running=False)

    def _write(self, history: Sequence[Mapping[str, Any]], *, running: bool) -> None:
        from prometheus_client import CollectorRegistry, generate_latest  # noqa: PLC0415 - few need it

        began = time.monotonic()
        registry = CollectorRegistry()
        registry.register(_Collected(self._gauges(history, running=running)))
        try:
            write_atomically(self.path, generate_latest(registry))
        except OSError as error:
            if not self._has_failed:
                reason = error.strerror or error
                _log.warning("%s can't be written (%s); the run goes on.", self.path, reason)
            self._has_failed = True
        else:
            self._has_failed = False
        cost_s = time.monotonic() - began
        self._not_before = began + max(_SECONDS_BETWEEN_WRITES, cost_s / _SHARE)

    def _gauges(
        self, history: Sequence[Mapping[str, Any]], *, running: bool
    ) -> "list[GaugeMetricFamily]":
        gauges = _Gauges(self._label)
        begun = {"step": 0, "epoch": 0.0}
        last = max(history, key=lambda r: r["step"], default=begun)  # scores of the best come last
        gauges.add("running", int(running), "1 while the process trains, 0 when it has ended.")
        gauges.add("step", last["step"], "Training steps done, at the last log point.")
        gauges.add("planned_steps", self._total_steps, "Training steps of the whole run.")
        gauges.add("epoch", last["epoch"], "Passes over the training split.")
        gauges.add(
            "last_log_timestamp_seconds", self._logged, "When the last record was made, Unix time."
        )
        empty: Mapping[str, Any] = {}
        train = next((r for r in reversed(history) if r["split"] == "train"), empty)
        for name, (field, text) in _TRAINING.items():
            if field in train:
                gauges.add(name, train[field], text)
        scores = {(r["split"], r["weights"]): r for r in history if "weights" in r}
        for (split, weights), record in scores.items():
            for name, (field, text) in _SCORES.items():
                gauges.add(name, record[field], text, split=split, weights=weights)
        self._add_checkpoint(gauges)
        self._add_goodput(gauges)
        return list(gauges.families.values())

    def _add_checkpoint(self, gauges: "_Gauges") -> None:
        try:
            checkpoint = newest_checkpoint(self._workdir)
        except OSError:  # the next write may find it
            return
        if checkpoint is None:
            return
        gauges.add("checkpoint_step", checkpoint.step, "Step of the newest checkpoint.")
        if checkpoint.age_s is not None:
            gauges.add(
                "checkpoint_timestamp_seconds",
                time.time() - checkpoint.age_s,
                "When the newest checkpoint was written, Unix time.",
            )

    def _add_goodput(self, gauges: "_Gauges") -> None:
        try:
            goodput = read_goodput(self._workdir)
        except DataError:  # the run writes it again
            return
        if goodput is None:
            return
        text = "Share of the wall time that went into training steps that count."
        gauges.add("goodput_ratio", goodput.share, text)
        gauges.add("restarts", goodput.restarts, "Starts of the run after the first.")
        for phase, seconds in goodput.seconds.items():
            gauges.add("phase_seconds", seconds, "Wall time of a phase, all starts.", phase=phase)


class _Gauges:
    """Gauges by name, each with the label "workdir" and others."""

    def __init__(self, workdir: str) -> None:
        self.families: dict[str, GaugeMetricFamily] = {}
        self._workdir = workdir

    def add(self, name: str, value: float, text: str, **labels: str) -> None:
        from prometheus_client.metrics_core import GaugeMetricFamily  # noqa: PLC0415

        if name not in self.families:
            self.families[name] = GaugeMetricFamily(
                f"resnet_jax_{name}", text, labels=["workdir", *labels]
            )
        self.families[name].add_metric([self._workdir, *labels.values()], value)


class _Collected:
    """A collector of gauges that have their values."""

    def __init__(self, gauges: "list[GaugeMetricFamily]") -> None:
        self._gauges = gauges

    def collect(self) -> "list[GaugeMetricFamily]":
        return self._gauges
