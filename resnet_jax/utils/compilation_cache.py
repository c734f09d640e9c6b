"""Compiled programs, kept for the next process in the user's cache folder."""

import hashlib
import os
import platform
import sys
from importlib import metadata
from pathlib import Path

from resnet_jax.utils.files import cache_root

_FOLDER, _SIZE, _WORTH_S = (
    "JAX_COMPILATION_CACHE_DIR",
    "JAX_COMPILATION_CACHE_MAX_SIZE",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS",
)
_MOST_BYTES = 2 * 2**30  # what was used least recently goes first


def keep_programs() -> None:
    """Let JAX keep what takes a while to compile, from now on.

    Where JAX_COMPILATION_CACHE_DIR is set, to "" too, nothing is changed: "" is for none. Processes
    that this one starts keep their programs in the same place. A cache that can't be read or
    written costs time, but nothing else. That of another user isn't used: programs are run.
    """
    if _FOLDER in os.environ:
        return
    folder = _cache_folder()
    os.environ[_FOLDER] = str(folder) if _is_ours(folder) else ""
    os.environ.setdefault(_SIZE, str(_MOST_BYTES))
    os.environ.setdefault(_WORTH_S, "0.2")
    if "jax" in sys.modules:  # it has read its environment
        import jax  # noqa: PLC0415

        jax.config.update("jax_compilation_cache_dir", os.environ[_FOLDER])
        jax.config.update("jax_compilation_cache_max_size", int(os.environ[_SIZE]))
        seconds = float(os.environ[_WORTH_S])
        jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds)


def _cache_folder() -> Path:
    """A folder for this kind of machine: a home may be shared with machines of other kinds."""
    kind = f"{processor()} {metadata.version('jaxlib')}"
    return cache_root() / f"programs-{hashlib.sha256(kind.encode()).hexdigest()[:12]}"


def _is_ours(folder: Path) -> bool:
    """Whether the folder is there, or could be made, and belongs to this user."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return folder.stat().st_uid == os.geteuid() and os.access(folder, os.W_OK)
    except OSError:
        return False


def processor() -> str:
    """Model and abilities of the processor, which programs are compiled for."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    told = [line for line in lines if line.startswith(("model name", "flags", "Features"))]
    return " ".join(sorted(set(told))) or f"{platform.machine()} {platform.processor()}"
