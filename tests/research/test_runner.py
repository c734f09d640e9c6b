"""Runs of reproductions: made once, within a budget, and valid at full size."""

import types

import numpy as np
import pytest
from etils import epath

from resnet_jax.config.schema import validate
from resnet_jax.errors import ConfigError, StoppedEarly
from resnet_jax.research import runner as runner_module
from resnet_jax.research.catalogue import REPRODUCTIONS
from resnet_jax.research.configs import cifar10, digits
from resnet_jax.research.runner import Runner, TrainedRun, pflop
from tests.research.fake_run import write_run

_TINY = {
    "model.stage_sizes": (1, 1),
    "model.width": 4,
    "model.stem_width": 4,
    "data.train": "train[:64]",
    "duration": 64.0,
    "eval_every": 64.0,
    "checkpoint_every": 64.0,
    "log_every": 1,
}


def _runner(folder, said=None, **options):
    say = (lambda text: None) if said is None else said.append
    return Runner(folder, size="cpu", seeds=(0, 1), say=say, **options)


@pytest.mark.thorough
def test_a_run_is_made_once_and_knows_its_seeds(tmp_path):
    said = []
    [run] = _runner(tmp_path, said).train({"one": digits("resnet20", _TINY)}).values()
    assert said == ["training one, seeds 0, 1"]
    assert len(run.test_errors()) == len(run.train_losses()) == 2
    epochs, losses = run.curve("train", "loss")
    assert losses.shape == (2, len(epochs)) == (2, 2)
    for seed, error in zip(run.seeds, run.test_errors(), strict=True):
        network = run.network(seed)
        assert network.config.seed == seed
        assert 100 * (1 - network.evaluate("test").top1) == pytest.approx(error)
    said.clear()
    [again] = _runner(tmp_path, said).train({"one": digits("resnet20", _TINY)}).values()
    assert said == []
    assert again.test_errors() == run.test_errors()
    other = digits("resnet20", {**_TINY, "optimizer.momentum": 0.5})
    with pytest.raises(ConfigError, match=r"optimizer.momentum: 0.9 → 0.5"):
        _runner(tmp_path).train({"one": other})


def test_losses_of_the_last_epoch_are_the_mean_over_its_log_points(tmp_path):
    folder = epath.Path(write_run(tmp_path / "run", steps=(4, 8, 10, 12), seeds=(0, 1, 2)))
    run = TrainedRun(dict.fromkeys(range(3), folder))
    assert run.last_epoch_losses() == pytest.approx((1.09, 1.1, 1.11))  # of epochs 2.5 and 3


def test_a_run_without_a_finite_step_has_no_losses(tmp_path):
    folder = epath.Path(write_run(tmp_path / "run", steps=(), seeds=(0, 1, 2)))
    run = TrainedRun(dict.fromkeys(range(3), folder))
    assert np.isnan([*run.last_epoch_losses(), *run.train_losses(), *run.train_errors()]).all()


def test_a_run_that_is_stopped_is_not_counted_as_trained(tmp_path, monkeypatch):
    """It ends the training of all, and goes on next time."""
    begun = []

    def fit(config, folder, *, stop):
        begun.append(folder.name)
        return types.SimpleNamespace(stopped_early=True)

    monkeypatch.setattr(runner_module, "fit", fit)
    config = digits("resnet20", _TINY)
    for _ in range(2):
        with pytest.raises(StoppedEarly, match=r"stopped while training one, saved in .*one; the"):
            _runner(tmp_path).train({"one": config, "another": config})
    assert begun == ["one", "one"]


@pytest.mark.thorough
def test_a_run_that_diverges_fails_and_ends_nothing(tmp_path):
    config = digits("resnet20", {**_TINY, "schedule.base_lr": 1e30})
    [run] = _runner(tmp_path).train({"one": config}).values()
    assert min(run.test_errors()) > 50


def test_what_is_beyond_the_budget_is_left_out(tmp_path):
    config = digits("resnet20", _TINY)
    config.seeds = (0, 1)
    said = []
    runner = _runner(tmp_path, said, budget_pflop=0.5 * pflop(config))
    assert runner.train({"one": config}) == {}
    assert said[0].startswith("one: not run")


def test_operations_are_those_of_the_papers_schedule():
    assert pflop(cifar10("resnet20")) == pytest.approx(2.0, abs=0.05)
    assert pflop(cifar10("resnet110")) == pytest.approx(12.4, abs=0.05)


def test_operations_are_of_the_training_split_alone():
    epochs = {"duration_unit": "epochs", "duration": 2.0}
    whole, half = (
        digits("resnet20", {"data.train": split, **epochs}) for split in ("train", "train[:50%]")
    )
    assert pflop(half) == pytest.approx(0.5 * pflop(whole), rel=1e-3)


class _Unaffordable(Runner):
    """Notes what it is to train, and trains nothing."""

    def __init__(self, folder):
        super().__init__(folder, size="full", seeds=(0,), say=lambda text: None)
        self.configs = {}

    def train(self, configs):
        self.configs |= configs
        return {}


_TRAINED = [
    name
    for name, of in REPRODUCTIONS.items()
    if "full" in of.runs and of.runs["cpu"] is not of.runs["full"]
]
_MEASURED = ("huang2016",)  # at the size "cpu", without a run


@pytest.mark.parametrize("name", [name for name in _TRAINED if name not in _MEASURED])
def test_digits_that_no_run_was_affordable_for_are_not_run(name, tmp_path):
    rows = REPRODUCTIONS[name].runs["cpu"](_Unaffordable(tmp_path)).rows
    assert {row.verdict for row in rows if not row.exact} == {"not run: budget"}


@pytest.mark.thorough
@pytest.mark.parametrize("name", _TRAINED)
def test_full_sizes_are_valid_and_without_a_budget_not_run(name, tmp_path):
    runner = _Unaffordable(tmp_path)
    report = REPRODUCTIONS[name].runs["full"](runner)
    assert runner.configs
    for config in runner.configs.values():
        validate(config)
        assert config.data.name == "cifar10"
    assert pflop(next(iter(runner.configs.values()))) > 0.1
    for row in report.rows:
        assert row.verdict == ("reproduced" if row.exact else "not run: budget")
