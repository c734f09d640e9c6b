"""Where reproductions train: a folder of runs, of which each is made once, whoever needs it."""

import contextlib
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from resnet_jax.data.known import find_known
from resnet_jax.models.presets import create_model
from resnet_jax.models.summary import summarize
from resnet_jax.research.artefact import Size
from resnet_jax.train.config import model_overrides
from resnet_jax.train.loop import fit
from resnet_jax.train.metrics_log import read_metrics
from resnet_jax.train.restore import TrainedNetwork, restore_run


class Trained:
    """A finished run of several seeds.

    Attributes:
        seeds: of them.
    """

    def __init__(self, folder: Path, seeds: tuple[int, ...]) -> None:
        """Take the runs in `folder`."""
        self.seeds = seeds
        self._folders = [folder / f"seed{seed}" for seed in seeds]

    @functools.cached_property
    def _histories(self) -> list[list[dict[str, Any]]]:
        return [read_metrics(folder / "metrics.jsonl") for folder in self._folders]

    @property
    def test_errors(self) -> tuple[float, ...]:
        """Top-1 error on the test images after the last step, in percent, of each seed."""
        return tuple(100 * (1 - value) for value in self.curve("test", "top1")[1][:, -1])

    @property
    def train_losses(self) -> tuple[float, ...]:
        """Mean loss on the augmented training images of the last log point, of each seed."""
        return tuple(self.curve("train", "loss")[1][:, -1])

    def curve(self, split: str, metric: str) -> tuple[np.ndarray, np.ndarray]:
        """(epochs [points], values [seeds, points]) of a metric of metrics.jsonl."""
        records = [[r for r in history if r["split"] == split] for history in self._histories]
        epochs = np.array([r["epoch"] for r in records[0]])
        return epochs, np.array([[r[metric] for r in of_seed] for of_seed in records])

    def network(self, seed: int) -> TrainedNetwork:
        """The network after the last step."""
        return restore_run(self._folders[self.seeds.index(seed)])


class Lab:
    """Trains what artefacts ask for, as far as the budget goes.

    Attributes:
        size: of the reproductions.
        seeds: with which each run is made.
    """

    def __init__(
        self,
        folder: Path,
        *,
        size: Size,
        seeds: tuple[int, ...],
        budget_pflop: float | None = None,
        say: Callable[[str], object] = print,
    ) -> None:
        """Work in `folder`, where earlier runs are found again.

        Args:
            folder: of the runs.
            size, seeds: see above.
            budget_pflop: floating-point operations in 10¹⁵ for runs that aren't there yet; None is
                no limit.
            say: is given a line when a run begins.
        """
        self.size, self.seeds = size, seeds
        self._folder, self._left, self._say = folder, budget_pflop, say

    def train(self, configs: Mapping[str, ConfigDict]) -> dict[str, Trained]:
        """Make the runs of these configs, by name; those beyond the budget are left out.

        A run that was stopped goes on. Names are shared by all artefacts: one name, one config.

        Raises:
            ResnetJaxError: as `fit`.
        """
        trained = {}
        for name, config in configs.items():
            folder = self._folder / self.size / name
            if not self._affords(config, folder):
                self._say(f"{name}: not run, beyond the budget")
                continue
            for seed in self.seeds:
                of_seed = config.copy_and_resolve_references()
                of_seed.seed = seed
                if not (folder / f"seed{seed}" / "summary.json").exists():
                    self._say(f"{name}: seed {seed}")
                    with contextlib.redirect_stderr(None):
                        fit(of_seed, folder / f"seed{seed}")
            trained[name] = Trained(folder, self.seeds)
        return trained

    def _affords(self, config: ConfigDict, folder: Path) -> bool:
        missing = [s for s in self.seeds if not (folder / f"seed{s}" / "summary.json").exists()]
        if self._left is None or not missing:
            return True
        cost = len(missing) * pflop(config)
        if cost > self._left:
            return False
        self._left -= cost
        return True


def pflop(config: ConfigDict) -> float:
    """Operations of training in 10¹⁵: two to a multiply-add, twice as many backward as forward."""
    known = find_known(config.data.name, image_size=config.data.image_size)
    assert known  # the configs of reproductions are of known data
    model = create_model(
        config.model.name, **model_overrides(config), num_classes=known.num_classes
    )
    examples = config.duration * (known.lengths["train"] if config.duration_unit == "epochs" else 1)
    return 6 * summarize(model, known.image_shape).macs * examples / 1e15
