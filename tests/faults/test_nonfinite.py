"""A loss or gradient that stops being a number: at one step, whose batch is poisoned."""

import json

import numpy as np
import pytest

import resnet_jax
from resnet_jax.checkpoint import checkpointer
from resnet_jax.checkpoint.checkpointer import Checkpointer
from resnet_jax.checkpoint.reader import CheckpointReader
from resnet_jax.errors import NumericalError
from resnet_jax.train import step as step_module
from tests.faults.inject import Fault
from tests.runs import digest, steps_on_record, train

# The poisoned program rounds differently from the plain one, so this is what others compare with.
HARMLESS = "step:99:nan"


@pytest.fixture(scope="module")
def harmless(tmp_path_factory):
    """Digest of a run whose batches are all good."""
    workdir = tmp_path_factory.mktemp("harmless") / "run"
    assert train(workdir, fault=HARMLESS).code == 0
    return digest(workdir)


def _record(workdir):
    return [json.loads(line) for line in (workdir / "nonfinite.jsonl").read_text().splitlines()]


def _batch(step):
    """What the batch of a step is, from the stream's own definition."""
    from resnet_jax.data.loaders.sampler import IndexSampler

    ids, epochs = IndexSampler(seed=0, num_examples=256, batch_size=32).take(step, 1)
    return {"ids": ids[0].tolist(), "epochs": epochs[0].tolist()}


def _finite(workdir):
    import jax

    from resnet_jax.inference.restore import restore_run

    leaves = jax.tree.leaves(restore_run(workdir).variables)
    return all(np.isfinite(leaf).all() for leaf in leaves)


@pytest.mark.thorough
def test_by_default_the_run_ends_and_what_is_saved_is_good(harmless, tmp_path, record_property):
    ended = train(tmp_path / "run", fault="step:5:nan")
    record_property("saw", ended.last_line)
    assert ended.code == 70
    assert "stopped being finite at or shortly before step 6" in ended.last_line
    assert "The checkpoint of step 4 is from before" in ended.last_line
    assert _record(tmp_path / "run") == [{"step": 5, "outcome": "the run ended"} | _batch(5)]
    assert _finite(tmp_path / "run")
    # The cause is gone, and the run goes on as if nothing had been.
    assert train(tmp_path / "run", fault=HARMLESS).code == 0
    assert digest(tmp_path / "run") == harmless


@pytest.mark.thorough
def test_a_step_can_be_skipped(harmless, tmp_path, record_property):
    skip = "--config.nonfinite.policy=skip"
    stopped = train(tmp_path / "run", skip, "--stop_at_step=7", fault="step:5:nan")
    assert stopped.code == 75
    ended = train(tmp_path / "run", skip, fault="step:5:nan")
    assert ended.code == 0
    record_property("saw", next(x for x in stopped.said.splitlines() if "skipped" in x))
    assert _record(tmp_path / "run") == [{"step": 5, "outcome": "skipped"} | _batch(5)]
    assert steps_on_record(tmp_path / "run") == [2, 4, 6, 8, 10, 12]
    assert _finite(tmp_path / "run")
    # As one that wasn't stopped, and not as one for which the batch was good.
    assert train(tmp_path / "whole", skip, fault="step:5:nan").code == 0
    assert digest(tmp_path / "run") == digest(tmp_path / "whole")
    assert digest(tmp_path / "run") != harmless


@pytest.mark.thorough
@pytest.mark.parametrize("policy", ["abort", "rollback"])
def test_what_was_skipped_before_is_no_failure_of_another_policy(policy, tmp_path):
    """The checkpoint of step 7 counts the skipped step 6 since the last log point, step 6."""
    skip = "--config.nonfinite.policy=skip"
    stopped = train(tmp_path / "run", skip, "--stop_at_step=7", fault="step:6:nan")
    assert stopped.code == 75
    ended = train(tmp_path / "run", f"--config.nonfinite.policy={policy}", fault=HARMLESS)
    assert ended.code == 0
    assert _record(tmp_path / "run") == [{"step": 6, "outcome": "skipped"} | _batch(6)]
    assert steps_on_record(tmp_path / "run") == [2, 4, 6, 8, 10, 12]


@pytest.mark.thorough
def test_skipping_has_a_limit(tmp_path):
    arguments = ("--config.nonfinite.policy=skip", "--config.nonfinite.limit=0")
    ended = train(tmp_path / "run", *arguments, fault="step:5:nan")
    assert ended.code == 70
    assert "at most 0 (nonfinite.limit)" in ended.last_line


@pytest.mark.thorough
def test_a_run_can_go_back(tmp_path, record_property):
    back = "--config.nonfinite.policy=rollback"
    ended = train(tmp_path / "run", back, fault="step:5:nan")
    assert ended.code == 0, ended.said
    record_property("saw", next(x for x in ended.said.splitlines() if "went back" in x))
    assert _record(tmp_path / "run") == [{"step": 5, "outcome": "went back to step 4"} | _batch(5)]
    assert _finite(tmp_path / "run")
    # Killed when it had gone back, it goes on from there.
    stopped = train(tmp_path / "again", back, "--stop_at_step=6", fault="step:5:nan")
    assert stopped.code == 75
    assert train(tmp_path / "again", back, fault=HARMLESS).code == 0
    assert digest(tmp_path / "again") == digest(tmp_path / "run")


@pytest.mark.thorough
def test_without_a_checkpoint_there_is_nothing_to_go_back_to(tmp_path):
    ended = train(tmp_path / "run", "--config.nonfinite.policy=rollback", fault="step:0:nan")
    assert (ended.code, "Nothing was saved" in ended.last_line) == (70, True)


@pytest.fixture
def rollback(tiny_config, monkeypatch):
    """A config that goes back, and a function that poisons the batch of a step in this process."""
    tiny_config.model.stage_sizes, tiny_config.checkpoint_every = (1,), 32.0
    tiny_config.nonfinite.policy = "rollback"
    monkeypatch.setattr(
        step_module, "forward_backward", step_module.forward_backward
    )  # to put it back
    return tiny_config, lambda step: Fault("step", step, "nan").install("")


def _steps(result, split):
    of_split = (r for r in result.history if r["split"] == split)
    return [r["step"] for r in of_split if r.get("weights", "raw") == "raw"]


@pytest.mark.thorough
def test_going_back_at_the_last_step_leaves_no_record_out(rollback, tmp_path):
    """Twelve steps, with a record after every fifth and the last, and scores after every fourth."""
    config, poison = rollback
    poison(11)
    result = resnet_jax.fit(config, tmp_path / "run")
    assert _record(tmp_path / "run")[0]["outcome"] == "went back to step 11"
    assert _steps(result, "train") == [5, 10, 12]
    assert _steps(result, "validation") == [4, 8, 12]
    last = [r for r in result.history if r["split"] == "validation" and r["weights"] == "raw"][-1]
    assert last["loss"] == result.evaluation["validation"].loss
    assert CheckpointReader(tmp_path / "run" / "checkpoints").steps()[-1] == 12


@pytest.mark.thorough
def test_a_save_that_fails_while_the_run_goes_back_is_tried_again(rollback, tmp_path, monkeypatch):
    """The checkpoint of step 5 turns out to be bad when the run is to go back to it."""
    config, poison = rollback
    poison(5)
    found = checkpointer.find_corruption

    def find_corruption(manager, folder, sums):
        return "made up" if folder.name == "5" else found(manager, folder, sums)

    monkeypatch.setattr(checkpointer, "find_corruption", find_corruption)
    monkeypatch.setattr(Checkpointer, "has_failed", lambda self: False)  # isn't known so early
    result = resnet_jax.fit(config, tmp_path / "run")
    assert [r["outcome"] for r in _record(tmp_path / "run")] == ["went back to step 4"]
    assert (int(result.state.step), result.stopped_early) == (12, False)
    assert _steps(result, "train") == [5, 10, 12]
    assert (tmp_path / "run" / "checkpoints" / "5.corrupt").is_dir()


@pytest.mark.thorough
@pytest.mark.parametrize(("rate", "norm"), [(3e38, "batch"), (1e22, "none")])
def test_measuring_inside_a_network_that_diverges_ends_as_training_does(
    rate, norm, tiny_config, tmp_path
):
    """Parameters that aren't finite aren't measured; those that are may have large activations."""
    tiny_config.model.stage_sizes, tiny_config.model.norm = (1,), norm
    tiny_config.duration, tiny_config.log_every = 2 * 32.0, 1
    tiny_config.checkpoint_every = 32.0
    tiny_config.schedule.base_lr, tiny_config.schedule.reference_batch = rate, 32
    tiny_config.schedule.warmup, tiny_config.diagnostics.every = 0.0, 32.0
    tiny_config.diagnostics.what = ("norms",)
    with pytest.raises(NumericalError, match="stopped being finite at or shortly before step"):
        resnet_jax.fit(tiny_config, tmp_path / "run")
