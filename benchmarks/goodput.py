"""Goodput of runs that are killed at random, beside what `resnet-jax plan` predicts for them.

python benchmarks/goodput.py [--runs 5] [--mtbf-s 20] [--out benchmarks/results/goodput.json]

The costs are measured on runs that nobody kills: a whole one, and one that is stopped and resumed
several times. Then each of `--runs` runs is killed at random, with that mean time between failures,
and started again at once, until it ends. The prediction is for the rate at which they were killed.
"""

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from report import write_report

sys.path.insert(0, str(Path(__file__).parents[1]))
from resnet_jax.profiling.goodput import (
    Costs,
    best_interval_s,
    expected_wall_s,
    goodput,
    simulate_wall_s,
)
from tests.runs import start

ROOT = Path(__file__).resolve().parents[1]

BATCH = 32
INTERVAL = 300  # steps
STEPS = 6_000
ARGUMENTS = (
    "--config.model.stage_sizes=(1,1,1)",
    "--config.model.width=8",
    f"--config.duration={STEPS * BATCH}",
    f"--config.eval_every={10 * INTERVAL * BATCH}",
    f"--config.checkpoint_every={INTERVAL * BATCH}",
    "--config.log_every=10",
    "--config.steps_per_dispatch=10",
)
RESUMED_AT = (1_000, 2_000, 3_500, 4_500)


def account(workdir: Path) -> dict[str, Any]:
    """What the run's goodput.json says."""
    return json.loads((workdir / "goodput.json").read_text())


def train(workdir: Path, *arguments: str) -> float:
    """Train until the process ends by itself; return the seconds that it took."""
    began = time.monotonic()
    ended = start(workdir, *ARGUMENTS, *arguments).end(timeout_s=1200)
    assert ended.code in (0, 75), ended.said
    return time.monotonic() - began


def calm(folder: Path) -> dict[str, float]:
    """The costs of a run, measured on two runs that end by themselves."""
    train(folder / "whole")
    for step in RESUMED_AT:
        train(folder / "resumed", f"--stop_at_step={step}")
    train(folder / "resumed")
    whole, resumed = account(folder / "whole"), account(folder / "resumed")
    seconds = whole["seconds"]
    # A new process also compiles what scores and checks the state, when that is first needed.
    once_more = resumed["seconds"]["evaluation"] - seconds["evaluation"]
    begins = [start["seconds"] for start in resumed["starts"][1:]]
    begin_s = statistics.mean(one["start_up"] + one["restore"] + one["compile"] for one in begins)
    return {
        "step_s": seconds["step"] / STEPS,
        "other_s": (seconds["evaluation"] + seconds["data_wait"]) / STEPS,
        "save_s": seconds["save"] / whole["saves"],
        "restart_s": begin_s + max(0.0, once_more) / len(begins),
    }


def killed(folder: Path, mtbf_s: float, rng: random.Random) -> dict[str, Any]:
    """Train a run that is killed at random and started again, to its end."""
    began, kills, lived_s = time.monotonic(), 0, 0.0
    while True:
        dies_after_s = rng.expovariate(1 / mtbf_s)
        running, started = start(folder, *ARGUMENTS), time.monotonic()
        while running.alive() and time.monotonic() < started + dies_after_s:
            time.sleep(0.005)
        if running.alive():
            running.kill()
            kills += 1
        ended = running.end(timeout_s=60)
        lived_s += time.monotonic() - started
        if ended.code == 0:
            break
        assert ended.code == -9, ended.said
    found = account(folder)
    return {
        "kills": kills,
        "lived_s": lived_s,
        "wall_s": time.monotonic() - began,
        "accounted_s": found["wall_s"],
        "goodput": found["goodput"],
        "seconds": found["seconds"],
        "restarts": found["restarts"],
    }


def main() -> int:
    """Measure, predict, write the result; exit with 1 if they differ by more than a tenth."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--mtbf-s", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/goodput.json")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    measured = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder / "cache")
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
        train(folder / "first", "--stop_at_step=20")  # fills the compilation cache
        costs = calm(folder)
        print(costs, flush=True)
        for run in range(args.runs):
            measured.append(killed(folder / f"killed{run}", args.mtbf_s, rng))
            print(f"run {run}: {measured[-1]}", flush=True)
    kills = sum(one["kills"] for one in measured)
    if not kills:
        sys.exit("no run was killed; a smaller --mtbf-s or more --runs are needed")
    mtbf_s = sum(one["lived_s"] for one in measured) / kills
    of_run = Costs(**costs, mtbf_s=mtbf_s)
    walls = simulate_wall_s(of_run, steps=STEPS, interval=INTERVAL, runs=2_000, seed=args.seed)
    # Of all runs together, as the prediction is of the mean wall time.
    total = sum(one["accounted_s"] for one in measured)
    of_all = sum(one["seconds"]["step"] for one in measured) / total
    predicted = goodput(
        of_run, expected_wall_s(of_run, steps=STEPS, interval=INTERVAL), steps=STEPS
    )
    results = {
        "steps": STEPS,
        "checkpoint_every_steps": INTERVAL,
        "mtbf_s": mtbf_s,
        "drawn_with_mtbf_s": args.mtbf_s,
        "seed": args.seed,
        "costs": costs,
        "best_checkpoint_every_steps": round(best_interval_s(of_run) / of_run.work_s),
        "predicted_goodput": predicted,
        "simulated_goodput": goodput(of_run, float(walls.mean()), steps=STEPS),
        "measured_goodput": of_all,
        "error": predicted / of_all - 1,
        "kills": kills,
        "killed_runs": measured,
    }
    write_report(args.out, results)
    print(json.dumps({k: v for k, v in results.items() if not k.endswith("_runs")}, indent=1))
    return 0 if abs(results["error"]) < 0.1 else 1


if __name__ == "__main__":
    sys.exit(main())
