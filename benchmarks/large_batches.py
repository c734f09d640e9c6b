"""The linear scaling rule of Goyal et al. 2017 (1706.02677) on digits, with seeds.

A batch k times as large with a learning rate k times as high, reached by a warm-up, is to train as
the small one does; with the old rate, or without the warm-up, it isn't. A ResNet-8 on the digits of
scikit-learn, for 20 epochs each.

    python benchmarks/large_batches.py --out benchmarks/results/large_batches.json
"""

import argparse
import contextlib
import io
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from report import write_report

import resnet_jax

ROOT = Path(__file__).resolve().parents[1]
BATCH, RATE, EPOCHS, WARM_UP, SEEDS = 16, 0.05, 20.0, 5.0, 3
FACTORS = (1, 4, 16)
WAYS = {
    "rate × k, warm-up": (True, WARM_UP),
    "rate × k": (True, 0.0),
    "rate as it was": (False, WARM_UP),
}


def train(factor: int, *, scaled: bool, warmup: float, seed: int) -> dict[str, float]:
    """One run: mean loss of the last epoch's steps, and top-1 on the test images."""
    config = resnet_jax.default_config()
    config.seed = seed
    config.model.stage_sizes = (1, 1, 1)
    config.data.crop_padding, config.data.flip = 1, False
    config.batch_size = BATCH * factor
    config.duration = EPOCHS
    config.eval_every = config.checkpoint_every = EPOCHS
    config.log_every, config.steps_per_dispatch = 1, 50
    config.optimizer.nesterov = True
    config.schedule.name, config.schedule.warmup = "step", warmup
    config.schedule.boundaries, config.schedule.scales = (12.0, 16.0), (1.0, 0.1, 0.01)
    config.schedule.base_lr = RATE
    config.schedule.reference_batch = BATCH if scaled else config.batch_size
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        result = resnet_jax.fit(config, Path(folder) / "run")
    steps = [r for r in result.history if r["split"] == "train"]
    last = [r["loss"] for r in steps if r["epoch"] > EPOCHS - 1]
    return {"train_loss": statistics.mean(last), "test_top1": result.evaluation["test"].top1}


def main() -> None:
    """Run all, write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/large_batches.json")
    out = parser.parse_args().out
    rows: list[dict[str, Any]] = []
    for factor in FACTORS:
        for way, (scaled, warmup) in WAYS.items():
            runs = [train(factor, scaled=scaled, warmup=warmup, seed=seed) for seed in range(SEEDS)]
            row: dict[str, Any] = {"factor": factor, "batch_size": BATCH * factor, "way": way}
            for key in ("train_loss", "test_top1"):
                values = [run[key] for run in runs]
                row[key] = {"mean": statistics.mean(values), "std": statistics.stdev(values)}
            rows.append(row)
            print(json.dumps(row), flush=True)
    write_report(out, {"seeds": SEEDS, "epochs": EPOCHS, "base_lr": RATE, "rows": rows})


if __name__ == "__main__":
    main()
