"""What a GPU does in a step of ResNet-50: a trace, and the kernels that take longest."""

import collections
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gpu_speed
import jax
from gpu_task import MissingError, Task

from resnet_jax.parallel.mesh import make_mesh
from resnet_jax.profiling.bench import RandomSteps
from resnet_jax.train.spec import TrainSpec

_SHOWN = 10


def profile(task: Task) -> Iterator[tuple[str, Any]]:
    """A trace of one step, kept beside the result, and its longest kernels."""
    config = gpu_speed.resnet50(task, None)
    steps = RandomSteps(TrainSpec.without_data(config, make_mesh(data=1)))
    steps.compile()
    for _ in range(2):
        jax.block_until_ready(steps())
    task.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(steps())
        (recorded,) = Path(folder).rglob("*.xplane.pb")
        trace = task.folder / "profile.xplane.pb"
        shutil.copyfile(recorded, trace)
    yield "trace", {"file": trace.name, "images": steps.images}
    times = _by_kernel(jax.profiler.ProfileData.from_file(str(trace)))
    if not times:
        raise MissingError("the profiler sees no kernels here; the trace is kept")
    total = sum(map(sum, times.values()))
    longest = sorted(times, key=lambda name: -sum(times[name]))[:_SHOWN]
    yield "all kernels", {"count": sum(map(len, times.values())), "ms": total / 1e6}
    yield (
        "longest kernels",
        [
            {
                "kernel": name,
                "count": len(times[name]),
                "ms": sum(times[name]) / 1e6,
                "share": sum(times[name]) / total,
            }
            for name in longest
        ],
    )


def _by_kernel(trace: Any) -> dict[str, list[float]]:
    """Nanoseconds of each execution of each kernel: of a GPU's streams, or of the CPU's threads."""
    planes = list(trace.planes)
    gpus = [plane for plane in planes if plane.name.startswith("/device:GPU")]
    found = collections.defaultdict(list)
    for plane in gpus or planes:
        for line in plane.lines:
            if gpus and not line.name.startswith("Stream"):
                continue  # the same kernels, summed up
            for event in line.events:
                # All that a GPU's streams do counts; kernels of a CUDA graph don't name their
                # operation. A CPU's threads do other things, too.
                if gpus or "hlo_op" in dict(event.stats):
                    found[event.name].append(event.duration_ns)
    return dict(found)
