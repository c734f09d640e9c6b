"""Processes of this process."""

import ctypes
import signal

_PR_SET_PDEATHSIG = 1  # of Linux's prctl


def die_with_parent(*_: int) -> None:
    """Let Linux end this process with the one that started it, however that ends.

    A terminal's Ctrl-C goes to all processes; the parent decides what comes of it.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
