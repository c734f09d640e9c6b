"""Memory of the process: how the C library gets it from the system, and gives it back.

Only glibc can be told; others do as they do.
"""

import ctypes
import os
from pathlib import Path

# Of glibc's mallopt.
_ARENA_MAX, _MMAP_MAX, _MMAP_THRESHOLD, _TRIM_THRESHOLD = -8, -4, -3, -1
_ARENAS, _LARGE_BYTES = 2, 2**17

# Where Linux shows TPUs and GPUs.
_ACCELERATORS = ("accel*", "vfio/[0-9]*", "nvidia[0-9]*", "kfd")


def manage_memory(*, decoded_as_needed: bool = False) -> None:
    """Choose between the two ways in which a run of days neither grows nor waits for memory.

    Where a CPU computes, what was freed stays with the process, in one heap: a compiled program
    takes hundreds of MiB anew for each step, which the system would clear, page by page, each time.
    That is a third of a ResNet-20's step.

    Elsewhere threads share memory, and what is large is given back when it is freed. By itself
    glibc has a heap for each of eight threads per core, and the longer it runs the fewer arrays it
    gives back.

    Call it before threads begin: later it has no effect on them.

    Args:
        decoded_as_needed: images are decoded while it trains; as large arrays that come and go by
            the thousand they are best left to glibc where no CPU computes.
    """
    if not (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        return
    if _on_cpu():
        mallopt(_ARENA_MAX, 1)  # the other heaps can't hold what is large
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, -1)
    elif not decoded_as_needed:
        mallopt(_ARENA_MAX, _ARENAS)
        mallopt(_MMAP_THRESHOLD, _LARGE_BYTES)


def _on_cpu() -> bool:
    """Whether JAX will compute on the CPU, told without starting it."""
    if chosen := os.environ.get("JAX_PLATFORMS"):
        return chosen == "cpu"
    return not any(any(Path("/dev").glob(name)) for name in _ACCELERATORS)


def give_back_freed_memory() -> None:
    """Let the system have what was freed.

    glibc keeps it in pieces: hundreds of MiB after a compilation, and more with each checkpoint
    that is read again. Other C libraries have no such call.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)
