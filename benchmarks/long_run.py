"""Trains 5,000 steps with a checkpoint every 50, and watches memory, open files and step time.

python benchmarks/long_run.py [--steps 5000] [--out benchmarks/results/long_run.json]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from report import write_report

ROOT = Path(__file__).resolve().parents[1]

BATCH = 64
CHECKPOINT_EVERY = 50  # steps
WARM_UP = 0.2  # of the run: caches and the allocator's arenas fill up


def arguments(steps: int) -> list[str]:
    """Of train.py: the network of `make train`, scored and saved often."""
    return [
        "--config=configs/digits.py",
        f"--config.batch_size={BATCH}",
        "--config.duration_unit=examples",
        f"--config.duration={steps * BATCH}",
        f"--config.checkpoint_every={CHECKPOINT_EVERY * BATCH}",
        f"--config.eval_every={10 * CHECKPOINT_EVERY * BATCH}",
        "--config.schedule.warmup=0",
        "--config.log_every=25",
    ]


def state_of(pid: int) -> dict[str, float]:
    """Memory in MiB, open files and threads of a process."""
    fields = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    return {
        "rss_mib": int(fields["VmRSS"].split()[0]) / 1024,
        "files": len(os.listdir(f"/proc/{pid}/fd")),
        "threads": int(fields["Threads"]),
    }


def watch(steps: int, workdir: Path) -> list[dict[str, float]]:
    """Run to the end; the state of the process every second, with the steps done so far."""
    command = [sys.executable, "train.py", *arguments(steps), f"--workdir={workdir}"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    record, seen = workdir / "metrics.jsonl", []
    while process.poll() is None:
        time.sleep(1)
        lines = record.read_text().splitlines() if record.exists() else []
        if lines and process.poll() is None:
            try:
                seen.append({"step": json.loads(lines[-1])["step"], **state_of(process.pid)})
            except (OSError, KeyError, ValueError):  # it has just ended, or is just writing
                continue
    if process.returncode:
        sys.exit(process.returncode)
    return seen


def trend(
    seen: list[dict[str, float]], key: str, of: Callable[[list[float]], float] = statistics.median
) -> dict[str, float]:
    """Median of the first and of the last fifth after the warm-up, and the growth in percent.

    Or the least: files that are open and threads while a checkpoint is written come and go.
    """
    last = seen[-1]["step"]
    steady = [row[key] for row in seen if row["step"] > WARM_UP * last]
    fifth = len(steady) // 5
    begin, end = of(steady[:fifth]), of(steady[-fifth:])
    return {"begin": begin, "end": end, "growth_percent": round(100 * (end / begin - 1), 2)}


def step_times(workdir: Path) -> list[dict[str, float]]:
    """Step and milliseconds per step of each record of training."""
    records = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [
        {"step": r["step"], "step_ms": 1000 * BATCH / r["img_per_s"]}
        for r in records
        if r["split"] == "train"
    ]


def main() -> None:
    """Run, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/long_run.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seen = watch(args.steps, Path(folder) / "run")
        times = step_times(Path(folder) / "run")
    results: dict[str, Any] = {"rss_mib": trend(seen, "rss_mib")}
    results |= {key: trend(seen, key, min) for key in ("files", "threads")}
    results["step_ms"] = trend(times, "step_ms")
    results["checkpoints"] = args.steps // CHECKPOINT_EVERY
    write_report(args.out, {"steps": args.steps, "arguments": arguments(args.steps), **results})
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
