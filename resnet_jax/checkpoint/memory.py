"""Memory of the process that isn't used any more."""

import ctypes

_M_ARENA_MAX = -8  # of glibc's malloc.h
_ARENAS = 2


def limit_arenas() -> None:
    """Let threads share few of glibc's pools of memory, before there are any.

    Of its default, eight per core, each falls to pieces for itself: a process of dozens of
    threads that saves often grows for hours. Programs call this, not the library.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option:
        set_option(_M_ARENA_MAX, _ARENAS)


def give_back_freed_memory() -> None:
    """Let the system have what was freed.

    glibc keeps it in pieces: hundreds of MiB after a compilation, and more with each checkpoint
    that is read again. Other C libraries have no such call.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)
