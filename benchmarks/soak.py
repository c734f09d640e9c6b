"""Kills runs at random times, resumes them, and compares with one that nothing happened to.

python benchmarks/soak.py [--kills 200] [--seed 0] [--out benchmarks/results/soak.json]

Each run is resumed until it ends; then its parameters, optimiser state, averages, step and record
must be those of the whole run, to the bit, and no file may be left over.
"""

import argparse
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

# Of a run of twelve steps, which take about a second, after the compilation.
LONGEST_S = 1.5


def kill_once(workdir: Path, after_s: float) -> bool:
    """Go on in `workdir`, and kill it that many seconds after its first line.

    Returns:
        Whether it was killed; else it had ended before.
    """
    running = start(workdir).says("training images")
    time.sleep(after_s)
    ended = running.signal(signal.SIGKILL).end()
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
    kills, runs, losses = 0, 0, []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder / "cache")
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
        assert train(folder / "whole").code == 0
        while kills < args.kills:
            workdir = folder / f"run{runs}"
            for _ in range(rng.randint(1, 6)):
                kills += kill_once(workdir, rng.uniform(0, LONGEST_S))
            ended = train(workdir)
            assert ended.code == 0, ended.said
            losses += [f"run {runs}: {what}" for what in lost(workdir, folder / "whole")]
            runs += 1
            print(f"{kills} kills, {runs} runs, {len(losses)} losses", flush=True)
    write_report(args.out, {"seed": args.seed, "kills": kills, "runs": runs, "losses": losses})
    return 1 if losses else 0


if __name__ == "__main__":
    sys.exit(main())
