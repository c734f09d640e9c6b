"""Child processes end with their parent, and processes know their age."""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import subprocess
import sys
import time

from resnet_jax.utils.subprocess import die_with_parent, process_age_s


def _child(began, may_go_on):
    began.send(os.getpid())
    may_go_on.poll(None)  # as long as its libraries are imported
    die_with_parent()
    time.sleep(600)


def _parent(began, may_go_on):
    multiprocessing.get_context("fork").Process(target=_child, args=(began, may_go_on)).start()
    time.sleep(600)


def test_a_process_whose_parent_ended_while_it_was_starting_ends_too():
    context = multiprocessing.get_context("spawn")
    told, began = context.Pipe(duplex=False)
    may_go_on, go_on = context.Pipe(duplex=False)
    parent = context.Process(target=_parent, args=(began, may_go_on))
    parent.start()
    child = os.pidfd_open(told.recv())
    try:
        parent.kill()
        parent.join()
        go_on.send(True)
        # The descriptor of an ended process is readable.
        assert multiprocessing.connection.wait([child], timeout=60) == [child]
    finally:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(child, signal.SIGKILL)
        os.close(child)


def test_the_age_of_a_process_is_the_time_since_it_was_started():
    code = (
        "import time; from resnet_jax.utils.subprocess import process_age_s;"
        " time.sleep(0.5); print(process_age_s())"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0.45 < float(done.stdout) < time.monotonic() - began + 0.05
    assert process_age_s() > float(done.stdout)
