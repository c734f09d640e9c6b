"""Speed on a GPU: what it reaches at best, ResNet-50's step beside timm's, the CIFAR engine."""

import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import gpu_timm
import jax
import jax.numpy as jnp
from formulations import VARIANTS, variant
from gpu_task import Task
from ml_collections import ConfigDict

from resnet_jax.config import recipes
from resnet_jax.config.schema import set_field, validate
from resnet_jax.models.summary import summarize
from resnet_jax.parallel.mesh import make_mesh
from resnet_jax.profiling import bench
from resnet_jax.profiling.hlo import Module
from resnet_jax.profiling.traffic import kernels_by_kind
from resnet_jax.train.spec import TrainSpec

_ROUNDS = 7
_TURNS_S = 30  # kept for the turns of all contenders
_SEEDS = (0, 1, 2, 3, 4)

# Contenders beside the package's own forms, the most telling first.
_OTHER_FORMS = (
    "no_forms",
    "without_convolution",
    "without_relu",
    "without_places",
    "wide_convolutions",
    "without_barrier",
)


class Contender:
    """Trains when it is its turn.

    Attributes:
        dispatches: takes that many, waits for their end, and returns the seconds.
        images: of a dispatch; of a network of large images it is one step.
    """

    def __init__(self, dispatches: Callable[[int], float], images: int) -> None:
        """Take a few of them to warm up."""
        self.dispatches, self.images = dispatches, images
        dispatches(1)
        self._once = dispatches(2) / 2

    def turn(self, seconds: float) -> float:
        """Images per second of a turn of about that length."""
        count = max(1, round(seconds / self._once))
        return count * self.images / self.dispatches(count)


def take_turns(contenders: dict[str, Contender], task: Task) -> dict[str, dict[str, float]]:
    """Images per second of each: the median of some rounds, the lowest and the highest."""
    seconds = 0.1 if task.toy else 0.5
    rounds: list[dict[str, float]] = []
    for number in range(2 if task.toy else _ROUNDS):
        names = list(contenders) if number % 2 else list(reversed(contenders))
        rounds.append({name: contenders[name].turn(seconds) for name in names})
    speeds = {name: [one[name] for one in rounds] for name in contenders}
    return {
        name: {"median": statistics.median(v), "lowest": min(v), "highest": max(v)}
        for name, v in speeds.items()
    }


def ours(config: ConfigDict) -> tuple[Contender, dict[str, Any]]:
    """The training steps of a config on random images, and what their program tells."""
    validate(config)
    spec = TrainSpec.without_data(config, make_mesh(data=1))
    dispatch = bench.RandomSteps(spec)

    def dispatches(count: int) -> float:
        began = time.perf_counter()
        for _ in range(count):
            done = dispatch()
        jax.block_until_ready(done)
        return time.perf_counter() - began

    contender = Contender(dispatches, dispatch.images)
    memory, text = dispatch.compiled.memory_analysis(), dispatch.compiled.as_text()
    kernels = kernels_by_kind(Module.parse(text))  # of one step: their number isn't known
    images = config.batch_size * len(spec.seeds)
    return contender, {
        "compile_s": round(dispatch.compile_s, 1),
        "program_gib": (memory.temp_size_in_bytes + memory.argument_size_in_bytes) / 2**30,
        "mb_per_image": sum(kind.bytes for kind in kernels) / images / 1e6,
        "kernels": {kind.kind: kind.count for kind in kernels},
        "macs_per_image": summarize(spec.model, spec.image_shape).macs,
    }


def ceilings(task: Task) -> Iterator[tuple[str, Any]]:
    """A matrix product in bfloat16 and a copy."""
    yield "bfloat16", bench.ceilings(jnp.bfloat16, seconds=0.2 if task.toy else 3)


def resnet50(task: Task, groups: int | None) -> ConfigDict:
    """ResNet-50 in bfloat16 on 256 images per step; groups of so many have their own statistics."""
    config = recipes.make("goyal_2017", model="resnet50")
    fields = {"batch_size": 256, "model.bn_group_size": groups}
    if task.toy:
        fields |= {"batch_size": 4, "data.image_size": 32, "model.stage_sizes": (1, 1)}
        fields |= {"model.bn_group_size": groups and 2}
    for name, value in fields.items():
        set_field(config, name, value)
    return config


def speed(task: Task) -> Iterator[tuple[str, Any]]:
    """ResNet-50's step in each form and timm's, in turns."""
    best = bench.ceilings(jnp.bfloat16, seconds=0.2 if task.toy else 1)
    yield "ceilings", best
    contenders: dict[str, Contender] = {}
    skipped: dict[str, str] = {}
    programs: dict[str, dict[str, Any]] = {}
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as other:
        todo = ["resnet_jax", "timm torch.compile", "no_forms", "groups of 32", "timm"]
        for name in [*todo, *_OTHER_FORMS[1:]]:
            longest = max((p["compile_s"] for p in programs.values()), default=0)
            if task.seconds_left < _TURNS_S + longest:
                skipped[name] = "no time"
            elif name.startswith("timm"):
                if why := gpu_timm.missing():
                    skipped[name] = why
                    continue
                began = time.perf_counter()
                prepared = other.submit(gpu_timm.prepare, "compile" in name, task.toy)
                images = prepared.result()

                def steps(count: int, name: str = name) -> float:
                    return other.submit(gpu_timm.take, "compile" in name, count).result()

                contenders[name] = Contender(steps, images)
                programs[name] = {"compile_s": round(time.perf_counter() - began, 1)}
                programs[name]["peak_gib"] = other.submit(gpu_timm.peak_gib).result()
                yield f"program of {name}", programs[name]
            else:
                config = resnet50(task, 32 if name.startswith("groups") else None)
                if name in VARIANTS:
                    with variant(name):
                        contenders[name], programs[name] = ours(config)
                    programs[name]["differs"] = VARIANTS[name][0]
                else:
                    contenders[name], programs[name] = ours(config)
                yield f"program of {name}", programs[name]
        yield "skipped", skipped
        speeds = take_turns(contenders, task)
    peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    yield "peak_gib of all programs here", None if peak is None else peak / 2**30
    macs = programs["resnet_jax"]["macs_per_image"]
    for name, found in speeds.items():
        rate = found["median"]
        moved = programs[name].get("mb_per_image")
        yield (
            name,
            {
                "img_per_s": found,
                "step_ms": 1000 * contenders[name].images / rate,
                "mfu": 6 * macs * rate / 1e12 / best["matmul_tflop_per_s"],
                "gb_per_s": None if moved is None else moved * rate / 1000,
                "of_resnet_jax": rate / speeds["resnet_jax"]["median"],
            },
        )


def cifar(task: Task) -> Iterator[tuple[str, Any]]:
    """ResNet-20 with the images on the device, and five networks in one program."""
    from configs.cifar10 import get_config  # noqa: PLC0415 - a folder that gpu.py names

    for batch in (8,) if task.toy else (128, 1024):
        for dtype in ("float32", "bfloat16"):
            contenders, programs = {}, {}
            for seeds in (1, len(_SEEDS)):
                config = get_config("resnet20")
                fields: dict[str, Any] = {"batch_size": batch, "model.dtype": dtype}
                fields |= {"model.bn_group_size": None, "seeds": _SEEDS[:seeds]}
                if task.toy:
                    fields |= {"model.stage_sizes": (1, 1), "steps_per_dispatch": 4}
                for name, value in fields.items():
                    set_field(config, name, value)
                contenders[f"{seeds} seeds"], programs[f"{seeds} seeds"] = ours(config)
            speeds = take_turns(contenders, task)
            one, five = (speeds[f"{seeds} seeds"]["median"] for seeds in (1, len(_SEEDS)))
            yield (
                f"batch {batch}, {dtype}",
                {
                    "seeds": list(_SEEDS),
                    "img_per_s": speeds,
                    "time of 5 seeds, of 1": len(_SEEDS) * one / five,
                    "programs": programs,
                },
            )
