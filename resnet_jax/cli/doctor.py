"""resnet-jax doctor: check whether this machine is ready for a run."""

import argparse
import dataclasses
import functools
import os
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from resnet_jax.cli.common.config_flag import add_config_argument, load_config

HELP = "Check devices, versions, data, directories, memory, ports and the clock of this machine."
EXAMPLE = "resnet-jax doctor --config=configs/cifar10.py:resnet20 --workdir=runs/cifar10"

_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command line."""
    parser.add_argument("--workdir", help="directory of a new run, or of a run to resume")
    add_config_argument(parser)
    parser.add_argument("--data", metavar="NAME", help="data set to check, without a config")
    parser.add_argument("--data-dir", help="folder of prepared data sets")
    parser.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="of a job (default: $JAX_COORDINATOR_ADDRESS, or port 8476 of this host)",
    )
    parser.add_argument(
        "--timeout", type=float, default=60.0, help="seconds for JAX to start (default: 60)"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Run all checks; the exit code is that of the first failure."""
    # These modules import quickly: JAX runs in another process.
    from resnet_jax.data.readers.array_cache import cache_folder  # noqa: PLC0415
    from resnet_jax.doctor import (  # noqa: PLC0415
        convolutions,
        devices,
        finding,
        host,
        network,
        run,
        versions,
    )
    from resnet_jax.errors import UsageError  # noqa: PLC0415
    from resnet_jax.utils.paths import as_path, is_remote  # noqa: PLC0415

    if not 0 < args.timeout < float("inf"):
        raise UsageError(f"--timeout is {args.timeout}; it must be a number of seconds.")
    if args.data and (args.config or args.config_overrides):
        raise UsageError("--config names the data already; leave --data away.")
    if args.data_dir and not (args.data or args.config or args.config_overrides):
        raise UsageError("--data-dir is the folder of the data that --data or --config names.")
    if args.coordinator:
        network.parse_address(args.coordinator)
    environment = dict(os.environ)
    started = host.Clocks.read()
    present = functools.cache(lambda: devices.accelerators_present(environment))
    coordinator = args.coordinator or environment.get("JAX_COORDINATOR_ADDRESS")
    several = network.several_processes(environment, coordinator=args.coordinator)

    workdir = as_path(args.workdir) if args.workdir else None
    local = Path(workdir) if workdir and not is_remote(workdir) else None
    folders = {
        "workdir" if local else "this folder": local or Path.cwd(),
        "decoded data": cache_folder("any", "").parent,
    }
    cache = environment.get("JAX_COMPILATION_CACHE_DIR", "")
    if cache and "://" not in cache:
        folders["compiled programs"] = Path(cache)

    checks: dict[str, finding.Check] = {
        "versions": lambda: versions.check_versions(present=present()),
        "compilers": versions.check_compilers,
        "devices": lambda: devices.check_devices(
            timeout_s=args.timeout, present=present(), environment=environment
        ),
        "convolutions": convolutions.check_convolutions,
        "environment": lambda: network.check_environment(environment, several=several),
        "coordinator": lambda: network.check_coordinator(coordinator),
        "memory": host.check_memory,
        "shared memory": host.check_shared_memory,
        "open files": host.check_open_files,
        "disk": lambda: host.check_disk(folders),
        "compilation cache": lambda: run.check_compilation_cache(environment),
        "digits": lambda: run.check_data("digits", label="digits"),
    }
    if args.data and args.data != "digits":
        checks["data"] = lambda: run.check_data(args.data, data_dir=args.data_dir)
    if args.config or args.config_overrides:
        checks["config"] = lambda: run.check_config(
            lambda: load_config(args), workdir=workdir, data_dir=args.data_dir
        )
    if workdir:
        checks["workdir"] = lambda: run.check_workdir(workdir, several=several)
    # The last check, so that it notices a change of the clock during the others.
    checks["clock"] = lambda: host.check_clock(started, package=Path(__file__).parents[1])

    findings = finding.diagnose(checks)
    return {
        "exit_code": finding.exit_code(findings),
        "findings": [dataclasses.asdict(f) for f in findings],
    }


def show(document: dict[str, Any], console: Console) -> None:
    """Print one line per finding, and count them."""
    for line in document["findings"]:
        advice = f" → {line['remedy']}" if line["remedy"] else ""
        console.print(
            Text.assemble(
                (f"{line['status']:<4}", _STYLES[line["status"]]),
                f"  {line['name']:<17}  {line['message']}{advice}",
            )
        )
    counts = Counter(line["status"] for line in document["findings"])
    console.print(", ".join(f"{counts[status]} {status}" for status in _STYLES))
