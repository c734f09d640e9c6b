"""resnet-jax convert IN.pth OUT.safetensors: PyTorch pickles to a format that can't run code."""

# ruff: noqa: PLC0415 - NumPy takes a while to import, which --help needn't wait for

import argparse
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console

from resnet_jax.cli import convert_child
from resnet_jax.utils.files import local_path

HELP = "Convert weights that PyTorch saved (.pt, .pth, .bin) to safetensors."
EXAMPLE = "resnet-jax convert resnet50-11ad3fa6.pth resnet50.safetensors"

OLDEST_TORCH = (2, 10)
"""Before 2.6, a file can run code despite weights_only=True (CVE-2025-32434); before 2.10, it can
corrupt memory (CVE-2026-24747)."""

_LEAST_MEMORY = 2**34  # bytes of address space; torch takes some GiB before it reads anything
_LEAST_CPU_S = 120


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command line."""
    parser.add_argument(
        "input", type=local_path, metavar="IN.pth", help="the file that PyTorch saved"
    )
    parser.add_argument(
        "output", type=local_path, metavar="OUT.safetensors", help="the file to write"
    )
    parser.add_argument(
        "--key",
        help="where in a training checkpoint the tensors are, such as state_dict_ema"
        f" (default: {', '.join(convert_child.WRAPPERS)}, or the whole file)",
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Load the file in a process with limits, check the tensors, and write them."""
    from resnet_jax.errors import DataError, UsageError, WriteError
    from resnet_jax.weights.arrays import printable
    from resnet_jax.weights.files import (
        PickleFileError,
        decode_weights,
        read_weights,
        write_weights,
    )

    if args.output.suffix != ".safetensors":
        raise UsageError(f"{args.output} doesn't end in .safetensors, which is what is written.")
    if os.path.realpath(args.output) == os.path.realpath(args.input):
        raise UsageError(f"{args.output} is what is to be converted; choose another OUT.")
    if not args.output.parent.is_dir():
        raise WriteError(f"{args.output} can't be written: its folder doesn't exist.")
    try:
        read_weights(args.input)
    except PickleFileError:
        pass
    else:
        raise DataError(f"{args.input} can be read as it is; there is nothing to convert.")
    _check_torch()
    with open(args.input, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    try:
        folder = tempfile.TemporaryDirectory(
            dir=args.output.parent, prefix=f".{args.output.name}.", ignore_cleanup_errors=True
        )
    except OSError as error:
        raise WriteError(f"{args.output} can't be written: {error.strerror}.") from None
    with folder:
        target = Path(folder.name) / "tensors.safetensors"
        answer = _load(args.input, target, args.key)
        arrays, _ = decode_weights(target.read_bytes(), str(args.input))
    source = {"converted_from": printable(args.input.name), "sha256": digest}
    write_weights(args.output, arrays, metadata=source)
    return {
        "input": str(args.input),
        "output": str(args.output),
        "sha256": digest,
        "torch": answer["torch"],
        "key": None if answer["taken"] is None else printable(answer["taken"]),
        "left_out": [printable(name) for name in answer["left_out"]],
        "tensors": len(arrays),
        "elements": sum(array.size for array in arrays.values()),
        "dtypes": dict(Counter(str(array.dtype) for array in arrays.values()).most_common()),
        "bytes": args.output.stat().st_size,
    }


def show(document: dict[str, Any], console: Console) -> None:
    """Print what was written and what was left out."""
    types = ", ".join(f"{count} {name}" for name, count in document["dtypes"].items())
    lines = [
        f"{document['output']}: {document['tensors']:,} tensors ({types}),"
        f" {document['elements']:,} elements, {document['bytes']:,} bytes"
    ]
    if document["key"] is not None:
        left_out = ", ".join(document["left_out"]) or "nothing"
        lines.append(f"taken from {document['key']!r}; left out: {left_out}")
    for line in lines:
        console.print(line)


def _check_torch() -> None:
    """Refuse a missing or unsafe version of torch, without importing torch."""
    from packaging.version import Version

    from resnet_jax.errors import ConfigError

    oldest = ".".join(map(str, OLDEST_TORCH))
    advice = f"pip install 'torch>={oldest}', perhaps in another environment."
    try:
        installed = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError(f"resnet-jax convert needs PyTorch: {advice}") from None
    if Version(installed) < Version(oldest):
        raise ConfigError(
            f"torch {installed} is installed, in which loading weights is unsafe"
            f" (CVE-2025-32434, CVE-2026-24747): {advice}"
        )


def _load(source: Path, target: Path, key: str | None) -> dict[str, Any]:
    """Let a child process write the tensors of `source` to `target`; return its answer."""
    from resnet_jax.errors import DataError, WriteError
    from resnet_jax.weights.arrays import MAX_FILE_BYTES, printable

    size = source.stat().st_size
    job = convert_child.Job(
        source=str(source),
        target=str(target),
        key=key,
        oldest=OLDEST_TORCH,
        memory_bytes=max(_LEAST_MEMORY, 8 * size),
        cpu_s=_LEAST_CPU_S + size // 10**7,  # torch loads and writes more than 100 MB per second
        tensor_bytes=MAX_FILE_BYTES,
    )
    # Variables of Python and torch could change what is imported and how it is loaded.
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "TORCH"))}
    try:
        done = subprocess.run(
            # -P: neither the script's folder nor the current folder is searched for modules.
            [sys.executable, "-P", convert_child.__file__, json.dumps(dataclasses.asdict(job))],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env={**kept, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
            timeout=5 * job.cpu_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise DataError(
            f"{source} isn't loaded after {5 * job.cpu_s} s; it was given up."
        ) from None
    if done.returncode:
        raise DataError(f"{source} can't be converted: {_why_it_ended(done, job)}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if "error" in answer:
        raise DataError(f"{source} {printable(answer['error'], longest=400)}")
    if "unwritable" in answer:
        folder = target.parent.parent
        raise WriteError(f"{folder} can't be written to: {printable(answer['unwritable'])}.")
    return answer


def _why_it_ended(done: "subprocess.CompletedProcess[bytes]", job: convert_child.Job) -> str:
    """The reason why a child process gave no answer."""
    from resnet_jax.weights.arrays import printable

    if done.returncode == -signal.SIGXCPU:
        return f"reading it takes more than {job.cpu_s} s of a processor, as no weights do."
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        gib = job.memory_bytes / 2**30
        return f"the process that read it ended by {name} (it may use {gib:.0f} GiB of addresses)."
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    return printable(
        lines[-1] if lines else f"the process that read it ended with {done.returncode}"
    )
