"""What only a GPU can tell, item by item, in at most nine minutes.

python benchmarks/gpu.py             the items without a result of the present code
python benchmarks/gpu.py speed       that one, again
python benchmarks/gpu.py --toy       at toy size, on whatever is there, into a temporary folder

Each item runs in a process of its own with a limit of time, and leaves results/gpu/ITEM.json.
What the machine lacks, such as a data set or timm, is skipped and named in the result.
"""

import argparse
import contextlib
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "gpu"


@contextlib.contextmanager
def plain_formulations() -> Iterator[None]:
    """Compile what GPUs have forms of their own for as on other platforms."""
    import jax  # noqa: PLC0415

    choose = jax.lax.platform_dependent

    def without_cuda(*operands: Any, cuda: Any = None, **functions: Any) -> Any:
        del cuda
        return choose(*operands, **functions)

    with mock.patch.object(jax.lax, "platform_dependent", without_cuda):
        yield


def ceilings(toy: bool) -> dict[str, Any]:
    """A matrix product and a copy."""
    import jax.numpy as jnp  # noqa: PLC0415

    from resnet_jax.profiling import bench  # noqa: PLC0415

    return bench.ceilings(jnp.bfloat16, seconds=0.2 if toy else 3)


def correct(toy: bool) -> dict[str, Any]:
    """Logits, gradients and statistics beside float32 on the CPU, in either form."""
    if toy:
        return {"resnet50": _differences("resnet50", 2, 32, stage_sizes=(1, 1))}
    return {
        name: _differences(name, 16, size) for name, size in (("resnet20", 32), ("resnet50", 224))
    }


def _differences(name: str, batch: int, size: int, **fields: Any) -> dict[str, float]:
    """Largest differences over the largest values."""
    import jax  # noqa: PLC0415
    import jax.numpy as jnp  # noqa: PLC0415
    import numpy as np  # noqa: PLC0415

    import resnet_jax  # noqa: PLC0415

    cpu, device = jax.devices("cpu")[0], jax.devices()[0]
    rng = np.random.default_rng(0)
    images = rng.normal(size=(batch, size, size, 3)).astype(np.float32)

    def values(dtype: Any, place: Any, precision: str) -> list[np.ndarray]:
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

            return jax.grad(loss, has_aux=True)(variables["params"])

        with jax.default_matmul_precision(precision):
            grads, (logits, stats) = step(*jax.device_put((variables, images), place))
        leaves = (jax.tree.leaves(tree) for tree in (grads, stats))
        flat = (jnp.concatenate([leaf.ravel() for leaf in some]) for some in leaves)
        return [np.asarray(a, np.float64) for a in (logits, *flat)]

    def worst(found: list[np.ndarray], expected: list[np.ndarray]) -> list[float]:
        pairs = zip(found, expected, strict=True)
        return [float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs]

    exact = values(jnp.float32, cpu, "highest")
    kinds = {"float32": (jnp.float32, "highest"), "bfloat16": (jnp.bfloat16, "default")}
    result = {}
    for kind, (dtype, precision) in kinds.items():
        own = values(dtype, device, precision)
        with plain_formulations():
            plain = values(dtype, device, precision)
        for label, (a, b) in {"": (own, exact), "_plain": (plain, exact)}.items():
            names = ("logits", "gradients", "statistics")
            result |= {f"{kind}{label}_{n}": w for n, w in zip(names, worst(a, b), strict=True)}
    return result


def _speed(arg: str, config_file: str, batch: int, toy: bool, **fields: Any) -> dict[str, Any]:
    """Steps of a config, as `resnet-jax bench step` measures them."""
    import importlib  # noqa: PLC0415

    from resnet_jax.config.schema import set_field  # noqa: PLC0415
    from resnet_jax.profiling.bench import measure_speed  # noqa: PLC0415

    sys.path.insert(0, str(ROOT))
    config = importlib.import_module(f"configs.{config_file}").get_config(arg)
    config.batch_size = batch
    for name, value in fields.items():
        set_field(config, name.replace("__", "."), value)
    return measure_speed(config, seconds=0.2 if toy else 4)


def speed(toy: bool) -> dict[str, Any]:
    """ResNet-50's step in bfloat16, in the GPU's own forms and in the plain ones."""
    batch, fields = 256, {}
    if toy:
        batch, fields = 4, {"data__image_size": 32, "model__stage_sizes": (1, 1)}
    result = {}
    for arg in ("resnet50,whole", "resnet50"):
        if toy:
            fields |= {"model__bn_group_size": None}
        result[arg] = _speed(arg, "imagenet", batch, toy, **fields)
        with plain_formulations():
            result[f"{arg}, plain forms"] = _speed(arg, "imagenet", batch, toy, **fields)
    return result


def cifar(toy: bool) -> dict[str, Any]:
    """ResNet-20 with its data on the device; five networks in one program."""
    result = {}
    for batch in (8,) if toy else (128, 1024):
        for dtype in ("float32", "bfloat16"):
            fields: dict[str, Any] = {"model__dtype": dtype, "model__bn_group_size": None}
            if toy:
                fields |= {"model__stage_sizes": (1, 1)}
            result[f"{batch}, {dtype}"] = _speed("resnet20", "cifar10", batch, toy, **fields)
            fields |= {"seeds": (0, 1, 2, 3, 4)}
            result[f"{batch}, {dtype}, 5 seeds"] = _speed(
                "resnet20", "cifar10", batch, toy, **fields
            )
    return result


def table6(toy: bool) -> dict[str, Any]:
    """He et al. 2015, table 6, as far as time allows; each network goes on where it was."""
    names = ("resnet20",) if toy else ("resnet20", "resnet56", "plain20", "plain56", "resnet110")
    found = {}
    for name in names:
        workdir = RESULTS / "table6" / name
        command = [sys.executable, "train.py", f"--config=configs/cifar10.py:{name}"]
        if toy:
            workdir = Path(tempfile.mkdtemp())
            command = [sys.executable, "train.py", "--config=configs/digits.py"]
            command += ["--config.duration=1.0", "--config.schedule.warmup=0.5"]
        command += [f"--workdir={workdir}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            found[name] = f"ended with {done.returncode}: {done.stderr.strip()[-300:]}"
            break
        found[name] = json.loads((workdir / "summary.json").read_text(encoding="utf-8"))
    return found


# In this order; seconds each may take.
ITEMS: dict[str, tuple[Callable[[bool], dict[str, Any]], int]] = {
    "ceilings": (ceilings, 40),
    "correct": (correct, 100),
    "speed": (speed, 160),
    "cifar": (cifar, 80),
    "table6": (table6, 160),
}


def fingerprint() -> str:
    """A hash of the package's and this script's sources."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for path in sorted((ROOT / "resnet_jax").rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _is_of_this_code(out: Path) -> bool:
    if not out.exists():
        return False
    return bool(json.loads(out.read_text(encoding="utf-8"))["fingerprint"] == fingerprint())


def main() -> None:
    """Run the items that lack a result of the present code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("items", nargs="*", metavar="ITEM", help=", ".join(ITEMS))
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if unknown := set(args.items) - set(ITEMS):
        parser.error(f"no item {', '.join(sorted(unknown))}; there are {', '.join(ITEMS)}")
    if args.child:
        from report import write_report  # noqa: PLC0415

        (name,) = args.items
        began = time.perf_counter()
        results = ITEMS[name][0](args.toy)
        seconds = round(time.perf_counter() - began, 1)
        head = {"fingerprint": fingerprint(), "wall_s": seconds, "toy": args.toy}
        write_report(args.child, head | {"results": results})
        return
    folder = Path(tempfile.mkdtemp()) if args.toy else RESULTS
    for name in args.items or ITEMS:
        out = folder / f"{name}.json"
        if not args.items and _is_of_this_code(out):
            continue
        command = [sys.executable, __file__, name, f"--child={out}"] + ["--toy"] * args.toy
        limit = ITEMS[name][1] * (10 if args.toy else 1)
        try:
            code = subprocess.run(command, timeout=limit, check=False).returncode
        except subprocess.TimeoutExpired:
            code = 124
        print(f"{name}: {out if code == 0 else f'ended with {code}'}", flush=True)


if __name__ == "__main__":
    main()
