"""Compiles networks for TPU slices and keeps what the compiler told; docs/scaling.md is made of it.

python benchmarks/tpu_compile.py                    what isn't there yet, one to ten minutes each
python benchmarks/tpu_compile.py resnet50_v5e-4_32  that one, again
python benchmarks/tpu_compile.py --flax CHECKOUT    also the step of google/flax's ImageNet example

It needs libtpu (the extra [tpu]), but no TPU.
"""

import argparse
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

from resnet_jax.profiling.tpu import prepare_environment

RESULTS = Path(__file__).parent / "results" / "tpu_compile"


def _case(model: str, topology: str, batch: int, *more: str) -> list[str]:
    return [
        f"--config=configs/imagenet.py:{model}",
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

# The example's: chip and number of chips, images per chip. Its statistics are of the whole batch.
EXAMPLES: dict[str, tuple[str, int]] = {
    "flax_resnet50_v5e-4_64": ("v5e:2x2", 64),
    "flax_resnet50_v5e-4_256": ("v5e:2x2", 256),
    "flax_resnet50_v5p-4_256": ("v5p:2x2x1", 256),
    "flax_resnet50_v6e-4_256": ("v6e:2x2", 256),
}


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
    return {"compile_command": shlex.join(command), "versions": _versions()} | json.loads(
        done.stdout
    )


def _versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in ("jax", "jaxlib", "libtpu", "flax")}


def compile_example(name: str, checkout: Path) -> dict[str, Any]:
    """Compile the training step of google/flax's examples/imagenet as its train.py does."""
    import flax.training.checkpoints  # noqa: F401, PLC0415 - before TensorFlow is pretended
    import jax  # noqa: PLC0415
    import jax.numpy as jnp  # noqa: PLC0415
    import orbax.checkpoint  # noqa: F401, PLC0415

    from resnet_jax.profiling import compile as ahead  # noqa: PLC0415
    from resnet_jax.profiling.tpu import describe_slice  # noqa: PLC0415

    # What reads data and writes metrics isn't part of a step.
    for module in ("clu", "tensorflow", "tensorflow_datasets", "input_pipeline"):
        sys.modules[module] = MagicMock()
    folder = checkout / "examples" / "imagenet"
    sys.path.insert(0, str(folder))
    import models  # noqa: PLC0415

    import train  # noqa: PLC0415
    from configs import tpu  # noqa: PLC0415

    topology, batch = EXAMPLES[name]
    slice_, config = describe_slice(topology), tpu.get_config()
    devices = len(slice_.devices)
    # The example chooses bfloat16 where it sees a TPU.
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
        devices=list(slice_.devices),
    )
    examples = {
        "image": jax.ShapeDtypeStruct((devices, batch, 224, 224, 3), jnp.bfloat16),
        "label": jax.ShapeDtypeStruct((devices, batch), jnp.int32),
    }
    program = ahead.compile_program(step, state, examples, devices=devices)
    if isinstance(program, ahead.TooLarge):
        raise SystemExit(f"{name} doesn't fit")
    sources = {
        file: hashlib.sha256((folder / file).read_bytes()).hexdigest()
        for file in ("models.py", "train.py", "configs/tpu.py")
    }
    return {
        "versions": _versions(),
        "sha256": sources,
        "topology": topology,
        "batch_per_chip": batch,
        "memory": {"peak_bytes": program.peak_bytes, "activation_bytes": program.temp_bytes},
        "gflop_per_image": program.flops / batch / 1e9,
        "mb_per_image": program.memory_bytes / batch / 1e6,
        "accessed_mb_per_image": program.accessed_bytes / batch / 1e6,
        "compile_s": round(program.compile_s, 1),
    }


def main() -> None:
    """Compile the named cases, or those without a result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="CASE", help=", ".join((*CASES, *EXAMPLES)))
    parser.add_argument("--flax", type=Path, metavar="CHECKOUT", help="of google/flax")
    parser.add_argument("--hlo", type=Path, metavar="FOLDER", help="keep the programs' texts")
    args = parser.parse_args()
    cases = [*CASES, *(EXAMPLES if args.flax else ())]
    if unknown := set(args.names) - set(cases):
        parser.error(f"no case {', '.join(sorted(unknown))}; there are {', '.join(cases)}")
    prepare_environment()
    from report import write_report  # noqa: PLC0415 - imports JAX

    for name in args.names or [n for n in cases if not (RESULTS / f"{n}.json").exists()]:
        print(name, flush=True)
        if name in EXAMPLES:
            results = compile_example(name, args.flax)
        else:
            results = compile_case(name, hlo=args.hlo)
        write_report(RESULTS / f"{name}.json", results)
        print(f"  {results['compile_s']} s", flush=True)


if __name__ == "__main__":
    main()
