"""What depth costs: initialising, tracing, compiling and running a training step, by form.

Each row is measured in a process of its own, without a compilation cache: a CIFAR net of 20, 110 or
1202 layers, unrolled, scanned, or scanned and rematerialised. The step is the forward and backward
pass and plain SGD. Step times are medians; forms of one depth share a machine but not a
process, so compare large differences only.

    python benchmarks/depth.py --out benchmarks/results/depth_cpu.json
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from report import write_report

import resnet_jax

FORMS: dict[str, dict[str, bool]] = {
    "unrolled": {},
    "scan": {"scan": True},
    "scan + remat": {"scan": True, "remat": True},
}
# Depth, batch, forms. A thousand unrolled layers take minutes to compile, and gigabytes.
CASES = ((20, 128, tuple(FORMS)), (110, 128, tuple(FORMS)), (1202, 16, ("scan", "scan + remat")))


def measure(depth: int, batch: int, form: str, repeats: int) -> dict[str, Any]:
    """Return one row; to be called in a fresh process."""
    model = resnet_jax.create_model(f"resnet{depth}", **FORMS[form])
    images = jax.random.normal(jax.random.key(1), (batch, 32, 32, 3))
    labels = jnp.arange(batch) % 10

    start = time.perf_counter()
    variables = resnet_jax.init_variables(model, jax.random.key(0), (32, 32, 3))
    jax.block_until_ready(variables)
    init_s = time.perf_counter() - start

    def step(variables: Any) -> Any:
        def loss(params: Any) -> Any:
            logits, updated = model.apply(
                {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
            )
            picked = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)
            return -picked.mean(), updated

        gradients, updated = jax.grad(loss, has_aux=True)(variables["params"])
        params = jax.tree.map(lambda p, g: p - 0.01 * g, variables["params"], gradients)
        return {"params": params, **updated}

    start = time.perf_counter()
    lowered = jax.jit(step, donate_argnums=0).lower(variables)
    traced = time.perf_counter()
    compiled = lowered.compile()
    done = time.perf_counter()
    times = []
    for _ in range(repeats + 1):
        before = time.perf_counter()
        variables = jax.block_until_ready(compiled(variables))
        times.append(time.perf_counter() - before)
    return {
        "depth": depth,
        "batch": batch,
        "form": form,
        "init_s": round(init_s, 2),
        "trace_s": round(traced - start, 2),
        "compile_s": round(done - traced, 2),
        "step_s": round(statistics.median(times[1:]), 3),
        "temporary_mib": round(compiled.memory_analysis().temp_size_in_bytes / 2**20, 1),
        "peak_rss_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10),
    }


def main() -> None:
    """Measure every case in its own process, or one case in this one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--repeats", type=int, default=5, help="steps timed after the first")
    parser.add_argument("--case", nargs=3, metavar=("DEPTH", "BATCH", "FORM"), help="only this one")
    args = parser.parse_args()
    if args.case:
        depth, batch, form = args.case
        print(json.dumps(measure(int(depth), int(batch), form, args.repeats)))
        return
    if args.out is None:
        parser.error("--out is missing")
    rows = []
    for depth, batch, forms in CASES:
        for form in forms:
            case = ["--case", str(depth), str(batch), form, "--repeats", str(args.repeats)]
            command = [sys.executable, __file__, *case]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            rows.append(json.loads(done.stdout))
            print(done.stdout, end="", flush=True)
    write_report(args.out, {"rows": rows})


if __name__ == "__main__":
    main()
