"""Child processes end with their parent."""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import time

from resnet_jax.utils.subprocess import die_with_parent


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
        assert multiprocessing.connection.wait([child], timeout=20) == [child]
    finally:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(child, signal.SIGKILL)
        os.close(child)
