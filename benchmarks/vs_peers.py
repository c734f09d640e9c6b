"""Training steps and inference of this package beside those of others, on one machine in one run.

Each contender is a process of its own; they take turns, and ratios are of neighbours. The others
are PyTorch (eager and compiled, channels last, float32 and bfloat16), ONNX Runtime and OpenVINO
for inference where that Python has them, Flax as most write it, and the ImageNet example of a
checkout of google/flax. All train on images that lie on the device already, with SGD and momentum,
without augmentation. Our inference is a `Predictor`'s: batch normalisation is folded, what follows
a convolution is fused with it, and kernels are reordered once.

    python benchmarks/vs_peers.py --network resnet20 --torch-python PYTHON --flax CHECKOUT

Results are kept by kind of processor: figures of different ones aren't comparable.
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

from peers_torch import runtime_contender, torch_contender

ENVIRONMENT = dict(os.environ)
"""Of the contenders. resnet_jax sets variables of OpenMP, which would slow PyTorch down."""

ROOT = Path(__file__).resolve().parents[1]
SHAPES = {"resnet20": (32, 10), "resnet50": (224, 1000)}
MODES = ("train", "inference", "latency")  # the last is inference of single images
OURS = ("resnet_jax", "resnet_jax onednn", "resnet_jax onednn bfloat16")
TORCH = ("torch", "torch.compile", "torch bfloat16", "torch.compile bfloat16")
RUNTIMES = ("onnxruntime", "openvino")
KINDS = {"amx_tile": "AMX", "avx512f": "AVX-512", "avx2": "AVX2", "asimd": "NEON"}
"""Kinds of processor by a flag of the kernel's, the widest first."""
FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile")
Steps = Callable[[int], None]


def contender(name: str, network: str, batch: int, mode: str, flax: str) -> Steps:
    """A function that takes so many steps, or classifies so many batches, and waits for the end."""
    if name.startswith("torch"):
        return torch_contender(name, network, *SHAPES[network], batch, mode)
    if name in RUNTIMES:
        return runtime_contender(name, network, *SHAPES[network], batch)
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
    if mode != "train":
        from resnet_jax.ops.prepared import Prepared  # noqa: PLC0415

        model: Any = resnet_jax.create_model(network, num_classes=classes, dtype=dtype)
        variables = resnet_jax.init_variables(model, jax.random.key(0), (size, size, 3))
        variables = resnet_jax.fold_batch_norm(model, variables, (size, size, 3))
        images, apply = jnp.ones((batch, size, size, 3)), Prepared(model.apply, variables)

        def classify(count: int) -> None:
            for _ in range(count):
                logits = apply(images)
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
    if mode != "train":
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


class Process:
    """A contender in a process of its own, which waits for its turn.

    The process runs this script as it is in the checkout `tree`.
    """

    def __init__(
        self, python: str, name: str, args: argparse.Namespace, mode: str, *, tree: Path = ROOT
    ) -> None:
        batch = 1 if mode == "latency" else args.batch
        script = str(tree / "benchmarks/vs_peers.py")
        command = [python, script, "--network", args.network, "--batch", str(batch)]
        command += ["--contender", name, "--mode", mode, "--flax", args.flax or ""]
        environment = {**ENVIRONMENT, "JAX_COMPILATION_CACHE_DIR": ""}
        if "onednn" not in name:
            environment["RESNET_JAX_NATIVE"] = "0"
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=tree,
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


def instruction_sets() -> dict[str, Any]:
    """The kind of this processor, and the flags of it that matter here."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    told = (line.split(":")[1].split() for line in lines if line.startswith(("flags", "Features")))
    known = next(told, [])
    kind = next((kind for flag, kind in KINDS.items() if flag in known), "other")
    return {"kind": kind, "flags": [flag for flag in FLAGS if flag in known]}


def _names(args: argparse.Namespace, mode: str, library: bool) -> dict[str, str]:
    """The contenders of a mode, each with the Python that runs it."""
    ours = OURS if library else OURS[:1]  # see `resnet-jax build`
    names = dict.fromkeys((*ours, "flax"), sys.executable)
    if args.flax and args.network == "resnet50":
        names["google/flax"] = sys.executable
    if args.torch_python:
        names |= dict.fromkeys(TORCH, args.torch_python)
        found = [r for r in RUNTIMES if mode != "train" and _has_module(args.torch_python, r)]
        names |= dict.fromkeys(found, args.torch_python)
    wanted = args.contenders.split(",") if args.contenders else names
    if unknown := set(wanted) - set(names):
        raise SystemExit(f"no contenders {', '.join(unknown)} here; there are {', '.join(names)}")
    return {name: python for name, python in names.items() if name in wanted}


def _has_module(python: str, module: str) -> bool:
    return subprocess.run([python, "-c", f"import {module}"], check=False).returncode == 0


def _peer_versions(python: str) -> dict[str, str]:
    """The versions of PyTorch and the runtimes that this Python has."""
    code = "from importlib.metadata import distributions as d\n"
    code += "for one in d(): print(one.name, one.version)"
    lines = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout
    versions = dict(line.split(maxsplit=1) for line in lines.splitlines())
    return {name: versions[name] for name in ("torch", *RUNTIMES) if name in versions}


def compare(args: argparse.Namespace, mode: str, library: bool) -> dict[str, Any]:
    """Let the contenders of a mode take turns."""
    names, batch = _names(args, mode, library), 1 if mode == "latency" else args.batch
    processes = {name: Process(python, name, args, mode) for name, python in names.items()}
    rounds = []
    for number in range(args.rounds):
        order = list(names) if number % 2 else list(reversed(names))
        rounds.append({name: processes[name].img_per_s(batch) for name in order})
    for process in processes.values():
        process.close()
    others = [name for name in names if name not in OURS]
    ratios = {
        ours: {name: _spread([one[ours] / one[name] for one in rounds]) for name in others}
        for ours in OURS
        if ours in names
    }
    speeds = {name: statistics.median(one[name] for one in rounds) for name in names}
    return {"images": batch, "img_per_s": speeds, "ours_divided_by": ratios}


def main() -> None:
    """Let all take turns, write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=SHAPES, default="resnet20")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="of a turn")
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--contenders", help="some of them, with commas between; default: all")
    parser.add_argument("--torch-python", help="a Python that has PyTorch")
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

    modes = args.modes.split(",")
    if unknown := set(modes) - set(MODES):
        parser.error(f"no modes {', '.join(unknown)}; there are {', '.join(MODES)}")
    processor, used = instruction_sets(), state()
    results: dict[str, Any] = {
        "network": args.network,
        "batch_size": args.batch,
        "processor": processor,
        "oneDNN": used.onednn,
        "peers": _peer_versions(args.torch_python) if args.torch_python else {},
    }
    print(processor["kind"], *processor["flags"], used.onednn, flush=True)
    for mode in modes:
        results[mode] = compare(args, mode, used.library is not None)
        print(mode, json.dumps(results[mode], indent=1), flush=True)
    from report import write_report  # noqa: PLC0415 - imports JAX, which contenders do themselves

    kind = processor["kind"].lower().replace("-", "")
    default = ROOT / f"benchmarks/results/vs_peers_{args.network}_{kind}.json"
    write_report(args.out or default, results)


if __name__ == "__main__":
    main()
