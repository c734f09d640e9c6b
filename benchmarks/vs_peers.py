"""Training steps and inference of this package beside those of others, on one machine in one run.

Each contender is a process of its own; they take turns, and ratios are of neighbours. The others
are PyTorch (eager and compiled, channels last, float32 and bfloat16), Flax as most write it, and
the ImageNet example of a checkout of google/flax. All train on images that lie on the device
already, with SGD and momentum, without augmentation.

    python benchmarks/vs_peers.py --network resnet20 --torch-python PYTHON --flax CHECKOUT
"""

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SHAPES = {"resnet20": (32, 10), "resnet50": (224, 1000)}
MODES = ("train", "inference")
OURS = ("resnet_jax", "resnet_jax onednn", "resnet_jax onednn bfloat16")
TORCH = ("torch", "torch.compile", "torch bfloat16", "torch.compile bfloat16")
Steps = Callable[[int], None]


def contender(name: str, network: str, batch: int, mode: str, flax: str) -> Steps:
    """A function that takes so many steps, or classifies so many batches, and waits for the end."""
    if name.startswith("torch"):
        return _torch(name, network, batch, mode)
    if name in OURS:
        return _ours(network, batch, mode, "bfloat16" if "bfloat16" in name else "float32")
    return _flax(name, network, batch, mode, flax)


def _ours(network: str, batch: int, mode: str, dtype: str) -> Steps:
    import jax  # noqa: PLC0415
    import jax.numpy as jnp  # noqa: PLC0415
    import numpy as np  # noqa: PLC0415

    import resnet_jax  # noqa: PLC0415
    from resnet_jax.parallel.mesh import make_mesh  # noqa: PLC0415
    from resnet_jax.profiling import bench  # noqa: PLC0415
    from resnet_jax.train.dispatch import make_train_steps  # noqa: PLC0415
    from resnet_jax.train.spec import TrainSpec  # noqa: PLC0415

    size, classes = SHAPES[network]
    if mode == "inference":
        model: Any = resnet_jax.create_model(network, num_classes=classes, dtype=dtype)
        variables = resnet_jax.init_variables(model, jax.random.key(0), (size, size, 3))
        images, apply = jnp.ones((batch, size, size, 3)), jax.jit(model.apply)

        def classify(count: int) -> None:
            for _ in range(count):
                logits = apply(variables, images)
            jax.block_until_ready(logits)

        return classify
    config = resnet_jax.default_config()
    config.model.name, config.model.dtype = network, dtype
    config.data.name = "cifar10" if size == 32 else "imagenet2012"
    config.data.image_size = None if size == 32 else size
    config.data.test = "test" if size == 32 else "validation"
    config.data.crop_padding, config.data.flip, config.data.resident = 0, False, False
    config.batch_size, config.steps_per_dispatch = batch, 1
    spec = TrainSpec.without_data(config, make_mesh(data=1))
    shapes = spec.abstract_batches()
    arrays = [bench._random(shape, classes) for shape in shapes]
    state = bench._initial_state(spec)
    run = make_train_steps(spec).lower(state, *arrays, np.int32(1)).compile()

    def train(count: int) -> None:
        nonlocal state
        for _ in range(count):
            state = run(state, *arrays, np.int32(1))
        jax.block_until_ready(state)

    return train


def _flax(name: str, network: str, batch: int, mode: str, checkout: str) -> Steps:
    """`flax`: a network as most write it; `google/flax`: that of the example."""
    import jax  # noqa: PLC0415
    import jax.numpy as jnp  # noqa: PLC0415
    import optax  # noqa: PLC0415

    size, classes = SHAPES[network]
    if name == "google/flax":
        sys.path.insert(0, str(Path(checkout) / "examples" / "imagenet"))
        import models  # noqa: PLC0415

        model = models.ResNet50(num_classes=classes, dtype=jnp.float32)
    else:
        model = plain_linen(network, classes, jnp.float32)
    images = jnp.ones((batch, size, size, 3))
    labels = jnp.arange(batch) % classes
    variables = jax.jit(lambda key: model.init(key, images[:1], train=False))(jax.random.key(0))
    optimizer = optax.sgd(0.01, momentum=0.9)
    if mode == "inference":
        apply = jax.jit(lambda v, x: model.apply(v, x, train=False))

        def classify(count: int) -> None:
            for _ in range(count):
                logits = apply(variables, images)
            jax.block_until_ready(logits)

        return classify

    # The example averages over an axis of devices; here there is one.
    @jax.jit
    @functools.partial(jax.vmap, axis_name="batch", axis_size=1, in_axes=None, out_axes=None)
    def step(variables: Any, opt_state: Any) -> Any:
        def loss(params: Any) -> Any:
            logits, updated = model.apply(
                {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
            )
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), updated

        grads, updated = jax.grad(loss, has_aux=True)(variables["params"])
        updates, opt_state = optimizer.update(grads, opt_state, variables["params"])
        params = optax.apply_updates(variables["params"], updates)
        return {"params": params, **updated}, opt_state

    state = (variables, optimizer.init(variables["params"]))

    def train(count: int) -> None:
        nonlocal state
        for _ in range(count):
            state = step(*state)
        jax.block_until_ready(state)

    return train


def plain_linen(network: str, classes: int, dtype: Any) -> Any:
    """Residual networks of nn.Conv and nn.BatchNorm; basic blocks for CIFAR, else bottlenecks."""
    from flax import linen as nn  # noqa: PLC0415

    cifar = network == "resnet20"
    sizes, width = ((3, 3, 3), 16) if cifar else ((3, 4, 6, 3), 64)

    class Plain(nn.Module):
        @nn.compact
        def __call__(self, x: Any, train: bool) -> Any:
            conv = functools.partial(nn.Conv, use_bias=False, dtype=dtype)
            norm = functools.partial(
                nn.BatchNorm, use_running_average=not train, momentum=0.9, dtype=dtype
            )
            if cifar:
                x = nn.relu(norm()(conv(width, (3, 3))(x)))
            else:
                x = conv(width, (7, 7), strides=2, padding=3)(x)
                x = nn.max_pool(nn.relu(norm()(x)), (3, 3), (2, 2), "SAME")
            for stage, units in enumerate(sizes):
                for unit in range(units):
                    inner, stride = width * 2**stage, 2 if stage and not unit else 1
                    out = inner if cifar else 4 * inner
                    if cifar:
                        y = nn.relu(norm()(conv(inner, (3, 3), strides=stride)(x)))
                        y = norm()(conv(inner, (3, 3))(y))
                    else:
                        y = nn.relu(norm()(conv(inner, (1, 1))(x)))
                        y = nn.relu(norm()(conv(inner, (3, 3), strides=stride)(y)))
                        y = norm()(conv(out, (1, 1))(y))
                    if x.shape != y.shape:
                        x = norm()(conv(out, (1, 1), strides=stride)(x))
                    x = nn.relu(x + y)
            return nn.Dense(classes)(x.mean(axis=(1, 2)))

    return Plain()


def _torch(name: str, network: str, batch: int, mode: str) -> Steps:
    import torch  # noqa: PLC0415

    device = "cuda" if torch.cuda.is_available() else "cpu"
    size, classes = SHAPES[network]
    model = _torch_network(network, classes).to(device, memory_format=torch.channels_last)
    images = torch.ones(batch, 3, size, size, device=device)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.arange(batch, device=device) % classes
    half = "bfloat16" in name
    call = torch.compile(model) if "compile" in name else model

    def forward() -> Any:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=half):
            return call(images)

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    if mode == "inference":
        model.eval()

        def classify(count: int) -> None:
            with torch.inference_mode():
                for _ in range(count):
                    forward()
            wait()

        return classify
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    loss = torch.nn.CrossEntropyLoss()

    def train(count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad(set_to_none=True)
            loss(forward().float(), labels).backward()
            optimizer.step()
        wait()

    return train


def _torch_network(network: str, classes: int) -> Any:
    from torch import nn  # noqa: PLC0415
    from torch.nn import functional as F  # noqa: N812, PLC0415

    if network != "resnet20":
        import torchvision  # noqa: PLC0415

        return getattr(torchvision.models, network)(num_classes=classes)

    class Unit(nn.Module):
        def __init__(self, before: int, width: int, stride: int) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
            self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
            self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
            self.stride, self.added = stride, width - before

        def forward(self, x: Any) -> Any:
            y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
            x = x[:, :, :: self.stride, :: self.stride]
            return F.relu(y + F.pad(x, (0, 0, 0, 0, 0, self.added)))

    widths = [(16, 16, 1)] * 3 + [(16, 32, 2)] + [(32, 32, 1)] * 2
    widths += [(32, 64, 2)] + [(64, 64, 1)] * 2
    stem = (nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))
    return nn.Sequential(*stem, *(Unit(*shape) for shape in widths), *head)


class Process:
    """A contender in a process of its own, which waits for its turn."""

    def __init__(self, python: str, name: str, args: argparse.Namespace, mode: str) -> None:
        command = [python, __file__, "--network", args.network, "--batch", str(args.batch)]
        command += ["--contender", name, "--mode", mode, "--flax", args.flax or ""]
        environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": ""}
        if "onednn" not in name:
            environment["RESNET_JAX_NATIVE"] = "0"
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment,
        )
        self._ask("1")  # compilation
        self._steps = 1
        once = self._ask("2") / 2
        self._steps = max(1, round(args.seconds / once))

    def img_per_s(self, batch: int) -> float:
        """Of a turn."""
        return batch * self._steps / self._ask(str(self._steps))

    def _ask(self, text: str) -> float:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(text + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("seconds "):
                return float(line.split()[1])
        raise RuntimeError(f"a contender ended with code {self._process.wait()}")

    def close(self) -> None:
        """End it."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def serve(args: argparse.Namespace) -> None:
    """Be a contender: take as many steps as each line of standard input says."""
    if args.contender in OURS:  # as train.py does
        from resnet_jax.utils.malloc import configure_malloc, release_freed_memory  # noqa: PLC0415

        configure_malloc()
    steps = contender(args.contender, args.network, args.batch, args.mode, args.flax)
    for number, line in enumerate(sys.stdin):
        began = time.perf_counter()
        steps(int(line))
        seconds = time.perf_counter() - began
        if args.contender in OURS and number < 2:
            release_freed_memory()
        print("seconds", seconds, flush=True)


def main() -> None:
    """Let all take turns, write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=SHAPES, default="resnet20")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="of a turn")
    parser.add_argument("--torch-python", help="a Python that has PyTorch and torchvision")
    parser.add_argument("--flax", help="a checkout of google/flax")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    parser.add_argument("--mode", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.batch = args.batch or (128 if args.network == "resnet20" else 8)
    if args.contender:
        serve(args)
        return
    from resnet_jax.ops.native.library import state  # noqa: PLC0415

    ours = OURS if state().library else OURS[:1]  # see `resnet-jax build`
    names = dict.fromkeys((*ours, "flax"), sys.executable)
    if args.flax and args.network == "resnet50":
        names["google/flax"] = sys.executable
    if args.torch_python:
        names |= dict.fromkeys(TORCH, args.torch_python)
    results: dict[str, Any] = {"network": args.network, "batch_size": args.batch}
    for mode in MODES:
        processes = {n: Process(python, n, args, mode) for n, python in names.items()}
        rounds = []
        for number in range(args.rounds):
            order = list(names) if number % 2 else list(reversed(names))
            rounds.append({name: processes[name].img_per_s(args.batch) for name in order})
        for process in processes.values():
            process.close()
        ratios = {
            ours: {
                name: _spread([one[ours] / one[name] for one in rounds])
                for name in names
                if name not in OURS
            }
            for ours in OURS
            if ours in names
        }
        speeds = {name: statistics.median(one[name] for one in rounds) for name in names}
        results[mode] = {"img_per_s": speeds, "ours_divided_by": ratios}
        print(mode, json.dumps(results[mode], indent=1), flush=True)
    from report import write_report  # noqa: PLC0415 - imports JAX, which contenders do themselves

    write_report(args.out or ROOT / f"benchmarks/results/vs_peers_{args.network}.json", results)


if __name__ == "__main__":
    main()
