"""Runs for tests of `verify`, and what such tests look at."""

import json
import shutil
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from resnet_jax.checkpoint.checkpointer import Checkpointer
from resnet_jax.checkpoint.reader import CheckpointReader
from resnet_jax.checkpoint.run_config import config_of
from resnet_jax.config.io import bound_fields
from resnet_jax.verification.verify import Verification


def make_config(**fields) -> ConfigDict:
    """Eight steps, with checkpoints of steps 2, 4, 6 and 8."""
    from tests.conftest import make_tiny_config

    config = make_tiny_config()
    config.model.stage_sizes = (1,)
    config.duration = 8 * 32.0
    config.checkpoint_every = 2 * 32.0
    config.log_every = 2
    config.keep_checkpoints = 4
    for name, value in fields.items():
        config[name] = value
    return config


def failed_checks(found: Verification) -> list[str]:
    """Names of the checks that say no."""
    return [check.what for check in found.checks if check.passed is False]


def edit_record(run: Path, step: int, *, split: str = "train", **fields) -> None:
    """Change fields of the record of a split and a step."""
    path = run / "metrics.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:
        if (record["step"], record["split"]) == (step, split):
            record.update(fields)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def forge_bit(run: Path, step: int) -> None:
    """Flip a bit of a checkpoint's kernel, and save the checkpoint with checksums that fit."""
    directory, bound = run / "checkpoints", bound_fields(config_of(run))
    reader = CheckpointReader(directory, run=bound)
    kept, (state, progress) = len(reader.steps()), reader.restore_on_one_device(step)
    scores = reader.manager.metrics(step)
    reader.close()
    kernel = np.array(state["params"]["fc"]["kernel"])
    kernel.view(np.uint32)[0, 0] ^= 1
    state["params"]["fc"]["kernel"] = kernel
    shutil.rmtree(directory / str(step))
    checkpoints = Checkpointer(directory, keep=kept, run=bound)
    checkpoints.save(step, state, progress=progress, metrics=scores)
    checkpoints.close()
