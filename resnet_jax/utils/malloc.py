"""Settings of the C library's memory allocator; they have an effect only with glibc."""

import ctypes
import importlib.util
import os
from pathlib import Path

# Parameters of glibc's mallopt.
_ARENA_MAX, _MMAP_MAX, _MMAP_THRESHOLD, _TRIM_THRESHOLD = -8, -4, -3, -1
_ARENAS, _LARGE_BYTES = 2, 2**17

# Device files of TPUs and GPUs on Linux, and what JAX needs to use them. Many desktops have such a
# file, of the graphics or a virtual machine, and compute on the CPU.
_ACCELERATORS = ("accel[0-9]*", "vfio/[0-9]*", "nvidia[0-9]*", "kfd")
_PLUGINS = ("libtpu", "jax_plugins")


def configure_malloc(*, decoded_as_needed: bool = False) -> None:
    """Configure glibc's allocator so that a long run neither grows nor waits for memory.

    If JAX computes on the CPU, freed memory stays with the process, in one heap. A compiled program
    allocates hundreds of MiB for each step; the system would clear these pages each time, which
    takes a third of the time of a ResNet-20's step.

    Otherwise threads share two heaps, and large blocks return to the system when they are freed.
    By default glibc has up to eight heaps per core, and returns fewer blocks the longer it runs.

    Call this before threads start: it has no effect on existing threads.

    Args:
        decoded_as_needed: whether images are decoded during training. Their many large, short-lived
            arrays are fastest with glibc's defaults, unless JAX computes on the CPU.
    """
    if not (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        return
    if _on_cpu():
        mallopt(_ARENA_MAX, 1)  # other heaps can't hold large blocks
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, -1)
    elif not decoded_as_needed:
        mallopt(_ARENA_MAX, _ARENAS)
        mallopt(_MMAP_THRESHOLD, _LARGE_BYTES)


def _on_cpu() -> bool:
    """Whether JAX will compute on the CPU, without initialising JAX."""
    if chosen := os.environ.get("JAX_PLATFORMS"):
        return chosen == "cpu"
    if not any(importlib.util.find_spec(name) for name in _PLUGINS):
        return True
    return not any(any(Path("/dev").glob(name)) for name in _ACCELERATORS)


def release_freed_memory() -> None:
    """Return freed memory to the system.

    glibc keeps hundreds of MiB after a compilation, and more with each checkpoint that is verified.
    Has no effect with other C libraries.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)
