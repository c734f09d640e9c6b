"""What `resnet-jax verify` says of a CIFAR-10 run, and of copies that were tampered with.

    python benchmarks/verify.py [--steps 600]

ResNet-20 trains by configs/cifar10.py with a checkpoint every sixth of the steps, all of them kept.
$TFDS_DATA_DIR is the folder of the prepared data.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from report import write_report

sys.path.insert(0, str(Path(__file__).parents[1]))
import resnet_jax
from resnet_jax.data.loaders import sampler
from resnet_jax.inference.restore import config_of
from tests.verification.runs import edit_record, forge_bit

ROOT = Path(__file__).resolve().parents[1]
BATCH, PARTS = 128, 6


def train(steps: int, workdir: Path) -> list[str]:
    """Train in a process of its own; return its command."""
    every = steps // PARTS
    fields = {
        "duration": steps * BATCH,
        "checkpoint_every": every * BATCH,
        "keep_every": every * BATCH,
        "eval_every": 3 * every * BATCH,
        "log_every": every // 2,
        "steps_per_dispatch": every // 2,
    }
    command = ["train.py", "--config=configs/cifar10.py:resnet20"]
    command += [f"--config.{name}={value}" for name, value in fields.items()]
    subprocess.run([sys.executable, *command, f"--workdir={workdir}"], cwd=ROOT, check=True)
    return ["python", *command, "--workdir=RUN"]


def verify(workdir: Path, slices: str) -> dict[str, Any]:
    """What `resnet-jax verify` finds, and its exit code."""
    command = [sys.executable, "-m", "resnet_jax", "verify", str(workdir)]
    command += [f"--slices={slices}", "--json"]
    print(f"verify {workdir.name}, slices: {slices}", flush=True)
    began = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    document = json.loads(done.stdout)
    for row in document["slices"]:
        row["differences"] = [f"{d['what']} {d['detail']}" for d in row.get("differences", ())]
    return {
        "exit_code": done.returncode,
        "verdict": document["verdict"],
        "checks": document["checks"],
        "slices": document["slices"],
        "seconds": round(time.monotonic() - began, 1),
    }


def flip_bit_in_file(run: Path, steps: int) -> None:
    """Flip a bit in the largest file of the last checkpoint's arrays."""
    files = (run / "checkpoints" / str(steps) / "state").rglob("*")
    path = max((file for file in files if file.is_file()), key=lambda file: file.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def swap_checkpoint(run: Path, steps: int) -> None:
    """Put a copy of an earlier checkpoint in the place of the last one."""
    folder = run / "checkpoints"
    shutil.rmtree(folder / str(steps))
    shutil.copytree(folder / str(steps - steps // PARTS), folder / str(steps))


def train_in_other_order(run: Path, steps: int) -> None:
    """Train the last slice again with the examples of each epoch in another order."""
    shutil.rmtree(run / "checkpoints" / str(steps))
    (run / "summary.json").unlink()
    permutation = sampler.epoch_permutation

    def other(seed: int, epoch: int, num_examples: int) -> np.ndarray:
        return np.roll(permutation(seed, epoch, num_examples), 1)

    sampler.epoch_permutation = other
    try:
        resnet_jax.fit(config_of(run), run)
    finally:
        sampler.epoch_permutation = permutation


# What was done to a copy of the run, and the number of slices that verify trains again.
TAMPERED: tuple[tuple[str, Callable[[Path, int], None], str], ...] = (
    ("a bit in a file of the last checkpoint is flipped", flip_bit_in_file, "0"),
    ("a bit of a kernel is flipped, and the checksums are made anew", forge_bit, "1"),
    (
        "the validation accuracy in the last line is edited",
        lambda run, steps: edit_record(run, steps, split="validation", top1=0.9),
        "1",
    ),
    ("the checkpoint before stands in the place of the last one", swap_checkpoint, "0"),
    ("the last slice is trained on the examples in another order", train_in_other_order, "1"),
)


def main() -> int:
    """Train, tamper, verify, write the result; exit with 1 if verify is wrong about a run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=600)
    out = ROOT / "benchmarks/results/verify_cifar10.json"
    parser.add_argument("--out", type=Path, default=out)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, run = Path(name), Path(name) / "run"
        command = train(args.steps, run)
        summary = json.loads((run / "summary.json").read_text())
        intact = verify(run, "all")
        print(json.dumps(intact), flush=True)
        tampered, copy = [], folder / "copy"
        for what, change, slices in TAMPERED:
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(run, copy)
            change(copy, args.steps)
            tampered.append({"what": what} | verify(copy, slices))
            print(json.dumps(tampered[-1]), flush=True)
        # The last copy is another run by now.
        shutil.copy(copy / "summary.json", run / "summary.json")
        tampered.append({"what": "the summary is another run's"} | verify(run, "0"))
    results = {
        "train_command": " ".join(command),
        "seed": summary["seed"],
        "steps": args.steps,
        "versions": summary["versions"],
        "train_s": summary["wall_s"],
        "final": summary["final"],
        "intact": intact,
        "tampered": tampered,
    }
    write_report(args.out, results)
    codes = [intact["exit_code"], *(row["exit_code"] for row in tampered)]
    return int(codes != [0] + [65] * len(tampered) or intact["verdict"] != "verified")


if __name__ == "__main__":
    sys.exit(main())
