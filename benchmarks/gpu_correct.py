"""Whether a GPU computes what a CPU computes in float32, and the same bits each time."""

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import gpu_speed
import jax
import jax.numpy as jnp
import numpy as np
from formulations import variant
from gpu_task import Task

import resnet_jax
from resnet_jax.config.schema import set_field
from resnet_jax.ops.activation import relu
from resnet_jax.ops.batch_norm import PointwiseProduct, batch_normalise
from resnet_jax.ops.pooling import max_pool
from resnet_jax.parallel.mesh import make_mesh
from resnet_jax.profiling.bench import RandomSteps
from resnet_jax.train.spec import TrainSpec

# The precision of products in float32; without it a GPU rounds their operands to TF32.
_PRECISIONS = {"float32": "highest", "bfloat16": "default"}
_STEPS = 50


Trace = Callable[[str, Any], tuple[jax.stages.Lowered, tuple[Any, ...]]]
"""(type of the computation, device) → its program, still to be compiled, and the arguments.

Results are trees of arrays.
"""


def correct(task: Task) -> Iterator[tuple[str, Any]]:
    """Largest errors, over the largest values, of the forms for GPUs and of whole networks.

    The reference is float32 at the highest precision on the CPU. Beside the errors are those of
    the plain forms on the same device.
    """
    for name, (function, arrays) in _forms(task).items():
        yield name, _errors(("results", "gradients"), _of_form(function, arrays))
    networks: dict[str, tuple[int, int, dict[str, Any]]]
    networks = {"resnet20": (16, 32, {}), "resnet50": (16, 224, {})}
    if task.toy:
        networks = {"resnet50": (2, 32, {"stage_sizes": (1, 1), "width": 8})}
    for name, (batch, size, fields) in networks.items():
        trace = _of_network(name, batch, size, fields)
        yield name, _errors(("logits", "gradients", "statistics"), trace)


def _forms(task: Task) -> dict[str, tuple[Callable[..., Any], list[np.ndarray]]]:
    """Each operation with a form for GPUs, and its arrays."""
    n, size = (2, 6) if task.toy else (64, 56)
    rng = np.random.default_rng(0)

    def normal(*shape: int, scale: float = 1, shift: float = 0) -> np.ndarray:
        return (shift + scale * rng.normal(size=shape)).astype(jnp.bfloat16)  # exact in both types

    def normalised(groups: int, x: Any, kernel: Any, scale: Any, bias: Any) -> Any:
        product = PointwiseProduct(x, kernel)
        return batch_normalise(product, scale, bias, groups=groups, epsilon=1e-5, dtype=x.dtype)

    maps = normal(n, size, size, 64)
    kernel, scale, bias = normal(64, 256, scale=1 / 8), normal(256, shift=1), normal(256)
    convolved = [maps, kernel, scale, bias]
    return {
        "ReLU": (relu, [maps]),
        "normalised convolution": (partial(normalised, 1), convolved),
        "normalised convolution, two groups": (partial(normalised, 2), convolved),
        "pooling": (max_pool, [normal(n, 2 * size, 2 * size, 64)]),
    }


def _of_form(function: Callable[..., Any], arrays: list[np.ndarray]) -> Trace:
    def trace(dtype: str, device: Any) -> tuple[jax.stages.Lowered, tuple[Any, ...]]:
        @jax.jit
        def both(*arrays: Any) -> Any:
            results, pull = jax.vjp(function, *arrays)
            return results, pull(jax.tree.map(jnp.cos, results))

        arguments = jax.device_put(tuple(a.astype(dtype) for a in arrays), device)
        return both.lower(*arguments), arguments

    return trace


def _of_network(name: str, batch: int, size: int, fields: dict[str, Any]) -> Trace:
    cpu = jax.devices("cpu")[0]
    images = np.random.default_rng(0).normal(size=(batch, size, size, 3)).astype(np.float32)

    def trace(dtype: str, device: Any) -> tuple[jax.stages.Lowered, tuple[Any, ...]]:
        model = resnet_jax.create_model(name, num_classes=10, dtype=dtype, **fields)
        with jax.default_device(cpu):
            variables = resnet_jax.init_variables(model, jax.random.key(0), (size, size, 3))

        @jax.jit
        def step(variables: Any, images: Any) -> Any:
            def loss(params: Any) -> Any:
                logits, updated = model.apply(
                    variables | {"params": params}, images, train=True, mutable=["batch_stats"]
                )
                return jnp.square(logits).mean(), (logits, updated["batch_stats"])

            gradients, (logits, statistics) = jax.grad(loss, has_aux=True)(variables["params"])
            return logits, gradients, statistics

        arguments = jax.device_put((variables, images), device)
        return step.lower(*arguments), arguments

    return trace


def _errors(names: tuple[str, ...], trace: Trace) -> dict[str, float]:
    """Errors of the results, which have these names, in either type and form."""
    device, cpu = jax.devices()[0], jax.devices("cpu")[0]
    with jax.default_matmul_precision("highest"):
        traced = {"exact": trace("float32", cpu)}
    for dtype, precision in _PRECISIONS.items():
        with jax.default_matmul_precision(precision):
            traced[dtype] = trace(dtype, device)
            with variant("no_forms"):
                traced[f"{dtype}, plain form"] = trace(dtype, device)
    with ThreadPoolExecutor() as pool:  # as a compilation takes long, and not all cores
        programs = list(pool.map(lambda one: one[0].compile(), traced.values()))
    values = {
        name: [_flat(result) for result in program(*arguments)]
        for (name, (_, arguments)), program in zip(traced.items(), programs, strict=True)
    }
    exact = values.pop("exact")
    return {
        f"{name}, {how}": float(np.abs(a - b).max() / np.abs(b).max())
        for how, computed in values.items()
        for name, a, b in zip(names, computed, exact, strict=True)
    }


def _flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])


def repeat(task: Task) -> Iterator[tuple[str, Any]]:
    """Fifty steps twice, with XLA's flag for deterministic operations: the same bits or not."""
    from configs.cifar10 import get_config  # noqa: PLC0415 - a folder that gpu.py names

    configs = {"resnet20": get_config("resnet20"), "resnet50": gpu_speed.resnet50(task, None)}
    if not task.toy:
        configs["resnet50"].batch_size = 64
    for name, config in configs.items():
        config.steps_per_dispatch = 2 if task.toy else 10
        if task.toy:
            fields = {"batch_size": 4, "model.bn_group_size": config.model.bn_group_size and 2}
            fields |= {"model.stage_sizes": (1, 1), "model.width": 4}
            for field, value in fields.items():
                set_field(config, field, value)
        digests = []
        for _ in range(2):
            steps = RandomSteps(TrainSpec.without_data(config, make_mesh(data=1)))
            steps.compile()
            while int(steps.state.step) < (10 if task.toy else _STEPS):
                steps()
            digests.append(_digest(steps.state))
        number = int(steps.state.step)
        yield name, {"steps": number, "same": digests[0] == digests[1], "sha256": digests}


def _digest(state: Any) -> str:
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(jax.device_get(state)):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()
