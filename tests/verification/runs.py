"""Runs for tests of `verify`, and what such tests look at."""

import json
from pathlib import Path

from ml_collections import ConfigDict

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


def edit_record(run: Path, step: int, **fields) -> None:
    """Change fields of the training record of a step."""
    path = run / "metrics.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:
        if (record["step"], record["split"]) == (step, "train"):
            record.update(fields)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
