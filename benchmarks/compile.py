"""Compiles networks for TPUs and GPUs and keeps what the compilers told, for docs/scaling.md.

python benchmarks/compile.py                    what isn't there yet, one to ten minutes each
python benchmarks/compile.py resnet50_v5e-4_32  that one, again
python benchmarks/compile.py --only=gpu         of GPUs alone (or tpu)
python benchmarks/compile.py --flax CHECKOUT    also the step of google/flax's ImageNet example

It needs the extras [tpu] and [gpu-compile], but neither a TPU nor a GPU.
"""

import argparse
import dataclasses
import functools
import hashlib
import json
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

from formulations import VARIANTS, variant

from resnet_jax.profiling.gpu import GPUS
from resnet_jax.profiling.slices import prepare_environment

RESULTS = Path(__file__).parent / "results"


def _case(model: str, topology: str, batch: int, *more: str, config: str = "imagenet") -> list[str]:
    return [
        f"--config=configs/{config}.py:{model}",
        f"--topology={topology}",
        f"--batch-per-chip={batch}",
        *more,
    ]


# name: model, chip and number of chips, images per chip. Statistics are those of the whole batch,
# which makes them a collective in every layer, except where it says groups.
CASES: dict[str, list[str]] = {
    "resnet50_v5e-256_256_groups": _case("resnet50", "v5e:16x16", 256),
    "resnet50_v5p-64_256_groups": _case("resnet50", "v5p:4x4x4", 256, "--train-only"),
    "resnet50_v5e-4_64": _case("resnet50,whole", "v5e:2x2", 64, "--train-only"),
    "resnet50_v5e-4_128": _case("resnet50,whole", "v5e:2x2", 128, "--train-only"),
    "resnet50_v5p-4_64": _case("resnet50,whole", "v5p:2x2x1", 64, "--train-only"),
    "resnet50_v6e-4_64": _case("resnet50,whole", "v6e:2x2", 64, "--train-only"),
    "resnet50_v6e-4_256": _case("resnet50,whole", "v6e:2x2", 256, "--train-only"),
    "resnet50_v5e-4_256": _case("resnet50,whole", "v5e:2x2", 256, "--train-only"),
    "resnet50_v5e-4_32": _case("resnet50,whole", "v5e:2x2", 32, "--train-only"),
    "resnet50_v5p-4_256": _case("resnet50,whole", "v5p:2x2x1", 256, "--train-only"),
    "resnet50_v5p-4_32": _case("resnet50,whole", "v5p:2x2x1", 32, "--train-only"),
    "resnet152_v5e-4_128": _case("resnet152,whole", "v5e:2x2", 128, "--train-only"),
    "resnet50_v4-4_256": _case("resnet50,whole", "v4:2x2x1", 256, "--train-only"),
    "resnet152_v5e-4_32": _case("resnet152,whole", "v5e:2x2", 32, "--train-only"),
    "resnet50_v5e-256_256": _case("resnet50,whole", "v5e:16x16", 256, "--train-only"),
    "resnet152_v5p-4_256": _case("resnet152,whole", "v5p:2x2x1", 256, "--train-only"),
    # What could lower the traffic, and doesn't.
    "remat_resnet50_v5e-4_256": _case(
        "resnet50,whole", "v5e:2x2", 256, "--train-only", "--config.model.remat=True"
    ),
    "space_to_depth_resnet50_v5e-4_256": _case(
        "resnet50,whole", "v5e:2x2", 256, "--train-only", "--config.model.stem=space_to_depth"
    ),
}

CASES |= {
    "resnet50_h200-1_256": _case("resnet50,whole", "h200:1", 256, "--train-only"),
    "resnet50_h200-1_256_groups": _case("resnet50", "h200:1", 256, "--train-only"),
    "resnet50_h200-8_256": _case("resnet50,whole", "h200:8", 256, "--train-only"),
    "resnet50_h200-8_256_groups": _case("resnet50", "h200:8", 256),
    "resnet50_h200-8_32": _case("resnet50,whole", "h200:8", 32, "--train-only"),
    "resnet50_a100-1_256": _case("resnet50,whole", "a100:1", 256, "--train-only"),
    "resnet50_h100-1_256": _case("resnet50,whole", "h100:1", 256, "--train-only"),
    "resnet50_h100-4x8_256": _case("resnet50,whole", "h100:4x8", 256, "--train-only"),
    "resnet50_h100-4x8_256_groups": _case("resnet50", "h100:4x8", 256, "--train-only"),
    # Fixed shards, one for each device, to be compared with the same name without "shards".
    "shards_resnet50_v5e-256_256_groups": _case(
        "resnet50", "v5e:16x16", 256, "--train-only", "--config.mesh.shards=256"
    ),
    "shards_resnet50_h100-4x8_256_groups": _case(
        "resnet50", "h100:4x8", 256, "--train-only", "--config.mesh.shards=32"
    ),
    "resnet152_h200-1_256": _case("resnet152,whole", "h200:1", 256, "--train-only"),
    "resnet20_h200-1_128": _case("resnet20", "h200:1", 128, "--train-only", config="cifar10"),
}

# A step of others: topology, and images per chip. Statistics are of the whole batch.
# "flax": google/flax's example. "plain": a network as most write it, of nn.Conv and nn.BatchNorm.
EXAMPLES: dict[str, tuple[str, int]] = {
    "flax_resnet50_h200-1_256": ("h200:1", 256),
    "flax_resnet50_a100-1_256": ("a100:1", 256),
    "plain_resnet50_h200-1_256": ("h200:1", 256),
    "flax_resnet50_v5e-4_64": ("v5e:2x2", 64),
    "flax_resnet50_v5e-4_256": ("v5e:2x2", 256),
    "flax_resnet50_v5p-4_256": ("v5p:2x2x1", 256),
    "flax_resnet50_v6e-4_256": ("v6e:2x2", 256),
}

# The program of resnet50_h200-1_256 in other forms (formulations.py).
VARIANT_CASES = {f"{name}_resnet50_h200-1_256": name for name in VARIANTS}


def compile_case(name: str, *, hlo: Path | None) -> dict[str, Any]:
    """Run the command of a case in a process of its own, and return what it printed."""
    command = ["resnet-jax", "compile", *CASES[name], "--json"]
    program = Path(sys.executable).with_name("resnet-jax")
    keep = [f"--hlo={hlo / name}.txt"] if hlo else []
    done = subprocess.run(
        [program, *command[1:], *keep], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{shlex.join(command)} ended with {done.returncode}: {done.stderr}")
    document = json.loads(done.stdout)
    versions = _versions(document["topology"])
    return {"compile_command": shlex.join(command), "versions": versions} | document


def _topology(name: str) -> str:
    """Of a case or an example."""
    if name in EXAMPLES:
        return EXAMPLES[name][0]
    if name in VARIANT_CASES:
        return "h200:1"
    return next(part for part in CASES[name] if part.startswith("--topology")).partition("=")[2]


def _platform(name: str) -> str:
    return "gpu" if _topology(name).partition(":")[0] in GPUS else "tpu"


def _result(name: str) -> Path:
    return RESULTS / f"{_platform(name)}_compile" / f"{name}.json"


def _versions(topology: str) -> dict[str, str]:
    compiler = "jax-cuda12-plugin" if topology.partition(":")[0] in GPUS else "libtpu"
    return {name: metadata.version(name) for name in ("jax", "jaxlib", compiler, "flax")}


def compile_variant(name: str) -> dict[str, Any]:
    """Compile a program that resnet_jax doesn't choose, and describe it."""
    from resnet_jax.config import recipes  # noqa: PLC0415
    from resnet_jax.profiling import compile as ahead  # noqa: PLC0415
    from resnet_jax.profiling.slices import describe_slice  # noqa: PLC0415

    topology = _topology(name)
    config = recipes.make("goyal_2017", model="resnet50")
    config.model.bn_group_size = None
    slice_ = describe_slice(topology)
    spec = ahead.make_spec(config, slice_, batch_per_chip=256)
    with variant(VARIANT_CASES[name]):
        program = ahead.compile_training(spec)
    differs = {"differs": VARIANTS[VARIANT_CASES[name]][0], "versions": _versions(topology)}
    return differs | ahead.describe(spec, program, slice_)


def compile_example(name: str, checkout: Path | None) -> dict[str, Any]:
    """Compile a step of others, and describe the program."""
    from resnet_jax.profiling import compile as ahead  # noqa: PLC0415
    from resnet_jax.profiling.slices import describe_slice  # noqa: PLC0415

    topology, batch = EXAMPLES[name]
    devices = list(describe_slice(topology).devices)
    if name.startswith("flax"):
        if checkout is None:
            raise SystemExit(f"{name} needs --flax CHECKOUT")
        step, shapes, sources = _google_flax(devices, batch, checkout)
    else:
        step, shapes, sources = _plain_linen(devices, batch)
    program = ahead.compile_program(step, *shapes, devices=len(devices))
    if isinstance(program, ahead.TooLarge):
        raise SystemExit(f"{name} doesn't fit")
    accessed = program.accessed_bytes
    return {
        "versions": _versions(topology),
        "sha256": sources,
        "topology": topology,
        "batch_per_chip": batch,
        "memory": {"peak_bytes": program.peak_bytes, "activation_bytes": program.temp_bytes},
        "gflop_per_image": program.flops / batch / 1e9,
        "mb_per_image": program.memory_bytes / batch / 1e6,
        "accessed_mb_per_image": None if accessed is None else accessed / batch / 1e6,
        "kernels": [dataclasses.asdict(kernels) for kernels in program.kernels],
        "compile_s": round(program.compile_s, 1),
    }


def _plain_linen(devices: list[Any], batch: int) -> tuple[Any, tuple[Any, ...], dict[str, str]]:
    """The jitted step of a ResNet-50 of nn.Conv and nn.BatchNorm in bfloat16; its arguments."""
    import jax  # noqa: PLC0415
    import jax.numpy as jnp  # noqa: PLC0415
    import optax  # noqa: PLC0415
    from vs_peers import plain_linen  # noqa: PLC0415

    model = plain_linen("resnet50", 1000, jnp.bfloat16)
    optimizer = optax.sgd(0.1, momentum=0.9, nesterov=True)
    sharding = jax.sharding.SingleDeviceSharding(devices[0])

    def create(key: Any, images: Any) -> Any:
        variables = model.init(key, images, train=False)
        return variables, optimizer.init(variables["params"])

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: Any, images: Any, labels: Any) -> Any:
        variables, opt_state = state

        def loss(params: Any) -> Any:
            logits, updated = model.apply(
                {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
            )
            logits = logits.astype(jnp.float32)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), updated

        grads, updated = jax.grad(loss, has_aux=True)(variables["params"])
        updates, opt_state = optimizer.update(grads, opt_state, variables["params"])
        params = optax.apply_updates(variables["params"], updates)
        return {"params": params, **updated}, opt_state

    images = jax.ShapeDtypeStruct((batch, 224, 224, 3), jnp.bfloat16)
    labels = jax.ShapeDtypeStruct((batch,), jnp.int32)
    shapes = (jax.eval_shape(create, jax.random.key(0), images), images, labels)
    placed = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes
    )
    return step, placed, {}


def _google_flax(
    devices: list[Any], batch: int, checkout: Path
) -> tuple[Any, tuple[Any, ...], dict[str, str]]:
    """The training step of google/flax's examples/imagenet, as its train.py makes it."""
    import flax.training.checkpoints  # noqa: F401, PLC0415 - before TensorFlow is pretended
    import jax  # noqa: PLC0415
    import jax.numpy as jnp  # noqa: PLC0415
    import orbax.checkpoint  # noqa: F401, PLC0415

    # What reads data and writes metrics isn't part of a step.
    for module in ("clu", "tensorflow", "tensorflow_datasets", "input_pipeline"):
        sys.modules[module] = MagicMock()
    folder = checkout / "examples" / "imagenet"
    sys.path.insert(0, str(folder))
    import models  # noqa: PLC0415

    import train  # noqa: PLC0415
    from configs import tpu  # noqa: PLC0415

    # The example chooses bfloat16 where it sees a TPU, and float16 with a loss scale on GPUs.
    config = tpu.get_config()
    model = getattr(models, config.model)(num_classes=train.NUM_CLASSES, dtype=jnp.bfloat16)
    schedule = train.create_learning_rate_fn(config, config.learning_rate, 1251)
    state = jax.eval_shape(
        lambda key: train.create_train_state(key, config, model, 224, schedule), jax.random.key(0)
    )
    step = jax.pmap(
        functools.partial(train.train_step, learning_rate_fn=schedule),
        in_axes=(None, 0),
        out_axes=(None, 0),
        axis_name="batch",
        devices=devices,
    )
    examples = {
        "image": jax.ShapeDtypeStruct((len(devices), batch, 224, 224, 3), jnp.bfloat16),
        "label": jax.ShapeDtypeStruct((len(devices), batch), jnp.int32),
    }
    sources = {
        file: hashlib.sha256((folder / file).read_bytes()).hexdigest()
        for file in ("models.py", "train.py", "configs/tpu.py")
    }
    return step, (state, examples), sources


def compile_named(
    name: str, *, checkout: Path | None = None, hlo: Path | None = None
) -> dict[str, Any]:
    """Compile a case, a variant or an example; `checkout` is of google/flax."""
    if name in EXAMPLES:
        return compile_example(name, checkout)
    if name in VARIANT_CASES:
        return compile_variant(name)
    return compile_case(name, hlo=hlo)


def main() -> None:
    """Compile the named cases, or those without a result."""
    names_of_all = (*CASES, *VARIANT_CASES, *EXAMPLES)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="CASE", help=", ".join(names_of_all))
    parser.add_argument("--only", choices=("tpu", "gpu"))
    parser.add_argument("--flax", type=Path, metavar="CHECKOUT", help="of google/flax")
    parser.add_argument("--hlo", type=Path, metavar="FOLDER", help="keep the programs' texts")
    args = parser.parse_args()
    cases = [name for name in names_of_all if args.only in (None, _platform(name))]
    if unknown := set(args.names) - set(cases):
        parser.error(f"no case {', '.join(sorted(unknown))}; there are {', '.join(cases)}")
    if not args.flax:
        cases = [name for name in cases if not name.startswith("flax")]
    names = args.names or [name for name in cases if not _result(name).exists()]
    if args.hlo and (others := [name for name in names if name not in CASES]):
        parser.error(f"--hlo is for commands of resnet-jax, not for {', '.join(others)}")
    prepare_environment(map(_topology, names))
    from report import write_report  # noqa: PLC0415 - imports JAX

    for name in names:
        print(name, flush=True)
        results = compile_named(name, checkout=args.flax, hlo=args.hlo)
        write_report(_result(name), results)
        print(f"  {results['compile_s']} s", flush=True)


if __name__ == "__main__":
    main()
