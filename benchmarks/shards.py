"""Fixed shards on a CPU: the bits of a run on each mesh and in each job, time and communication.

A small ResNet trains 40 steps on the digits of scikit-learn, with augmentation, dropout and
stochastic depth: in one process with eight devices on each mesh, and by train.py in jobs of several
processes.
With `mesh.shards` = 0, statistics are of groups as large as a shard.

    python benchmarks/shards.py --out benchmarks/results/shards_cpu.json
"""

import argparse
import hashlib
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from report import write_report

from resnet_jax.config.schema import default_config, set_field
from resnet_jax.parallel.shards import fix_thread_pool
from resnet_jax.profiling.collectives import find_collectives, summarize
from resnet_jax.profiling.hlo import Module
from resnet_jax.train.dispatch import make_train_steps
from resnet_jax.train.experiment import Experiment

ROOT = Path(__file__).resolve().parents[1]
SHARDS, STEPS, PER_DISPATCH = 8, 40, 10
MESHES = [(1, 1), (2, 1), (4, 1), (8, 1), (2, 4), (4, 2), (1, 8)]
XLAS_OWN = [(1, 1), (2, 1), (8, 1)]
JOBS = [(1, 1), (2, 4), (4, 2)]  # processes, devices of each
FIELDS = {
    "model.stage_sizes": (1, 1),
    "model.bn_group_size": 8,
    "model.dropout": 0.1,
    "model.stochastic_depth": 0.2,
    "data.name": "digits",
    "data.train": "train[:1280]",
    "data.validation": "",
    "data.crop_padding": 1,
    "batch_size": 64,
    "duration_unit": "examples",
    "duration": 64.0 * STEPS,
    "log_every": 10,
    "steps_per_dispatch": PER_DISPATCH,
    "schedule.warmup": 320.0,
    "ema_decay": 0.9,
}


def on_mesh(data: int, fsdp: int, shards: int) -> dict[str, Any]:
    """Train on a mesh of this process; return the digest of all arrays, and what a step costs."""
    config = default_config()
    mesh = {"mesh.data": data, "mesh.fsdp": fsdp, "mesh.shards": shards}
    for name, value in (FIELDS | mesh).items():
        set_field(config, name, value)
    experiment = Experiment.make(config)
    shapes = experiment.spec.abstract_state, *experiment.spec.abstract_batches(), 1
    began = time.monotonic()
    run = make_train_steps(experiment.spec).lower(*shapes).compile()
    compile_s = time.monotonic() - began
    state, batches, times = experiment.initial_state(), experiment.loader(), []
    for step in range(0, STEPS, PER_DISPATCH):
        arrays = batches.take(step)
        began = time.monotonic()
        state = jax.block_until_ready(run(state, *arrays, np.int32(PER_DISPATCH)))
        times.append((time.monotonic() - began) / PER_DISPATCH)
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(jax.device_get(state)):
        digest.update(np.asarray(leaf).tobytes())
    module = Module.parse(run.as_text())
    return {
        "data": data,
        "fsdp": fsdp,
        "shards": shards,
        "sha256": digest.hexdigest(),
        "loss": float(state.meter.loss / state.meter.examples),
        "compile_s": compile_s,
        "step_ms": 1e3 * statistics.median(times[1:]),
        "collectives": summarize(find_collectives(module, devices=data * fsdp)),
    }


def of_job(processes: int, devices: int, folder: Path) -> dict[str, Any]:
    """Train in a job of processes; return the digest of the last checkpoint."""
    from tests.runs import digest  # noqa: PLC0415 - they're beside the package
    from tests.train.test_jobs import run_job  # noqa: PLC0415

    workdir = folder / f"{processes}x{devices}"
    given = [f"--config.{name}={value}" for name, value in FIELDS.items() if name != "data.name"]
    job = run_job(
        workdir,
        *given,
        f"--config.mesh.shards={SHARDS}",
        f"--config.checkpoint_every={64.0 * STEPS}",
        f"--config.eval_every={64.0 * STEPS}",
        processes=processes,
        devices=devices,
        timeout_s=900.0,
    )
    if any(ended.code for ended in job):
        raise RuntimeError(job[0].said)
    return {"processes": processes, "devices": devices, "sha256": digest(workdir)}


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/shards_cpu.json")
    out = parser.parse_args().out
    sys.path.insert(0, str(ROOT))
    fix_thread_pool(SHARDS)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", max(data * fsdp for data, fsdp in MESHES))
    meshes = []
    for shards, shapes in ((SHARDS, MESHES), (0, XLAS_OWN)):
        for data, fsdp in shapes:
            meshes.append(on_mesh(data, fsdp, shards))
            print({k: v for k, v in meshes[-1].items() if k != "collectives"}, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        jobs = [of_job(*job, Path(folder)) for job in JOBS]
    print(*jobs, sep="\n")
    write_report(out, {"steps": STEPS, "meshes": meshes, "jobs": jobs})


if __name__ == "__main__":
    main()
