"""How long it takes to begin: imports, initial values, and from `python train.py` to a first step.

Whole processes, each several times in turn. The first step is that of `make train`; its time has
the import of everything, reading and compiling in it, and ends when its loss has been written.

    python benchmarks/startup.py --out benchmarks/results/startup_cpu.json

With `--before TREE`, a checkout of another commit is measured in turn with this checkout.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from report import write_report

ROOT = Path(__file__).resolve().parents[1]
REPEATS = 5
_INIT = """
import sys, time, jax, resnet_jax
model = resnet_jax.create_model(sys.argv[1])
began = time.perf_counter()
jax.block_until_ready(resnet_jax.init_variables(model, jax.random.key(0), eval(sys.argv[2])))
print(time.perf_counter() - began)
"""


def python_s(tree: Path, *arguments: str) -> float:
    """Seconds of a process of this Python in a checkout."""
    began = time.monotonic()
    command = [sys.executable, *arguments]
    subprocess.run(command, cwd=tree, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - began


def init_s(tree: Path, model: str, shape: str) -> float:
    """Seconds of drawing initial values, in a process that has compiled nothing."""
    command = [sys.executable, "-c", _INIT, model, shape]
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": ""}
    done = subprocess.run(
        command, cwd=tree, env=environment, capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def first_step_s(tree: Path, folder: Path, name: str) -> float:
    """Seconds of `make train` as far as the first step, with programs kept in `folder`."""
    workdir = folder / name
    command = [sys.executable, "train.py", "--config=configs/digits.py", f"--workdir={workdir}"]
    command += ["--config.log_every=1", "--stop_at_step=1"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
    began = time.monotonic()
    run = subprocess.Popen(command, cwd=tree, env=environment, stdout=subprocess.DEVNULL)
    metrics = workdir / "metrics.jsonl"
    while not (metrics.exists() and metrics.stat().st_size):
        assert run.poll() is None, run
        time.sleep(0.01)
    seconds = time.monotonic() - began
    assert run.wait() == 75, run
    return seconds


def measure(tree: Path) -> dict[str, float]:
    """Seconds of everything in a checkout, once each."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        return {
            "import jax": python_s(tree, "-c", "import jax"),
            "import resnet_jax": python_s(tree, "-c", "import jax, resnet_jax"),
            "resnet_jax.create_model": python_s(
                tree, "-c", "import resnet_jax as r; r.create_model"
            ),
            "resnet_jax.fit": python_s(tree, "-c", "import resnet_jax as r; r.fit"),
            "`resnet-jax --help`": python_s(tree, "-m", "resnet_jax", "--help"),
            "first step, nothing kept": first_step_s(tree, folder, "first"),
            "first step, programs kept": first_step_s(tree, folder, "second"),
            "initial values of resnet110": init_s(tree, "resnet110", "(32, 32, 3)"),
            "initial values of resnet50": init_s(tree, "resnet50", "(224, 224, 3)"),
        }


def main() -> None:
    """Measure all, write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/startup_cpu.json")
    parser.add_argument("--before", type=Path, help="a checkout of another commit")
    args = parser.parse_args()
    for name in ("JAX_COMPILATION_CACHE_DIR", "PYTHONPATH"):
        os.environ.pop(name, None)
    trees = [args.before.resolve(), ROOT] if args.before else [ROOT]
    rounds = [[measure(tree) for tree in trees] for _ in range(REPEATS)]
    *befores, times = (
        {name: [once[name] for once in of_tree] for name in of_tree[0]}
        for of_tree in zip(*rounds, strict=True)
    )
    median = {name: statistics.median(of) for name, of in times.items()}
    results = {"median_s": median, "all_s": times}
    print("\n".join(f"{seconds:6.2f} s  {name}" for name, seconds in median.items()))
    for before in befores:
        command = ["git", "rev-parse", "HEAD"]
        commit = subprocess.run(command, cwd=trees[0], capture_output=True, text=True, check=True)
        ratio = {name: median[name] / statistics.median(of) for name, of in before.items()}
        results["before"] = {"commit": commit.stdout.strip(), "all_s": before, "ratio": ratio}
        print("\n".join(f"{times:6.3f} ×  {name}" for name, times in ratio.items()))
    write_report(args.out, results)


if __name__ == "__main__":
    main()
