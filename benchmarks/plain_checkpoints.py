"""What plain checkpoints do under the faults of tests/faults/: Orbax's, Flax's and PyTorch's.

The programs are those of benchmarks/plain_programs.py; PyTorch is left out if it isn't installed.
Each experiment has a fresh folder and a fixed seed. What is killed, starved or run twice is a
process of its own; where a signal hits it, and who wins a race, is up to the machine.

    python benchmarks/plain_checkpoints.py --out benchmarks/results/faults_plain.json
"""

import argparse
import importlib.metadata
import json
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from plain_programs import RACE_STEPS, SYSTEMS, Tree, latest_step, restore, save, state
from report import write_report

SEED = 0
FLIPS, KILLS, RACES = 100, 12, 5
SIGTERM_STEPS = (5, 6, 7)
LIMIT_S = 60.0  # how long a process may take to end
PACKAGES = {
    "Orbax": ("orbax-checkpoint", "tensorstore"),
    "Flax": ("flax", "msgpack"),
    "PyTorch": ("torch",),
}

Row = dict[str, Any]  # counts, and under "saw" one line that the user got to see


def one_line(text: str) -> str:
    """The first line that says something, without folders of this machine."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "nothing")
    return re.sub(rf"{re.escape(tempfile.gettempdir())}/([\w-]+/)*", "…/", line)[:160]


def error_line(text: str) -> str:
    """The error about a file that processes reported most often, else their last line."""
    lines = text.splitlines()
    errors = Counter(one_line(line) for line in lines if re.match(r"\w+Error: .*/", line))
    return max(errors, key=errors.__getitem__, default=one_line("\n".join(lines[::-1])))


def bits(tree: Tree) -> list[Any]:
    """Names, dtypes, shapes and bytes of all arrays."""
    leaves = jax.tree.leaves_with_path(tree)
    return [(path, x.dtype, x.shape, np.asarray(x).tobytes()) for path, x in leaves]


def outcome(known: dict[str, Tree], *args: Any) -> tuple[str, str]:
    """Restore with these arguments.

    Returns:
        Which of the known trees it gave, "restored wrong", or "refused"; and what the user saw.
    """
    try:
        restored = bits(restore(*args))
    except Exception as error:
        return "refused", one_line(f"{type(error).__name__}: {error}")
    same = (kind for kind, tree in known.items() if bits(tree) == restored)
    return next(same, "restored wrong"), "nothing"


def tally(outcomes: list[tuple[str, str]], *known: str) -> Row:
    """Count; "saw" is what was seen most often where not all was right."""
    counts = Counter(kind for kind, _ in outcomes)
    saw = Counter(saw for kind, saw in outcomes if kind != "restored right")
    most_often = next((line for line, _ in saw.most_common(1)), "nothing")
    kinds = ("refused", "restored wrong", *known)
    return {kind: counts[kind] for kind in kinds} | {"saw": most_often}


def damage(
    work: Path, break_it: Callable[[Path, random.Random], Any], times: int = 0
) -> dict[str, Row]:
    """Restore from copies of a checkpoint, in each of which one file is damaged.

    Args:
        work: empty folder.
        break_it: what to do to the file, and where to get random numbers for it.
        times: how often to damage the largest file; 0: each file in turn.
    """
    rows, right = {}, {"restored right": state()}
    for system in SYSTEMS:
        whole = work / system / "whole"
        save(system, whole, state())
        assert outcome(right, system, whole, state())[0] == "restored right"
        files = sorted(path for path in whole.rglob("*") if path.is_file())
        if times:
            files = [max(files, key=lambda path: path.stat().st_size)] * times
        outcomes, rng = [], random.Random(SEED)
        for i, file in enumerate(files):
            copy = work / system / f"copy{i}"
            shutil.copytree(whole, copy)
            break_it(copy / file.relative_to(whole), rng)
            outcomes.append(outcome(right, system, copy, state()))
        rows[system] = {"tried": len(files)} | tally(outcomes, *right)
    return rows


def flip_bits(work: Path) -> dict[str, Row]:
    """One random bit of the largest file flips."""

    def flip(path: Path, rng: random.Random) -> None:
        content = bytearray(path.read_bytes())
        bit = rng.randrange(8 * len(content))
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)

    return damage(work, flip, FLIPS)


def cut_files(work: Path) -> dict[str, Row]:
    """Each file in turn loses its second half."""

    def cut(path: Path, _: random.Random) -> None:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return damage(work, cut)


def remove_files(work: Path) -> dict[str, Row]:
    """Each file in turn is removed."""
    return damage(work, lambda path, _: path.unlink())


def ask_for(work: Path, wanted: list[Tree]) -> dict[str, Row]:
    """Restore the state like each of those trees."""
    ways = ("Orbax", "Orbax, PyTreeRestore", "Orbax, PyTreeRestore with restore_args", "Flax")
    rows = {}
    for way in ways:
        save(way, work / way, state())
        outcomes = [
            outcome({"given as asked": like, "given as saved": state()}, way, work / way, like)
            for like in wanted
        ]
        kinds = ("given as asked", "given as saved")
        rows[way] = {"tried": len(wanted)} | tally(outcomes, *kinds)
    return rows


def ask_for_dtype(work: Path) -> dict[str, Row]:
    """Float32 was saved, bfloat16 is asked for."""
    return ask_for(work, [jax.tree.map(lambda x: x.astype(jnp.bfloat16), state())])


def ask_for_shapes(work: Path) -> dict[str, Row]:
    """Half of each side is asked for, and twice."""
    half = jax.tree.map(lambda x: x[tuple(slice(n // 2) for n in x.shape)], state())
    twice = jax.tree.map(lambda x: jnp.pad(x, [(0, n) for n in x.shape]), state())
    return ask_for(work, [half, twice])


def start(program: str, folder: Path, argument: str = "") -> subprocess.Popen[str]:
    """Start one of the programs in a process of its own."""
    script = Path(__file__).with_name("plain_programs.py")
    command = [sys.executable, str(script), program, str(folder), argument]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def says(process: subprocess.Popen[str], line: str) -> None:
    """Wait until it prints that line."""
    assert process.stdout
    while (said := process.stdout.readline()) != f"{line}\n":
        assert said, f"ended before it said {line}: {process.communicate()}"


def end(process: subprocess.Popen[str], limit_s: float = LIMIT_S) -> tuple[int | None, str, str]:
    """Wait, and kill it after the limit; returns its exit code, if any, and what it printed."""
    try:
        out, err = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        process.kill()
        return None, *process.communicate()
    return process.returncode, out, err


def remains(folder: Path) -> int:
    """How many temporary folders it has."""
    return sum("tmp" in path.name for path in folder.iterdir())


def sigterm(work: Path) -> dict[str, Row]:
    """SIGTERM after a step that isn't due to be saved."""
    rows = {}
    for system, processes in {"Orbax": "", "Orbax, jax.distributed initialised": "1"}.items():
        saved, codes, err = 0, [], ""
        for step in SIGTERM_STEPS:
            folder = work / system / str(step)
            process = start("train", folder, processes)
            says(process, str(step))
            process.terminate()
            code, _, err = end(process)
            codes.append(code)
            saved += (latest_step(folder) or 0) >= step
        counts = {"tried": len(codes), "step at hand saved": saved, "exit codes": codes}
        rows[system] = counts | {"saw": error_line(err)}
    return rows


def kill(work: Path) -> dict[str, Row]:
    """A kill -9 up to a second after the first checkpoint."""
    rng, outcomes, left = random.Random(SEED), [], 0
    for i in range(KILLS):
        folder = work / str(i)
        process = start("save_on", folder)
        says(process, "1")  # before which it waited for step 0
        time.sleep(rng.uniform(0, 1))
        process.kill()
        end(process)
        latest = state(latest_step(folder) or 0)
        outcomes.append(outcome({"restored right": latest}, "Orbax", folder, latest))
        left += remains(folder)
    counts = {"tried": KILLS, "temporary folders left": left}
    return {"Orbax": counts | tally(outcomes, "restored right")}


def fail(work: Path) -> dict[str, Row]:
    """A write fails after save() returned; the row is what is said 3 s later."""
    code, out, _ = end(start("fail", work))
    said = {key: one_line(x) if isinstance(x, str) else x for key, x in json.loads(out).items()}
    row = said | {"temporary folders left": remains(work), "exit code": code}
    return {"Orbax": row | {"saw": said["wait_until_finished()"]}}


def race(work: Path) -> dict[str, Row]:
    """Two processes save to one folder; exit code null: still there at the limit."""
    pairs = {
        work / str(i): [start("race", work / str(i), seed) for seed in "01"] for i in range(RACES)
    }
    processes = [process for pair in pairs.values() for process in pair]
    for process in processes:
        says(process, "ready")
    for process in processes:
        print(file=process.stdin, flush=True)
    row: Row = {"tried": len(pairs), "saves of each": RACE_STEPS, "exit codes": []}
    row |= {"checkpoints left": [], "temporary folders left": []}
    deadline, states, said = time.monotonic() + LIMIT_S, {"of 0": state(0), "of 1": state(1)}, ""
    for folder, pair in pairs.items():
        ends = [end(process, max(0.1, deadline - time.monotonic())) for process in pair]
        row["exit codes"].append([code for code, _, _ in ends])
        said += "".join(err for code, _, err in ends if code != 0)
        steps = [int(path.name) for path in folder.iterdir() if path.name.isdigit()]
        kept = Counter(outcome(states, "Orbax", folder, state(), step)[0] for step in steps)
        row["checkpoints left"].append({kind: kept[kind] for kind in sorted(kept)})
        row["temporary folders left"].append(remains(folder))
    return {"Orbax": row | {"saw": error_line(said)}}


def save_nan(work: Path) -> dict[str, Row]:
    """A state with a NaN is saved, and restored as the latest."""
    rows = {}
    for system in SYSTEMS:
        _, out, err = end(start("save_nan", work / system, system))
        rows[system] = {"tried": 1, "NaN restored": int(out == "True\n"), "saw": error_line(err)}
    return rows


EXPERIMENTS: dict[str, Callable[[Path], dict[str, Row]]] = {
    "one bit flips": flip_bits,
    "a file is cut": cut_files,
    "a file is removed": remove_files,
    "SIGTERM": sigterm,
    "kill -9": kill,
    "a save fails in the background": fail,
    "two processes, one folder": race,
    "a state with a NaN": save_nan,
    "another dtype is asked for": ask_for_dtype,
    "other shapes are asked for": ask_for_shapes,
}


def main() -> None:
    """Make all experiments and write the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    out = parser.parse_args().out
    # A read that fails leaves coroutines of Orbax's, which complain in thousands of lines.
    sys.unraisablehook = lambda _: None
    began, experiments = time.monotonic(), {}
    for name, experiment in EXPERIMENTS.items():
        with tempfile.TemporaryDirectory() as work:
            experiments[name] = experiment(Path(work))
        print(json.dumps({name: experiments[name]}), flush=True)
    packages = [package for system in SYSTEMS for package in PACKAGES[system]]
    versions = {package: importlib.metadata.version(package) for package in packages}
    about = {"versions": versions, "seed": SEED, "seconds": round(time.monotonic() - began)}
    write_report(out, about | {"experiments": experiments})


if __name__ == "__main__":
    main()
