"""The training runs of reproductions, shared by name: each run is trained once."""

import contextlib
import functools
import io
import logging
import math
from collections.abc import Callable, Mapping, Sequence
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
from resnet_jax.errors import DataError, StoppedEarly
from resnet_jax.inference.network import TrainedNetwork
from resnet_jax.inference.restore import restore_run, seeds_of
from resnet_jax.logging.metrics_log import read_metrics
from resnet_jax.models.presets import create_model
from resnet_jax.models.summary import summarize
from resnet_jax.research.finished_runs import check_finished, last_step
from resnet_jax.research.published_runs import find_by_log, has_checkpoints
from resnet_jax.research.table6 import Length, planned_runs, run_name
from resnet_jax.train.data_sizes import known_length, known_set
from resnet_jax.train.fit import fit

Size = Literal["cpu", "cifar", "full"]

_log = logging.getLogger(__name__)


class TrainedRun:
    """Finished runs that differ in the seed only: a run of several seeds, or a run for each seed.

    Attributes:
        seeds: the seeds of the runs.
    """

    def __init__(self, folders: Mapping[int, epath.Path]) -> None:
        """Refer to the run of each seed, in order; several seeds may have the same folder."""
        self.seeds, self._folders = tuple(folders), dict(folders)

    @functools.cached_property
    def _records(self) -> list[list[dict[str, Any]]]:
        """The records of each seed, of the raw weights."""
        read = {folder: read_metrics(folder / METRICS) for folder in {*self._folders.values()}}
        records = []
        for seed, folder in self._folders.items():
            index = seeds_of(folder).index(seed)
            records.append(
                [
                    record | {k: v[index] for k, v in record.get("seeds", {}).items()}
                    for record in read[folder]
                    if record.get("weights", "raw") == "raw"
                ]
            )
        return records

    def test_errors(self) -> tuple[float, ...]:
        """Top-1 error on the test images after the last step, in percent, of each seed."""
        return tuple(100 * (1 - value) for value in self.curve("test", "top1")[1][:, -1])

    @property
    def test_images(self) -> int:
        """The number of test images."""
        return next(r["examples"] for r in self._records[0] if r["split"] == "test")

    def train_losses(self) -> tuple[float, ...]:
        """Mean loss on the augmented training images at the last log point, of each seed.

        NaN if no step was finite.
        """
        values = self.curve("train", "loss")[1]
        return tuple(values[:, -1]) if values.size else (math.nan,) * len(self.seeds)

    def last_epoch_losses(self) -> tuple[float, ...]:
        """Mean loss on the augmented training images of the last epoch, of each seed.

        It is the mean over the log points less than an epoch before the last log point; NaN if no
        step was finite.
        """
        return tuple(self._last_epoch("loss"))

    def train_errors(self) -> tuple[float, ...]:
        """Mean top-1 error on the augmented training images of the last epoch, in percent.

        The last epoch is that of `last_epoch_losses`.
        """
        return tuple(100 * (1 - self._last_epoch("top1")))

    def _last_epoch(self, metric: str) -> Float[np.ndarray, " seeds"]:
        epochs, values = self.curve("train", metric)
        if not values.size:
            return np.full(len(self.seeds), math.nan)
        return values[:, epochs > epochs[-1] - 1].mean(axis=1)

    @property
    def rates(self) -> Float[np.ndarray, " points"]:
        """Training speed at each log point of the first seed's run, in images per second."""
        return np.array([r["img_per_s"] for r in self._records[0] if r["split"] == "train"])

    def curve(self, split: str, metric: str) -> tuple[np.ndarray, np.ndarray]:
        """(Epochs [points], values [seeds, points]) of a metric in metrics.jsonl.

        Raises:
            DataError: the runs of the seeds have records of different steps.
        """
        of_seeds = [[r for r in records if r["split"] == split] for records in self._records]
        epochs = [[record["epoch"] for record in records] for records in of_seeds]
        if any(of_seed != epochs[0] for of_seed in epochs):
            folders = ", ".join(map(str, self._folders.values()))
            raise DataError(f"The runs {folders} have {split} records of different steps.")
        values = np.array([[r[metric] for r in records] for records in of_seeds])
        return np.array(epochs[0]), values

    def network(self, seed: int) -> TrainedNetwork:
        """The network after the last step.

        Raises:
            DataError: the checkpoint of the last step is missing or damaged, and the network isn't
                published with this package.
        """
        folder = self._folders[seed]
        step = last_step(folder)
        if has_checkpoints(folder):
            network = restore_run(folder, seed_index=seeds_of(folder).index(seed))
            if network.step == step:
                return network
        if published := find_by_log(folder):
            return published
        raise DataError(
            f"{folder} has no checkpoint of its last step, {step:,}. Copy its checkpoints again."
        )


class Runner:
    """Trains the runs that reproductions need, within a budget.

    Attributes:
        size: the size of the reproductions.
        seeds: the seeds of each run.
        missing: the names of runs that `collect` didn't find, in order.
        used: the folders of the runs that were returned, by name.
        say: takes a line about what a reproduction does next.
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
            folder: the folder of all runs of this size.
            size, seeds: see above.
            budget_pflop: limit of the floating-point operations of new runs, in 10¹⁵; None is no
                limit.
            stop: a request that the caller has entered, perhaps with `interrupt_immediately`;
                training saves on a signal. By default `fit` listens for signals itself.
            say: see above; also called when a run begins or is left out.
        """
        self.size, self.seeds = size, seeds
        self.missing: list[str] = []
        self.used: dict[str, epath.Path] = {}
        self._folder, self._left = folder, budget_pflop
        self._stop, self.say = stop, say

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
            folder = epath.Path(self._folder / name)
            config = single.copy_and_resolve_references()
            config.seeds = self.seeds
            if not (folder / SUMMARY).exists():
                cost = pflop(config)
                if self._left is not None and cost > self._left:
                    self.say(f"{name}: not run, it takes {cost:.2g} PFLOP of {self._left:.2g}")
                    continue
                if self._left is not None:
                    self._left -= cost
                self.say(f"training {name}, seeds {', '.join(map(str, self.seeds))}")
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
            trained[name] = TrainedRun(dict.fromkeys(self.seeds, folder))
            self.used[name] = folder
        return trained

    def collect(
        self, networks: Sequence[str], *, length: Length = "eighth", weights: bool = False
    ) -> dict[str, TrainedRun]:
        """The finished runs of the sweep `resnet_jax.research.table6`; nothing is trained.

        Args:
            networks: names of presets.
            length: with an eighth or all of the paper's steps.
            weights: whether the networks are needed; a run without checkpoints then counts only if
                its network is published with this package.

        Returns:
            The runs by the name of the network, with the seeds that are finished. A network without
            finished runs is left out.

        Raises:
            ConfigError: the config of a run can't be read.
            DataError: the log of a finished run isn't complete, or isn't that of its summary.
            WriteError: a folder can't be read.
        """
        found = {}
        for network in networks:
            finished = {}
            for seed in self.seeds:
                name = run_name(network, length, seed)
                folder = epath.Path(self._folder) / name
                if name not in planned_runs():
                    continue
                done = planned_runs()[name].is_finished(folder.parent)
                if done and _has_log(folder) and (not weights or _has_network(folder)):
                    check_finished(folder)
                    finished[seed] = self.used[name] = folder
                elif name not in self.missing:
                    self.missing.append(name)
            if finished:
                found[network] = TrainedRun(finished)
        return found


def _has_log(folder: epath.Path) -> bool:
    return bool(read_metrics(folder / METRICS))


def _has_network(folder: epath.Path) -> bool:
    return has_checkpoints(folder) or find_by_log(folder) is not None


def pflop(config: ConfigDict) -> float:
    """Floating-point operations of training, in 10¹⁵.

    A multiply-add counts as two operations, the backward pass as two forward passes.
    """
    known = known_set(config)
    model = create_model(
        config.model.name, **model_overrides(config), num_classes=known.num_classes
    )
    in_epochs = config.duration_unit == "epochs"
    examples = config.duration * (known_length(config, config.data.train) if in_epochs else 1)
    networks = len(config.seeds) or 1
    return networks * 6 * summarize(model, known.image_shape).macs * examples / 1e15
