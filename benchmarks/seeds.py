"""What several seeds in one program cost: whole runs, and the steps alone, beside those of one.

A ResNet-20 on the digits of scikit-learn, as `make train` trains it. Runs alternate, so that what
else the machine does meets both; ratios are of neighbours.

    python benchmarks/seeds.py --out benchmarks/results/seeds_cpu.json
"""

import argparse
import contextlib
import importlib.util
import io
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
from report import write_report

import resnet_jax
from resnet_jax.train import multi_seed as seeds_module
from resnet_jax.train.dispatch import make_train_steps
from resnet_jax.train.experiment import Experiment

ROOT = Path(__file__).resolve().parents[1]
SEEDS, PAIRS, STEPS = 5, 3, 20


def config_of(seeds: int) -> ConfigDict:
    """The config of `make train`, with so many seeds; 0 is the single run."""
    spec = importlib.util.spec_from_file_location("digits", ROOT / "configs/digits.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    config.seeds = tuple(range(seeds))
    return config


def run_s(seeds: int) -> float:
    """Seconds of a whole run: compilation, training, scores, checkpoints."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        began = time.monotonic()
        resnet_jax.fit(config_of(seeds), Path(folder) / "run")
        return time.monotonic() - began


class Steps:
    """The compiled steps of a run, to be timed."""

    def __init__(self, seeds: int, *, one_by_one: bool = True) -> None:
        config = config_of(seeds)
        config.steps_per_dispatch = STEPS
        seeds_module._one_by_one = lambda mesh: one_by_one
        experiment = Experiment.make(config)
        self._state, self._batches = experiment.initial_state(), experiment.loader().take(0)
        began = time.monotonic()
        shapes = experiment.spec.abstract_batches()
        lowered = make_train_steps(experiment.spec).lower(self._state, *shapes, 1)
        self._run = lowered.compile()
        self.compile_s = time.monotonic() - began
        self.step_s()

    def step_s(self) -> float:
        """Seconds of a step of all seeds."""
        began = time.monotonic()
        self._state = jax.block_until_ready(self._run(self._state, *self._batches, STEPS))
        return (time.monotonic() - began) / STEPS


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/seeds_cpu.json")
    out = parser.parse_args().out
    one, several = Steps(0), Steps(SEEDS)
    together = Steps(SEEDS, one_by_one=False)
    times = [(one.step_s(), several.step_s(), together.step_s()) for _ in range(3 * PAIRS)]
    seeds_module._one_by_one = lambda mesh: True
    runs = [(run_s(0), run_s(SEEDS)) for _ in range(PAIRS)]
    results: dict[str, Any] = {
        "seeds": SEEDS,
        "steps": {
            "one_s": [t[0] for t in times],
            "one_by_one_s": [t[1] for t in times],
            "together_s": [t[2] for t in times],
            "one_by_one_ratio": statistics.median(t[1] / t[0] for t in times),
            "together_ratio": statistics.median(t[2] / t[0] for t in times),
        },
        "compile": {
            "one_s": one.compile_s,
            "one_by_one_s": several.compile_s,
            "together_s": together.compile_s,
        },
        "runs": {
            "one_s": [t[0] for t in runs],
            "several_s": [t[1] for t in runs],
            "ratio": statistics.median(t[1] / t[0] for t in runs),
        },
    }
    write_report(out, results)
    print(results["steps"], results["runs"])


if __name__ == "__main__":
    main()
