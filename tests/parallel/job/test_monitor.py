"""Monitors of several processes in one process; then how real processes end."""

import functools
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import portpicker
import pytest

from resnet_jax.parallel.job.monitor import PeerMonitor

ROOT = Path(__file__).parents[3]


class Job:
    """Process 0 and two others, each with its monitor and the message that ended it."""

    def __init__(self, *, grace_s=0.2):
        pairs = {number: socket.socketpair() for number in (1, 2)}
        self.connections = {0: {n: pair[0] for n, pair in pairs.items()}}
        self.connections |= {n: {0: pair[1]} for n, pair in pairs.items()}
        self.ended = {number: queue.Queue() for number in range(3)}
        others = set(threading.enumerate())
        self.monitors = {
            n: PeerMonitor(n, self.connections[n], functools.partial(self._end, n), grace_s=grace_s)
            for n in range(3)
        }
        self._threads = set(threading.enumerate()) - others

    def fail(self, number, reason):
        """End as a process that can still send its error."""
        self.monitors[number].leave(reason)
        self._hang_up(number)

    def _end(self, number, message):
        self.ended[number].put(message)
        self._hang_up(number)

    def kill(self, number):
        """End as a process that the kernel kills."""
        self.monitors[number]._left.set()  # its thread is dead
        self._hang_up(number)

    def _hang_up(self, number):
        for connection in self.connections[number].values():
            connection.shutdown(socket.SHUT_RDWR)

    def quiet(self, *numbers):
        return all(self.ended[number].empty() for number in numbers)

    def wait(self):
        """Wait until all monitors have ended."""
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()


@pytest.fixture(autouse=True)
def _tcp_options_of_a_socketpair(monkeypatch):
    from resnet_jax.parallel.job import monitor

    monkeypatch.setattr(monitor, "_KEEPALIVE", {})


@pytest.mark.parametrize("victim", [1, 2])
def test_the_death_of_any_ends_all(victim):
    job = Job()
    job.kill(victim)
    for number in {0, 1, 2} - {victim}:
        said = job.ended[number].get(timeout=60)
        assert said == f"Process {victim} has ended: its connection broke."


def test_the_death_of_the_first_ends_all():
    job = Job()
    job.kill(0)
    for number in (1, 2):
        assert "Process 0 has ended" in job.ended[number].get(timeout=60)


def test_a_failure_is_passed_on_with_its_reason_after_a_grace():
    job = Job(grace_s=0.5)
    began = time.monotonic()
    job.fail(2, "the disk is full.")
    for number in (0, 1):
        assert job.ended[number].get(timeout=60) == "Process 2 has ended: the disk is full."
    assert time.monotonic() - began >= 0.5
    assert job.quiet(2)


def test_who_fails_in_time_too_is_left_to_do_so():
    job = Job(grace_s=30.0)
    job.fail(2, "configs differ")
    time.sleep(0.2)
    for number in (0, 1):
        job.fail(number, "configs differ")
    job.wait()
    assert job.quiet(0, 1, 2)


def test_orderly_ends_in_any_order_are_no_loss():
    for order in ((0, 1, 2), (2, 1, 0)):
        job = Job()
        for number in order:
            job.monitors[number].leave(None)
            time.sleep(0.1)
            for connection in job.connections[number].values():
                connection.close()
        job.wait()
        assert job.quiet(0, 1, 2)


def test_of_a_long_reason_the_first_line_arrives():
    job = Job(grace_s=0.1)
    job.fail(1, "out of memory\n" + "ä" * 9000)
    assert job.ended[0].get(timeout=60) == "Process 1 has ended: out of memory."
    job = Job(grace_s=0.1)
    job.fail(1, "ä" * 9000)
    assert job.ended[2].get(timeout=60) == f"Process 1 has ended: {'ä' * 500}."


@pytest.mark.parametrize(
    "said",
    [
        *(b"[]\n", b"\xff\n", b"{}\n", b"x" * 5000, b"[" * 4000 + b"\n"),
        b'{"process": 2, "failure": 3, "lost": false}\n',
        b'{"process": "2", "failure": "x", "lost": false}\n',
        b'{"process": 2, "failure": "x", "lost": "no"}\n',
    ],
)
def test_whatever_a_process_says_the_others_hear_of_it(said):
    """The monitor's thread survives it."""
    job = Job(grace_s=0.1)
    job.connections[2][0].sendall(said)
    reason = "it sent a message that isn't valid"
    for number in (0, 1):
        assert job.ended[number].get(timeout=60) == f"Process 2 has ended: {reason}."


def test_a_reason_is_one_line():
    job = Job(grace_s=0.1)
    line = b'{"process": 2, "failure": "full\\r\\nerror: another\\n", "lost": false}\n'
    job.connections[2][0].sendall(line)
    for number in (0, 1):
        assert job.ended[number].get(timeout=60) == "Process 2 has ended: full error: another."


def test_a_line_may_arrive_in_pieces():
    job = Job(grace_s=0.1)
    for piece in (b'{"process": 2, "fail', b'ure": "no room", "lost": ', b"false}\n"):
        job.connections[2][0].sendall(piece)
        time.sleep(0.1)
    for number in (0, 1):
        assert job.ended[number].get(timeout=60) == "Process 2 has ended: no room."


_MEMBER = """
import itertools, os, signal, sys, time
from resnet_jax.cli.common.exits import end_with, exit_code_of
from resnet_jax.errors import WriteError
from resnet_jax.parallel.job.cluster import Job, connected
from resnet_jax.parallel.job.agreement import all_gather_object
from resnet_jax.parallel.job.monitor import PeerMonitor

number, victim, port = map(int, sys.argv[1:4])

if sys.argv[4] == "dies, and the others are slow":
    lose = PeerMonitor._lose
    PeerMonitor._lose = lambda *args, **kwargs: (time.sleep(2), lose(*args, **kwargs))

def run():
    with connected(Job(f"127.0.0.1:{port}", 3, number), timeout_s=300, end=end_with):
        for turn in itertools.count():
            if turn == 5 and number == victim:
                if sys.argv[4].startswith("dies"):
                    os.kill(os.getpid(), signal.SIGKILL)
                raise WriteError("The disk is full.")
            all_gather_object(turn)

sys.exit(exit_code_of(run))
"""


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("victim", "how"),
    [
        *((0, "fails"), (1, "fails")),
        *((0, "dies"), (1, "dies"), (0, "dies, and the others are slow")),
    ],
)
def test_each_process_ends_with_its_own_exit_code_and_one_line(victim, how):
    """In any order of their ends, JAX must not abort a process.

    If process 0 dies, JAX begins to, and is often faster than the monitor on a slow host.
    """
    port = portpicker.pick_unused_port()
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    job = [
        subprocess.Popen(
            [sys.executable, "-c", _MEMBER, str(number), str(victim), str(port), how],
            cwd=ROOT,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    try:
        errors = [process.communicate(timeout=600)[1] for process in job]
    finally:
        for process in job:
            process.kill()
    reason = "The disk is full." if how == "fails" else "its connection broke."
    for number, (process, text) in enumerate(zip(job, errors, strict=True)):
        said = [line for line in text.splitlines() if line.startswith("error: ")]
        if number != victim:
            assert process.returncode == 71, text
            (line,) = said
            assert line.startswith(f"error: Process {victim} has ended: {reason}")
        elif how == "fails":
            assert (process.returncode, said) == (73, [f"error: {reason}"]), text
        if victim != 0 or how == "fails":
            assert "Check failure" not in text
