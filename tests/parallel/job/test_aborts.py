"""What happens in a process that aborts, after `delay_aborts`."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from resnet_jax.parallel.job.aborts import DELAY_S

ROOT = Path(__file__).parents[3]

# Through ctypes, because a thread of JAX that aborts doesn't hold Python's lock either.
_ABORTS = """
import ctypes, os, sys, threading
from resnet_jax.parallel.job.aborts import delay_aborts
{before}
delay_aborts()
threading.Thread(target=ctypes.CDLL(None).abort).start()
{then}
"""


def _ended(*, before: str = "", then: str) -> subprocess.CompletedProcess:
    script = _ABORTS.format(before=before, then=then)
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


@pytest.mark.parametrize("before", ["", "import faulthandler; faulthandler.enable()"])
def test_another_thread_ends_the_process_with_its_own_exit_code(before):
    """Whether `faulthandler` is enabled, as absl does, or not."""
    then = "threading.Event().wait(1)\nprint('said', flush=True)\nos._exit(71)"
    ended = _ended(before=before, then=then)
    assert (ended.returncode, ended.stdout, ended.stderr) == (71, "said\n", ""), ended


@pytest.mark.thorough
def test_an_abort_that_nobody_else_ends_is_an_abort():
    """After the delay: it isn't lost, and the process doesn't hang."""
    then = f"threading.Event().wait({DELAY_S - 1})\nprint('waits', flush=True)"
    ended = _ended(then=then + "\nthreading.Event().wait()")
    assert (ended.returncode, ended.stdout) == (-signal.SIGABRT, "waits\n"), ended


def test_a_handler_in_python_stays():
    """Then the process aborts without delay."""
    before = "import signal; signal.signal(signal.SIGABRT, lambda *_: None)"
    then = f"threading.Event().wait({DELAY_S / 2})\nprint('waits', flush=True)"
    ended = _ended(before=before, then=then)
    assert (ended.returncode, ended.stdout) == (-signal.SIGABRT, ""), ended
