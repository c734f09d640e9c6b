"""`resnet-jax verify` on a run of CIFAR-10: as it is, and after somebody changed something in it.

python benchmarks/verify.py [--steps 90] [--out benchmarks/results/verify.json]

Needs CIFAR-10 of TFDS. Each change is made in a copy of the run.
"""

import argparse
import dataclasses
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from report import write_report

sys.path.insert(0, str(Path(__file__).parents[1]))
from configs.cifar10 import get_config
from resnet_jax import fit
from resnet_jax.checkpoint.checkpointer import Checkpointer
from resnet_jax.checkpoint.reader import CheckpointReader
from resnet_jax.config.io import bound_fields, from_json
from resnet_jax.utils.compilation_cache import enable_compilation_cache
from resnet_jax.utils.malloc import configure_malloc
from resnet_jax.verification.verify import verify_run

ROOT = Path(__file__).resolve().parents[1]

BATCH = 32


def train(workdir: Path, steps: int, *, seed: int) -> float:
    """Train ResNet-20 with a checkpoint after each sixth of the run; return the seconds."""
    config = get_config("resnet20")
    config.seed, config.duration_unit = seed, "examples"
    config.batch_size = config.model.bn_group_size = BATCH
    config.data.validation, config.data.test = "train[49500:]", "test[:500]"
    config.duration, config.log_every = float(steps * BATCH), steps // 18
    config.schedule.boundaries, config.schedule.scales = (), (1.0,)
    config.eval_every = config.duration / 2
    config.checkpoint_every = config.keep_every = config.duration / 6
    began = time.monotonic()
    assert not fit(config, workdir).stopped_early
    return time.monotonic() - began


def edit_line(run: Path) -> None:
    """A lower loss in the last line of training."""
    path = run / "metrics.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    last = [record for record in records if record["split"] == "train"][-1]
    last["loss"] = round(0.9 * last["loss"], 6)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def middle(run: Path) -> Path:
    """A checkpoint in the middle of the run."""
    steps = sorted(
        int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdecimal()
    )
    return run / "checkpoints" / str(steps[len(steps) // 2])


def copy_checkpoint(run: Path) -> None:
    """The last checkpoint is a copy of one in the middle."""
    last = max((run / "checkpoints").iterdir(), key=lambda path: int(path.name))
    source = middle(run)
    shutil.rmtree(last)
    shutil.copytree(source, last)


def flip_bit(run: Path) -> None:
    """One bit of a file of a checkpoint."""
    file = max((middle(run) / "state").rglob("d/*"), key=lambda path: path.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def forge(run: Path) -> None:
    """One bit of a parameter, in a checkpoint with all checksums made anew."""
    folder = middle(run)
    step, directory = int(folder.name), folder.parent
    bound = bound_fields(from_json((run / "config.json").read_text()))
    reader = CheckpointReader(directory, run=bound)
    state, progress = reader.restore_on_one_device(step)
    scores = reader.manager.metrics(step)
    reader.close()
    kernel = np.array(state["params"]["layer2_0"]["conv1"]["kernel"])
    kernel.view(np.uint32).flat[0] ^= 1
    state["params"]["layer2_0"]["conv1"]["kernel"] = kernel
    shutil.rmtree(folder)
    checkpoints = Checkpointer(directory, keep=99, run=bound)
    checkpoints.save(step, state, progress=progress, metrics=scores)
    checkpoints.close()


def verify(run: Path) -> dict[str, Any]:
    """What `resnet-jax verify` finds, with three slices trained again."""
    began = time.monotonic()
    found = verify_run(run)
    slices = [part for part in found.slices if part.replayed]
    return {
        "verdict": found.verdict,
        "failed_checks": {c.what: c.detail for c in found.checks if c.passed is False},
        "slices": [
            {
                "steps": [part.first, part.last],
                "outcome": part.outcome,
                "seconds": part.replayed.seconds,
                "differences": [dataclasses.asdict(one) for one in part.replayed.differences],
            }
            for part in slices
            if part.replayed
        ],
        "seconds": time.monotonic() - began,
    }


def main() -> int:
    """Train, change, verify, write the result; exit with 1 if a change isn't found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=90)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/verify.json")
    args = parser.parse_args()
    configure_malloc(decoded_as_needed=False)
    enable_compilation_cache()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trained_s = train(folder / "run", args.steps, seed=0)
        train(folder / "other", args.steps, seed=1)

        def summary_of_another(run: Path) -> None:
            shutil.copy(folder / "other" / "summary.json", run / "summary.json")

        changes: dict[str, Callable[[Path], None]] = {
            "nothing": lambda run: None,
            "the loss in a line of metrics.jsonl": edit_line,
            "the last checkpoint, by a copy of another step's": copy_checkpoint,
            "one bit of a checkpoint's file": flip_bit,
            "one bit of a parameter, with new checksums": forge,
            "summary.json, by that of another seed": summary_of_another,
        }
        found = {}
        for number, (what, change) in enumerate(changes.items()):
            run = folder / f"copy{number}"
            shutil.copytree(folder / "run", run)
            change(run)
            found[what] = verify(run)
            print(what, json.dumps(found[what], indent=1), flush=True)
    results = {
        "model": "resnet20",
        "data": "cifar10",
        "seeds": [0, 1],
        "steps": args.steps,
        "batch_size": BATCH,
        "checkpoint_every_steps": args.steps // 6,
        "trained_s": trained_s,
        "verified": found,
    }
    write_report(args.out, results)
    right = [(what == "nothing") == (one["verdict"] == "verified") for what, one in found.items()]
    return 0 if all(right) else 1


if __name__ == "__main__":
    sys.exit(main())
