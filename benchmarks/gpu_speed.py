"""Speed on a GPU: what it reaches at best, ResNet-50's step beside timm's, the CIFAR engine."""

import concurrent.futures
import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from formulations import VARIANTS, variant
from gpu_task import NO_TIME, Task
from gpu_timm import Timm
from ml_collections import ConfigDict

from resnet_jax.config import recipes
from resnet_jax.config.schema import set_field, validate
from resnet_jax.models.summary import summarize
from resnet_jax.parallel.mesh import make_mesh
from resnet_jax.profiling import bench
from resnet_jax.profiling.hlo import Module
from resnet_jax.profiling.traffic import kernels_by_kind
from resnet_jax.train.spec import TrainSpec

_ROUNDS, _TURN_S = 7, 0.5
_COMPILERS = 4  # threads; each of XLA's compilations has threads of its own
_SEEDS = (0, 1, 2, 3, 4)

# Forms beside the package's own (formulations.py), the most telling first.
_FORMS = (
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


def _turns_s(contenders: int) -> float:
    """The time that turns of so many take, and a margin to warm up."""
    return (_ROUNDS + 1) * _TURN_S * contenders + 5


def take_turns(contenders: dict[str, Contender], task: Task) -> dict[str, dict[str, float]]:
    """Images per second of each: the median of some rounds, the lowest and the highest."""
    seconds = 0.1 if task.toy else _TURN_S
    rounds: list[dict[str, float]] = []
    for number in range(2 if task.toy else _ROUNDS):
        names = list(contenders) if number % 2 else list(reversed(contenders))
        rounds.append({name: contenders[name].turn(seconds) for name in names})
    speeds = {name: [one[name] for one in rounds] for name in contenders}
    return {
        name: {"median": statistics.median(v), "lowest": min(v), "highest": max(v)}
        for name, v in speeds.items()
    }


def compile_all(configs: dict[str, ConfigDict], seconds: float) -> dict[str, bench.RandomSteps]:
    """The steps of configs on random images, compiled side by side; those that took too long lack.

    Args:
        configs: by name; with the name of a variant, the program is traced as this variant.
        seconds: at most. What isn't compiled then goes on in the background.
    """
    end = time.monotonic() + seconds
    traced: dict[str, bench.RandomSteps] = {}
    compiled: dict[str, concurrent.futures.Future[None]] = {}
    pool = concurrent.futures.ThreadPoolExecutor(_COMPILERS)
    for name, config in configs.items():
        validate(config)
        with variant(name) if name in VARIANTS else contextlib.nullcontext():
            traced[name] = bench.RandomSteps(TrainSpec.without_data(config, make_mesh(data=1)))
        compiled[name] = pool.submit(traced[name].compile)
    concurrent.futures.wait(compiled.values(), max(0, end - time.monotonic()))
    pool.shutdown(wait=False, cancel_futures=True)
    done = [name for name, future in compiled.items() if future.done() and not future.cancelled()]
    for name in done:
        compiled[name].result()  # raises what its compilation raised
    return {name: traced[name] for name in done}


def contend(steps: bench.RandomSteps) -> Contender:
    """The steps as a contender."""

    def dispatches(count: int) -> float:
        began = time.perf_counter()
        for _ in range(count):
            done = steps()
        jax.block_until_ready(done)
        return time.perf_counter() - began

    return Contender(dispatches, steps.images)


def describe(steps: bench.RandomSteps, config: ConfigDict) -> dict[str, Any]:
    """What the program of a config's steps tells."""
    memory, text = steps.compiled.memory_analysis(), steps.compiled.as_text()
    assert memory is not None
    assert text is not None
    kernels = kernels_by_kind(Module.parse(text))  # of one step: their number isn't known
    images = config.batch_size * len(config.seeds or (0,))
    return {
        "compile_s": round(steps.compile_s, 1),
        "program_gib": (memory.temp_size_in_bytes + memory.argument_size_in_bytes) / 2**30,
        "mb_per_image": sum(kind.bytes for kind in kernels) / images / 1e6,
        "kernels": {kind.kind: kind.count for kind in kernels},
    }


def ceilings(task: Task) -> Iterator[tuple[str, Any]]:
    """A matrix product in bfloat16 and a copy."""
    yield "bfloat16", bench.ceilings(jnp.bfloat16, seconds=0.2 if task.toy else 3)


def resnet50(task: Task, groups: int | None) -> ConfigDict:
    """ResNet-50 in bfloat16 on 256 images per step; groups of so many have their own statistics."""
    config = recipes.make("goyal_2017", model="resnet50")
    fields = {"batch_size": 256, "model.bn_group_size": groups}
    if task.toy:
        fields |= {"batch_size": 4, "data.image_size": 32}
        fields |= {"model.stage_sizes": (1, 1), "model.width": 8}
        fields |= {"model.bn_group_size": groups and 2}
    for name, value in fields.items():
        set_field(config, name, value)
    return config


def speed(task: Task) -> Iterator[tuple[str, Any]]:
    """ResNet-50's step and timm's, in turns."""
    configs = {"resnet_jax": resnet50(task, None), "groups of 32": resnet50(task, 32)}
    timm = Timm(task.toy)
    peers = {"timm": False, "timm torch.compile": True}
    yield from _against(configs, task, {name: (timm, by) for name, by in peers.items()})
    timm.end()


def forms(task: Task) -> Iterator[tuple[str, Any]]:
    """ResNet-50's step in the package's form and in others, in turns."""
    names = ("resnet_jax", *_FORMS[: 2 if task.toy else None])
    yield from _against({name: resnet50(task, None) for name in names}, task, {})


def _against(
    configs: dict[str, ConfigDict], task: Task, peers: dict[str, tuple[Timm, bool]]
) -> Iterator[tuple[str, Any]]:
    """Speeds of the configs and of timm; "resnet_jax" is that of the package."""
    best = bench.ceilings(jnp.bfloat16, seconds=0.2 if task.toy else 1)
    yield "ceilings", best
    reserve = _turns_s(len(configs) + len(peers))
    compiled = compile_all(configs, task.seconds_left - reserve)
    contenders: dict[str, Contender] = {}
    programs: dict[str, dict[str, Any]] = {}
    for name, config in configs.items():
        if name not in compiled:
            yield name, NO_TIME
            continue
        programs[name] = describe(compiled[name], config)
        if name in VARIANTS:
            programs[name]["differs"] = VARIANTS[name][0]
        yield f"program of {name}", programs[name]
        contenders[name] = contend(compiled[name])
    for name, (timm, by_compiler) in peers.items():
        found = timm.prepare(by_compiler, task.seconds_left - reserve)
        if isinstance(found, str):
            yield name, found
            continue
        programs[name] = found
        yield f"program of {name}", found

        def steps(count: int, timm: Timm = timm, by_compiler: bool = by_compiler) -> float:
            return timm.take(by_compiler, count)

        contenders[name] = Contender(steps, found["images"])
    speeds = take_turns(contenders, task)
    peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    yield "peak_gib of all programs here", None if peak is None else peak / 2**30
    network = TrainSpec.without_data(configs["resnet_jax"], make_mesh(data=1))
    macs = summarize(network.model, network.image_shape).macs
    for name, found in speeds.items():
        rate = found["median"]
        moved = programs[name].get("mb_per_image")
        ours = speeds.get("resnet_jax")
        yield (
            name,
            {
                "img_per_s": found,
                "step_ms": 1000 * contenders[name].images / rate,
                "mfu": 6 * macs * rate / 1e12 / best["matmul_tflop_per_s"],
                "gb_per_s": None if moved is None else moved * rate / 1000,
                "of_resnet_jax": None if ours is None else rate / ours["median"],
            },
        )


def cifar(task: Task) -> Iterator[tuple[str, Any]]:
    """ResNet-20 with the images on the device, and five networks in one program."""
    from configs.cifar10 import get_config  # noqa: PLC0415 - a folder that gpu.py names

    configs: dict[tuple[str, int], ConfigDict] = {}
    for batch in (8,) if task.toy else (128, 1024):
        for dtype in ("float32", "bfloat16"):
            for seeds in (1, len(_SEEDS)):
                config = get_config("resnet20")
                fields: dict[str, Any] = {"batch_size": batch, "model.dtype": dtype}
                fields |= {"model.bn_group_size": None, "seeds": _SEEDS[:seeds]}
                if task.toy:
                    fields |= {"model.stage_sizes": (1, 1), "model.width": 4}
                    fields |= {"steps_per_dispatch": 4}
                for name, value in fields.items():
                    set_field(config, name, value)
                configs[f"batch {batch}, {dtype}", seeds] = config
    named = {f"{name}, {seeds} seeds": config for (name, seeds), config in configs.items()}
    compiled = compile_all(named, task.seconds_left - _turns_s(len(configs)))
    for name in dict.fromkeys(name for name, _ in configs):
        pair = {seeds: f"{name}, {seeds} seeds" for seeds in (1, len(_SEEDS))}
        if not set(pair.values()) <= compiled.keys():
            yield name, NO_TIME
            continue
        contenders = {f"{seeds} seeds": contend(compiled[full]) for seeds, full in pair.items()}
        speeds = take_turns(contenders, task)
        one, five = (speeds[f"{seeds} seeds"]["median"] for seeds in pair)
        yield (
            name,
            {
                "seeds": list(_SEEDS),
                "img_per_s": speeds,
                "time of 5 seeds, of 1": len(_SEEDS) * one / five,
                "programs": {
                    f"{seeds} seeds": describe(compiled[full], named[full])
                    for seeds, full in pair.items()
                },
            },
        )
