"""Time the gradient of a convolution: XLA's own against the package's rule, layer by layer.

Each row times one backward pass (input and kernel gradient; only the kernel's for a stem, whose
images need none), and two of them inside a `lax.scan`, each feeding the next. The variants take
turns within one process, so their ratio is meaningful even where the machine is shared; times are
medians.

    python benchmarks/conv_gradient.py --out benchmarks/results/conv_gradient_cpu.json
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax import Array, lax
from report import write_report

from resnet_jax.ops.conv import conv2d


class Layer(NamedTuple):
    """One convolution; the padding is (kernel - 1) // 2 on every side."""

    name: str
    image: tuple[int, int, int, int]  # n, h, w, ci
    kernel: int
    stride: int
    co: int


LAYERS = (
    Layer("ResNet-20 stem", (128, 32, 32, 3), 3, 1, 16),
    Layer("ResNet-20 stage 1", (128, 32, 32, 16), 3, 1, 16),
    Layer("ResNet-20 stage 2, first", (128, 32, 32, 16), 3, 2, 32),
    Layer("ResNet-20 stage 2", (128, 16, 16, 32), 3, 1, 32),
    Layer("ResNet-20 stage 3, first", (128, 16, 16, 32), 3, 2, 64),
    Layer("ResNet-20 stage 3", (128, 8, 8, 64), 3, 1, 64),
    Layer("ResNet-50 stem", (4, 224, 224, 3), 7, 2, 64),
    Layer("ResNet-50 stage 1, 3x3", (16, 56, 56, 64), 3, 1, 64),
    Layer("ResNet-50 stage 1, 1x1", (16, 56, 56, 256), 1, 1, 64),
    Layer("digits stage 1", (64, 8, 8, 16), 3, 1, 16),
    Layer("digits stage 2", (64, 4, 4, 32), 3, 1, 32),
    Layer("digits stage 3", (64, 2, 2, 64), 3, 1, 64),
)
SCANNED_STEPS = 2


def xla_conv2d(x: Array, kernel: Array, *, strides: Any, padding: Any) -> Array:
    """Convolve with the gradient that JAX and XLA derive."""
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def median_ms(variants: dict[str, Callable[[], Any]], budget_s: float) -> dict[str, float]:
    """Time the variants in turns: once at least, then up to 15 times within the budget."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    start = time.perf_counter()
    for repeat in range(16):
        for name, call in variants.items():
            before = time.perf_counter()
            jax.block_until_ready(call())
            times[name].append(1e3 * (time.perf_counter() - before))
        if repeat and time.perf_counter() - start > budget_s:
            break
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def measure(layer: Layer, *, budget_s: float) -> dict[str, Any]:
    """Return the row of one layer."""
    pad = ((layer.kernel - 1) // 2,) * 2
    options = {"strides": (layer.stride,) * 2, "padding": (pad, pad)}
    kernel_shape = (layer.kernel, layer.kernel, layer.image[-1], layer.co)
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], layer.image)
    kernel = jax.random.normal(keys[1], kernel_shape) * 0.01
    shape = jax.eval_shape(lambda x, kernel: xla_conv2d(x, kernel, **options), x, kernel)
    grad = jax.random.normal(keys[2], shape.shape)

    once, scanned = {}, {}
    for name, conv in {"xla": xla_conv2d, "ours": conv2d}.items():

        def step(x: Array, kernel: Array, conv: Any = conv) -> tuple[Array, Array]:
            dx, dk = jax.vjp(lambda x, kernel: conv(x, kernel, **options), x, kernel)[1](grad)
            # A stem's images need no gradient; some change keeps the loop from hoisting the work.
            change = dk[0, 0, 0, 0] if layer.image[-1] == 3 else dx
            return x + 1e-6 * change, kernel + 1e-6 * dk

        def steps(x: Array, kernel: Array, step: Any = step) -> tuple[Array, Array]:
            return lax.scan(
                lambda carry, _: (step(*carry), None), (x, kernel), length=SCANNED_STEPS
            )[0]

        compiled = jax.jit(step).lower(x, kernel).compile()
        once[name] = lambda compiled=compiled: compiled(x, kernel)
        looped = jax.jit(steps).lower(x, kernel).compile()
        scanned[name] = lambda looped=looped: looped(x, kernel)
    # XLA's scanned gradient takes seconds, and so doesn't take turns with the others.
    ms = median_ms(once | {"ours_scan": scanned["ours"]}, budget_s)
    ms |= median_ms({"xla_scan": scanned["xla"]}, budget_s)
    n, h, w, ci = layer.image
    k = layer.kernel
    return {
        "layer": layer.name,
        "shape": f"{n}x{h}x{w}x{ci}, {k}x{k}/{layer.stride}, {ci}->{layer.co}",
        "xla_ms": round(ms["xla"], 3),
        "ours_ms": round(ms["ours"], 3),
        "ratio": round(ms["xla"] / ms["ours"], 2),
        "xla_scan_ms": round(ms["xla_scan"], 3),
        "ours_scan_ms": round(ms["ours_scan"], 3),
    }


def main() -> None:
    """Time every layer and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--budget-s", type=float, default=2.0, help="seconds per measurement")
    args = parser.parse_args()
    rows = []
    for layer in LAYERS:
        rows.append(measure(layer, budget_s=args.budget_s))
        print(json.dumps(rows[-1]), flush=True)
    write_report(args.out, {"scanned_steps": SCANNED_STEPS, "rows": rows})


if __name__ == "__main__":
    main()
