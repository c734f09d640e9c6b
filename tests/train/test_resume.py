"""A run that is stopped anywhere and resumed equals one that never was, to the bit."""

import dataclasses
import json
import os
import shutil
import signal
import threading
import time
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath

import resnet_jax
from resnet_jax.checkpoint.checkpointer import Checkpointer
from resnet_jax.checkpoint.reader import CheckpointReader
from resnet_jax.errors import DataError, WriteError
from resnet_jax.logging.metrics_log import read_metrics
from resnet_jax.train.experiment import Experiment
from resnet_jax.train.scoring import Scorer

STEPS = 12
_TIMINGS = {"img_per_s", "wall_s"}


def _assert_same_state(state: Any, expected: Any) -> None:
    leaves, expected_leaves = jax.tree.leaves_with_path(state), jax.tree.leaves(expected)
    assert len(leaves) == len(expected_leaves)
    for (path, leaf), wanted in zip(leaves, expected_leaves, strict=True):
        np.testing.assert_array_equal(leaf, wanted, err_msg=jax.tree_util.keystr(path))


def _untimed(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if k not in _TIMINGS} for record in records]


@pytest.fixture(scope="module")
def keep_all(request):
    """A config whose every step leaves a checkpoint."""
    from tests.conftest import make_tiny_config

    config = make_tiny_config()
    config.keep_checkpoints, config.checkpoint_every = STEPS, 32.0
    return config


@pytest.fixture(scope="module")
def uninterrupted(keep_all, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted")
    return workdir, resnet_jax.fit(keep_all, workdir)


_KILLED_AT = [  # where scores are taken; all other steps in the thorough tests
    pytest.param(step, marks=[pytest.mark.thorough] * (step != 4)) for step in range(1, STEPS)
]


@pytest.mark.parametrize("step", _KILLED_AT)
def test_resuming_after_a_kill_equals_the_uninterrupted_run(
    step, keep_all, uninterrupted, tmp_path
):
    """The process dies with the checkpoint of `step` as its last, its log further than that."""
    whole, expected = uninterrupted
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    for later in range(step + 1, STEPS + 1):
        shutil.rmtree(workdir / "checkpoints" / str(later))
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 12, "split": "tra')  # torn by the kill

    result = resnet_jax.fit(keep_all, workdir)

    _assert_same_state(result.state, expected.state)
    assert result.best == expected.best
    assert _untimed(read_metrics(workdir / "metrics.jsonl")) == _untimed(
        read_metrics(whole / "metrics.jsonl")
    )


@pytest.mark.thorough
def test_a_checkpoint_of_another_run_is_refused(tiny_config, tmp_path):
    """It was copied in under the same number, and its arrays have the same shapes."""
    resnet_jax.fit(tiny_config, tmp_path / "own", stop_at_step=2)
    other = tiny_config.copy_and_resolve_references()
    other.seed, other.log_every = 1, 1
    resnet_jax.fit(other, tmp_path / "other", stop_at_step=2)
    checkpoints = tmp_path / "own" / "checkpoints"
    shutil.rmtree(checkpoints / "2")
    shutil.copytree(tmp_path / "other" / "checkpoints" / "2", checkpoints / "2")

    with pytest.raises(DataError, match="of another run: seed is 1 there, 0 here"):
        resnet_jax.restore_run(tmp_path / "own")
    tiny_config.log_every = 1
    with pytest.raises(DataError, match="of another run: seed is 1 there, 0 here"):
        resnet_jax.fit(tiny_config, tmp_path / "own", stop_at_step=3)
    (checkpoints / "2").rename(tmp_path / "moved")
    resnet_jax.fit(tiny_config, tmp_path / "own", stop_at_step=3)
    assert resnet_jax.restore_run(tmp_path / "own").step == 3


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # TensorStore's
def test_a_damaged_checkpoint_is_stepped_over(keep_all, uninterrupted, tmp_path, caplog):
    """One flipped bit in the newest one: the run goes on from the one before, and is the same."""
    whole, expected = uninterrupted
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    for later in range(8, STEPS + 1):
        shutil.rmtree(workdir / "checkpoints" / str(later))
    newest = workdir / "checkpoints" / "7" / "state"
    file = max(newest.rglob("d/*"), key=lambda path: path.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)

    result = resnet_jax.fit(keep_all, workdir)

    assert "using the checkpoint of step 6" in caplog.text
    _assert_same_state(result.state, expected.state)
    assert (workdir / "checkpoints" / "7.corrupt").is_dir()
    assert (workdir / "checkpoints" / "7").is_dir()  # saved again


@pytest.mark.thorough
@pytest.mark.parametrize("step", [3, 8])
def test_resuming_after_a_requested_stop_equals_the_uninterrupted_run(
    step, keep_all, uninterrupted, tmp_path
):
    """With few checkpoints, and stopped between them."""
    _, expected = uninterrupted
    config = keep_all.copy_and_resolve_references()
    config.checkpoint_every = 5 * 32.0
    config.keep_checkpoints = 1

    stopped = resnet_jax.fit(config, tmp_path, stop_at_step=step)
    assert stopped.stopped_early
    assert int(stopped.state.step) == step
    result = resnet_jax.fit(config, tmp_path)

    assert not result.stopped_early
    _assert_same_state(result.state, expected.state)
    assert result.best == expected.best
    assert _untimed(result.history) == _untimed(expected.history)


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["lars", "lamb", "muon"])
def test_other_optimisers_and_all_that_counts_steps_go_on_too(name, tiny_config, tmp_path):
    tiny_config.optimizer.name = name
    tiny_config.optimizer.decay = "l2" if name == "lars" else "decoupled"
    tiny_config.ema_every = 2
    tiny_config.ema_warmup = True
    tiny_config.sam_radius = 0.05
    tiny_config.sam_every = 3
    expected = resnet_jax.fit(tiny_config, tmp_path / "whole")
    resnet_jax.fit(tiny_config, tmp_path / "stopped", stop_at_step=7)
    result = resnet_jax.fit(tiny_config, tmp_path / "stopped")
    _assert_same_state(result.state, expected.state)


@pytest.mark.thorough
def test_sigterm_saves_and_the_run_goes_on(tiny_config, tmp_path):
    tiny_config.duration = 4000 * 32.0
    tiny_config.eval_every = tiny_config.checkpoint_every = 2000 * 32.0

    def terminate_once_training() -> None:
        while not read_metrics(tmp_path / "metrics.jsonl"):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=terminate_once_training, daemon=True)
    thread.start()
    result = resnet_jax.fit(tiny_config, tmp_path)
    thread.join()

    step = int(result.state.step)
    assert result.stopped_early
    assert 0 < step < 4000
    assert [int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.is_dir()] == [step]
    again = resnet_jax.fit(tiny_config, tmp_path, stop_at_step=step + 1)
    assert int(again.state.step) == step + 1


def test_a_finished_run_shows_its_record_and_is_neither_trained_nor_scored(
    uninterrupted, keep_all, monkeypatch, capsys
):
    whole, expected = uninterrupted
    files = ("summary.json", "metrics.jsonl", "curves.png", "config.json")
    before = [(whole / file).read_bytes() for file in files]
    for name in ("evaluators", "loader"):
        monkeypatch.setattr(Experiment, name, None)
    monkeypatch.setattr("resnet_jax.train.fit.CompiledSteps", None)
    again = resnet_jax.fit(keep_all, whole)
    assert [(whole / file).read_bytes() for file in files] == before
    assert again.evaluation.keys() == expected.evaluation.keys()
    for name, scored in expected.evaluation.items():
        assert again.evaluation[name].scalars() == scored.scalars()
        assert again.evaluation[name].confusion is None
    assert again.history == expected.history
    assert again.best == expected.best
    shown = capsys.readouterr().out
    assert "trained already; its record is left as it is" in shown
    assert f"top-1 {100 * expected.evaluation['test'].top1:.2f} % of 100 test images" in shown


def test_a_finished_run_without_a_summary_is_scored_again(
    uninterrupted, keep_all, tmp_path, capsys
):
    whole, expected = uninterrupted
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    again = resnet_jax.fit(keep_all, tmp_path / "run")
    assert "trained already; it is scored again" in capsys.readouterr().out
    assert (tmp_path / "run" / "summary.json").exists()
    for name, scored in expected.evaluation.items():
        np.testing.assert_array_equal(again.evaluation[name].confusion, scored.confusion)


@pytest.mark.thorough
def test_only_the_newest_checkpoints_and_the_best_are_kept(keep_all, uninterrupted, tmp_path):
    _, expected = uninterrupted
    config = keep_all.copy_and_resolve_references()
    config.keep_checkpoints = 2
    resnet_jax.fit(config, tmp_path)
    kept = {int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.is_dir()}
    assert kept == {11, 12, expected.best["step"]}


def test_best_is_the_highest_validation_score(uninterrupted):
    _, expected = uninterrupted
    scores = [
        (r["top1"], -r["loss"], r["step"])
        for r in expected.history
        if r["split"] == "validation" and r["weights"] == "raw"
    ]
    assert [step for _, _, step in scores] == [4, 8, 12]
    assert expected.best["step"] == max(scores)[2]


@pytest.mark.thorough
def test_the_best_is_kept_when_the_last_save_fails_once(tiny_config, tmp_path, monkeypatch):
    """The save that is tried again has the best scores: it pushes the best one before out."""
    tiny_config.keep_checkpoints = 1
    tiny_config.checkpoint_every = tiny_config.duration
    score, save = Scorer.__call__, Checkpointer.save
    failed = []

    def scores_by_step(scorer, split, state, step):
        top1 = {4: 0.5, 8: 0.1, 12: 0.9}[step]
        scores = score(scorer, split, state, step)
        return {
            name: dataclasses.replace(one, metrics={**one.metrics, "top1": top1})
            for name, one in scores.items()
        }

    def fails_once(self, step, *args, **kwargs):
        if step == STEPS and not failed:
            failed.append(step)
            raise WriteError("No space left on device.")
        save(self, step, *args, **kwargs)

    monkeypatch.setattr(Scorer, "__call__", scores_by_step)
    monkeypatch.setattr(Checkpointer, "save", fails_once)
    result = resnet_jax.fit(tiny_config, tmp_path)
    assert failed == [STEPS]
    assert result.best["step"] == STEPS
    assert "test_best" in result.evaluation
    # The last one that was known to be good when the other was saved is kept, too.
    assert CheckpointReader(epath.Path(tmp_path / "checkpoints")).steps() == [8, STEPS]
    assert resnet_jax.restore_run(tmp_path, checkpoint="best").step == STEPS


@pytest.mark.thorough
def test_other_convolutions_are_recorded_and_said_once(tmp_path, tiny_config, monkeypatch, capsys):
    def go_on(convolutions, step):
        monkeypatch.setattr("resnet_jax.ops.native.library.describe", lambda *_: convolutions)
        resnet_jax.fit(tiny_config, tmp_path, stop_at_step=step)
        lines = capsys.readouterr().out.splitlines()
        return [line for line in lines if line.startswith("convolutions")]

    assert go_on("oneDNN 3.2.0 (AVX2)", 2) == []
    assert go_on("oneDNN 3.2.0 (AVX2)", 4) == []
    (line,) = go_on("XLA", 6)
    assert "by oneDNN 3.2.0 (AVX2) so far and are by XLA from here on" in line
    assert go_on("XLA", None) == []
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["convolutions"] == ["oneDNN 3.2.0 (AVX2)", "XLA"]
