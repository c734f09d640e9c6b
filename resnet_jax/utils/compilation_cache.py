"""JAX's persistent compilation cache, in the user's cache folder."""

import hashlib
import os
import platform
import pwd
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from filelock import FileLock, Timeout

from resnet_jax.utils.files import cache_root

_FOLDER, _SIZE, _MIN_COMPILE_S = (
    "JAX_COMPILATION_CACHE_DIR",
    "JAX_COMPILATION_CACHE_MAX_SIZE",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS",
)
_MAX_BYTES = 2 * 2**30  # JAX evicts the least recently used programs


def enable_compilation_cache() -> None:
    """Enable JAX's persistent compilation cache for this process and the processes it starts.

    If JAX_COMPILATION_CACHE_DIR is set, nothing is changed; "" disables the cache. A cache that
    can't be read or written costs only time. A folder that belongs to another user isn't used,
    because cached programs are executed; nor is any for a user without a name, as in a container.
    """
    if _FOLDER in os.environ:
        return
    folder = _cache_folder()
    if _is_own(folder):
        os.environ[_FOLDER] = str(folder)
        _remove_unfinished_programs(folder)
    else:
        os.environ[_FOLDER] = ""
    os.environ.setdefault(_SIZE, str(_MAX_BYTES))
    os.environ.setdefault(_MIN_COMPILE_S, "0.2")
    if "jax" in sys.modules:  # JAX has read its environment already
        import jax  # noqa: PLC0415

        jax.config.update("jax_compilation_cache_dir", os.environ[_FOLDER])
        jax.config.update("jax_compilation_cache_max_size", int(os.environ[_SIZE]))
        seconds = float(os.environ[_MIN_COMPILE_S])
        jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds)


def _cache_folder() -> Path:
    """The folder for this type of machine; a home directory may be shared by different machines."""
    kind = f"{processor()} {metadata.version('jaxlib')}"
    return cache_root() / f"programs-{hashlib.sha256(kind.encode()).hexdigest()[:12]}"


def _is_own(folder: Path) -> bool:
    """Whether the folder exists or was created, and belongs to this user, who has a name."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        pwd.getpwuid(os.geteuid())  # JAX asks for the name with each program, and would warn
        return folder.stat().st_uid == os.geteuid() and os.access(folder, os.W_OK)
    except (OSError, KeyError):
        return False


def _remove_unfinished_programs(folder: Path) -> None:
    """Remove programs whose time of last use is missing.

    A process that is killed while it writes a program leaves it so, and JAX adds no program to a
    cache that contains one: it reads all times before it adds a program.
    """
    with suppress(OSError, Timeout), FileLock(folder / ".lockfile", timeout=1):  # JAX's own lock
        for program in folder.glob("*-cache"):
            if not Path(f"{str(program).removesuffix('-cache')}-atime").exists():
                program.unlink()


def processor() -> str:
    """Model and instruction sets of the processor, for which programs are compiled."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    told = [line for line in lines if line.startswith(("model name", "flags", "Features"))]
    return " ".join(sorted(set(told))) or f"{platform.machine()} {platform.processor()}"
