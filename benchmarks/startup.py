"""How long it takes to begin: imports, initial values, and from `python train.py` to a first step.

Whole processes, each several times in turn. The first step is that of `make train`; its time has
the import of everything, reading and compiling in it, and ends when its loss has been written.

    python benchmarks/startup.py --out benchmarks/results/startup_cpu.json
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


def python_s(program: str) -> float:
    """Seconds of a process of this Python."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
    return time.monotonic() - began


def init_s(model: str, shape: str) -> float:
    """Seconds of drawing initial values, in a process that has compiled nothing."""
    command = [sys.executable, "-c", _INIT, model, shape]
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": ""}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def first_step_s(cache: str, folder: str, number: int) -> float:
    """Seconds of `make train` as far as the first step, with programs kept in `cache`."""
    workdir = Path(folder) / str(number)
    command = [sys.executable, "train.py", "--config=configs/digits.py", f"--workdir={workdir}"]
    command += ["--config.log_every=1", "--stop_at_step=1"]
    environment = {**os.environ, "XDG_CACHE_HOME": cache}
    began = time.monotonic()
    run = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    metrics = workdir / "metrics.jsonl"
    while not (metrics.exists() and metrics.stat().st_size):
        assert run.poll() is None, run
        time.sleep(0.01)
    seconds = time.monotonic() - began
    assert run.wait() == 75, run
    return seconds


def main() -> None:
    """Measure all, write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/startup_cpu.json")
    out = parser.parse_args().out
    os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(REPEATS):
            cache = f"{folder}/cache{number}"
            measured = {
                "import jax": python_s("import jax"),
                "import resnet_jax": python_s("import jax, resnet_jax"),
                "resnet_jax.create_model": python_s("import resnet_jax as r; r.create_model"),
                "resnet_jax.fit": python_s("import resnet_jax as r; r.fit"),
                "first step, nothing kept": first_step_s(cache, folder, 2 * number),
                "first step, programs kept": first_step_s(cache, folder, 2 * number + 1),
                "initial values of resnet110": init_s("resnet110", "(32, 32, 3)"),
                "initial values of resnet50": init_s("resnet50", "(224, 224, 3)"),
            }
            for name, seconds in measured.items():
                times.setdefault(name, []).append(seconds)
    median = {name: statistics.median(of) for name, of in times.items()}
    write_report(out, {"median_s": median, "all_s": times})
    print("\n".join(f"{seconds:6.2f} s  {name}" for name, seconds in median.items()))


if __name__ == "__main__":
    main()
