"""Compiles networks for TPU slices and keeps what the compiler told; docs/scaling.md is made of it.

python benchmarks/tpu_compile.py                    what isn't there yet, one to ten minutes each
python benchmarks/tpu_compile.py resnet50_v5e-4_32  that one, again

It needs libtpu (the extra [tpu]), but no TPU.
"""

import argparse
import json
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from resnet_jax.parallel.tpu import prepare_environment

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
    "resnet50_v5e-4_256": _case("resnet50,whole", "v5e:2x2", 256, "--train-only"),
    "resnet50_v5e-4_32": _case("resnet50,whole", "v5e:2x2", 32, "--train-only"),
    "resnet50_v5p-4_256": _case("resnet50,whole", "v5p:2x2x1", 256, "--train-only"),
    "resnet50_v5p-4_32": _case("resnet50,whole", "v5p:2x2x1", 32, "--train-only"),
    "resnet152_v5e-4_128": _case("resnet152,whole", "v5e:2x2", 128, "--train-only"),
    "resnet50_v4-4_256": _case("resnet50,whole", "v4:2x2x1", 256, "--train-only"),
    "resnet152_v5e-4_32": _case("resnet152,whole", "v5e:2x2", 32, "--train-only"),
    "resnet50_v5e-256_256": _case("resnet50,whole", "v5e:16x16", 256, "--train-only"),
    "resnet152_v5p-4_256": _case("resnet152,whole", "v5p:2x2x1", 256, "--train-only"),
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
    versions = {name: metadata.version(name) for name in ("jax", "jaxlib", "libtpu", "flax")}
    return {"compile_command": shlex.join(command), "versions": versions} | json.loads(done.stdout)


def main() -> None:
    """Compile the named cases, or those without a result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--hlo", type=Path, metavar="FOLDER", help="keep the programs' texts")
    args = parser.parse_args()
    names = args.names
    if unknown := set(names) - set(CASES):
        parser.error(f"no case {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    prepare_environment()
    from report import write_report  # noqa: PLC0415 - imports JAX

    for name in names or [n for n in CASES if not (RESULTS / f"{n}.json").exists()]:
        print(f"{name}: {shlex.join(CASES[name])}", flush=True)
        results = compile_case(name, hlo=args.hlo)
        write_report(RESULTS / f"{name}.json", results)
        print(f"  {results['compile_s']} s", flush=True)


if __name__ == "__main__":
    main()
