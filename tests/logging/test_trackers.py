"""What trackers are shown, and that a tracker that fails ends no run."""

import logging

import pytest

from resnet_jax.errors import StoppedEarly
from resnet_jax.logging.trackers import Trackers, scalars_of

TRAIN = {"step": 2, "epoch": 0.5, "examples": 64, "split": "train", "loss": 2.0, "top1": 0.5}
TRAIN |= {"grad_norm": 3.0, "lr": 0.1, "img_per_s": 900.0, "wall_s": 1.0, "batches": "ab"}
SCORES = {"step": 4, "epoch": 1.0, "split": "validation", "weights": "ema", "examples": 64}
SCORES |= {"loss": 1.0, "top1": 0.75}


class Noting:
    """A tracker that notes its calls, and fails in the method `fails`."""

    title = "Noting"

    def __init__(self, fails=""):
        self.calls, self.fails = [], fails

    def _note(self, *call):
        self.calls.append(call)
        if call[0] == self.fails:
            raise OSError(28, "No space left on device")

    def hyperparameters(self, values):
        self._note("hyperparameters", values)

    def scalars(self, step, values):
        self._note("scalars", step, values)

    def picture(self, step, tag, png):
        self._note("picture", step, tag, png)

    def sync(self):
        self._note("sync")

    def end(self, outcome):
        self._note("end", outcome)


def test_scores_come_before_everything_else_by_name():
    """TensorBoard sorts tags, and opens the first groups."""
    diagnostics = {"step": 4, "epoch": 1.0, "split": "diagnostics", "fc/rms": 0.1, "wall_s": 1.0}
    tags = [tag for record in (TRAIN, SCORES, diagnostics) for tag in scalars_of(record)]
    assert sorted(tags) == [
        "train/loss", "train/top1", "validation_ema/loss", "validation_ema/top1",
        "z_diagnostics/fc/rms",
        "z_training/examples", "z_training/grad_norm", "z_training/img_per_s", "z_training/lr",
    ]  # fmt: skip


def test_seeds_have_tags_of_their_own():
    seeds = {"std": {"loss": 0.1, "lr": 0.0}, "seeds": {"loss": [1.9, 2.1], "lr": [0.1, 0.1]}}
    values = scalars_of(TRAIN | seeds)
    assert values["train/loss_std"] == 0.1
    assert (values["train/loss_seed0"], values["train/loss_seed1"]) == (1.9, 2.1)
    assert values["z_training/lr_seed1"] == 0.1


def test_every_tracker_gets_everything_in_order():
    first, second = Noting(), Noting()
    with Trackers({"a": first, "b": second}) as trackers:
        assert trackers
        trackers.hyperparameters({"seed": 1})
        trackers.record(SCORES)
        trackers.picture(4, "sheet", lambda: b"png")
        trackers.sync()
        trackers.outcome = "finished"
    assert first.calls == second.calls
    assert first.calls == [
        ("hyperparameters", {"seed": 1}),
        ("scalars", 4, {"validation_ema/loss": 1.0, "validation_ema/top1": 0.75}),
        ("picture", 4, "sheet", b"png"),
        ("sync",),
        ("end", "finished"),
    ]


@pytest.mark.parametrize("method", ["scalars", "picture", "sync", "end"])
def test_a_tracker_that_fails_is_dropped_with_one_warning(method, caplog):
    failing, other = Noting(method), Noting()
    with caplog.at_level(logging.WARNING), Trackers({"a": failing, "b": other}) as trackers:
        for _ in range(2):
            trackers.record(TRAIN)
            trackers.picture(2, "sheet", lambda: b"png")
            trackers.sync()
    assert [name for name, *_ in failing.calls].count(method) == 1
    assert failing.calls[-1][0] == method
    assert [name for name, *_ in other.calls] == ["scalars", "picture", "sync"] * 2 + ["end"]
    warned = [record.getMessage() for record in caplog.records]
    assert warned == [
        "Noting's copy of the record ends here (No space left on device); metrics.jsonl goes on."
    ]


def test_a_run_that_ends_by_an_error_has_failed():
    tracker = Noting()
    with pytest.raises(ZeroDivisionError), Trackers({"a": tracker}):
        raise ZeroDivisionError
    assert tracker.calls == [("end", "failed")]


def test_without_trackers_nothing_is_drawn():
    with Trackers() as trackers:
        assert not trackers
        trackers.picture(0, "sheet", lambda: pytest.fail("drawn"))
        trackers.record(TRAIN)


def test_a_run_that_a_signal_stops_before_its_first_step_has_not_failed():
    tracker = Noting()
    with pytest.raises(StoppedEarly), Trackers({"a": tracker}):
        raise StoppedEarly
    assert tracker.calls == [("end", "stopped")]


def test_a_picture_that_cannot_be_drawn_is_a_warning(caplog):
    def draw():
        raise MemoryError("no room")

    tracker = Noting()
    with Trackers({"a": tracker}) as trackers:
        trackers.picture(0, "sheet", draw)
        trackers.sync()
    assert [name for name, *_ in tracker.calls] == ["sync", "end"]
    assert caplog.messages == ["sheet can't be drawn (no room); the run goes on."]
