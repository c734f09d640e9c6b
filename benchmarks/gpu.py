"""What only a GPU can tell, item by item, in at most nine minutes.

python benchmarks/gpu.py --data DATA   the items without a complete result of the present code
python benchmarks/gpu.py speed         that one, again
python benchmarks/gpu.py --toy         at toy size, on whatever is there, into build/gpu_toy

DATA is a folder of data sets as tensorflow-datasets writes them, with CIFAR-10. Each item is
measured by a process of its own with a limit of time and leaves results/gpu/ITEM.json, which is
written after each part of the item. An item whose time ran out is measured again the next time;
programs that were compiled are kept. What the machine lacks is skipped, and named.
The package needn't be installed, but what it depends on must be. --commit says what the sources
are where there is no git.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from gpu_task import ROOT, MissingError, Postponed, Task

RESULTS = ROOT / "benchmarks" / "results" / "gpu"
TOY_RESULTS = ROOT / "build" / "gpu_toy"
_TOTAL_S = 540
_NO_GRAPHS = "--xla_gpu_enable_command_buffer="
_GRACE_S = 15  # for an item to notice that its time is over


@dataclasses.dataclass(frozen=True)
class Item:
    """Where an item is measured.

    Attributes:
        module, function: the function takes a `Task` and yields (name of a part, its result).
        seconds: at most; the last item has all the time that is left.
        environment: variables that JAX reads when it starts.
    """

    module: str
    function: str
    seconds: float
    environment: dict[str, str] = dataclasses.field(default_factory=dict)


ITEMS = {
    "ceilings": Item("gpu_speed", "ceilings", 30),
    "correct": Item("gpu_correct", "correct", 110),
    # PyTorch, in a process of its own, needs memory as well.
    "speed": Item("gpu_speed", "speed", 170, {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.5"}),
    "forms": Item("gpu_speed", "forms", 110),
    "cifar": Item("gpu_speed", "cifar", 90),
    "repeat": Item("gpu_correct", "repeat", 60, {"XLA_FLAGS": "--xla_gpu_deterministic_ops=true"}),
    # Kernels of a CUDA graph wouldn't name their operation.
    "profile": Item("gpu_profile", "profile", 45, {"XLA_FLAGS": _NO_GRAPHS}),
    # Runs of train.py, each in a process of its own, beside that of the item.
    "table6": Item("gpu_table6", "table6", _TOTAL_S, {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.3"}),
}


def fingerprint() -> str:
    """A hash of the sources that results depend on."""
    paths = [*(ROOT / "resnet_jax").rglob("*.py"), *(ROOT / "configs").glob("*.py")]
    paths += [*(ROOT / "benchmarks").glob("gpu*.py"), ROOT / "benchmarks" / "formulations.py"]
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def is_measured(out: Path) -> bool:
    """Whether the result is complete and of the present code."""
    if not out.exists():
        return False
    result = json.loads(out.read_text(encoding="utf-8"))
    return bool(result["complete"] and result["fingerprint"] == fingerprint())


def measure(name: str, task: Task, commit: str | None) -> None:
    """Measure an item in this process."""
    sys.path.insert(0, str(ROOT))  # for configs/, and for the package where it isn't installed
    from report import write_report  # noqa: PLC0415 - imports JAX

    from resnet_jax.logging.provenance import package_versions  # noqa: PLC0415
    from resnet_jax.utils.compilation_cache import enable_compilation_cache  # noqa: PLC0415

    enable_compilation_cache()
    item, began = ITEMS[name], time.monotonic()
    function: Callable[[Task], Iterator[tuple[str, Any]]]
    function = getattr(importlib.import_module(item.module), item.function)
    results: dict[str, Any] = {}

    def write(complete: bool) -> None:
        head = {
            "command": f"python benchmarks/gpu.py {name}" + " --toy" * task.toy,
            "versions": package_versions() | _other_versions(),
            "environment": item.environment,
            "fingerprint": fingerprint(),
            "seeds": [0],  # of parameters and images, where a part doesn't name others
            "wall_s": round(time.monotonic() - began, 1),
            "complete": complete,
        } | ({"commit": commit} if commit else {})
        write_report(task.folder / f"{name}.json", head | {"results": results})

    try:
        for part, found in function(task):
            results[part] = found
            write(complete=False)
    except MissingError as why:
        print(f"{name}: skipped: {why}", flush=True)
        return
    postponed = any(isinstance(found, Postponed) for found in results.values())
    write(complete=not postponed)


def _other_versions() -> dict[str, str]:
    """Of packages that results on a GPU depend on, and that are installed."""
    names = ("jax-cuda12-plugin", "jax-cuda13-plugin", "nvidia-cudnn-cu13", "torch", "timm")
    installed = {found.metadata["Name"]: found.version for found in metadata.distributions()}
    return {name: installed[name] for name in names if name in installed}


def in_process(name: str, task: Task, arguments: list[str]) -> str:
    """Measure an item in a process of its own; returns how it ended."""
    item = ITEMS[name]
    environment = os.environ | item.environment
    if "XLA_FLAGS" in item.environment:  # in addition to flags that are set already
        flags = (os.environ.get("XLA_FLAGS", ""), item.environment["XLA_FLAGS"])
        environment["XLA_FLAGS"] = " ".join(flags).strip()
    command = [sys.executable, __file__, name, f"--limit={task.seconds_left}", *arguments]
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        code: int | None = process.wait(task.seconds_left + _GRACE_S)
    except subprocess.TimeoutExpired:
        code = None
    finally:
        with contextlib.suppress(ProcessLookupError):  # the item and all that it started
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if code is None:
        return "its time ran out"
    if code:
        return f"ended with {code}"
    return "measured" if is_measured(task.folder / f"{name}.json") else "not complete"


def main() -> int:
    """Measure the named items, or those without a result of the present code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("items", nargs="*", metavar="ITEM", help=", ".join(ITEMS))
    parser.add_argument("--data", type=Path, help="folder of data sets, with cifar10")
    parser.add_argument("--commit", help="of the sources, where git doesn't tell it")
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--limit", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if unknown := set(args.items) - set(ITEMS):
        parser.error(f"no item {', '.join(sorted(unknown))}; there are {', '.join(ITEMS)}")
    folder = TOY_RESULTS if args.toy else RESULTS
    data = args.data.resolve() if args.data else None

    def task(seconds: float) -> Task:
        return Task(args.toy, data, folder, time.monotonic() + seconds)

    if args.limit:
        try:
            measure(args.items[0], task(args.limit), args.commit)
            code = 0
        except Exception:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # without waiting for what compiles in the background
    arguments = ["--toy"] * args.toy + ([f"--data={data}"] if data else [])
    arguments += [f"--commit={args.commit}"] if args.commit else []
    end, failed = time.monotonic() + _TOTAL_S * (10 if args.toy else 1), False
    for name in args.items or ITEMS:
        if not args.items and is_measured(folder / f"{name}.json"):
            continue
        seconds = min(ITEMS[name].seconds * (10 if args.toy else 1), end - time.monotonic())
        if seconds < _GRACE_S:
            print(f"{name}: no time left", flush=True)
            continue
        ended = in_process(name, task(seconds - _GRACE_S), arguments)
        failed |= ended.startswith("ended")
        print(f"{name}: {ended}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
