"""Memory of the process, of which glibc would keep more with each checkpoint."""

import ctypes

_ARENA_MAX, _MMAP_THRESHOLD = -8, -3  # of glibc's mallopt
_ARENAS, _LARGE_BYTES = 2, 2**17


def keep_memory_together() -> None:
    """Let threads share memory, and what is large be given back when it is freed.

    glibc has a heap for each of eight threads per core, and the longer it runs the fewer arrays it
    gives back; a run of days would grow. Call it before threads begin.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(_ARENA_MAX, _ARENAS)
        mallopt(_MMAP_THRESHOLD, _LARGE_BYTES)


def give_back_freed_memory() -> None:
    """Let the system have what was freed.

    glibc keeps it in pieces: hundreds of MiB after a compilation, and more with each checkpoint
    that is read again. Other C libraries have no such call.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)
