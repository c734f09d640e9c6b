"""Whether a training step costs what its multiply-adds say: time and memory by depth, width, batch
and image size.

CIFAR networks around ResNet-20 with batches of 64 images of 32×32; one of the four is varied at a
time.

    python benchmarks/cost_scaling.py --out benchmarks/results/cost_scaling_cpu.json
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from report import write_report

import resnet_jax
from resnet_jax.research.figures import COLORS, journal_style, new_panels
from resnet_jax.train.losses import cross_entropy

ROOT = Path(__file__).resolve().parents[1]
BASE = {"depth": 20, "width": 16, "batch": 64, "image size": 32}
VARIED = {
    "depth": (8, 20, 32, 56, 110),
    "width": (8, 16, 32, 64),
    "batch": (16, 32, 64, 128, 256),
    "image size": (8, 16, 32, 64),
}
TURNS, SECONDS = 5, 0.5


class Step:
    """A compiled step of SGD."""

    def __init__(self, settings: dict[str, int]) -> None:
        units, width = (settings["depth"] - 2) // 6, settings["width"]
        model = resnet_jax.create_model(
            "resnet20", stage_sizes=(units,) * 3, width=width, stem_width=width
        )
        shape = (settings["image size"], settings["image size"], 3)
        images = jnp.ones((settings["batch"], *shape))
        labels = jnp.zeros(settings["batch"], jnp.int32)
        variables = resnet_jax.init_variables(model, jax.random.key(0), shape)
        optimizer = optax.sgd(0.01, momentum=0.9)

        def step(variables: Any, state: Any) -> Any:
            def loss(params: Any) -> Any:
                logits, stats = model.apply(
                    {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
                )
                return cross_entropy(logits, labels).mean(), stats

            grads, stats = jax.grad(loss, has_aux=True)(variables["params"])
            updates, state = optimizer.update(grads, state)
            return {"params": optax.apply_updates(variables["params"], updates), **stats}, state

        self._carry = (variables, optimizer.init(variables["params"]))
        self._run = jax.jit(step).lower(*self._carry).compile()
        self.gmacs = resnet_jax.summarize(model, shape).macs * settings["batch"] / 1e9
        self.temp_mb = self._run.memory_analysis().temp_size_in_bytes / 1e6
        self.activation_mb = (
            resnet_jax.summarize(model, shape).activation_bytes * settings["batch"] / 1e6
        )

    def seconds(self) -> float:
        """Of a step, over half a second of them."""
        began, steps = time.perf_counter(), 0
        while time.perf_counter() - began < SECONDS:
            self._carry = jax.block_until_ready(self._run(*self._carry))
            steps += 1
        return (time.perf_counter() - began) / steps


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Time and memory over multiply-adds, each with a line in proportion."""
    with journal_style():
        figure, (times, memory) = new_panels(2)
        for color, name in zip(COLORS, VARIED, strict=False):
            of = [row for row in rows if row["varied"] == name]
            gmacs = [row["gmacs"] for row in of]
            times.plot(gmacs, [1000 * row["step_s"] for row in of], "o-", color=color, label=name)
            activations = [row["activation_mb"] for row in of]
            memory.plot(activations, [row["temp_mb"] for row in of], "o-", color=color)
        middle = next(row for row in rows if row["varied"] == "depth" and row["depth"] == 20)
        for axes, x, y in (
            (times, middle["gmacs"], 1000 * middle["step_s"]),
            (memory, middle["activation_mb"], middle["temp_mb"]),
        ):
            reach = np.array([1 / 30, 30])
            axes.plot(reach * x, reach * y, "--", color="#999999", linewidth=0.8, zorder=0)
            axes.set(xscale="log", yscale="log")
        times.set(xlabel="multiply-adds forward (10⁹)", ylabel="time of a step (ms)")
        memory.set(xlabel="outputs of layers (MB)", ylabel="XLA's temporary memory (MB)")
        times.legend()
        figure.savefig(path)


def main() -> None:
    """Measure all in turn, write the results and the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks/results/cost_scaling_cpu.json"
    )
    out = parser.parse_args().out
    rows: list[dict[str, Any]] = []
    steps: list[Step] = []
    for name, values in VARIED.items():
        for value in values:
            settings = BASE | {name: value}
            steps.append(Step(settings))
            rows.append({"varied": name, **settings})
    turns = [[step.seconds() for step in steps] for _ in range(TURNS)]
    for number, (row, step) in enumerate(zip(rows, steps, strict=True)):
        row["step_s"] = statistics.median(turn[number] for turn in turns)
        row |= {"gmacs": step.gmacs, "temp_mb": step.temp_mb, "activation_mb": step.activation_mb}
    exponents = {}
    for name in VARIED:
        of = [row for row in rows if row["varied"] == name]
        logs = [np.log([row[key] for row in of]) for key in ("gmacs", "step_s")]
        exponents[name] = float(np.polyfit(*logs, 1)[0])
    draw(rows, ROOT / "docs/figures/cost_scaling.png")
    write_report(out, {"exponent_of_time_in_macs": exponents, "rows": rows})
    print(exponents)


if __name__ == "__main__":
    main()
