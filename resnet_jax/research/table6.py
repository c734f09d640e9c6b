"""The runs of configs/cifar10_table6.py: table 6 of He et al. 2015 within reach of two CPU cores.

Reproductions of the size "cifar" take their networks from these runs, which `resnet-jax sweep`
trains.
"""

import functools
from collections.abc import Iterator
from typing import Any, Literal

from ml_collections import ConfigDict

from resnet_jax.research.configs import cifar10
from resnet_jax.research.sweep import PlannedRun, plan_runs

Length = Literal["eighth", "full"]

BATCH = 128
PAPER_STEPS = 64_000
EIGHTH = PAPER_STEPS // 8
CONFIG_FILE = "configs/cifar10_table6.py"
DATA = f"CIFAR-10, {EIGHTH:,} steps"
"""The data of rows of the runs with an eighth of the steps."""

NETWORKS = ("resnet20", "plain20", "resnet56", "plain56")
SEEDS = (0, 1, 2)


def get_config() -> ConfigDict:
    """The paper's recipe with an eighth of its steps, on 45,000 training images."""
    fields = {
        "data.train": "train[:45000]",
        "data.validation": "train[45000:]",
        "nonfinite.policy": "abort",
        "nonfinite.limit": 10,
        "keep_checkpoints": 2,
        "log_every": 50,
        "steps_per_dispatch": 10,
        "hang_timeout_s": 0.0,  # the process may be paused for hours
        "eval_every": 250.0 * BATCH,
        "checkpoint_every": 250.0 * BATCH,
    }
    return cifar10("resnet20", fields, share=EIGHTH / PAPER_STEPS)


def sweep() -> Iterator[dict[str, Any]]:
    """Seed 0 of each network, then a ResNet-20 with all steps, then the other seeds."""
    for seed in SEEDS:
        for network in NETWORKS:
            yield {"name": run_name(network, "eighth", seed), "model.name": network, "seed": seed}
        if seed == 0:
            yield {
                "name": run_name("resnet20", "full", 0),
                "model.name": "resnet20",
                "duration": float(PAPER_STEPS * BATCH),
                "eval_every": 1_000.0 * BATCH,
                "checkpoint_every": 1_000.0 * BATCH,
                "schedule.boundaries": (32_000.0 * BATCH, 48_000.0 * BATCH),
            }


def run_name(network: str, length: Length, seed: int) -> str:
    """The name of a run, such as "plain56_eighth_seed2"."""
    return f"{network}_{length}_seed{seed}"


@functools.cache
def planned_runs() -> dict[str, PlannedRun]:
    """The runs by name."""
    return {run.name: run for run in plan_runs(get_config(), sweep())}
