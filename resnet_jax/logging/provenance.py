"""Command, commit, versions and hardware of a measurement."""

import functools
import hashlib
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from resnet_jax import __version__
from resnet_jax.utils.cores import usable_cores

_SOURCES = (".py", ".cc", ".h")
_FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
_OPTIONS = (  # of JAX, that change what is computed or how it is compiled
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
    "jax_random_seed_offset",
    "jax_numpy_dtype_promotion",
    "jax_softmax_custom_jvp",
    "jax_disable_jit",
    "jax_disable_most_optimizations",
    "jax_optimization_level",
    "jax_exec_time_optimization_effort",
    "jax_use_shardy_partitioner",
)
_LIBRARY_VARIABLES = (  # of the environment, read by libraries that XLA calls
    "NVIDIA_TF32_OVERRIDE",
    "CUBLAS_WORKSPACE_CONFIG",
    "OMP_NUM_THREADS",
)
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results depend on."""
    versions = {"python": platform.python_version(), "resnet_jax": __version__}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def provenance() -> dict[str, Any]:
    """Return the command, commit, versions and hardware, to repeat a measurement with."""
    return {
        "command": " ".join([Path(sys.executable).name, *map(_without_folder, sys.argv)]),
        "commit": _commit(),
        "versions": package_versions(),
        "hardware": hardware(),
    }


def hardware() -> dict[str, Any]:
    """Return the kind and number of devices, the processes of the job, and the host's processor."""
    device = jax.devices()[0]
    return {
        "platform": device.platform,
        "device": device.device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "cpu": _cpu_model(),
        "cpu_cores": os.cpu_count(),
    }


def environment(devices: int, convolutions: str) -> dict[str, Any]:
    """Return what the bits of a run depend on, besides its config and data.

    Args:
        devices: number of the devices in use.
        convolutions: the implementation of convolutions in use.
    """
    return {
        "code": code_digest(),
        "versions": package_versions(),
        "hardware": hardware() | {"devices": devices},
        "convolutions": convolutions,
        "xla_flags": _xla_flags(),
        "xla_threads": _xla_threads(),
        "cores": usable_cores() if jax.default_backend() == "cpu" else None,
        "options": _options(),
    }


def _xla_flags() -> str:
    """Return the flags that the user gave to XLA, sorted, without those that only write files."""
    flags = (flag for name in _FLAGS for flag in os.environ.get(name, "").split())
    return " ".join(
        sorted(_without_folder(flag) for flag in flags if not flag.startswith("--xla_dump"))
    )


def _xla_threads() -> int | None:
    """Return the number of XLA's threads on CPUs, by which it splits sums; None on accelerators."""
    if jax.default_backend() != "cpu":
        return None
    given = os.environ.get("PJRT_NPROC", "")
    threads = int(given) if given.isdecimal() else usable_cores()
    return max(threads, jax.local_device_count())


def _options() -> dict[str, str]:
    """Return JAX's options and environment variables that change bits, as text, by name.

    Options that the version of jax doesn't have, and variables that aren't set, are left out.
    """
    known = jax.config.values  # an attribute, if there is one, has the value in this thread
    options = {n: str(getattr(jax.config, n, known[n])) for n in _OPTIONS if n in known}
    return options | {name: os.environ[name] for name in _LIBRARY_VARIABLES if name in os.environ}


@functools.cache
def code_digest() -> str:
    """Return a digest of the package's sources; a version number has several states."""
    folder = Path(__file__).parents[1]
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(path for path in folder.rglob("*") if path.suffix in _SOURCES):
        digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _without_folder(argument: str) -> str:
    """Return an argument without the folder of an absolute path, which is private."""
    flag, equals, value = argument.rpartition("=")
    return f"{flag}{equals}{Path(value).name}" if os.path.isabs(value) else argument


def _commit() -> str | None:
    """Return the commit of the source tree, "+" with uncommitted changes; None outside git."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=10
        )
        return done.stdout.strip()

    try:
        # Fails if the repository is another one, in which this package is installed.
        git("ls-files", "--error-unmatch", Path(__file__).name)
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
