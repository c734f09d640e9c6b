"""Kills runs at random times, resumes them, and compares with one that nothing happened to.

python benchmarks/soak.py [--kills 200] [--seed 0] [--out benchmarks/results/soak.json]

Each run is resumed until it ends; then its parameters, optimiser state, averages, step and record
must be those of the whole run, to the bit, and no file may be left over.
"""

import argparse
import collections
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from report import write_report

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.runs import digest, start, steps_on_record, train

ROOT = Path(__file__).resolve().parents[1]

# From a run's first line to its end; what ends before it is killed doesn't count.
LONGEST_S = 3.5


def kill_once(workdir: Path, after_s: float) -> bool:
    """Go on in `workdir`, and kill it that many seconds after its first line.

    Returns:
        Whether it was killed; else it had ended before.
    """
    running = start(workdir).says("training images")
    time.sleep(after_s)
    running.kill()
    ended = running.end()
    if ended.code not in (-signal.SIGKILL, 0):
        raise AssertionError(f"exit code {ended.code}:\n{ended.said}")
    return ended.code != 0


def lost(workdir: Path, whole: Path) -> list[str]:
    """What is missing, different or left over in a run that was killed."""
    found = []
    if steps_on_record(workdir) != steps_on_record(whole):
        found.append("record")
    if digest(workdir) != digest(whole):
        found.append("state")
    left = {path.name for path in workdir.iterdir()} - {path.name for path in whole.iterdir()}
    left |= {path.name for path in (workdir / "checkpoints").glob("*tmp*")}
    return found + sorted(left)


def main() -> int:
    """Kill until it is enough; write the counts; exit with 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/soak.json")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    killed_at: collections.Counter[int] = collections.Counter()  # by steps on record
    runs, losses = 0, []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder / "cache")
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
        assert train(folder / "whole").code == 0
        while killed_at.total() < args.kills:
            workdir = folder / f"run{runs}"
            for _ in range(rng.randint(1, 6)):
                if kill_once(workdir, rng.uniform(0, LONGEST_S)):
                    killed_at[max([0, *steps_on_record(workdir)])] += 1
            ended = train(workdir)
            assert ended.code == 0, ended.said
            losses += [f"run {runs}: {what}" for what in lost(workdir, folder / "whole")]
            runs += 1
            print(f"{killed_at.total()} kills, {runs} runs, {len(losses)} losses", flush=True)
    results = {
        "seed": args.seed,
        "kills": killed_at.total(),
        "killed_after_steps": dict(sorted(killed_at.items())),
        "runs": runs,
        "losses": losses,
    }
    write_report(args.out, results)
    return 1 if losses else 0


if __name__ == "__main__":
    sys.exit(main())
