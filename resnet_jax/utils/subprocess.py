"""Child processes."""

import ctypes
import multiprocessing
import os
import signal

_PR_SET_PDEATHSIG = 1  # of Linux's prctl


def die_with_parent(*_: int) -> None:
    """Let Linux kill this process when its parent ends, for any reason.

    The process ignores Ctrl-C, which a terminal sends to parent and child: the parent handles it.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent and not parent.is_alive():  # it ended while this process was starting
        os.kill(os.getpid(), signal.SIGKILL)
