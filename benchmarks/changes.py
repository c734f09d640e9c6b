"""What each change for CPUs gave: a training step with all of them, and with each undone in turn.

Every variant is a process of its own; they take turns, and ratios are of neighbours. None runs
native code.

    python benchmarks/changes.py --network resnet20
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SHAPES = {"resnet20": (128, 32), "resnet50": (8, 224)}  # images, their size
UNDONE = {
    "memory": "freed memory stays with the process",
    "norm": "batch normalisation has its own gradient",
    "pool": "the stem takes its maximum before it normalises",
    "winograd": "3x3 convolutions as Winograd's",
    "conv": "gradients as plain convolutions and matrix products, and Winograd's",
}


def undo(change: str) -> None:
    """Replace what the package does by what JAX and XLA do."""
    import jax  # noqa: PLC0415

    from resnet_jax.models import resnet  # noqa: PLC0415
    from resnet_jax.ops import batch_norm, conv, conv_cpu  # noqa: PLC0415

    if change == "norm":
        batch_norm._normalise_groups = batch_norm._forward
    elif change == "pool":
        resnet.ResNet._can_pool_first = lambda *_: False
    elif change == "winograd":
        conv_cpu._prefers_winograd = lambda *_, **__: False
    elif change == "conv":

        def plain(x: Any, kernel: Any, rest: Any) -> Any:
            window = conv_cpu.Window(x.shape[1:3], kernel.shape[:2], *rest)
            return conv_cpu.xla_conv(x, kernel, window)

        conv._conv = jax.jit(plain, static_argnums=2, inline=True)


def training(network: str) -> Callable[[int], None]:
    """A function that takes so many steps of SGD, and waits for the last."""
    import jax  # noqa: PLC0415
    import jax.numpy as jnp  # noqa: PLC0415
    import optax  # noqa: PLC0415

    import resnet_jax  # noqa: PLC0415

    batch, size = SHAPES[network]
    model: Any = resnet_jax.create_model(network)
    variables = resnet_jax.init_variables(model, jax.random.key(0), (size, size, 3))
    images = jax.random.normal(jax.random.key(1), (batch, size, size, 3))
    labels, optimizer = jnp.arange(batch) % 10, optax.sgd(0.01, momentum=0.9)

    def step(variables: Any, state: Any) -> Any:
        def loss(params: Any) -> Any:
            logits, stats = model.apply(
                {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), stats

        grads, stats = jax.grad(loss, has_aux=True)(variables["params"])
        updates, state = optimizer.update(grads, state)
        return {"params": optax.apply_updates(variables["params"], updates), **stats}, state

    carry = (variables, optimizer.init(variables["params"]))
    run = jax.jit(step, donate_argnums=(0, 1)).lower(*carry).compile()
    print("temp_mb", run.memory_analysis().temp_size_in_bytes / 1e6, flush=True)

    def train(count: int) -> None:
        nonlocal carry
        for _ in range(count):
            carry = run(*carry)
        jax.block_until_ready(carry)

    return train


def serve(args: argparse.Namespace) -> None:
    """Be a variant: take as many steps as each line of standard input says."""
    from resnet_jax.utils.malloc import configure_malloc, release_freed_memory  # noqa: PLC0415

    if args.undone != "memory":
        configure_malloc()
    undo(args.undone)
    train = training(args.network)
    for number, line in enumerate(sys.stdin):
        began = time.perf_counter()
        train(int(line))
        seconds = time.perf_counter() - began
        if number < 2:
            release_freed_memory()
        print("seconds", seconds, flush=True)


class Variant:
    """A process that waits for its turn."""

    def __init__(self, undone: str, args: argparse.Namespace) -> None:
        command = [sys.executable, __file__, "--network", args.network, "--undone", undone]
        environment = {
            **os.environ,
            "JAX_COMPILATION_CACHE_DIR": "",
            "JAX_PLATFORMS": "cpu",
            "RESNET_JAX_NATIVE": "0",
        }
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment,
        )
        self.temp_mb = self._read("temp_mb")
        self.seconds(1)
        self._steps = max(1, round(args.seconds / self.seconds(1)))

    def seconds(self, steps: int | None = None) -> float:
        """Of a step, over a turn."""
        steps = steps or self._steps
        assert self._process.stdin
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        return self._read("seconds") / steps

    def _read(self, name: str) -> float:
        assert self._process.stdout
        for line in self._process.stdout:
            if line.startswith(name):
                return float(line.split()[1])
        raise RuntimeError(f"a variant ended with code {self._process.wait()}")

    def close(self) -> None:
        """End it."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def main() -> None:
    """Let all take turns, write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=SHAPES, default="resnet20")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="of a turn")
    parser.add_argument("--undone", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.undone is not None:
        serve(args)
        return
    variants = {name: Variant(name, args) for name in ("", *UNDONE)}
    rounds = []
    for number in range(args.rounds):
        order = list(variants) if number % 2 else list(reversed(variants))
        rounds.append({name: variants[name].seconds() for name in order})
    for variant in variants.values():
        variant.close()
    results: dict[str, Any] = {
        "network": args.network,
        "batch_size": SHAPES[args.network][0],
        "ms": 1e3 * statistics.median(one[""] for one in rounds),
        "temp_mb": variants[""].temp_mb,
        "changes": {
            change: {
                "change": UNDONE[change],
                "without_divided_by_with": statistics.median(
                    one[change] / one[""] for one in rounds
                ),
                "lowest": min(one[change] / one[""] for one in rounds),
                "highest": max(one[change] / one[""] for one in rounds),
                "temp_mb_without": variants[change].temp_mb,
            }
            for change in UNDONE
        },
    }
    print(results)
    from report import write_report  # noqa: PLC0415 - imports JAX

    write_report(ROOT / f"benchmarks/results/changes_{args.network}_cpu.json", results)


if __name__ == "__main__":
    main()
