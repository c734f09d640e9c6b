"""Too little memory for a network, at once or in the middle of a run: one line, nothing lost."""

import pytest

from resnet_jax.checkpoint.reader import CheckpointReader
from tests.runs import digest, train

# A step of these takes a hundred megabytes.
_LARGE = (
    "--config.model.width=32",
    "--config.batch_size=1280",
    "--config.data.train=train[:1300]",
    "--config.data.validation=train[1300:]",
    "--config.duration=6400",
)


def _check(ended):
    assert ended.code == 78, ended.said
    assert "Traceback" not in ended.said
    assert ended.last_line.startswith("error: This host or its devices have too little memory")
    assert "A smaller batch_size" in ended.last_line


@pytest.mark.thorough
def test_a_network_larger_than_any_memory_is_refused(tmp_path, record_property):
    ended = train(tmp_path / "run", "--config.model.width=200000")
    record_property("saw", ended.last_line)
    _check(ended)
    assert not (tmp_path / "run" / ".lock").exists()
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []
    # It isn't bound to what was impossible.
    assert train(tmp_path / "run", "--stop_at_step=2").code == 75


@pytest.mark.thorough
def test_memory_that_runs_out_costs_no_checkpoint(tmp_path):
    ended = train(
        tmp_path / "run",
        *_LARGE,
        fault="resnet_jax.data.loaders.in_memory:InMemoryLoader.take:3:starve",
    )
    _check(ended)
    checkpoints = CheckpointReader(tmp_path / "run" / "checkpoints")
    assert checkpoints.steps()
    for step in checkpoints.steps():
        checkpoints.restore_on_one_device(step)
    assert train(tmp_path / "run", *_LARGE).code == 0
    assert not list((tmp_path / "run" / "checkpoints").glob("*tmp*"))
    assert train(tmp_path / "whole", *_LARGE).code == 0
    assert digest(tmp_path / "run") == digest(tmp_path / "whole")
