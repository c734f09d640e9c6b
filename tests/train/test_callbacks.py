"""Callbacks: what they see of a run, how they stop it, and what becomes of their errors."""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from etils import epath
from ml_collections import ConfigDict

import resnet_jax
from resnet_jax.errors import CallbackError, PeerError, UsageError
from resnet_jax.train import callbacks as module
from resnet_jax.train.callbacks import Callback, Callbacks
from resnet_jax.train.clock import Clock


class Noting(Callback):
    """Notes each hook with the step, and does `act` there."""

    def __init__(self, act=lambda hook, run: None):
        self.seen, self.act = [], act

    def _note(self, hook, run):
        self.seen.append((hook, run.step))
        self.act(hook, run)

    def on_log(self, run):
        self._note("log", run)

    def on_evaluate(self, run):
        self._note("evaluate", run)

    def on_checkpoint(self, run):
        self._note("checkpoint", run)

    def on_end(self, run):
        self._note("end", run)


class LogOnly(Callback):
    """Has one hook."""

    def on_log(self, run):
        pass


def _callbacks(*callbacks, history=()):
    intervals = SimpleNamespace(total_steps=12, epoch=lambda step: step / 8)
    return Callbacks(
        callbacks,
        spec=SimpleNamespace(config=ConfigDict({"seed": 1}), intervals=intervals),
        workdir=epath.Path("runs/digits"),
        history=list(history),
        best=lambda: {"step": 2, "top1": 0.5, "loss": 1.0},
        clock=Clock(),
        watchdog=SimpleNamespace(now=lambda doing: None),
    )


def test_hooks_that_nobody_has_are_not_called(monkeypatch):
    monkeypatch.setattr(module, "all_gather_object", lambda _: pytest.fail("exchanged"))
    for callbacks in (_callbacks(), _callbacks(LogOnly(), Callback())):
        assert not callbacks.see_checkpoints
        assert not callbacks.evaluate(1, None, {})
        assert not callbacks.checkpoint(1, None)
        callbacks.end(1, None, {}, early=False)


def test_a_callback_reads_everything_and_changes_nothing():
    history = [{"step": 2, "loss": 2.0}, {"step": 4, "loss": 1.0}]

    def read(hook, run):
        assert run.workdir == epath.Path("runs/digits")
        assert (run.step, run.total_steps, run.epoch, run.state) == (4, 12, 0.5, "state")
        assert (run.config.seed, run.best["step"]) == (1, 2)
        assert (run.record["loss"], [r["loss"] for r in run.history]) == (1.0, [2.0, 1.0])
        assert run.scores == ({"validation": "scores"} if hook == "evaluate" else {})
        for change in (
            lambda: run.record.update(loss=0),
            lambda: run.history[0].update(loss=0),
            lambda: run.scores.update(test=0),
            lambda: run.best.update(step=0),
            lambda: setattr(run.config, "seed", 2),
            lambda: setattr(run, "step", 5),
        ):
            with pytest.raises((AttributeError, TypeError)):
                change()

    noting = Noting(read)
    callbacks = _callbacks(noting, history=history)
    assert not callbacks.log(4, "state")
    assert not callbacks.evaluate(4, "state", {"validation": "scores"})
    callbacks.check()
    assert noting.seen == [("log", 4), ("evaluate", 4)]


def test_a_reason_to_stop_is_kept_and_all_callbacks_are_called():
    first, second = Noting(lambda _, run: run.stop("no progress")), Noting()
    callbacks = _callbacks(first, second)
    assert callbacks.log(4, "state")
    assert callbacks.stop_reason == "Noting: no progress"
    assert second.seen == [("log", 4)]
    callbacks.check()


def test_an_error_names_the_callback_and_no_other_hook_is_called():
    def fail(hook, run):
        raise KeyError("missing")

    failing, other = Noting(fail), Noting()
    callbacks = _callbacks(failing, other)
    assert callbacks.log(4, "state")
    assert not callbacks.checkpoint(4, "state")
    assert (failing.seen, other.seen) == ([("log", 4)], [])
    with pytest.raises(CallbackError) as caught:
        callbacks.check()
    assert str(caught.value) == (
        "The callback Noting has failed in on_log at step 4 (KeyError: 'missing'). What was trained"
        " is saved; `fit` goes on from there."
    )
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_callback_cannot_end_the_process():
    """As the run is saved first; the exit code would claim a success."""

    def leave(hook, run):
        sys.exit(0)

    callbacks = _callbacks(Noting(leave))
    assert callbacks.log(4, "state")
    with pytest.raises(CallbackError, match=r"failed in on_log at step 4 \(SystemExit: 0\)"):
        callbacks.check()


def test_ctrl_c_in_a_callback_is_not_an_error_of_the_callback():
    def interrupt(hook, run):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _callbacks(Noting(interrupt)).log(4, "state")


@pytest.mark.parametrize(
    ("other", "error"),
    [
        ({"asked": "Noting: enough", "failed": ""}, None),
        (
            {"asked": "", "failed": "Noting has failed in on_log at step 4 (OSError: full)"},
            PeerError,
        ),
    ],
)
def test_another_process_that_ends_the_run_ends_it_here_too(other, error, monkeypatch):
    monkeypatch.setattr(module, "all_gather_object", lambda own: [own, other])
    callbacks = _callbacks(Noting())
    assert callbacks.log(4, "state")
    if error:
        with pytest.raises(error, match="A callback of process 1, Noting has failed in on_log"):
            callbacks.check()
    else:
        assert callbacks.stop_reason == "Noting: enough"


@pytest.mark.parametrize("wrong", [print, Noting, object()])
def test_what_is_no_callback_is_refused_before_anything_starts(tiny_config, tmp_path, wrong):
    with pytest.raises(UsageError, match=r"isn't an object of a subclass of resnet_jax\.Callback"):
        resnet_jax.fit(tiny_config, tmp_path / "run", callbacks=[Noting(), wrong])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("wrong", [Noting(), None])
def test_a_list_of_callbacks_is_expected(tiny_config, tmp_path, wrong):
    with pytest.raises(UsageError, match=r"callbacks is .*, not a list of callbacks"):
        resnet_jax.fit(tiny_config, tmp_path / "run", callbacks=wrong)


def test_early_stopping_of_the_page():
    page = (Path(__file__).parents[2] / "docs" / "extend.md").read_text()
    (block,) = re.findall(r"```python\n([^`]*EarlyStopping[^`]*)```", page)
    names = {}
    exec(block, names)
    losses = [2.0, 1.0, 1.1, 1.2, 1.3]
    history = [
        {"step": step, "split": "validation", "weights": "raw", "loss": loss}
        for step, loss in enumerate(losses)
    ]
    patient, impatient = (_callbacks(names["EarlyStopping"](n), history=history) for n in (4, 3))
    assert not patient.evaluate(4, None, {})
    assert impatient.evaluate(4, None, {})
    assert impatient.stop_reason == "EarlyStopping: no progress for 3 evaluations"


@pytest.mark.thorough
def test_a_whole_run_calls_the_hooks_and_trains_the_same_bits(tiny_config, tmp_path):
    tiny_config.trackers, tiny_config.checkpoint_every = (), 32.0
    plain = resnet_jax.fit(tiny_config, tmp_path / "plain")
    seen = {}

    def look(hook, run):
        if hook == "checkpoint":
            assert (tmp_path / "seen" / "checkpoints" / str(run.step)).is_dir()
        if hook == "evaluate":
            assert run.record["split"] == "validation"
            assert run.scores["validation"].confusion.sum() == 64
        if hook == "end":
            seen["summary"] = json.loads((run.workdir / "summary.json").read_text())
            seen["scores"] = set(run.scores)
            assert not run.stopped_early
        seen["params"] = jax.device_get(run.state.params)

    noting = Noting(look)
    result = resnet_jax.fit(tiny_config, tmp_path / "seen", callbacks=[noting])
    jax.tree.map(np.testing.assert_array_equal, plain.state.params, result.state.params)
    jax.tree.map(np.testing.assert_array_equal, seen["params"], result.state.params)
    assert [step for hook, step in noting.seen if hook == "log"] == [5, 10, 12]
    assert [step for hook, step in noting.seen if hook == "evaluate"] == [4, 8, 12]
    assert [step for hook, step in noting.seen if hook == "checkpoint"] == list(range(1, 13))
    assert noting.seen[-1] == ("end", 12)
    assert seen["summary"]["steps"] == 12
    assert seen["scores"] == set(result.evaluation)
    again = Noting()
    resnet_jax.fit(tiny_config, tmp_path / "seen", callbacks=[again])
    assert again.seen == []  # the run is on record


@pytest.mark.thorough
def test_a_run_that_a_callback_stops_goes_on_later(tiny_config, tmp_path, capsys):
    tiny_config.trackers = ()

    def stop(hook, run):
        assert run.stopped_early == (hook == "end")
        if hook == "evaluate":
            run.stop("good enough")

    noting = Noting(stop)
    result = resnet_jax.fit(tiny_config, tmp_path, callbacks=[noting])
    assert result.stopped_early
    assert int(result.state.step) == 4
    assert noting.seen[-2:] == [("checkpoint", 4), ("end", 4)]
    assert not (tmp_path / "summary.json").exists()
    said = capsys.readouterr().out
    assert "stopped by Noting: good enough" in said
    assert "stopped at step 4 of 12" in said
    assert json.loads((tmp_path / "process.json").read_text())["error"] is None
    assert int(resnet_jax.fit(tiny_config, tmp_path).state.step) == 12


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("hook", "step"), [("log", 5), ("checkpoint", 3), ("log", 12), ("end", 12)]
)
def test_a_run_whose_callback_fails_is_saved_and_goes_on_later(tiny_config, tmp_path, hook, step):
    tiny_config.trackers = ()
    tiny_config.checkpoint_every = 3 * 32.0

    def fail(called, run):
        if (called, run.step) == (hook, step):
            raise ValueError("my bug")

    with pytest.raises(
        CallbackError, match=rf"Noting has failed in on_{hook} at step {step} \(Val"
    ):
        resnet_jax.fit(tiny_config, tmp_path, callbacks=[Noting(fail)])
    assert (tmp_path / "checkpoints" / str(step)).is_dir()
    assert (tmp_path / "summary.json").exists() == (hook == "end")
    assert "my bug" in json.loads((tmp_path / "process.json").read_text())["error"]
    result = resnet_jax.fit(tiny_config, tmp_path)
    assert (int(result.state.step), result.stopped_early) == (12, False)
