"""The training runs of reproductions, shared by name: each run is trained once."""

import contextlib
import functools
import io
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from etils import epath
from jaxtyping import Float
from ml_collections import ConfigDict

from resnet_jax.checkpoint.stop import StopRequest
from resnet_jax.checkpoint.workdir import METRICS, SUMMARY, check_config
from resnet_jax.config.io import describe_differences, to_json
from resnet_jax.config.schema import model_overrides
from resnet_jax.data.dataset_info import find_known
from resnet_jax.errors import StoppedEarly
from resnet_jax.inference.network import TrainedNetwork
from resnet_jax.inference.restore import restore_run
from resnet_jax.logging.metrics_log import read_metrics
from resnet_jax.models.presets import create_model
from resnet_jax.models.summary import summarize
from resnet_jax.train.fit import fit

Size = Literal["cpu", "full"]

_log = logging.getLogger(__name__)


class TrainedRun:
    """A finished run of several seeds.

    Attributes:
        seeds: the seeds of the run.
    """

    def __init__(self, folder: epath.Path, seeds: tuple[int, ...]) -> None:
        """Refer to the run in `folder`."""
        self.seeds, self._folder = seeds, folder

    @functools.cached_property
    def _records(self) -> list[dict[str, Any]]:
        return read_metrics(self._folder / METRICS)

    def test_errors(self) -> tuple[float, ...]:
        """Top-1 error on the test images after the last step, in percent, of each seed."""
        return tuple(100 * (1 - value) for value in self.curve("test", "top1")[1][:, -1])

    @property
    def test_images(self) -> int:
        """The number of test images."""
        return next(r["examples"] for r in self._records if r["split"] == "test")

    def train_losses(self) -> tuple[float, ...]:
        """Mean loss on the augmented training images at the last log point, of each seed.

        NaN if no step was finite.
        """
        values = self.curve("train", "loss")[1]
        return tuple(values[:, -1]) if values.size else (math.nan,) * len(self.seeds)

    @property
    def rates(self) -> Float[np.ndarray, " points"]:
        """Training speed at each log point, in images per second over all seeds."""
        return np.array([r["img_per_s"] for r in self._records if r["split"] == "train"])

    def curve(self, split: str, metric: str) -> tuple[np.ndarray, np.ndarray]:
        """(Epochs [points], values [seeds, points]) of a metric in metrics.jsonl."""
        records = [r for r in self._records if r["split"] == split]
        epochs = np.array([r["epoch"] for r in records])
        return epochs, np.array([r["seeds"][metric] for r in records]).T

    def network(self, seed: int) -> TrainedNetwork:
        """The network after the last step."""
        return restore_run(self._folder, seed_index=self.seeds.index(seed))


class Runner:
    """Trains the runs that reproductions need, within a budget.

    Attributes:
        size: the size of the reproductions.
        seeds: the seeds of each run.
    """

    def __init__(
        self,
        folder: Path,
        *,
        size: Size,
        seeds: tuple[int, ...],
        budget_pflop: float | None = None,
        stop: StopRequest | None = None,
        say: Callable[[str], object] = _log.info,
    ) -> None:
        """Train in subfolders of `folder`; finished runs there aren't trained again.

        Args:
            folder: the folder of all runs.
            size, seeds: see above.
            budget_pflop: limit of the floating-point operations of new runs, in 10¹⁵; None is no
                limit.
            stop: a request that the caller has entered, perhaps with `interrupt_immediately`;
                training saves on a signal. By default `fit` listens for signals itself.
            say: called with a line when a run begins or is left out.
        """
        self.size, self.seeds = size, seeds
        self._folder, self._left = folder, budget_pflop
        self._stop, self._say = stop, say

    def train(self, configs: Mapping[str, ConfigDict]) -> dict[str, TrainedRun]:
        """Train runs by name, and return them without the runs that exceed the budget.

        A run that was stopped is resumed. All reproductions share the names: runs of the same name
        must have the same config.

        Raises:
            ResnetJaxError: as `fit`.
            StoppedEarly: training was stopped by a signal; the run is saved, and resumes next time.
        """
        trained = {}
        for name, single in configs.items():
            folder = epath.Path(self._folder / self.size / name)
            config = single.copy_and_resolve_references()
            config.seeds = self.seeds
            if not (folder / SUMMARY).exists():
                cost = pflop(config)
                if self._left is not None and cost > self._left:
                    self._say(f"{name}: not run, it takes {cost:.2g} PFLOP of {self._left:.2g}")
                    continue
                if self._left is not None:
                    self._left -= cost
                self._say(f"training {name}, seeds {', '.join(map(str, self.seeds))}")
                with (
                    self._stop.deferred() if self._stop else contextlib.nullcontext(),
                    contextlib.redirect_stdout(io.StringIO()),
                ):
                    if fit(config, folder, stop=self._stop).stopped_early:
                        raise StoppedEarly(
                            f"stopped while training {name}, saved in {folder}; the same command"
                            " goes on from here"
                        )
            check_config(folder, to_json(config), describe_differences)
            trained[name] = TrainedRun(folder, self.seeds)
        return trained


def pflop(config: ConfigDict) -> float:
    """Floating-point operations of training, in 10¹⁵.

    A multiply-add counts as two operations, the backward pass as two forward passes.
    """
    known = find_known(config.data.name, image_size=config.data.image_size)
    assert known  # reproductions train on known data sets
    model = create_model(
        config.model.name, **model_overrides(config), num_classes=known.num_classes
    )
    examples = config.duration * (known.lengths["train"] if config.duration_unit == "epochs" else 1)
    networks = len(config.seeds) or 1
    return networks * 6 * summarize(model, known.image_shape).macs * examples / 1e15
