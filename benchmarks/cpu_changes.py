"""What folding, fusing and preparing give inference on CPUs, and where the time of a step goes.

Variants are compiled in one process and take turns; ratios are of neighbouring calls. Times are
the process's time on one core, so that other work on the machine counts as little as possible; with
--all-cores, wall-clock time on all of them, which takes a quiet machine.

Profiles are of all cores. With --before, steps, inference and profiles are also those of another
checkout of the package, whose processes take turns with those of this one.

    python benchmarks/cpu_changes.py --network resnet20 --before CHECKOUT
"""

import argparse
import collections
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BATCH = {"resnet20": 128, "resnet50": 8}
Call = Callable[[int], None]
Clock = Callable[[], float]
_PROFILED = 8  # steps
OFF = {"RESNET_JAX_NATIVE": "0"}
STEPS = {
    "train": ("train", "resnet_jax onednn"),
    "train_bfloat16": ("train", "resnet_jax onednn bfloat16"),
    "inference": ("inference", "resnet_jax onednn"),
    "latency": ("latency", "resnet_jax onednn"),
    "train_pure": ("train", "resnet_jax"),
    "inference_pure": ("inference", "resnet_jax"),
    "latency_pure": ("latency", "resnet_jax"),
}
"""What is compared with another checkout: mode and contender of vs_peers.py."""


def training(network: str) -> Call:
    """Training steps, compiled."""
    import vs_peers  # noqa: PLC0415

    steps = vs_peers._ours(network, BATCH[network], "train", "float32")
    steps(1)
    return steps


def inference(network: str, batch: int) -> dict[str, Call]:
    """Inference as `model.apply`, and with each of folding, fusing and preparing more."""
    import jax  # noqa: PLC0415
    import jax.numpy as jnp  # noqa: PLC0415
    import vs_peers  # noqa: PLC0415

    import resnet_jax  # noqa: PLC0415
    from resnet_jax.ops.fusion import fuse  # noqa: PLC0415
    from resnet_jax.ops.prepared import Prepared  # noqa: PLC0415

    size, classes = vs_peers.SHAPES[network]
    model: Any = resnet_jax.create_model(network, num_classes=classes)
    variables = resnet_jax.init_variables(model, jax.random.key(0), (size, size, 3))
    folded = resnet_jax.fold_batch_norm(model, variables, (size, size, 3))
    images = jnp.ones((batch, size, size, 3))

    def calls(run: Callable[[Any], Any]) -> Call:
        def call(count: int) -> None:
            for _ in range(count):
                run(images).block_until_ready()

        call(1)
        return call

    plain, fused = jax.jit(model.apply), jax.jit(fuse(model.apply))
    return {
        "plain": calls(lambda images: plain(variables, images)),
        "folded": calls(lambda images: plain(folded, images)),
        "folded and fused": calls(lambda images: fused(folded, images)),
        "folded, fused and prepared": calls(Prepared(model.apply, folded)),
    }


def compare(variants: dict[str, Call], seconds: float, clock: Clock) -> dict[str, Any]:
    """Milliseconds of each variant, and the first one's divided by them."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    ends = time.monotonic() + seconds
    while time.monotonic() < ends or len(times[next(iter(times))]) < 3:
        for name, call in variants.items():
            began = clock()
            call(1)
            times[name].append(clock() - began)
    first = next(iter(times.values()))
    return {
        name: {
            "ms": 1000 * statistics.median(taken),
            "ms_min": 1000 * min(taken),
            "first_divided_by_it": statistics.median(
                a / b for a, b in zip(first, taken, strict=True)
            ),
        }
        for name, taken in times.items()
    }


def profile(network: str) -> dict[str, Any]:
    """The shares of a training step by what is computed."""
    import jax  # noqa: PLC0415

    programs: list[str] = []
    compile_ = jax.stages.Lowered.compile

    def compile_and_keep(self: Any, *args: Any, **kwargs: Any) -> Any:
        compiled = compile_(self, *args, **kwargs)
        programs.append(compiled.as_text())
        return compiled

    jax.stages.Lowered.compile = compile_and_keep
    steps = training(network)
    steps(1)
    kinds = _kinds(programs[-1])
    with tempfile.TemporaryDirectory() as folder:
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0
        with jax.profiler.trace(folder, profiler_options=options):
            steps(_PROFILED)
        (file,) = Path(folder).glob("**/*.xplane.pb")
        data = jax.profiler.ProfileData.from_file(str(file))
    times = collections.defaultdict(list)
    for plane in data.planes:
        for line in plane.lines:
            for event in line.events:
                times[event.name].append(event.duration_ns)
    taken: collections.Counter[str] = collections.Counter()
    for name in kinds.keys() & times.keys():  # the fastest call, which nothing interrupted
        taken[kinds[name]] += min(times[name]) * len(times[name])
    total = sum(taken.values())
    return {
        "shares": {kind: ns / total for kind, ns in taken.most_common()},
        "ms": {kind: ns / 1e6 / _PROFILED for kind, ns in taken.most_common()},
    }


def _kinds(program: str) -> dict[str, str]:
    """What each instruction of a compiled program that isn't part of a fusion is for."""
    kinds = {}
    for found in re.finditer(r"^  (?:ROOT )?%?([\w.-]+) = .*? ([\w-]+)\((.*)$", program, re.M):
        name, operation, rest = found.groups()
        source = re.search(r'op_name="([^"]*)"', rest)
        target = re.search(r'custom_call_target="([^"]*)"', rest)
        if operation in ("while", "conditional", "call", "parameter", "constant"):
            continue
        where = f"{target[1] if target else operation} {source[1] if source else ''}"
        # A projection is computed where its normalisation is.
        if operation in ("convolution", "dot") or "resnet_jax_" in where:
            kinds[name] = "convolution"
        elif re.search(r"batch_norm|/\w*bn\w*/", where):
            kinds[name] = "normalisation"
        elif re.search(r"/\w*conv\w*/", where):
            kinds[name] = "convolution"
        else:  # ReLU, sums and pooling; the classifier, the loss and the optimiser
            kinds[name] = "elementwise" if "ResNet" in where else "other"
    return kinds


def _child(
    args: argparse.Namespace, what: str, *, tree: Path = ROOT, one_core: bool = False, **more: str
) -> Any:
    """The JSON that this script prints, as a process that measures one thing."""
    command = [sys.executable, __file__, "--network", args.network, "--only", what]
    command += ["--seconds", str(args.seconds)]
    environment = os.environ | more | {"PYTHONPATH": str(tree)}
    if one_core:
        command = ["taskset", "--cpu-list", str(max(os.sched_getaffinity(0))), *command]
        environment["OMP_NUM_THREADS"] = "1"
    else:
        command += ["--all-cores"]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(args: argparse.Namespace) -> Any:
    """One of the measurements, in this process."""
    from resnet_jax.utils.malloc import configure_malloc, release_freed_memory  # noqa: PLC0415

    configure_malloc()
    network = args.network
    if args.only == "profile":
        return profile(network)
    variants = inference(network, 1 if args.only == "variants_latency" else BATCH[network])
    release_freed_memory()
    clock = time.perf_counter if args.all_cores else time.process_time
    return compare(variants, args.seconds, clock)


def before_and_after(args: argparse.Namespace) -> dict[str, Any]:
    """Images per second of the other checkout and of this one, and their ratios."""
    from vs_peers import Process  # noqa: PLC0415

    git = ["git", "-C", str(args.before), "rev-parse", "HEAD"]
    results: dict[str, Any] = {"commit_before": subprocess.check_output(git, text=True).strip()}
    trees = {"before": args.before, "after": ROOT}
    given = argparse.Namespace(
        network=args.network, batch=BATCH[args.network], flax="", seconds=args.seconds / args.rounds
    )
    for what, (mode, contender) in STEPS.items():
        processes = {}
        for name, tree in trees.items():
            os.environ["PYTHONPATH"] = str(tree)
            processes[name] = Process(sys.executable, contender, given, mode, tree=tree)
        batch = 1 if mode == "latency" else given.batch
        rounds = []
        for _ in range(args.rounds):
            rounds.append({name: one.img_per_s(batch) for name, one in processes.items()})
        for process in processes.values():
            process.close()
        ratios = [one["after"] / one["before"] for one in rounds]
        results[what] = {
            **{f"{name}_img_per_s": statistics.median(o[name] for o in rounds) for name in trees},
            "after_divided_by_before": statistics.median(ratios),
            "lowest": min(ratios),
            "highest": max(ratios),
        }
        print(what, results[what], flush=True)
    return results


def main() -> None:
    """Measure everything, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=BATCH, default="resnet20")
    parser.add_argument("--seconds", type=float, default=10.0, help="of a comparison")
    parser.add_argument("--rounds", type=int, default=5, help="of a comparison with --before")
    parser.add_argument("--all-cores", action="store_true")
    parser.add_argument("--before", type=Path, help="another checkout, whose library is built")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        print(json.dumps(measure(args)))
        return
    from report import write_report  # noqa: PLC0415
    from vs_peers import instruction_sets  # noqa: PLC0415

    from resnet_jax.ops.native.library import state  # noqa: PLC0415

    if args.before:  # processes begin in their own checkout
        args.before = args.before.resolve()
    processor, alone = instruction_sets(), not args.all_cores
    results = {
        "network": args.network,
        "batch_size": BATCH[args.network],
        "processor": processor,
        "time": "wall clock, all cores" if args.all_cores else "of the process, on one core",
        "oneDNN": state().onednn,
        "inference_with_onednn": _child(args, "variants", one_core=alone),
        "latency_with_onednn": _child(args, "variants_latency", one_core=alone),
        "inference_pure": _child(args, "variants", one_core=alone, **OFF),
        "profile_pure": _child(args, "profile", **OFF),
        "profile_with_onednn": _child(args, "profile"),
    }
    if args.before:
        results["before_and_after"] = before_and_after(args)
        results["profile_pure_before"] = _child(args, "profile", tree=args.before, **OFF)
        results["profile_with_onednn_before"] = _child(args, "profile", tree=args.before)
    print(json.dumps(results, indent=1))
    kind = processor["kind"].lower().replace("-", "")
    default = ROOT / f"benchmarks/results/cpu_changes_{args.network}_{kind}.json"
    write_report(args.out or default, results)


if __name__ == "__main__":
    main()
