"""Saving with retries: when the next attempt is, and which checkpoint is the best."""

from types import SimpleNamespace

import pytest

from resnet_jax.errors import WriteError
from resnet_jax.train import saving
from resnet_jax.train.clock import Clock
from resnet_jax.train.evaluate import Evaluation
from resnet_jax.train.saving import RunFacts, Saver

FACTS = RunFacts(("cat", "dog"), (8, 8, 3), "a fingerprint", None, ["XLA"], None)


class Checkpoints:
    """Checkpoints whose saves fail in the background, as told."""

    def __init__(self, order):
        self.order, self.failing, self.saving, self.saved = order, 0, None, {}

    def save(self, step, state, *, progress, metrics):
        self.order.append(f"save {step}")
        self.saving = step, progress

    def settle(self):
        if self.saving is None:
            return False
        (step, progress), self.saving = self.saving, None
        if self.failing:
            self.failing -= 1
            raise WriteError("no room.")
        self.saved[step] = progress
        return True


@pytest.fixture
def order():
    """What happened, in order."""
    return []


def _saver(order, *, attempts=10, best=None, now=lambda doing: None):
    checkpoints = Checkpoints(order)
    saver = Saver(
        checkpoints,
        FACTS,
        best=best,
        log=SimpleNamespace(
            sync=lambda: order.append("log"), history=[{}, {}], digest=lambda: "a digest"
        ),
        nonfinite=SimpleNamespace(sync=lambda: order.append("nonfinite"), count=3),
        clock=Clock(),
        goodput=SimpleNamespace(saved=lambda step: None, went_back=lambda step: None),
        watchdog=SimpleNamespace(now=now),
        log_every=10,
        attempts=attempts,
    )
    return saver, checkpoints


def _scores(top1):
    return {"validation": Evaluation(64, {"loss": 1.0, "top1": top1, "top5": 1.0}, confusion=None)}


@pytest.fixture
def pauses(monkeypatch):
    """Seconds that were slept."""
    slept = []
    monkeypatch.setattr(saving.time, "sleep", slept.append)
    return slept


def test_records_are_written_before_their_checkpoint(order):
    saver, checkpoints = _saver(order)
    saver.save(4, None, _scores(0.5), last=True)
    assert order == ["log", "nonfinite", "save 4"]
    progress = dict(checkpoints.saved[4])
    assert progress.pop("wall_s") >= 0
    assert progress.pop("best")["step"] == 4
    records = {"records": 2, "records_sha256": "a digest"}
    assert progress == {"nonfinite": 3, **records, **vars(FACTS)}


def test_the_pause_between_attempts_has_a_limit(order):
    """Otherwise a run with many attempts would never save again once the storage is back."""
    saver, checkpoints = _saver(order, attempts=10**6)
    checkpoints.failing = 10**6
    steps = []
    for _ in range(200):
        saver.save(1_000, None, None, last=False)
        saver.settle_or_count(1_000)
        due = (s for s in range(1_000, 3_000, 10) if saver.is_due(s, scheduled=False))
        steps.append((next(due) - 1_000) // 10)
    assert steps[:8] == [1, 2, 4, 8, 16, 32, 64, 64]
    assert set(steps[8:]) == {64}


def test_after_a_failure_the_schedule_waits_for_the_next_attempt(order):
    saver, checkpoints = _saver(order)
    assert saver.is_due(4, scheduled=True)
    checkpoints.failing = 1
    saver.save(4, None, None, last=False)
    saver.settle_or_count(6)
    assert not saver.is_due(9, scheduled=True)
    assert saver.is_due(10, scheduled=False)
    saver.save(10, None, None, last=False)
    assert not saver.is_due(12, scheduled=False)


def test_the_last_save_is_tried_until_it_succeeds_or_too_many_have_failed(order, pauses):
    saver, checkpoints = _saver(order)
    checkpoints.failing = 7
    saver.save(12, None, None, last=True)
    assert pauses == [1, 2, 4, 8, 16, 30, 30]
    assert list(checkpoints.saved) == [12]
    checkpoints.failing = 10
    with pytest.raises(WriteError, match="no room"):
        saver.save(13, None, None, last=True)


def test_pauses_are_no_silence_to_the_watchdog(order, pauses):
    doings = []
    saver, checkpoints = _saver(order, now=doings.append)
    checkpoints.failing = 2
    saver.save(12, None, None, last=True)
    assert doings == [*["saving step 12", "waiting to save step 12 again"] * 2, "saving step 12"]


def test_a_record_that_the_main_process_cannot_write_fails_the_save_in_all(order, monkeypatch):
    """Else the others would wait, in the save, for the main process, which goes on training."""
    reasons = ["metrics.jsonl can't be written (No space left on device).", ""]
    monkeypatch.setattr(saving, "all_gather_object", lambda own: reasons)
    saver, checkpoints = _saver(order)  # of the second process, whose own record is fine
    saver.save(4, None, None, last=False)
    assert checkpoints.saving is None
    assert not saver.is_due(9, scheduled=True)
    assert saver.is_due(10, scheduled=False)


def test_the_best_is_a_step_that_has_a_checkpoint(order, pauses):
    saver, checkpoints = _saver(order)
    saver.save(4, None, _scores(0.5), last=False)
    assert saver.best["step"] == 4
    saver.settle_or_count(6)
    checkpoints.failing = 1
    saver.save(8, None, _scores(0.9), last=False)
    assert saver.best["step"] == 8
    saver.settle_or_count(10)  # fails
    assert saver.best["step"] == 4
    checkpoints.failing = 1
    saver.save(12, None, _scores(0.8), last=True)  # fails, and is tried again
    assert saver.best["step"] == 12
    assert checkpoints.saved[12]["best"]["step"] == 12
    saver.save(16, None, _scores(0.1), last=True)
    assert saver.best["step"] == 12
    saver.went_back(4, None)
    assert saver.best is None
