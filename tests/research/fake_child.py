"""Stands for the process of a run in tests: it ends as the seed of its config says."""

import json
import os
import signal
import sys
import time
from pathlib import Path

STOPS, FAILS, IS_KILLED, TELLS = 75, 70, 9, 50
"""Seeds; all others finish at once."""


def summary(config: dict, top1: float) -> dict:
    """A summary.json, as far as sweeps read it."""
    scores = {"examples": 100, "loss": 1 - top1, "top1": top1, "top5": 1.0}
    return {
        "seed": config["seed"],
        "steps": 12,
        "final": {"test": scores},
        "best": None,
        "wall_s": 2.0,
        "img_per_s": 100.0,
        "command": "resnet-jax sweep",
        "commit": None,
        "versions": {},
        "hardware": {},
        "config": config,
    }


def _wait_for(path: Path) -> None:
    end = time.monotonic() + 300
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.02)


def main() -> int:
    """Do as the seed says."""
    job = json.load(sys.stdin)
    config, folder = json.loads(job["config"]), Path(job["workdir"])
    seed = config["seed"]
    sys.stdout.write("some chatter\n")
    if seed == FAILS:
        sys.stderr.write("error: The loss of step 3 isn't finite.\nmore chatter\n")
        return 70
    if seed == IS_KILLED:
        os.kill(os.getpid(), signal.SIGKILL)
    if seed == STOPS:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
        folder.mkdir(parents=True)
        (folder / "pid").write_text(str(os.getpid()))
        time.sleep(60)
    if seed == TELLS:
        from resnet_jax.logging.console import TrainingConsole  # imports JAX

        with TrainingConsole(total_steps=12, start_step=0) as console:
            console.train(
                {"step": 4, "epoch": 0.5, "loss": 0.3, "top1": 0.4, "img_per_s": 4.0}
                | {"examples": 124}
            )
            _wait_for(folder.parent / "heard of step 4")
            scores = {"split": "validation", "weights": "raw", "step": 8, "examples": 100}
            scores |= {"loss": 0.2, "top1": 0.5, "std": {"top1": 0.01}}
            console.evaluation(scores)
            sys.stdout.write("step 12/12  a line that isn't whole")
            sys.stdout.flush()
            _wait_for(folder.parent / "heard of step 8")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(job["config"])
    (folder / "summary.json").write_text(json.dumps(summary(config, 0.9 + seed / 100)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
