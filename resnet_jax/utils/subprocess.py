"""Processes: their age, and children that end with their parent."""

import ctypes
import multiprocessing
import os
import signal
import time
from pathlib import Path

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


def process_age_s() -> float:
    """Return the seconds since this process started; 0 except on Linux."""
    try:
        fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        started_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started_s)
    except (OSError, AttributeError, LookupError, ValueError):
        return 0.0
