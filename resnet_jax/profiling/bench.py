"""How fast a config computes on this machine, beside what the machine can do at best.

Nothing is read: images are random, of the shapes of the config's data.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from resnet_jax.config.schema import validate
from resnet_jax.data.images.normalization import normalization_shapes
from resnet_jax.logging.provenance import provenance
from resnet_jax.models.folding import fold_batch_norm
from resnet_jax.models.summary import summarize
from resnet_jax.ops.prepared import Prepared
from resnet_jax.parallel.mesh import make_mesh, put_global
from resnet_jax.train.dispatch import make_train_steps
from resnet_jax.train.evaluate import abstract_batches, batches_of, make_score
from resnet_jax.train.spec import TrainSpec
from resnet_jax.train.state import TrainState

_REPEATS = 5
_SCORED_BATCHES = 2
_GIB = 2**30


def measure_speed(config: ConfigDict, *, seconds: float) -> dict[str, Any]:
    """Measure training steps, scoring and inference, and the ceilings of a device.

    Args:
        config: of a run whose data's sizes are known.
        seconds: for each measurement, shared by five repeats, whose medians are reported.

    Returns:
        A JSON-like document: "ceilings", "train", "evaluation", "inference", and by what and on
        what it was measured. Rates are of all devices, "mfu" and "bandwidth_share" of each. With
        `accumulate` or `model.scan` the latter is too small: XLA counts the body of a loop once.

    Raises:
        ConfigError: an impossible config, or data whose sizes aren't known.
    """
    validate(config)
    mesh = make_mesh(data=config.mesh.data, fsdp=config.mesh.fsdp)
    spec = TrainSpec.without_data(config, mesh)
    model, image_shape = spec.model, spec.image_shape
    best = ceilings(model.dtype, seconds=seconds)
    macs = summarize(model, image_shape).macs
    return {
        "model": config.model.name,
        "data": config.data.name,
        "batch_size": config.batch_size,
        "image_shape": list(image_shape),
        "macs": macs,
        "ceilings": best,
        "train": _train(spec, best, macs, seconds),
        "evaluation": _evaluation(spec, seconds),
        "inference": {
            str(size): _inference(spec, size, seconds) for size in (1, config.batch_size)
        },
        **provenance(),
    }


def ceilings(dtype: Any, *, seconds: float) -> dict[str, float]:
    """What a device reaches: a matrix product in TFLOP/s, a copy in GB/s read and written."""
    small = jax.devices()[0].platform == "cpu"
    n, elements = (2048, 2**26) if small else (8192, 2**29)
    a = jax.random.normal(jax.random.key(0), (n, n), dtype)  # of equal numbers it would be faster
    product = jax.jit(lambda a: a @ a)
    x = jnp.ones(elements, jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    return {
        "matmul_tflop_per_s": 2 * n**3 / _median_s(lambda: product(a), seconds)["s"] / 1e12,
        "copy_gb_per_s": 2 * x.nbytes / _median_s(lambda: copy(x), seconds)["s"] / 1e9,
    }


def _median_s(call: Callable[[], Any], seconds: float) -> dict[str, float]:
    """Seconds of a call: "s", the median of repeats, "min_s" and "max_s"; after one to warm up."""
    jax.block_until_ready(call())
    began = time.perf_counter()
    jax.block_until_ready(call())
    calls = max(1, round(seconds / _REPEATS / (time.perf_counter() - began)))
    times = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        for _ in range(calls):
            result = call()
        jax.block_until_ready(result)
        times.append((time.perf_counter() - began) / calls)
    return {"s": statistics.median(times), "min_s": min(times), "max_s": max(times)}


def _random(shape: jax.ShapeDtypeStruct, most: int) -> jax.Array:
    """Numbers from 0 to below `most`, laid out as they are to be."""
    values = np.random.default_rng(0).integers(0, most, shape.shape).astype(shape.dtype)
    return put_global(values, shape.sharding)


def _initial_state(spec: TrainSpec) -> TrainState:
    shapes = normalization_shapes(spec.image_shape, spec.config.data.normalize)
    normalization = {"mean": np.full(shapes["mean"], 128, np.float32)}
    normalization["std"] = np.full(shapes["std"], 64, np.float32)
    return spec.initial_state(normalization)


class RandomSteps:
    """The training steps of a spec on random examples; a call takes one dispatch of them.

    Attributes:
        compiled: the program.
        compile_s: wall time of its compilation.
        state: the state after the last call.
        images: images that a call trains on, over all seeds.
    """

    compiled: jax.stages.Compiled
    compile_s: float

    def __init__(self, spec: TrainSpec) -> None:
        """Trace the steps, and put examples and the initial state on the devices."""
        config, intervals = spec.config, spec.intervals
        images, labels, ids, epochs = spec.abstract_batches()
        examples = intervals.train_examples if spec.resident else config.batch_size
        self._arrays = (
            _random(images, 256),
            _random(labels, spec.model.num_classes),
            _random(ids, examples),
            _random(epochs, 2),
        )
        self._steps = np.int32(intervals.steps_per_dispatch)
        self.state = _initial_state(spec)
        self.images = intervals.steps_per_dispatch * config.batch_size * len(spec.seeds)
        self._traced = make_train_steps(spec).lower(self.state, *self._arrays, self._steps)

    def compile(self) -> None:
        """Compile the program; must come before the first call. Threads may do so side by side."""
        began = time.perf_counter()
        self.compiled = self._traced.compile()
        self.compile_s = time.perf_counter() - began

    def __call__(self) -> jax.Array:
        """Take the steps; returns the number of the next step, by seed."""
        self.state = self.compiled(self.state, *self._arrays, self._steps)
        return self.state.step


def _train(spec: TrainSpec, best: dict[str, float], macs: int, seconds: float) -> dict[str, Any]:
    config, steps = spec.config, RandomSteps(spec)
    steps.compile()
    compiled, per_dispatch = steps.compiled, spec.intervals.steps_per_dispatch
    timing = {k: v / per_dispatch for k, v in _median_s(steps, seconds).items()}
    networks = len(spec.seeds)
    cost, memory = compiled.cost_analysis() or {}, compiled.memory_analysis()
    devices = spec.mesh.size
    # Forward once, backward twice: by the data and by the weights; two operations a multiply-add.
    flops = 6 * macs * config.batch_size * networks / devices
    accessed = cost.get("bytes accessed", 0.0) * spec.seeds.turns
    program = memory.temp_size_in_bytes + memory.argument_size_in_bytes if memory else 0
    used = jax.devices()[0].memory_stats() or {}
    return {
        "step_ms": 1000 * timing["s"],
        "step_ms_min": 1000 * timing["min_s"],
        "step_ms_max": 1000 * timing["max_s"],
        "img_per_s": config.batch_size * networks / timing["s"],
        "compile_s": steps.compile_s,
        "mfu": flops / timing["s"] / best["matmul_tflop_per_s"] / 1e12,
        "bandwidth_share": accessed / timing["s"] / best["copy_gb_per_s"] / 1e9,
        "program_gib": program / _GIB,
        "peak_gib": used["peak_bytes_in_use"] / _GIB if "peak_bytes_in_use" in used else None,
    }


def _evaluation(spec: TrainSpec, seconds: float) -> dict[str, float]:
    mesh, first = spec.mesh, spec.singles[0]
    parts = spec.shards.count if spec.shards else mesh.size
    _, size = batches_of(2**31, batch_size=spec.config.eval_batch_size, parts=parts)
    shapes = abstract_batches(_SCORED_BATCHES, size, spec.evaluation_shape, mesh)
    batches = tuple(
        _random(shape, most)
        for shape, most in zip(shapes, (256, first.model.num_classes, 2), strict=True)
    )
    state = _initial_state(first)
    score = make_score(first.model.apply, mesh, shards=spec.shards)
    timing = _median_s(
        lambda: score(state.variables(), state.normalization, batches, None), seconds
    )
    return {"img_per_s": _SCORED_BATCHES * size / timing["s"], "batch_size": size}


def _inference(spec: TrainSpec, size: int, seconds: float) -> dict[str, float]:
    """Logits of a batch on one device, as a `Predictor` computes them."""
    first, device = spec.singles[0], spec.mesh.devices.flat[0]
    variables = jax.device_get(_initial_state(first).variables())
    folded = fold_batch_norm(first.model, variables, spec.evaluation_shape)
    images = jax.device_put(jnp.ones((size, *spec.evaluation_shape)), device)
    apply = Prepared(first.model.apply, jax.device_put(folded, device))
    timing = _median_s(lambda: apply(images), seconds)
    return {"img_per_s": size / timing["s"], "ms": 1000 * timing["s"]}
