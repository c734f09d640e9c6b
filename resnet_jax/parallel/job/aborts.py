"""Delays aborts by JAX, so that this process can end with its own exit code instead.

When process 0 is killed, its connections break at the same moment: those that `PeerMonitor`
watches, and the connection to JAX's coordination service. A thread of JAX then aborts this process
by SIGABRT. It needs no lock of Python, so it is sometimes faster than the monitor, above all on a
busy host. JAX has no option against it (tested with jax 0.10.0, 0.10.2, 0.11.2 and 0.12.0.1):
heartbeats are another matter, recoverable tasks are aborted too, and the client's
`missed_heartbeat_callback` can't be a function in Python, because its argument has no Python type.
"""

import ctypes
import signal

DELAY_S = int(signal.SIGABRT)  # 6: a handler gets the number of its signal, here as seconds
"""How long an aborting thread waits; longer than a process takes to end at once."""


def delay_aborts() -> None:
    """Let a thread that aborts this process sleep for `DELAY_S` seconds first.

    The other threads continue. If none of them ends the process in this time, the abort does.
    The handler is the C library's `sleep`, which needs neither Python's lock nor memory, so that
    it is safe after any error. It replaces the handler of `faulthandler`, which absl enables, and
    whose pages of stacks would tear the line that the monitor prints at the same time. A handler
    in Python is left alone.
    """
    if signal.getsignal(signal.SIGABRT) is not signal.SIG_DFL:
        return
    c = ctypes.CDLL(None)
    c.signal.argtypes, c.signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    c.signal(signal.SIGABRT, ctypes.cast(c.sleep, ctypes.c_void_p))
