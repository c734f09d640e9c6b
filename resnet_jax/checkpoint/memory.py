"""Memory of the process that isn't used any more."""

import ctypes


def give_back_freed_memory() -> None:
    """Let the system have what was freed.

    glibc keeps it in pieces: hundreds of MiB after a compilation, and more with each checkpoint
    that is read again. Other C libraries have no such call.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)
